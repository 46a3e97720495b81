#!/usr/bin/env python3
"""Checks what `rewarm merge` writes against transformers, and against mergekit's linear merge where that is installed.

    python tests/reference/check_merge.py target/debug/rewarm [--mergekit PATH/TO/mergekit-yaml] [--model DIR] [--names NAME ...]

For each checkpoint of tests/data/models (and each --model), makes three members (the checkpoint and small noise, in its
own dtype), merges them, and checks that

- transformers loads the directory, with nothing missing, unexpected or of another shape;
- rewards by `rewarm score` and by transformers differ by at most 1e-5, relative to the larger of 1 and the reward;
- mergekit's weights differ from ours by at most one step of the dtype: it sums in f32 at best, ours in f64.

The same for the adapters of tests/data/lora, merged into their base. Then it shows what mergekit does with a member that lacks its head, and with one that has another vocabulary, both of
which `rewarm merge` refuses.
"""
import argparse
import json
import pathlib
import shutil
import subprocess
import tempfile

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from make_tiny import all_weights, load, reward_alone, token_samples

ATOL = 1e-5
STEPS = {torch.float32: 2.0**-23, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}


def make_members(model, folder, count=3):
    members = []
    for index in range(count):
        member = folder / f"member-{index}"
        member.mkdir()
        for file in model.iterdir():
            if file.suffix == ".json" and file.name not in ("golden.json", "config_v4.json", "model.safetensors.index.json"):
                shutil.copy(file, member)
        generator = torch.Generator().manual_seed(index)
        weights = {}
        for name, weight in sorted(all_weights(model).items()):
            if weight.is_floating_point():
                noise = torch.randn(weight.shape, generator=generator) * 0.02 * weight.float().abs().mean()
                weight = (weight.float() + noise).to(weight.dtype)
            weights[name] = weight
        save_file(weights, member / "model.safetensors", metadata={"format": "pt"})
        if not (member / "tokenizer.json").exists():  # only token ids are scored
            vocab = json.loads((member / "config.json").read_text())["vocab_size"]
            words = {"model": {"type": "WordLevel", "vocab": {f"w{i}": i for i in range(vocab)}, "unk_token": "w0"}, "added_tokens": []}
            (member / "tokenizer.json").write_text(json.dumps({"version": "1.0", **words}))
        members.append(member)
    return members


def our_rewards(rewarm, path, samples):
    lines = "".join(json.dumps({"token_ids": sample["token_ids"]}) + "\n" for sample in samples)
    scored = subprocess.run([rewarm, "score", "--model", path], input=lines, capture_output=True, text=True, check=True)
    return [json.loads(line)["reward"] for line in scored.stdout.splitlines()]


def run_mergekit(mergekit, members, output, dtype):
    models = [{"model": str(member), "parameters": {"weight": 1.0}} for member in members]
    config = output.parent / "mergekit.yml"
    config.write_text(json.dumps({"merge_method": "linear", "models": models, "dtype": str(dtype).removeprefix("torch.")}))  # JSON is YAML
    return subprocess.run([mergekit, config, output], capture_output=True, text=True)


def check(rewarm, mergekit, model, folder):
    members = make_members(model, folder)
    output = folder / "merged"
    subprocess.run([rewarm, "merge", *members, "--output", output], check=True, capture_output=True)
    config = json.loads((output / "config.json").read_text())
    architecture = (config.get("architectures") or ["none"])[0]
    if architecture.endswith("ForSequenceClassification"):
        _, told = AutoModelForSequenceClassification.from_pretrained(output, output_loading_info=True)
        assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), told
    samples = [{"token_ids": ids} for ids in token_samples(config["vocab_size"], 7, lengths=(1, 2, 5, 9, 17))]
    reference = load(output)
    theirs = [reward_alone(reference, sample) for sample in samples]
    gap = max(abs(a - b) / max(1, abs(b)) for a, b in zip(our_rewards(rewarm, output, samples), theirs, strict=True))
    assert gap <= ATOL, f"{model.name}: {gap}"
    line = f"{model.name:22} {architecture:34} rewards within {gap:.1e}"
    if mergekit:
        theirs = folder / "mergekit"
        ours = all_weights(output)
        dtype = next(weight.dtype for weight in ours.values() if weight.is_floating_point())
        ran = run_mergekit(mergekit, members, theirs, dtype)
        if ran.returncode:
            print(f"{line}; mergekit fails: {ran.stderr.strip().splitlines()[-1][:100]}", flush=True)
            return
        theirs = all_weights(theirs)
        lacking = sorted(set(ours) - set(theirs))
        steps, differing, count = 0.0, 0, 0
        for name in set(ours) & set(theirs):
            a, b = ours[name].double(), theirs[name].double()
            size = torch.exp2(torch.floor(torch.log2(torch.maximum(a.abs(), b.abs()).clamp_min(1e-30))))
            apart = ((a - b).abs() / (size * STEPS[dtype])).max().item()
            members_of = [load_file(member / "model.safetensors")[name].double() for member in members]
            largest = torch.stack([m.abs() for m in members_of]).amax(0)  # what an f32 sum is rounded by
            assert ((a - b).abs() <= size * STEPS[dtype] + 4 * 2.0**-23 * largest).all(), (model.name, name, apart)
            steps, differing, count = max(steps, apart), differing + int((a != b).sum()), count + a.numel()
        line += f"; mergekit: {differing} of {count} values differ, by {steps:.1f} steps of {dtype} at most"
        line += f"; it leaves out {lacking}" if lacking else ""
    print(line, flush=True)


