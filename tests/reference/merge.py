#!/usr/bin/env python3
"""Makes small members under tests/data/merge and merges them in numpy float64: the reference for WARM, bit for bit.

    python tests/reference/merge.py [--out tests/data/merge]

A family is three members, fine-tuned-like from one base (base + small deltas, one identical head):

    llama-f32   LlamaForSequenceClassification; member-1 is sharded
    bert-f16    BertForSequenceClassification
    tied-bf16   LlamaForCausalLM with tied embeddings (no lm_head on disk) and a TRL v_head.summary

    <family>/member-{0,1,2}/                           ordinary Hugging Face directories
    <family>/expected-{equal,weighted}-{f32,f16,bf16}.safetensors
    <family>/golden.json    {"made_with", "pooling", "coefficients": {"equal": [..], "weighted": [..]},
                             "samples": [{"token_ids", "member_rewards", "ens", "warm"}]}

The rule: `acc = 0.0; for each member, in order: acc += coefficient * weight`, all float64, equal coefficients being
1/N, then one rounding to the output dtype, to nearest, ties to even. Row 0 of the embeddings (the pad, in no sample)
holds values on which a detour through float32 gives another float16 or bfloat16; the script checks that it does.

`ens` is the mean of the member rewards; `warm` the reward of the equal merge in the members' own dtype, widened to f32.
"""
import argparse
import json
import pathlib
import platform
import shutil

import numpy
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BertConfig, LlamaConfig

from make_tiny import all_weights, randomise, reward_alone, load, rope, write_golden

COEFFICIENTS = {"equal": [1 / 3, 1 / 3, 1 / 3], "weighted": [0.5, 0.3, 0.2]}
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
# mantissa bits kept, exponent of the smallest normal number, largest finite number
FORMATS = {"f16": (10, -14, 65504.0), "bf16": (7, -126, float(torch.finfo(torch.bfloat16).max))}

# Per member: the average is 512 + half a step of the output dtype + 2^-20 or so, which float32 cannot hold: through it
# the tie goes to even, down; directly it goes up. Twice for equal coefficients (f16, bf16), twice for weighted ones.
TRAPS = [(1536.0, 0.75, 3 * 2.0**-20), (1536.0, 6.0, 3 * 2.0**-20), (1024.0, 2.0**-18, 1.25), (1024.0, 2.0**-18, 10.0)]


def round_once(values, name):
    """float64 to `name`, to nearest, ties to even, with no step between; the result is still float64."""
    if name == "f32":
        return values.astype(numpy.float32).astype(numpy.float64)
    bits, smallest, largest = FORMATS[name]
    exponent = numpy.maximum(numpy.frexp(values)[1] - 1, smallest)  # below the smallest normal, steps stay equal
    step = numpy.ldexp(1.0, exponent - bits)
    rounded = numpy.rint(values / step) * step  # scaling by powers of two is exact; rint takes ties to even
    assert numpy.abs(rounded).max() <= largest, "overflow"
    return rounded


def bf16_by_bits(values):
    """A second witness: drop the low 45 of float64's 52 mantissa bits, to nearest, ties to even (normal range only)."""
    bits = values.view(numpy.uint64)
    dropped = numpy.uint64(45)
    odd = (bits >> dropped) & numpy.uint64(1)
    return ((bits + (numpy.uint64((1 << 44) - 1) + odd)) >> dropped << dropped).view(numpy.float64)


def merge(members, coefficients, name):
    merged = {}
    for key in members[0]:
        total = numpy.zeros(members[0][key].shape, numpy.float64)
        for coefficient, member in zip(coefficients, members, strict=True):
            total += coefficient * member[key].to(torch.float64).numpy()
        rounded = round_once(total, name)
        if name == "f16":
            assert (rounded == total.astype(numpy.float16)).all(), "numpy's own conversion is direct too"
        if name == "bf16":
            assert (rounded == bf16_by_bits(total)).all()  # ml_dtypes 0.6 goes through float32: no witness here
        merged[key] = torch.tensor(rounded).to(DTYPES[name])
        assert (merged[key].to(torch.float64).numpy() == rounded).all(), "the value is exact in its dtype"
    return merged


def count_double_roundings(members, coefficients, name):
    """How many values would differ after float64 → float32 → `name`."""
    direct = merge(members, coefficients, name)
    count = 0
    for key, value in merge(members, coefficients, "f32").items():
        count += int((value.to(DTYPES[name]) != direct[key]).sum())
    return count


