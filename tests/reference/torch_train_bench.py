#!/usr/bin/env python3
"""Lets torch and `rewarm train` take turns on the same fine-tuning, by hand: not part of CI.

    python tests/reference/torch_train_bench.py --checkpoint DIR --pairs PAIRS.jsonl --rewarm 'COMMAND' [--rounds 3]
        [--steps 10] [--batch-pairs 32] [--threads N] [--json FILE]

COMMAND runs the same steps (pairs in the order of the file, --batch-pairs in each, AdamW, dropout 0.1, clipping at 1) and prints
a line for each step that ends in `total SECONDS`. The first step of a turn is a warm-up on both sides. torch pads each
batch to its longest sequence, as the trainers built on it do; tokenizing is not timed. Prints the median seconds of a step of
each, and their ratio; beside wall time torch's line has padded and real tokens.
"""
import argparse
import json
import re
import statistics
import subprocess
import sys


def torch_steps(args):
    import time

    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    if args.threads:
        torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.checkpoint)
    dropout = dict(hidden_dropout_prob=args.dropout, attention_probs_dropout_prob=0.0)
    model = AutoModelForSequenceClassification.from_pretrained(args.checkpoint, num_labels=1, dtype=torch.float32, **dropout).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=0.01)
    with open(args.pairs) as file:
        pairs = [json.loads(line) for _, line in zip(range(args.steps * args.batch_pairs), file)]
    encoded = [[tokenizer(pair["prompt"], pair[side]) for side in ("chosen", "rejected")] for pair in pairs]
    for first in range(0, len(encoded), args.batch_pairs):
        begun = time.perf_counter()
        chosen, rejected = zip(*encoded[first:first + args.batch_pairs])
        batch = tokenizer.pad(list(chosen + rejected), return_tensors="pt")
        chosen, rejected = model(**batch).logits[:, 0].chunk(2)
        loss = torch.nn.functional.softplus(rejected - chosen).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        tokens = f"padded {batch['input_ids'].numel()} tokens {int(batch['attention_mask'].sum())}"
        print(f"loss {loss.item():.5f} {tokens} total {time.perf_counter() - begun:.4f}", flush=True)


def turn(command):
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, shell=isinstance(command, str)).stdout
    seconds = [float(match) for match in re.findall(r"total (\d+\.\d+)", out)]
    if len(seconds) < 2:
        sys.exit(f"no steps in the output of {command}:\n{out}")
    return seconds[1:]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--pairs", required=True)
    parser.add_argument("--rewarm")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch-pairs", type=int, default=32)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--json")
    parser.add_argument("--torch", action="store_true", help=argparse.SUPPRESS)  # this script's own turn
    args = parser.parse_args()
    if args.torch:
        return torch_steps(args)
    if not args.rewarm:
        parser.error("--rewarm is needed")
    ours, torchs = [], []
    for _ in range(args.rounds):
        ours += turn(args.rewarm)
        torchs += turn([sys.executable, *sys.argv, "--torch"])
    result = {"rewarm_seconds": statistics.median(ours), "torch_seconds": statistics.median(torchs), "steps": [len(ours), len(torchs)]}
    result["torch_over_rewarm"] = result["torch_seconds"] / result["rewarm_seconds"]
    print(json.dumps(result, indent=1))
    if args.json:
        with open(args.json, "w") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
