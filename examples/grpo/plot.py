"""What runs logged: the curves, and the README's table. The reward that was trained for, a judge that was not, how far members
disagree, and how much completions repeat themselves.

    python examples/grpo/plot.py examples/grpo/runs examples/grpo/curves.svg
"""
from __future__ import annotations

import collections
import csv
import pathlib
import sys

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot

# texts stay texts, and the same curves make the same file
matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "rewarm"})

LABELS = {"warm": "WARM of 3", "ens": "ENS of 3", "member": "member-0 alone", "warm-beta0.1": "WARM, beta 0.1",
          "warm-beta0.3": "WARM, beta 0.3"}
#: Dark, light, dashed, dotted: apart in print and for the colour-blind.
STYLES = {"warm": ("#0b3c5d", "-"), "ens": ("#d9822b", "-"), "member": ("#777777", "--"), "warm-beta0.1": ("#3a7d44", ":"),
          "warm-beta0.3": ("#3a7d44", "-.")}
PANELS = {
    "trained": "reward it was trained on,\nin deviations of the start",
    "judge": "reward of member-3,\nwhich nothing was trained on",
    "disagreement": "disagreement of members 0 to 2\n(deviation of their rewards)",
    "repeats": "words of a completion\nthat it has said before",
}
#: GRPO's weight of the divergence from the start, unless it is said.
BETA = 0.02
#: Steps that a point averages over.
WINDOW = 5
#: Where the table looks: the last steps of these windows.
AT = [5, 30, 120]


def name(against: str, beta: float, seed: int) -> str:
    """Of a run's files."""
    return f"{against}-beta{beta:g}-{seed}" if beta != BETA else f"{against}-{seed}"


def curves(folder: pathlib.Path) -> dict[str, list[dict[str, list[float]]]]:
    """By what was trained against (and beta): for each seed, what was logged, in means over `WINDOW` steps."""
    found = collections.defaultdict(list)
    for file in sorted(folder.glob("*.csv")):
        with file.open(encoding="utf-8", newline="") as lines:
            log = [{key: float(value) for key, value in entry.items()} for entry in csv.DictReader(lines)]
        columns = {key: [entry[key] for entry in log] for key in log[0]}
        # rewards of different models have different scales: each in its own, from its own start
        columns["trained"] = [(value - log[0]["trained"]) / log[0]["trained_std"] for value in columns["trained"]]
        found[file.stem.rpartition("-")[0]].append({key: smooth(values) for key, values in columns.items()})
    return found


def smooth(values: list[float]) -> list[float]:
    windows = [values[max(0, i - WINDOW + 1):i + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def draw(folder: pathlib.Path, output: pathlib.Path) -> None:
    """The mean over seeds, and from the least to the greatest of them."""
    figure, axes = pyplot.subplots(1, 4, figsize=(14, 3.2), layout="constrained")
    found = curves(folder)
    for against, label in LABELS.items():
        colour, style = STYLES[against]
        for panel, (key, title) in zip(axes, PANELS.items()):
            seeds = list(zip(*(run[key] for run in found.get(against, []))))
            if not seeds:
                continue
            steps = range(1, len(seeds) + 1)
            panel.plot(steps, [sum(step) / len(step) for step in seeds], style, color=colour, label=label, linewidth=1.6)
            if len(seeds[0]) > 1:
                panel.fill_between(steps, [min(step) for step in seeds], [max(step) for step in seeds], color=colour,
                                   alpha=0.15, linewidth=0)
            panel.set_title(title, fontsize=9)
            panel.set_xlabel("step", fontsize=9)
            panel.grid(alpha=0.25)
            panel.spines[["top", "right"]].set_visible(False)
            panel.tick_params(labelsize=8)
    for panel in axes[2:]:
        panel.set_ylim(bottom=0)
    axes[0].legend(fontsize=8, frameon=False)
    figure.savefig(output, metadata={"Date": None} if output.suffix == ".svg" else None, dpi=120)
    pyplot.close(figure)


def table(folder: pathlib.Path) -> str:
    """In Markdown: means over seeds, of the five steps up to each of `AT`."""
    keys = {"trained": "its reward", "judge": "the judge's", "disagreement": "disagreement", "repeats": "repeats",
            "length": "words"}
    lines = [f"| trained on | seeds | {' | '.join(keys.values())} |", "| --- " * (len(keys) + 2) + "|"]
    found = curves(folder)
    for group in [group for group in LABELS if group in found]:
        against, _, beta = group.partition("-beta")
        seeds = found[group]
        steps = [step for step in AT if step <= len(seeds[0]["trained"])]
        cells = [" → ".join(f"{sum(run[key][step - 1] for run in seeds) / len(seeds):.{1 if key == 'length' else 2}f}"
                            for step in steps) for key in keys]
        lines.append(f"| {LABELS[against]}, beta {beta or BETA} | {len(seeds)} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    draw(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
    print(table(pathlib.Path(sys.argv[1])))
