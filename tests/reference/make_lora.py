#!/usr/bin/env python3
"""Makes small LoRA adapters under tests/data/lora with PEFT, with golden rewards by PEFT and an exact merge by numpy.

    pip install -r tests/reference/requirements.txt && pip install --no-deps peft==0.21.2 accelerate==1.15.0 psutil
    python tests/reference/make_lora.py [--out tests/data/lora]

    llama   base: LlamaForCausalLM in f32, without a reward head; the adapters bring `score`
            adapter-0: r 4, alpha 8, on q_proj and v_proj
            adapter-1: rslora, rank_pattern, alpha_pattern (by name and with ^), on q_proj, down_proj and the embedding,
            which PEFT then also saves as a whole
    bert    base: BertModel in f16, whose names lack `bert.`; the adapters bring `classifier`
            adapter-0: r 3, on query and dense; bias "all", with which PEFT also saves a tensor twice
            adapter-1: r 2, alpha 5, on value, fan_in_fan_out set in the file (peft ignores it for linear layers)

    <family>/base, <family>/adapter-{0,1}         as transformers and PEFT save them
    <family>/expected.safetensors                 f32: the equal average of base + scale · B·A
    <family>/golden.json                          {"made_with", "samples": [{"token_ids", "adapter_rewards", "merged"}]}

The rule of the exact merge, all float64: `update = 0.0; for k in range(r): update += B[:, k] * A[k, :]`, then
`weight = base + scale * update`; `0.5 * weight_0 + 0.5 * weight_1`, and one rounding. The rewards are PEFT's: adapters on
the base, and again after `merge_and_unload`, which must agree.
"""
import argparse
import copy
import json
import pathlib
import shutil

import numpy
import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from make_tiny import llama_tokenizer, bert_tokenizer, randomise, reward_alone, rope, write_golden

PEFT_ATOL = 2e-6  # PEFT beside the base against PEFT merged into it, both f32


