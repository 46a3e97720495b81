"""Draws what runs logged: the reward that was trained for, a judge that was not, and how far members disagree."""
from __future__ import annotations

import json
import pathlib
import sys

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot

LABELS = {"warm": "WARM of 3", "ens": "ENS of 3", "member": "member-0 alone"}
#: Dark, light, dashed: apart in print and for the colour-blind.
STYLES = {"warm": ("#0b3c5d", "-"), "ens": ("#d9822b", "-"), "member": ("#777777", "--")}
PANELS = {
    "trained": "reward it was trained on,\nin deviations of the start",
    "judge": "reward of member-3,\nwhich nothing was trained on",
    "reward_std": "disagreement of members 0 to 2\n(deviation of their rewards)",
}
#: Steps that a point averages over.
WINDOW = 5


def draw(folder: pathlib.Path, output: pathlib.Path) -> None:
    """`folder` has a `NAME.jsonl` for each run."""
    figure, axes = pyplot.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    for name, label in LABELS.items():
        file = folder / f"{name}.jsonl"
        if not file.exists():
            continue
        log = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        colour, style = STYLES[name]
        for panel, (key, title) in zip(axes, PANELS.items()):
            values = [entry[key] for entry in log]
            if key == "trained":
                # rewards of different models have different scales: each in its own, from its own start
                values = [(value - log[0]["trained"]) / log[0]["trained_std"] for value in values]
            smooth = [sum(values[max(0, i - WINDOW + 1):i + 1]) / len(values[max(0, i - WINDOW + 1):i + 1])
                      for i in range(len(values))]
            panel.plot(smooth, style, color=colour, label=label, linewidth=1.6)
            panel.set_title(title, fontsize=9)
            panel.set_xlabel("step", fontsize=9)
            panel.grid(alpha=0.25)
            panel.spines[["top", "right"]].set_visible(False)
            panel.tick_params(labelsize=8)
    axes[0].legend(fontsize=8, frameon=False)
    figure.savefig(output, metadata={"Date": None} if output.suffix == ".svg" else None, dpi=120)


if __name__ == "__main__":
    draw(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
