#!/usr/bin/env python3
"""Time and memory of `rewarm merge` beside mergekit's linear merge, in turn, on the same random Llama-shaped members.

    python tests/reference/merge_bench.py target/release/rewarm PATH/TO/mergekit-yaml --folder SCRATCH [--members 4] [--rounds 3]

Members have 289 million weights, 580 MB in bf16. Each program is its own process; its peak memory is the operating
system's figure (maximum resident set size). Files are in the page cache: all were just written or read. What each wrote
is deleted before the next run, and the members at the end.
"""
import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess

import torch
from safetensors.torch import load_file, save_file

HIDDEN, INTERMEDIATE, LAYERS, VOCAB, HEADS = 1024, 2816, 20, 32_000, 16


def make_member(path, seed, dtype):
    shapes = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,), "score.weight": (1, HIDDEN)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        for name in "qkvo":
            shapes[f"{prefix}self_attn.{name}_proj.weight"] = (HIDDEN, HIDDEN)
        for name, shape in (("gate", (INTERMEDIATE, HIDDEN)), ("up", (INTERMEDIATE, HIDDEN)), ("down", (HIDDEN, INTERMEDIATE))):
            shapes[f"{prefix}mlp.{name}_proj.weight"] = shape
        shapes[f"{prefix}input_layernorm.weight"] = shapes[f"{prefix}post_attention_layernorm.weight"] = (HIDDEN,)
    start, noise = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        weight = torch.randn(shape, generator=start) * 0.02
        weights[name] = (weight + 0.001 * torch.randn(shape, generator=noise)).to(dtype)
    path.mkdir(parents=True)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    config = {"architectures": ["LlamaForSequenceClassification"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE,
              "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "vocab_size": VOCAB, "rms_norm_eps": 1e-5,
              "max_position_embeddings": 2048, "pad_token_id": 0, "id2label": {"0": "LABEL_0"}, "dtype": str(dtype).removeprefix("torch.")}
    (path / "config.json").write_text(json.dumps(config))
    words = {"model": {"type": "WordLevel", "vocab": {f"w{i}": i for i in range(VOCAB)}, "unk_token": "w0"}, "added_tokens": []}
    (path / "tokenizer.json").write_text(json.dumps({"version": "1.0", **words}))


def run(command):
    """Seconds of wall clock, seconds of CPU, peak megabytes."""
    # by GNU time: a child of this process would begin with this process's own peak memory
    ran = subprocess.run(["/usr/bin/time", "-f", "%e %U %S %M", *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    wall, user, system, kilobytes = map(float, ran.stderr.strip().splitlines()[-1].split())
    return wall, user + system, kilobytes / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rewarm", type=pathlib.Path)
    parser.add_argument("mergekit", type=pathlib.Path)
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16")
    args = parser.parse_args()
    folder = args.folder / "merge-bench"
    members = [folder / f"member-{index}" for index in range(args.members)]
    for index, member in enumerate(members):
        if not member.exists():
            make_member(member, index + 1, getattr(torch, args.dtype))
    size = (members[0] / "model.safetensors").stat().st_size
    print(f"{args.members} members of {size / 1e6:.0f} MB in {args.dtype}, {os.cpu_count()} CPUs")
    config = folder / "mergekit.yml"
    models = [{"model": str(member), "parameters": {"weight": 1.0}} for member in members]
    config.write_text(json.dumps({"merge_method": "linear", "models": models, "dtype": args.dtype}))
    ours, theirs = folder / "ours", folder / "theirs"
    commands = {"rewarm": [args.rewarm.resolve(), "merge", *members, "--output", ours], "mergekit": [args.mergekit, config, theirs]}
    figures = {name: [] for name in commands}
    for _ in range(args.rounds):
        for name, command in commands.items():
            for output in (ours, theirs):
                shutil.rmtree(output, ignore_errors=True)
            figures[name].append(run(command))
    for name, runs in figures.items():
        wall, cpu, memory = (statistics.median(run[i] for run in runs) for i in range(3))
        print(f"{name:9} {wall:6.2f} s  ({min(r[0] for r in runs):.2f} to {max(r[0] for r in runs):.2f})  CPU {cpu:6.2f} s  peak memory {memory:6.0f} MB")
    run(commands["rewarm"])
    a, b = load_file(ours / "model.safetensors"), {}
    for file in theirs.glob("*.safetensors"):
        b |= load_file(file)
    different = sum(int((a[name] != b[name]).sum()) for name in b)
    print(f"weights that differ: {different} of {sum(weight.numel() for weight in a.values())}; tensors only in ours: {sorted(set(a) - set(b))}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