def make_adapter(base, path, seed, **options):
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", **options))
    generator = torch.Generator().manual_seed(seed)
    for name, weight in sorted(model.named_parameters()):
        if weight.requires_grad:
            weight.data = 0.3 * torch.randn(weight.shape, generator=generator)
    model.save_pretrained(path)
    (path / "README.md").unlink(missing_ok=True)
    config = json.loads((path / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "base"  # where it was made says nothing
    config["target_modules"] = sorted(config["target_modules"])
    (path / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def with_adapter(base, adapter):
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32, attn_implementation="eager")
    return PeftModel.from_pretrained(model, adapter).eval()


def exact(base, adapter, prefix, scales):
    """The adapter merged into the base, in float64, by the names of the reward model."""
    weights = {prefix + name: tensor.to(torch.float64).numpy() for name, tensor in load_file(base / "model.safetensors").items()}
    weights.pop("lm_head.weight", None)
    stored = {name.removeprefix("base_model.model."): tensor.to(torch.float64).numpy()
              for name, tensor in load_file(adapter / "adapter_model.safetensors").items()}
    for name in [name for name in stored if not any(part in name for part in (".lora_", "modules_to_save", "original_module"))]:
        weights[name.replace(".base_layer", "")] = stored[name]
    for name in [name for name in stored if ".lora_A" in name or ".lora_embedding_A" in name]:
        layer = name.split(".lora_")[0]
        a, b = stored[name], stored[name.replace("_A", "_B")]
        if ".lora_embedding_A" in name:
            a, b = b.T, a.T
        update = numpy.zeros((b.shape[0], a.shape[1]))
        for k in range(a.shape[0]):
            update += b[:, k : k + 1] * a[k : k + 1, :]
        weights[layer + ".weight"] = weights[layer + ".weight"] + scales(layer, a.shape[0]) * update
    return weights


def finish(path, prefix, scales, vocab):
    weights = [exact(path / "base", path / f"adapter-{i}", prefix, scales[i]) for i in range(2)]
    assert sorted(weights[0]) == sorted(weights[1])
    merged = {name: torch.tensor((0.5 * weights[0][name] + 0.5 * weights[1][name]).astype(numpy.float32)) for name in weights[0]}
    save_file(merged, path / "expected.safetensors", metadata={"format": "pt"})
    models = [with_adapter(path / "base", path / f"adapter-{i}") for i in range(2)]
    unloaded = [copy.deepcopy(model).merge_and_unload() for model in models]
    for i in range(2):  # our arithmetic is peft's
        for name, weight in unloaded[i].state_dict().items():
            if name in weights[i]:
                assert numpy.abs(weight.numpy() - weights[i][name]).max() < 1e-5, name
    warm = copy.deepcopy(unloaded[0])
    warm.load_state_dict(merged, strict=False)
    samples = []
    generator = torch.Generator().manual_seed(90)
    for length in (1, 4, 9, 20, 40):
        sample = {"token_ids": torch.randint(6, vocab, (length,), generator=generator).tolist()}
        sample["adapter_rewards"] = [reward_alone(model, sample) for model in models]
        for model, reward in zip(unloaded, sample["adapter_rewards"], strict=True):
            assert abs(reward_alone(model, sample) - reward) < PEFT_ATOL * max(1, abs(reward)), (reward_alone(model, sample), reward)
        sample["merged"] = reward_alone(warm, sample)
        samples.append(sample)
    # the trap: averaging the factors instead of the products gives another model, by far
    print(path.name, [[round(r, 3) for r in [*s["adapter_rewards"], s["merged"]]] for s in samples])
    assert all(abs(s["adapter_rewards"][0] - s["adapter_rewards"][1]) > 1e-3 for s in samples)
    made_with = {"numpy": numpy.__version__, "torch": torch.__version__.split("+")[0], "transformers": transformers.__version__, "peft": peft.__version__}
    write_golden(path / "golden.json", {"made_with": made_with, "samples": samples})


def llama(path):
    tokenizer = llama_tokenizer()
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
                         num_key_value_heads=1, max_position_embeddings=64, pad_token_id=tokenizer.pad_token_id, rope_parameters=rope())
    randomise(LlamaForCausalLM(config), seed=91).save_pretrained(path / "base")
    (path / "base" / "generation_config.json").unlink(missing_ok=True)
    tokenizer.save_pretrained(path / "base", save_jinja_files=False)
    make_adapter(path / "base", path / "adapter-0", 92, r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    make_adapter(path / "base", path / "adapter-1", 93, r=2, lora_alpha=3, use_rslora=True, target_modules=["q_proj", "down_proj", "embed_tokens"],
                 rank_pattern={"down_proj": 3}, alpha_pattern={"^model.layers.0.self_attn.q_proj": 5, "layers.1.mlp.down_proj": 1.5})

    def special(layer, rank):
        alpha = {"model.layers.0.self_attn.q_proj": 5, "model.layers.1.mlp.down_proj": 1.5}.get(layer, 3)
        assert rank == (3 if layer.endswith("down_proj") else 2)
        return alpha / numpy.sqrt(numpy.float64(rank))

    finish(path, "", [lambda _, rank: 8 / rank, special], len(tokenizer))


def bert(path):
    tokenizer = bert_tokenizer()
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=64)
    randomise(BertModel(config), seed=94).to(torch.float16).save_pretrained(path / "base")
    tokenizer.save_pretrained(path / "base")
    make_adapter(path / "base", path / "adapter-0", 95, r=3, lora_alpha=6, target_modules=["query", "dense"], bias="all")
    make_adapter(path / "base", path / "adapter-1", 96, r=2, lora_alpha=5, target_modules=["value"])
    file = path / "adapter-1" / "adapter_config.json"
    file.write_text(file.read_text().replace('"fan_in_fan_out": false', '"fan_in_fan_out": true'))
    finish(path, "bert.", [lambda _, rank: 6 / rank, lambda _, rank: 5 / rank], len(tokenizer))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parent.parent / "data" / "lora")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    shutil.rmtree(out, ignore_errors=True)
    llama(out / "llama")
    bert(out / "bert")


if __name__ == "__main__":
    main()