def check_adapters(rewarm, family, folder):
    output = folder / "merged"
    adapters = [family / "adapter-0", family / "adapter-1"]
    subprocess.run([rewarm, "merge", *adapters, "--base", family / "base", "--dtype", "f32", "--output", output], check=True, capture_output=True)
    model, told = AutoModelForSequenceClassification.from_pretrained(output, output_loading_info=True, attn_implementation="eager")
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), told
    samples = json.loads((family / "golden.json").read_text())["samples"]
    theirs = [reward_alone(model.eval(), sample) for sample in samples]
    gap = max(abs(a - sample["merged"]) for a, sample in zip(theirs, samples, strict=True))
    ours = max(abs(a - b) / max(1, abs(b)) for a, b in zip(our_rewards(rewarm, output, samples), theirs, strict=True))
    assert max(gap, ours) <= ATOL, (family.name, gap, ours)
    print(f"adapters over {family.name:8} {model.config.architectures[0]:34} transformers within {gap:.1e} of PEFT, rewarm within {ours:.1e}", flush=True)


def show_silent_cases(rewarm, mergekit, model, folder):
    def without_head(member):
        weights = load_file(member / "model.safetensors")
        weights.pop("score.weight")
        save_file(weights, member / "model.safetensors", metadata={"format": "pt"})

    def other_vocabulary(member):
        weights = load_file(member / "model.safetensors")
        name = "model.embed_tokens.weight"
        weights[name] = torch.cat([weights[name], weights[name][:5]])
        save_file(weights, member / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((member / "config.json").read_text())
        (member / "config.json").write_text(json.dumps(config | {"vocab_size": config["vocab_size"] + 5}))

    def swapped_words(member):
        text = json.loads((member / "tokenizer.json").read_text())
        vocab = text["model"]["vocab"]
        a, b = sorted(vocab, key=vocab.get)[20:22]
        vocab[a], vocab[b] = vocab[b], vocab[a]
        (member / "tokenizer.json").write_text(json.dumps(text))

    cases = {"a member without its head": (without_head, [1]), "no member with a head": (without_head, [0, 1, 2]),
             "a longer vocabulary": (other_vocabulary, [1]), "swapped words in the tokenizer": (swapped_words, [1])}
    for name, (spoil, which) in cases.items():
        here = folder / name.replace(" ", "-")
        here.mkdir()
        members = make_members(model, here)
        for index in which:
            spoil(members[index])
        ours = subprocess.run([rewarm, "merge", *members, "--output", here / "out"], capture_output=True, text=True)
        assert ours.returncode == 1 and not (here / "out").exists(), name
        error = ours.stderr.strip().splitlines()[-1].replace(str(here) + "/", "")
        theirs = "not tried"
        if mergekit:
            ran = run_mergekit(mergekit, members, here / "mergekit", torch.float32)
            theirs = "exit 0" if ran.returncode == 0 else f"exit {ran.returncode}: {ran.stderr.strip().splitlines()[-1][:110]}"
            if ran.returncode == 0:
                weights = all_weights(here / "mergekit")
                theirs += f", score.weight {'there' if 'score.weight' in weights else 'NOT there'}, embeddings {tuple(weights['model.embed_tokens.weight'].shape)}"
        print(f"{name}\n  rewarm:   {error}\n  mergekit: {theirs}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rewarm", type=lambda path: pathlib.Path(path).resolve())
    parser.add_argument("--mergekit", type=pathlib.Path, help="its mergekit-yaml; without it only transformers is asked")
    parser.add_argument("--model", type=pathlib.Path, action="append", default=[], help="another checkpoint to check")
    parser.add_argument("--names", nargs="*", help="those of tests/data/models to check [default: all]")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    tiny = pathlib.Path(__file__).resolve().parent.parent / "data" / "models"
    names = sorted(path.name for path in tiny.iterdir()) if args.names is None else args.names
    for model in [*(tiny / name for name in names), *args.model]:
        with tempfile.TemporaryDirectory() as folder:
            check(args.rewarm, args.mergekit, model, pathlib.Path(folder))
    for family in sorted((tiny.parent / "lora").iterdir()):
        with tempfile.TemporaryDirectory() as folder:
            check_adapters(args.rewarm, family, pathlib.Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        show_silent_cases(args.rewarm, args.mergekit, tiny / "llama", pathlib.Path(folder))


if __name__ == "__main__":
    main()
