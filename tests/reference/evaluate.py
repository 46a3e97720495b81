#!/usr/bin/env python3
"""Makes a tiny family and preference pairs under tests/data/evaluate, and recomputes what `rewarm evaluate` says of them.

    cargo build && python tests/reference/evaluate.py [--rewarm target/debug/rewarm] [--out tests/data/evaluate]

Needs numpy, scipy, scikit-learn and safetensors. Rewards come from `rewarm score` (other tests hold those to
transformers); every figure is computed here from them, by numpy, scipy.stats and sklearn.metrics:

    member-{0,1,2}/     tests/data/models/bert with small deltas; member-1 has a calibration, so that its raw reward
                        and what ENS makes of it differ
    pairs.jsonl         random words of the tiny vocabulary: chosen by member-0's reward and noise; some ties (unknown
                        words have one token), too long ones, equal ones, pairs without a source
    candidates.jsonl    prompts with responses, for best-of-n
    expected.json       {"lines": {"training", "flipped"}, "all" | "clean" | "corrupted" | "held-out": figures,
                        "best_of_n": {"n": [by model]}}

Intervals are scipy's (`scipy.stats.bootstrap`, percentile, 20,000 resamples): equal up to Monte Carlo error.
"""
import argparse
import itertools
import json
import math
import pathlib
import shutil
import subprocess

import numpy
import scipy.special
import scipy.stats
import sklearn.metrics
from safetensors.numpy import load_file, save_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
BASE = ROOT / "tests/data/models/bert"
CALIBRATION = {"mean": 0.25, "std": 0.5}
MODELS = ["member-0", "member-1", "member-2", "WARM", "ENS"]
BINS = 15
TRAINING = range(1, 81)
FLIPPED = [*range(4, 81, 4), 21]  # two ties, one pair that is too long, one of equal responses


def make_members(out, random):
    base = load_file(BASE / "model.safetensors")
    for member in range(3):
        folder = out / f"member-{member}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in ["config.json", "tokenizer.json", "tokenizer_config.json"]:
            shutil.copy(BASE / name, folder)
        tensors = {
            name: (tensor + random.normal(0, 0.15 * tensor.std(), tensor.shape)).astype(tensor.dtype)
            if tensor.ndim == 2 and "classifier" not in name
            else tensor
            for name, tensor in base.items()
        }
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (out / "member-1/rewarm.json").write_text(json.dumps({"calibration": CALIBRATION}) + "\n")


def score(rewarm, arguments, samples):
    """Rewards and tokens; None for what cannot be scored."""
    lines = "".join(json.dumps({"prompt": prompt, "response": response}) + "\n" for prompt, response in samples)
    run = subprocess.run([rewarm, "score", *arguments], input=lines, capture_output=True, text=True, check=False)
    outcomes = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(outcomes) == len(samples), run.stderr
    rewards = numpy.array([outcome.get("reward", numpy.nan) for outcome in outcomes])
    return rewards, numpy.array([outcome.get("tokens", 0) for outcome in outcomes])


def words(random, least, most):
    vocabulary = json.loads((BASE / "tokenizer.json").read_text())["model"]["vocab"]
    whole = [word for word in vocabulary if word.isalpha() and len(word) > 2]
    return " ".join(random.choice(whole, random.integers(least, most)))


def make_pairs(rewarm, out, random):
    prompts = [words(random, 3, 8) for _ in range(120)]
    responses = [[words(random, 2, 14) for _ in range(2)] for _ in prompts]
    for number in (7, 31, 90, 101):  # two unknown words are one token each: a tie
        responses[number] = ["Zephyr xylophone", "QUARTZ vortex"]
    for number in (11, 60):  # the limit is 64 tokens
        responses[number][1] = words(random, 70, 80)
    for number in (20, 110):
        responses[number][1] = responses[number][0]
    flat = [(prompt, response) for prompt, pair in zip(prompts, responses) for response in pair]
    rewards, _ = score(rewarm, ["--model", out / "member-0"], flat)
    noisy = rewards.reshape(-1, 2) + random.normal(0, 1.2 * numpy.nanstd(rewards), (len(prompts), 2))
    with open(out / "pairs.jsonl", "w") as file:
        for number, (prompt, pair) in enumerate(zip(prompts, responses)):
            best = int(numpy.nan_to_num(noisy[number]).argmax())
            line = {"prompt": prompt, "chosen": pair[best], "rejected": pair[1 - best]}
            if number % 3:
                line["source"] = "garden" if number % 2 else "<kitchen>"
            file.write(json.dumps(line) + "\n")
    with open(out / "candidates.jsonl", "w") as file:
        for _ in range(5):
            pool = [words(random, 2, 12) for _ in range(6)] + ["Zephyr xylophone", "QUARTZ vortex"]
            file.write(json.dumps({"prompt": words(random, 3, 8), "responses": pool}) + "\n")


def all_rewards(rewarm, out, samples):
    members = ",".join(str(out / f"member-{member}") for member in range(3))
    runs = [["--model", out / f"member-{member}"] for member in range(3)]
    runs += [["--members", members, "--mode", mode] for mode in ("warm", "ens")]
    scored = [score(rewarm, arguments, samples) for arguments in runs]
    return numpy.array([rewards for rewards, _ in scored]), scored[0][1]


def expected_calibration_error(margins):
    confidence = scipy.special.expit(numpy.abs(margins))
    right = numpy.where(margins == 0, 0.5, margins > 0)
    # (edge, edge], the first one closed
    bins = numpy.digitize(confidence, numpy.linspace(0.5, 1.0, BINS + 1)[1:-1], right=True)
    of_bins = [abs(right[bins == bin].mean() - confidence[bins == bin].mean()) * (bins == bin).mean() for bin in set(bins)]
    return sum(of_bins)


