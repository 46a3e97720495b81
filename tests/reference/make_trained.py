#!/usr/bin/env python3
"""Trains tiny reward models with real trainers, and keeps what they save with the rewards that they had in training.

    pip install -r tests/reference/requirements.txt && pip install trl==1.16.0 peft==0.21.2
    python tests/reference/make_trained.py [--out tests/data/trained]

    trl-conversations   TRL's RewardTrainer with LoRA, pairs of messages; neither the base's config nor its tokenizer has a
                        pad token, so TRL takes the eos, with which the chat template ends: the token before is pooled
    trl-strings         the same with pairs of strings and no chat template; the tokenizer has a pad token of its own, the
                        base's config none: TRL appends the eos, which is pooled
    trl-full            the same without LoRA
    openrlhf            what OpenRLHF 0.11.2's RewardDataset makes of a conversation, read by its RewardModel

    <name>/base, <name>/model   as they are saved; without `optimizer.pt` and the like, and `model` is an adapter or whole
    <name>/golden.json          {"samples": [{"prompt", "response", "token_ids", "reward", "otherwise"}]}

`reward` is that of the model that was trained, in memory, on the tokens that the trainer made; `otherwise` is that of the
saved files as peft or transformers loads them, on the tokens of the template or of the joined text. They differ.
"""
import argparse
import json
import os
import pathlib
import shutil
import tempfile

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import torch
import transformers
import trl
import peft
from datasets import Dataset
from peft import LoraConfig, PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from trl import RewardConfig, RewardTrainer

from make_tiny import CHAT_TEMPLATE, OpenRlhfRewardModel, PAIRS, all_weights, llama_tokenizer, randomise, reward_alone, rope, write_golden

KEPT = ["README.md", "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "config.json", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json", "training_args.bin"]
SIZES = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
             max_position_embeddings=128, rope_parameters=rope())


def make_base(path, seed, pad, template, eos="<|end_of_text|>"):
    tokenizer = llama_tokenizer()
    tokenizer.eos_token = eos
    if not pad:
        tokenizer.pad_token = None
    if not template:
        tokenizer.chat_template = None
    config = LlamaConfig(vocab_size=len(tokenizer), bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=None, **SIZES)
    randomise(LlamaForCausalLM(config), seed).save_pretrained(path)
    tokenizer.save_pretrained(path)
    (path / "generation_config.json").unlink(missing_ok=True)
    return tokenizer


