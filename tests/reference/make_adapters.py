#!/usr/bin/env python3
"""Makes adapters whose config, tensors and files around them are easy to get wrong, with rewards by PEFT.

    pip install -r tests/reference/requirements.txt && pip install peft==0.21.2
    python tests/reference/make_adapters.py [--out tests/data/adapters]

All are over tests/data/lora/llama/base (a LlamaForCausalLM of make_lora.py):

    patterns     rank_pattern and alpha_pattern that are regular expressions: `.` is any letter, the first that fits counts
    value-head   as LLaMA-Factory saves a reward model with LoRA: the adapter, and TRL's head in value_head.safetensors
    grown        two more tokens than the base, whose embedding PEFT saves because the vocabulary was resized
    saved        two more tokens, the embedding trained as a whole (modules_to_save)
    low-rank     two more tokens, the embedding with an update of its own

    <name>/...               as PEFT saves it
    <name>/golden.json       {"samples": [{"token_ids", "reward"}]}, by the model in memory

It also asserts what peft says to the tables of `src/model/lora/targets.rs`.
"""
import argparse
import json
import os
import pathlib
import shutil
import types

os.environ["HF_HUB_OFFLINE"] = "1"

import peft
import torch
import transformers
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from make_tiny import reward_alone, write_golden

BASE = pathlib.Path(__file__).resolve().parent.parent / "data" / "lora" / "llama" / "base"
PATTERNS = [
    (["q_proj"], "model.layers.0.self_attn.q_proj", 0),
    (["proj"], "model.layers.0.self_attn.q_proj", None),
    (["._proj"], "model.layers.0.self_attn.q_proj", 0),
    (["layers.0.self_attn.._proj"], "model.layers.0.self_attn.v_proj", 0),
    (["layers.1.mlp"], "model.layers.1xmlp", 0),
    (["^model.layers.0.self_attn.q_proj"], "model.layers.0.self_attn.q_proj", 0),
    (["^layers.0.self_attn.q_proj"], "model.layers.0.self_attn.q_proj", None),
    ([r"layers.(0|1).mlp.(?!up)\w+"], "model.layers.1.mlp.down_proj", 0),
    ([r"layers.(0|1).mlp.(?!up)\w+"], "model.layers.1.mlp.up_proj", None),
    ([r"layers.\d+.self_attn.q_proj", "q_proj"], "model.layers.3.self_attn.q_proj", 0),
    (["q_proj", r"layers.\d+.self_attn.q_proj"], "model.layers.3.self_attn.q_proj", 0),
    (["k_proj|q_proj"], "model.layers.3.self_attn.q_proj", 0),
]
LAYER = "model.layers.1.self_attn.q_proj"
TARGETS = [
    (dict(target_modules=["q_proj"]), LAYER, True),
    (dict(target_modules=["proj"]), LAYER, False),
    (dict(target_modules="q_proj"), LAYER, False),
    (dict(target_modules=".*q_proj"), LAYER, True),
    (dict(target_modules="(?!.*mlp).*_proj"), LAYER, True),
    (dict(target_modules=["q_proj"], exclude_modules=["layers.1.self_attn.q_proj"]), LAYER, False),
    (dict(target_modules=["q_proj"], exclude_modules=".*layers.1.*"), LAYER, False),
    (dict(target_modules=["q_proj"], exclude_modules="layers.1.*"), LAYER, True),
    (dict(target_modules=["q_proj"], layers_to_transform=[0, 1]), LAYER, True),
    (dict(target_modules=["q_proj"], layers_to_transform=0), LAYER, False),
    (dict(target_modules=[LAYER], layers_to_transform=0), LAYER, True),
    (dict(target_modules=["q_proj"], layers_to_transform=1, layers_pattern="layers"), LAYER, True),
    (dict(target_modules=["q_proj"], layers_to_transform=1, layers_pattern=["h"]), LAYER, False),
    (dict(target_modules=["q_proj"], layers_to_transform=1), "norm.q_proj", False),
    (dict(target_modules=["dense"], modules_to_save=["classifier"]), "classifier.dense", False),
    (dict(target_modules=["dense"], modules_to_save=["classifier"]), "bert.pooler.dense", True),
]


