#!/usr/bin/env python3
"""Makes a tiny family and preference pairs under tests/data/evaluate, and recomputes what `rewarm evaluate` says of them.

    cargo build && python tests/reference/evaluate.py [--rewarm target/debug/rewarm] [--out tests/data/evaluate]

Needs numpy, scipy, scikit-learn, statsmodels and safetensors. Rewards come from `rewarm score` (other tests hold those to
transformers); every figure is computed here from them, by numpy, scipy.stats and sklearn.metrics:

    member-{0,1,2}/     tests/data/models/bert with small deltas; member-1 has a calibration, so that its raw reward
                        and what ENS makes of it differ
    pairs.jsonl         random words of the tiny vocabulary: chosen by member-0's reward and noise; some ties (unknown
                        words have one token), too long ones, equal ones, pairs without a source
    candidates.jsonl    prompts with responses, for best-of-n
    expected.json       {"lines": {"training", "flipped"}, "all" | "clean" | "corrupted" | "held-out": figures,
                        "best_of_n": {"n": [by model]}}
    intervals.json      intervals of made up counts, edges among them

Of shares they are scipy's and statsmodels' Wilson intervals, which agree. No library has Tango's interval of paired shares: it is
made here from its definition, with the constrained likelihood maximised by scipy.optimize and its ends found by brentq, and
its test is checked against McNemar's of statsmodels, which it is at a difference of zero. Bootstraps are scipy's
(`scipy.stats.bootstrap`, percentile, 20,000 resamples): equal up to Monte Carlo error.
"""
import argparse
import itertools
import json
import math
import pathlib
import shutil
import subprocess