def trl_trained(path, seed, conversations, lora, **base):
    work = pathlib.Path(tempfile.mkdtemp())
    make_base(work / "base", seed, **base)
    turn = lambda role, text: [{"role": role, "content": text}]
    rows = [{"prompt": turn("user", prompt), "chosen": turn("assistant", response), "rejected": turn("assistant", "No.")} if conversations
            else {"prompt": prompt, "chosen": response, "rejected": "No."} for prompt, response in PAIRS]
    here = os.getcwd()
    os.chdir(work)  # what is saved tells no path of this machine
    try:
        args = RewardConfig(output_dir="out", max_steps=2, per_device_train_batch_size=2, report_to=[], use_cpu=True, learning_rate=0.05,
                            save_strategy="no", disable_tqdm=True, bf16=False, gradient_checkpointing=False)
        config = LoraConfig(task_type="SEQ_CLS", r=2, lora_alpha=8, target_modules=["q_proj", "v_proj"], modules_to_save=["score"])
        trainer = RewardTrainer(model="base", args=args, train_dataset=Dataset.from_list(rows), peft_config=config if lora else None)
        tokens = [example["chosen_ids"] for example in trainer.train_dataset]
        trainer.train()
        trainer.save_model("model")
        model = trainer.model.eval()
        tokenizer = AutoTokenizer.from_pretrained("model")
        if lora:
            loaded = AutoModelForSequenceClassification.from_pretrained("base", num_labels=1)
            loaded = PeftModel.from_pretrained(loaded, "model").eval()
        else:
            loaded = AutoModelForSequenceClassification.from_pretrained("model").eval()
    finally:
        os.chdir(here)
    samples = []
    for (prompt, response), ids in zip(PAIRS, tokens, strict=True):
        if conversations:
            plain = tokenizer.apply_chat_template(turn("user", prompt) + turn("assistant", response), tokenize=True, return_dict=True)["input_ids"]
        else:
            plain = tokenizer(prompt + response)["input_ids"]
        samples.append({"prompt": prompt, "response": response, "token_ids": ids, "reward": reward_alone(model, {"token_ids": ids}),
                        "otherwise": reward_alone(loaded, {"token_ids": plain})})
    (path / "model").mkdir(parents=True)
    for name in KEPT:
        if (work / "model" / name).exists():
            shutil.copy(work / "model" / name, path / "model" / name)
    if lora:
        config = json.loads((path / "model" / "adapter_config.json").read_text())
        config["target_modules"] = sorted(config["target_modules"])
        (path / "model" / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        shutil.copytree(work / "base", path / "base")
    finish(path, samples)


def finish(path, samples):
    assert all(abs(sample["reward"] - sample["otherwise"]) > 1e-3 for sample in samples), samples
    made_with = {library.__name__: library.__version__.split("+")[0] for library in (torch, transformers, peft, trl)}
    write_golden(path / "golden.json", {"made_with": made_with, "samples": samples})
    print(path.name, [(round(s["reward"], 4), round(s["otherwise"], 4)) for s in samples])


def openrlhf(path):
    """`RewardDataset.__getitem__`: line feeds off, a blank and the eos unless it is there, no special tokens, the last is the eos."""
    tokenizer = llama_tokenizer()  # its template ends with <|eot_id|>; one that ends with line feeds here
    tokenizer.chat_template = CHAT_TEMPLATE.replace("'<|eot_id|>'", "'<|eot_id|>\n'")
    config = LlamaConfig(vocab_size=len(tokenizer), bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
                         pad_token_id=tokenizer.pad_token_id, **SIZES)
    model = randomise(AutoModelForSequenceClassification.from_config(config, torch_dtype=torch.float32), 33)
    (path / "model").mkdir(parents=True)
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "score.weight"}
    weights["value_head.weight"] = torch.randn(1, config.hidden_size, generator=torch.Generator().manual_seed(34))
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path / "model" / "model.safetensors", metadata={"format": "pt"})
    config.update(dict(architectures=["RewardModel"], value_head_prefix="value_head", normalize_reward=True, mean=0.4, std=1.5))
    config.save_pretrained(path / "model")
    tokenizer.save_pretrained(path / "model")
    reward_model = OpenRlhfRewardModel(config, all_weights(path / "model"))
    samples = []
    for prompt, response in PAIRS:
        rendered = tokenizer.apply_chat_template([{"role": "user", "content": prompt}, {"role": "assistant", "content": response}], tokenize=False)
        text = rendered.rstrip("\n")
        if not text.endswith(tokenizer.eos_token):
            text += " " + tokenizer.eos_token
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids[-1] == tokenizer.eos_token_id
        plain = tokenizer(rendered, add_special_tokens=False)["input_ids"]
        samples.append({"prompt": prompt, "response": response, "token_ids": ids, "reward": reward_alone(reward_model, {"token_ids": ids}),
                        "otherwise": reward_alone(reward_model, {"token_ids": plain})})
    finish(path, samples)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parent.parent / "data" / "trained")
    out = parser.parse_args().out.resolve()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    shutil.rmtree(out, ignore_errors=True)
    trl_trained(out / "trl-conversations", 31, conversations=True, lora=True, pad=False, template=True, eos="<|eot_id|>")
    trl_trained(out / "trl-strings", 32, conversations=False, lora=True, pad=True, template=False)
    trl_trained(out / "trl-full", 32, conversations=False, lora=False, pad=True, template=False)
    openrlhf(out / "openrlhf")


if __name__ == "__main__":
    main()
