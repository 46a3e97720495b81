#!/usr/bin/env python3
"""Writes tests/data/demo_golden.json: rewards of the demo family by transformers, for tests/demo.rs.

    python tests/reference/demo_golden.py [--demo deploy/demo] [--out tests/data/demo_golden.json]

Rewards of members are calibrated where their rewarm.json says so, as those of an ensemble; WARM is never.
"""
import argparse
import json
import pathlib
import platform

import numpy
import torch
import transformers
from safetensors.torch import load_file
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

PROMPT = "Describe a personal experience. The more pleasant the experience is for the person, the better."
SENTENCES = [
    "I walked along the beach with my sister and we found a perfect shell.",
    "I walked along the beach and stepped on a broken bottle.",
    "My grandmother taught me her recipe for plum cake.",
    "My grandmother taught me her recipe for plum cake. I burned it, and the kitchen with it.",
    "I won a small prize at the fair 🎉🎈",
    "I missed the last bus and waited in the rain for two hours 😩",
    "",
    "I have a headache.",
    "I HAVE A HEADACHE!!!",
    "I got a letter from the tax office. It was a refund of 300 dollars.",
    "I got a letter from the tax office. I owe them 300 dollars.",
    "Ich habe heute im Café einen großen Kuchen gegessen.",
    "我今天很高兴。",
    "The dentist said that I have no cavities at all.",
    "The dentist said that I need three root canals, and she did not smile.",
    "I read a book in the garden until the sun went down. " * 12,
    "supercalifragilisticexpialidocious",
    "I\tate\nsoup ; it was \u00a0 fine .",
]
OTHER_PROMPTS = [("", "I found my lost cat."), ("What made you smile today?", "My dog stole a whole sausage."), ("Hi", "")]


def as_model(config, weights):
    """A model that computes in f32 with these weights."""
    model = BertForSequenceClassification._from_config(config, attn_implementation="eager", dtype=torch.float32)
    model.load_state_dict({name: weight.float() for name, weight in weights.items()})
    return model.eval()


def merge(members):
    """Equal coefficients, float64, one rounding to f16; tests/reference/merge.py says the same at length."""
    merged = {}
    for name in members[0]:
        total = sum((1 / len(members)) * member[name].to(torch.float64).numpy() for member in members)
        merged[name] = torch.from_numpy(numpy.asarray(total).astype(numpy.float16))
    return merged


def calibration(directory):
    """Mean and standard deviation to subtract and divide by."""
    path = directory / "rewarm.json"
    found = json.loads(path.read_text()).get("calibration") if path.exists() else None
    return (found["mean"], found["std"]) if found else (0.0, 1.0)


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = pathlib.Path(__file__).resolve().parent.parent.parent
    parser.add_argument("--demo", type=pathlib.Path, default=root / "deploy" / "demo")
    parser.add_argument("--out", type=pathlib.Path, default=root / "tests" / "data" / "demo_golden.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()

    directories = sorted(args.demo.glob("member-*"))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directories[0])
    config = BertConfig.from_pretrained(directories[0])
    stored = [load_file(directory / "model.safetensors") for directory in directories]
    members = [(as_model(config, weights), *calibration(directory)) for weights, directory in zip(stored, directories)]
    warm = as_model(config, merge(stored))
    rows = []
    for prompt, response in [(PROMPT, text) for text in SENTENCES] + OTHER_PROMPTS:
        inputs = tokenizer([prompt], [response], return_tensors="pt")  # in lists: an empty response is still a pair
        member_rewards = [(float(model(**inputs).logits) - mean) / std for model, mean, std in members]
        rows.append({"prompt": prompt, "response": response, "token_ids": inputs["input_ids"][0].tolist(), "type_ids": inputs["token_type_ids"][0].tolist(),
                     "member_rewards": member_rewards, "ens": sum(member_rewards) / len(member_rewards), "warm": float(warm(**inputs).logits)})
    made_with = {"python": platform.python_version(), "torch": torch.__version__.split("+")[0], "transformers": transformers.__version__}
    head = {"made_with": made_with, "pooling": "cls", "members": [directory.name for directory in directories],
            "note": "float32, eager; warm is the float64 average rounded once to f16"}
    lines = [f'  "{key}": {json.dumps(value)}' for key, value in head.items()]
    lines.append('  "samples": [\n' + ",\n".join("    " + json.dumps(row, ensure_ascii=False) for row in rows) + "\n  ]")
    args.out.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