def ask_peft():
    for patterns, layer, expected in PATTERNS:
        found = get_pattern_key(patterns, layer)
        assert found == (layer if expected is None else patterns[expected]), (patterns, layer, found)
    for config, layer, expected in TARGETS:
        given = dict(target_modules=None, exclude_modules=None, modules_to_save=None, layers_to_transform=None, layers_pattern=None, target_parameters=None)
        found = check_target_module_exists(types.SimpleNamespace(**given | config), layer)
        assert bool(found) == expected, (config, layer, found)


def shake(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for name, weight in sorted(model.named_parameters()):
        if weight.requires_grad:
            weight.data = 0.3 * torch.randn(weight.shape, generator=generator)
    return model.eval()


def samples(vocab, new):
    generator = torch.Generator().manual_seed(70)
    made = [torch.randint(6, vocab, (length,), generator=generator).tolist() for length in (1, 5, 17)]
    return [{"token_ids": ids + new} for ids in made]


def finish(path, model, rewards, tokenizer=None):
    model.save_pretrained(path)
    (path / "README.md").unlink(missing_ok=True)
    config = json.loads((path / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "base"
    config["target_modules"] = sorted(config["target_modules"])
    (path / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")  # the order of patterns counts
    if tokenizer:
        tokenizer.save_pretrained(path)
    made_with = {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__, "peft": peft.__version__}
    write_golden(path / "golden.json", {"made_with": made_with, "samples": rewards})
    print(path.name, [round(sample["reward"], 4) for sample in rewards], sorted(file.name for file in path.iterdir()))


def classifier(path, seed, new_tokens=(), **options):
    model = AutoModelForSequenceClassification.from_pretrained(BASE, num_labels=1, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(BASE) if new_tokens else None
    new = []
    if new_tokens:
        tokenizer.add_tokens(list(new_tokens))
        new = tokenizer.convert_tokens_to_ids(list(new_tokens))
        torch.manual_seed(seed)
        model.resize_token_embeddings(len(tokenizer))
    vocab = model.config.vocab_size - len(new)
    model = shake(get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=8, **options)), seed)
    made = samples(vocab, new)
    for sample in made:
        sample["reward"] = reward_alone(model, sample)
    finish(path, model, made, tokenizer)


def value_head(path):
    """LLaMA-Factory 0.9.5, `fix_valuehead_checkpoint`: PEFT's files, and `v_head.*` beside; the reward is the last token's."""
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    model = shake(get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])), 82)
    generator = torch.Generator().manual_seed(83)
    head = {"v_head.summary.weight": torch.randn(1, 16, generator=generator), "v_head.summary.bias": torch.randn(1, generator=generator)}
    made = samples(300, [])
    with torch.no_grad():
        for sample in made:
            hidden = model(input_ids=torch.tensor([sample["token_ids"]]), output_hidden_states=True).hidden_states[-1][0, -1]
            sample["reward"] = float(hidden @ head["v_head.summary.weight"][0] + head["v_head.summary.bias"][0])
    finish(path, model, made)
    save_file(head, path / "value_head.safetensors", metadata={"format": "pt"})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=BASE.parent.parent.parent / "adapters")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    ask_peft()
    shutil.rmtree(out, ignore_errors=True)
    # in the order of the alphabet: peft writes them so, and a model whose patterns overlap in another order loads as another
    classifier(out / "patterns", 81, target_modules=["q_proj", "k_proj", "down_proj"], rank_pattern={r"layers\.0\.mlp.+": 2, "mlp.down_proj": 3},
               alpha_pattern={"layers.0.self_attn.._proj": 50, "q_proj": 20, "self_attn.(?!q).+": 3})
    value_head(out / "value-head")
    classifier(out / "grown", 84, new_tokens=["<one>", "<two>"], target_modules=["q_proj"])
    classifier(out / "saved", 85, new_tokens=["<one>", "<two>"], target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    classifier(out / "low-rank", 86, new_tokens=["<one>", "<two>"], target_modules=["q_proj", "embed_tokens"])


if __name__ == "__main__":
    main()