def balanced_by_length(margins, longer_by):
    kept = longer_by != 0
    longer_is_chosen = longer_by[kept] > 0
    right = margins[kept] > 0
    return sklearn.metrics.balanced_accuracy_score(longer_is_chosen, longer_is_chosen == right)


def interval(values):
    result = scipy.stats.bootstrap((values,), numpy.mean, method="percentile", n_resamples=20_000, random_state=0, vectorized=True)
    return [result.confidence_interval.low, result.confidence_interval.high]


def figures(rewards, tokens, sources, hit=lambda margins: margins > 0):
    """rewards [models, pairs, 2], tokens [pairs, 2]"""
    margins = rewards[:, :, 0] - rewards[:, :, 1]
    longer_by = tokens[:, 0] - tokens[:, 1]
    hits = hit(margins).astype(float)
    sides = numpy.sign(margins)
    models = [
        {
            "accuracy": (margin > 0).mean(),
            "interval": interval(hits[model]),
            "hits": hits[model].mean(),
            "ties": (margin == 0).mean(),
            "accuracy_ties_half": ((margin > 0) + 0.5 * (margin == 0)).mean(),
            "mean_margin": margin.mean(),
            "log_loss": -scipy.special.log_expit(margin).mean(),
            "expected_calibration_error": expected_calibration_error(margin),
            "length_controlled": balanced_by_length(margin, longer_by),
            "reward_length_pearson": scipy.stats.pearsonr(rewards[model].ravel(), tokens.ravel()).statistic,
            "reward_length_spearman": scipy.stats.spearmanr(rewards[model].ravel(), tokens.ravel()).statistic,
        }
        for model, margin in enumerate(margins)
    ]
    mean_member = hits[:3].mean(axis=0)
    columns = {"WARM - ENS": hits[3] - hits[4]}
    columns |= {f"{name} - mean member": hits[model] - mean_member for model, name in enumerate(MODELS)}
    return {
        "pairs": margins.shape[1],
        "models": models,
        "differences": {name: [column.mean(), *interval(column)] for name, column in columns.items()},
        "same_side": [[(left == right).mean() for right in sides] for left in sides],
        "pearson": numpy.corrcoef(rewards.reshape(len(MODELS), -1)).tolist(),
        "spearman": scipy.stats.spearmanr(rewards.reshape(len(MODELS), -1), axis=1).statistic.tolist(),
        "length_baseline": (longer_by > 0).mean(),
        "sources": {
            str(source): [(margins[:, sources == source] > 0)[model].mean() for model in range(len(MODELS))]
            for source in sorted(set(sources))
        },
    }


def best_of_n(proxy, gold, n):
    """By trying all subsets; of several that the proxy likes best, the mean."""
    values = []
    for subset in itertools.combinations(range(len(proxy)), n):
        top = max(proxy[index] for index in subset)
        values.append(numpy.mean([gold[index] for index in subset if proxy[index] == top]))
    return numpy.mean(values)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rewarm", default=ROOT / "target/debug/rewarm")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "tests/data/evaluate")
    args = parser.parse_args()
    random = numpy.random.default_rng(20)
    make_members(args.out, random)
    make_pairs(args.rewarm, args.out, random)

    pairs = [json.loads(line) for line in open(args.out / "pairs.jsonl")]
    lines = numpy.arange(1, len(pairs) + 1)
    samples = [(pair["prompt"], pair[side]) for pair in pairs for side in ("chosen", "rejected")]
    rewards, tokens = all_rewards(args.rewarm, args.out, samples)
    rewards = rewards.reshape(len(MODELS), len(pairs), 2)
    tokens = tokens.reshape(-1, 2)
    equal = numpy.array([pair["chosen"] == pair["rejected"] for pair in pairs])
    is_scored = ~numpy.isnan(rewards).any(axis=(0, 2)) & ~equal
    margins = rewards[:, is_scored, 0] - rewards[:, is_scored, 1]
    assert numpy.abs(margins[margins != 0]).min() > 1e-5, "another order of summation could change a side"
    sources = numpy.array([str(pair.get("source")) for pair in pairs])

    def of(keep, **more):
        keep = keep & is_scored
        return figures(rewards[:, keep], tokens[keep], sources[keep], **more)

    flipped = numpy.isin(lines, FLIPPED)
    training = numpy.isin(lines, TRAINING)
    candidates = [json.loads(line) for line in open(args.out / "candidates.jsonl")]
    by_prompt = [all_rewards(args.rewarm, args.out, [(c["prompt"], r) for r in c["responses"]])[0] for c in candidates]
    gold = MODELS.index("member-2")
    expected = {
        "lines": {"training": list(TRAINING), "flipped": FLIPPED},
        "unscorable": [int(line) for line in lines[~is_scored & ~equal]],
        "equal_lines": [int(line) for line in lines[equal]],
        "all": of(numpy.ones(len(pairs), bool)),
        "clean": of(training & ~flipped),
        "corrupted": of(flipped, hit=lambda margins: margins < 0),
        "held-out": of(~training),
        "best_of_n": {
            n: [numpy.mean([best_of_n(r[model], r[gold], n) for r in by_prompt]) for model in range(len(MODELS))]
            for n in (1, 2, 4, 8)
        },
        "kl": {n: math.log(n) - (n - 1) / n for n in (1, 2, 4, 8)},
    }
    (args.out / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    print(json.dumps([model["accuracy"] for model in expected["all"]["models"]]), expected["unscorable"])


if __name__ == "__main__":
    main()
