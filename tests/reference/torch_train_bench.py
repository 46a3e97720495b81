#!/usr/bin/env python3
"""Lets torch and `rewarm train` take turns on the same fine-tuning, by hand: not part of CI.

    python tests/reference/torch_train_bench.py --rewarm target/release/rewarm --base DIR --pairs PAIRS.jsonl
        [--rounds 3] [--steps 10] [--batch-pairs 32] [--micro-batch-tokens N] [--frozen-layers N] [--json FILE]

Both fine-tune the whole model (or all but the first layers and the embeddings) for one epoch over the same pairs: f32, the same
size of batch, AdamW, dropout 0.1, clipping at 1. torch pads each batch to its longest sequence, as the trainers built on it
do; `rewarm` packs. Tokenizing and loading are not timed, and the first step of a turn is a warm-up on both sides. Prints
the median seconds of a step of each, the ratio of the turns' totals, and the tokens that torch computes for each real one.
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time


def torch_turn(args):
    """Seconds of each step, and padded and real tokens."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    if args.threads:
        torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.base)
    dropout = dict(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.0)
    model = AutoModelForSequenceClassification.from_pretrained(args.base, num_labels=1, dtype=torch.float32, **dropout).train()
    if args.frozen_layers:
        for frozen in [model.base_model.embeddings, *model.base_model.encoder.layer[:args.frozen_layers]]:
            frozen.requires_grad_(False)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=args.learning_rate, weight_decay=0.01)
    with open(args.pairs) as file:
        pairs = [json.loads(line) for line in file]
    encoded = [[tokenizer(pair["prompt"], pair[side]) for side in ("chosen", "rejected")] for pair in pairs]
    seconds, padded, real = [], 0, 0
    for first in range(0, len(encoded), args.batch_pairs):
        begun = time.perf_counter()
        chosen, rejected = zip(*encoded[first:first + args.batch_pairs])
        batch = tokenizer.pad(list(chosen + rejected), return_tensors="pt")
        chosen, rejected = model(**batch).logits[:, 0].chunk(2)
        loss = torch.nn.functional.softplus(rejected - chosen).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        loss.item()
        seconds.append(time.perf_counter() - begun)
        padded += batch["input_ids"].numel()
        real += int(batch["attention_mask"].sum())
    json.dump({"seconds": seconds, "padded": padded, "real": real}, sys.stdout)


def rewarm_turn(args):
    with tempfile.TemporaryDirectory() as folder:
        config = pathlib.Path(folder) / "train.toml"
        config.write_text(
            f"batch_pairs = {args.batch_pairs}\nfrozen_layers = {args.frozen_layers}\nvalidation_fraction = 0\n"
            + (f"micro_batch_tokens = {args.micro_batch_tokens}\n" if args.micro_batch_tokens else "")
            + "[probe]\nenabled = false\n")
        subprocess.run(
            [args.rewarm, "train", "--config", config, "--base", args.base, "--pairs", args.pairs, "--output", f"{folder}/family",
             "--num-members", "1", "--epochs", "1", "--learning-rate", str(args.learning_rate), "--dropout", "0.1"],
            check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        lines = map(json.loads, (pathlib.Path(folder) / "family/logs/member-0.jsonl").read_text().splitlines())
        steps = [line for line in lines if line["kind"] == "training"]
        return {"seconds": [step["seconds"] for step in steps], "real": sum(step["tokens"] for step in steps)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rewarm")
    parser.add_argument("--base", required=True)
    parser.add_argument("--pairs", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch-pairs", type=int, default=32)
    parser.add_argument("--micro-batch-tokens", type=int, default=0)
    parser.add_argument("--frozen-layers", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="of torch; rewarm takes RAYON_NUM_THREADS")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--json")
    parser.add_argument("--torch", action="store_true", help=argparse.SUPPRESS)  # this script's own turn
    args = parser.parse_args()
    if args.torch:
        return torch_turn(args)
    if not args.rewarm:
        parser.error("--rewarm is needed")
    with tempfile.TemporaryDirectory() as folder:
        pairs = pathlib.Path(folder) / "pairs.jsonl"
        with open(args.pairs) as file:
            pairs.write_text("".join(line for line, _ in zip(file, range(args.steps * args.batch_pairs))))
        args.pairs = str(pairs)
        turn = [sys.executable, __file__, "--torch", "--base", args.base, "--pairs", args.pairs, "--batch-pairs", str(args.batch_pairs),
                "--frozen-layers", str(args.frozen_layers), "--threads", str(args.threads), "--learning-rate", str(args.learning_rate)]
        rounds = []
        for _ in range(args.rounds):
            ours = rewarm_turn(args)
            torchs = json.loads(subprocess.run(turn, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout)
            assert ours["real"] == torchs["real"], "the two must compute the same tokens"
            rounds.append((ours["seconds"][1:], torchs["seconds"][1:], torchs["padded"] / torchs["real"]))
            print(f"rewarm {sum(rounds[-1][0]):.2f} s, torch {sum(rounds[-1][1]):.2f} s", file=sys.stderr)
    ratios = [sum(torchs) / sum(ours) for ours, torchs, _ in rounds]
    result = {
        "rewarm_step_seconds": statistics.median(second for ours, _, _ in rounds for second in ours),
        "torch_step_seconds": statistics.median(second for _, torchs, _ in rounds for second in torchs),
        "torch_over_rewarm": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        "padded_over_real": rounds[0][2],
    }
    print(json.dumps(result, indent=1))
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
