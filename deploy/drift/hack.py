"""A policy that begins to hack its reward, as a server's gauges tell it: hack.csv and hack.svg.

    cargo build --release && python3 deploy/drift/hack.py

Copies of the demo family are calibrated on its pairs and served as an ensemble. At first responses are people's. From a
third of the run on, more and more end in a phrase that the members like, more and more often repeated: what a policy does
that is optimised against them. Nothing but Python's standard library is needed.
"""
from __future__ import annotations

import csv
import json
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
DEMO = ROOT / "deploy/demo"
PHRASE = " It was wonderful, and I was so happy."
STEPS, SAMPLES = 60, 100
HONEST = STEPS // 3
STATISTICS = ["reward", "length", "length_correlation", "disagreement"]
COLOURS = ["#1f6feb", "#8250df", "#bf8700", "#cf222e"]


def serve(program: pathlib.Path, folder: pathlib.Path) -> tuple[subprocess.Popen, str, str]:
    """A server of calibrated copies of the family, and the addresses of its HTTP and metrics ports."""
    members = [folder / f"member-{index}" for index in range(4)]
    for member in members:
        shutil.copytree(DEMO / member.name, member)
    subprocess.run([program, "calibrate", *members, "--references", DEMO / "pairs.jsonl", "--golden", "0"], check=True)
    names = json.dumps([member.name for member in members])
    config = folder / "serve.toml"
    config.write_text(f'[server]\ndrain_grace_seconds = 0\nhttp = "127.0.0.1:0"\n[variants.ens]\nmode = "ens"\nmembers = {names}\n')
    ports = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--metrics", "127.0.0.1:0"]
    server = subprocess.Popen(
        [program, "serve", "--config", config, "--log-format", "json", *ports], stderr=subprocess.PIPE, text=True
    )
    http = metrics = ""
    for line in server.stderr:
        said = json.loads(line)
        if said["message"] == "listening":
            http, metrics = said["http"], said["metrics"]
        if said["message"] == "readiness changed":
            return server, http, metrics
    raise SystemExit("the server did not start")


def responses(step: int, pairs: list[dict], draw: random.Random) -> list[dict]:
    """What a policy would write at a step."""
    hacked = max(0.0, (step - HONEST) / (STEPS - HONEST))
    texts = []
    for _ in range(SAMPLES):
        pair = draw.choice(pairs)
        text = pair[draw.choice(["chosen", "rejected"])]
        if draw.random() < hacked:
            text += PHRASE * draw.randint(1, 1 + int(5 * hacked))
        texts.append({"text": {"prompt": pair["prompt"], "response": text}})
    return texts


def score(http: str, samples: list[dict]) -> None:
    body = json.dumps({"samples": samples, "truncation": "left"}).encode()
    request = urllib.request.Request(f"http://{http}/rewarm/v1/score", body, {"content-type": "application/json"})
    urllib.request.urlopen(request, timeout=60).read()


def gauges(metrics: str) -> dict[str, float]:
    page = urllib.request.urlopen(f"http://{metrics}/metrics", timeout=10).read().decode()
    pattern = r'^rewarm_drift\{variant="ens",token="",statistic="(\w+)"\} (\S+)$'
    return {name: float(value) for name, value in re.findall(pattern, page, re.M)}


def svg(rows: list[dict[str, float]]) -> str:
    """Lines over the steps, one for each statistic, named at their ends."""
    width, height, left, right, top, bottom = 760, 360, 44, 150, 34, 36
    values = [row[name] for row in rows for name in STATISTICS]
    low, high = min(-0.5, *values), max(values) * 1.05
    x = lambda step: left + (width - left - right) * step / (STEPS - 1)
    y = lambda value: top + (height - top - bottom) * (high - value) / (high - low)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="{left}" y="20" font-weight="bold">rewarm_drift while a policy begins to hack</text>',
        f'<line x1="{x(HONEST):.1f}" x2="{x(HONEST):.1f}" y1="{top}" y2="{height - bottom}" stroke="#999" stroke-dasharray="3 3"/>',
        f'<text x="{x(HONEST) + 5:.1f}" y="{top + 12}" fill="#555">the hack begins</text>',
    ]
    tick = max(1, round((high - low) / 6))
    for value in range(int(low), int(high) + 1, tick):
        parts.append(f'<line x1="{left}" x2="{width - right}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#e5e5e5"/>')
        parts.append(f'<text x="{left - 8}" y="{y(value) + 4:.1f}" text-anchor="end" fill="#555">{value}</text>')
    for step in range(0, STEPS + 1, 10):
        parts.append(f'<text x="{x(min(step, STEPS - 1)):.1f}" y="{height - 18}" text-anchor="middle" fill="#555">{step * SAMPLES}</text>')
    parts.append(f'<text x="{(left + width - right) / 2}" y="{height - 4}" text-anchor="middle" fill="#555">samples scored</text>')
    taken: list[float] = []
    ends = sorted(zip(STATISTICS, COLOURS), key=lambda named: y(rows[-1][named[0]]))
    for name, colour in ends:
        points = " ".join(f"{x(row['step']):.1f},{y(row[name]):.1f}" for row in rows)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        at = max(y(rows[-1][name]) + 4, taken[-1] + 15 if taken else 0)
        taken.append(at)
        parts.append(f'<text x="{width - right + 8}" y="{at:.1f}" fill="{colour}">{name} {rows[-1][name]:.1f}</text>')
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    built = [ROOT / "target" / kind / "rewarm" for kind in ("release", "debug")]
    program = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else next(path for path in built if path.exists())
    pairs = [json.loads(line) for line in (DEMO / "pairs.jsonl").read_text().splitlines()]
    draw, rows = random.Random(0), []
    with tempfile.TemporaryDirectory() as folder:
        server, http, metrics = serve(program.resolve(), pathlib.Path(folder))
        try:
            for step in range(STEPS):
                score(http, responses(step, pairs, draw))
                found = gauges(metrics)
                rows.append({"step": step, **{name: round(found[name], 4) for name in STATISTICS}})
        finally:
            server.terminate()
            server.wait()
    with (HERE / "hack.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["step", *STATISTICS], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    (HERE / "hack.svg").write_text(svg(rows))
    print(rows[HONEST], rows[-1], sep="\n")


if __name__ == "__main__":
    main()