def make_family(path, config, auto, dtype, head=None, sharded=()):
    torch.manual_seed(0)
    base = randomise(auto.from_config(config), seed=50)
    embedding = base.get_input_embeddings().weight.data
    embedding[1:3] *= 1e-7  # averages that are subnormal in f16
    for i in range(3):
        generator = torch.Generator().manual_seed(60 + i)
        member = randomise(auto.from_config(config), seed=50)
        for name, weight in sorted(member.named_parameters()):
            is_head = name.startswith(("score", "classifier"))
            delta = torch.randn(weight.shape, generator=generator) * 0.02 * weight.abs().mean()
            weight.data = base.get_parameter(name).data + (0 if is_head else delta)
        row = member.get_input_embeddings().weight.data[0]
        row[:4] = torch.tensor([trap[i] for trap in TRAPS])
        row[4:8] = -row[:4]
        directory = path / f"member-{i}"
        member.to(DTYPES[dtype]).save_pretrained(directory, **({"max_shard_size": "6KB"} if i in sharded else {}))
        if head:
            generator = torch.Generator().manual_seed(70)
            weights = load_file(directory / "model.safetensors")
            weights |= {name: (0.5 * torch.randn(shape, generator=generator)).to(DTYPES[dtype]) for name, shape in head.items()}
            save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def finish(path, dtype, pooling):
    members = [all_weights(path / f"member-{i}") for i in range(3)]
    assert all(sorted(member) == sorted(members[0]) for member in members)
    assert {tensor.dtype for member in members for tensor in member.values()} == {DTYPES[dtype]}
    for what, coefficients in COEFFICIENTS.items():
        for name in DTYPES:
            save_file(merge(members, coefficients, name), path / f"expected-{what}-{name}.safetensors", metadata={"format": "pt"})
            if name != "f32":
                count = count_double_roundings(members, coefficients, name)
                assert count >= 2, f"{path.name} {what} {name}: no value exposes double rounding"
                print(f"{path.name:10} {what:8} {name:4} {count} values differ through float32")
    # the merged checkpoint, as transformers sees it
    warm_path = path / "warm"
    shutil.copytree(path / "member-0", warm_path)
    shutil.copy(path / f"expected-equal-{dtype}.safetensors", warm_path / "model.safetensors")
    generator = torch.Generator().manual_seed(80)
    samples = []
    for length in (1, 3, 8, 15, 30):
        sample = {"token_ids": torch.randint(3, 24, (length,), generator=generator).tolist()}
        sample["member_rewards"] = [reward_alone(load(path / f"member-{i}"), sample) for i in range(3)]
        sample["ens"] = sum(sample["member_rewards"]) / 3
        sample["warm"] = reward_alone(load(warm_path), sample)
        samples.append(sample)
    shutil.rmtree(warm_path)
    spread = max(abs(reward - s["ens"]) for s in samples for reward in s["member_rewards"])
    print(f"{path.name:10} members are up to {spread:.3f} from their mean, WARM {max(abs(s['warm'] - s['ens']) for s in samples):.4f}")
    assert spread > 1e-3
    made_with = {"python": platform.python_version(), "numpy": numpy.__version__, "torch": torch.__version__.split("+")[0],
                 "transformers": transformers.__version__}
    write_golden(path / "golden.json", {"made_with": made_with, "pooling": pooling, "coefficients": COEFFICIENTS, "samples": samples})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parent.parent / "data" / "merge")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    shutil.rmtree(out, ignore_errors=True)
    llama = dict(vocab_size=24, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
                 max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0, rope_parameters=rope())
    bert = dict(vocab_size=24, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=32)
    make_family(out / "llama-f32", LlamaConfig(**llama, num_labels=1), AutoModelForSequenceClassification, "f32", sharded=(1,))
    make_family(out / "bert-f16", BertConfig(**bert, num_labels=1), AutoModelForSequenceClassification, "f16")
    make_family(out / "tied-bf16", LlamaConfig(**llama, tie_word_embeddings=True), AutoModelForCausalLM, "bf16",
                head={"v_head.summary.weight": (1, 16), "v_head.summary.bias": (1,)})
    finish(out / "llama-f32", "f32", "last_non_pad")
    finish(out / "bert-f16", "f16", "cls")
    finish(out / "tied-bf16", "bf16", "last_token")


if __name__ == "__main__":
    main()