import numpy
import scipy.optimize
import scipy.special
import scipy.stats
import sklearn.metrics
import statsmodels.stats.contingency_tables
import statsmodels.stats.proportion
from safetensors.numpy import load_file, save_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
BASE = ROOT / "tests/data/models/bert"
CALIBRATION = {"mean": 0.25, "std": 0.5}
MODELS = ["member-0", "member-1", "member-2", "WARM", "ENS"]
BINS = 10
PAIRS_A_BIN = 20
Z = scipy.stats.norm.ppf(0.975)
Z_POWER = scipy.stats.norm.ppf(0.8)
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
    """In bins of equal count; and accuracy with its interval for each of them."""
    order = numpy.argsort(numpy.abs(margins), kind="stable")
    confidence = scipy.special.expit(numpy.abs(margins))[order]
    right = numpy.where(margins == 0, 0.5, margins > 0)[order]
    count = min(max(len(margins) // PAIRS_A_BIN, 1), BINS)
    parts = numpy.array_split(numpy.arange(len(margins)), count)
    for first, second in itertools.pairwise(parts):
        gap = numpy.abs(margins[order])[second[0]] - numpy.abs(margins[order])[first[-1]]
        assert gap == 0 or gap > 1e-5, "another order of summation could move a pair to the next bin"
    error = sum(abs(right[part].mean() - confidence[part].mean()) * len(part) for part in parts) / len(margins)
    return error, [[right[part].mean(), *wilson(right[part].sum(), len(part))] for part in parts]


def balanced_by_length(margins, longer_by):
    kept = longer_by != 0
    longer_is_chosen = longer_by[kept] > 0
    right = margins[kept] > 0
    return sklearn.metrics.balanced_accuracy_score(longer_is_chosen, longer_is_chosen == right)


def wilson(successes, n):
    ends = statsmodels.stats.proportion.proportion_confint(successes, n, 0.05, "wilson")
    if successes == int(successes):
        of_scipy = scipy.stats.binomtest(int(successes), n).proportion_ci(method="wilson")
        assert numpy.allclose(ends, [of_scipy.low, of_scipy.high], atol=1e-12)
    return [float(end) for end in ends]


def constrained_share(only_of, only_against, n, delta):
    """The likeliest share of pairs that only the second is right about, if the shares differ by delta."""
    def unlikelihood(share):
        counts = [(only_of, share + delta), (only_against, share), (n - only_of - only_against, 1 - 2 * share - delta)]
        return -sum(scipy.special.xlogy(count, max(probability, 0.0)) if count else 0.0 for count, probability in counts)

    bounds = (max(0.0, -delta), (1 - delta) / 2)
    found = scipy.optimize.minimize_scalar(unlikelihood, bounds=bounds, method="bounded", options={"xatol": 1e-14, "maxiter": 5000})
    # the search does not look at the ends themselves
    return min([found.x, *bounds], key=unlikelihood)


def tango_score(only_of, only_against, n, delta):
    share = constrained_share(only_of, only_against, n, delta)
    surplus = only_of - only_against - n * delta
    variance = n * (2 * share + delta - delta**2)
    if abs(surplus) < 1e-12:
        return 0.0
    return surplus / math.sqrt(variance) if variance > 1e-15 else math.copysign(math.inf, surplus)


def tango(only_of, only_against, n):
    seen = (only_of - only_against) / n
    if 0 < only_of + only_against:
        table = [[n - only_of - only_against, only_of], [only_against, 0]]
        mcnemar = statsmodels.stats.contingency_tables.mcnemar(table, exact=False, correction=False).statistic
        assert math.isclose(tango_score(only_of, only_against, n, 0.0) ** 2, mcnemar, rel_tol=1e-6)
    near = 1e-12
    find = lambda level, low, high: scipy.optimize.brentq(
        lambda delta: max(min(tango_score(only_of, only_against, n, delta), 1e6), -1e6) - level, low, high, xtol=1e-13)
    return [
        -1.0 if only_against == n else find(Z, -1 + near, seen),
        1.0 if only_of == n else find(-Z, seen, 1 - near),
    ]


def detectable(only_of, only_against, n):
    """Connor's number of pairs, solved for the difference; checked by drawing: cautious where few disagree."""
    seen = (only_of + only_against + 2) / (n + 2)

    def missing(difference):
        disagree = max(seen, difference)
        needed = (Z * math.sqrt(disagree) + Z_POWER * math.sqrt(disagree - difference**2)) ** 2 / difference**2
        return needed - n

    if missing(1.0) > 0:
        return None
    difference = scipy.optimize.brentq(missing, 1e-9, 1.0, xtol=1e-15)
    disagree = max(seen, difference)
    probabilities = [(disagree + difference) / 2, (disagree - difference) / 2]
    drawn = numpy.random.default_rng(1).multinomial(n, [*probabilities, max(0.0, 1 - sum(probabilities))], size=20_000)
    root = numpy.sqrt(numpy.maximum(drawn[:, 0] + drawn[:, 1], 1e-9))
    power = ((drawn[:, 0] - drawn[:, 1]) / root > Z).mean()
    assert 0.75 < power < 0.97, (only_of, only_against, n, difference, power)
    return difference


def bonett_price(differences):
    """Wald's interval of a mean after one pair of each sign was added."""
    values = numpy.append(differences, [-1.0, 1.0])
    half = Z * values.std() / math.sqrt(len(values))
    return [max(-1.0, values.mean() - half), min(1.0, values.mean() + half)]


def made_up_intervals():
    counts = [(0, 0, 60), (3, 0, 60), (0, 3, 60), (5, 5, 60), (20, 2, 60), (60, 0, 60), (0, 60, 60), (0, 0, 5), (2, 1, 3), (1, 1, 1000),
              (40, 25, 480), (130, 20, 480), (0, 0, 1500), (321, 280, 1500), (5000, 4800, 20_000)]
    random = numpy.random.default_rng(3)
    means = [[0.0] * 60, random.choice([-1.0, 0.0, 1.0], 200, p=[0.1, 0.7, 0.2]).tolist(), random.choice([-0.25, 0.0, 0.75], 40).tolist()]
    return {
        "wilson": [{"successes": s, "n": n, "interval": wilson(s, n)} for s, n in [(0, 1), (1, 1), (0, 60), (60, 60), (50, 60), (7.5, 20), (430, 480)]],
        "paired": [
            {"only_of": of, "only_against": against, "pairs": n, "interval": tango(of, against, n),
             "p_value": float(scipy.stats.binomtest(of, of + against).pvalue) if of + against else 1.0,
             "detectable": detectable(of, against, n)}
            for of, against, n in counts
        ],
        "mean_difference": [{"differences": values, "interval": bonett_price(values)} for values in means],
    }


def bootstrap(values):
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
            "interval": wilson(hits[model].sum(), hits.shape[1]),
            "bootstrap": bootstrap(hits[model]),
            "hits": hits[model].mean(),
            "ties": (margin == 0).mean(),
            "accuracy_ties_half": ((margin > 0) + 0.5 * (margin == 0)).mean(),
            "mean_margin": margin.mean(),
            "log_loss": -scipy.special.log_expit(margin).mean(),
            "expected_calibration_error": expected_calibration_error(margin)[0],
            "bins": expected_calibration_error(margin)[1],
            "length_controlled": balanced_by_length(margin, longer_by),
            "reward_length_pearson": scipy.stats.pearsonr(rewards[model].ravel(), tokens.ravel()).statistic,
            "reward_length_spearman": scipy.stats.spearmanr(rewards[model].ravel(), tokens.ravel()).statistic,
        }
        for model, margin in enumerate(margins)
    ]
    mean_member = hits[:3].mean(axis=0)
    columns = {"WARM - ENS": hits[3] - hits[4]}
    columns |= {f"{name} - mean member": hits[model] - mean_member for model, name in enumerate(MODELS)}
    of = {name: bonett_price(column) for name, column in columns.items()}
    of["WARM - ENS"] = tango(int((hits[3] > hits[4]).sum()), int((hits[3] < hits[4]).sum()), hits.shape[1])
    return {
        "pairs": margins.shape[1],
        "models": models,
        "differences": {name: [column.mean(), *of[name], *bootstrap(column)] for name, column in columns.items()},
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
    (args.out / "intervals.json").write_text(json.dumps(made_up_intervals(), indent=1) + "\n")
    print(json.dumps([model["accuracy"] for model in expected["all"]["models"]]), expected["unscorable"])


if __name__ == "__main__":
    main()
