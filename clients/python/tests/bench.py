"""Throughput of one server through its doors: gRPC and HTTP as `rewarm bench server` asks, and the Python client. By hand.

    python clients/python/tests/bench.py path/to/rewarm           needs transformers and torch, for a model of MiniLM's shape

They take turns, the same lengths of random token ids and 64 samples a request; medians of the rounds, and their quotients round by
round, which a machine that does other things disturbs less. Clients run on the same cores as the server.
"""
from __future__ import annotations

import argparse
import json
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "clients/python/src"))
sys.path.append(str(ROOT / "tests/support"))

from models import DEMO, minilm

import rewarm

#: 64 samples a request, and so many requests at a time as the Python client has.
SAMPLES, CALLERS = 64, 8


def through_rust(binary: str, url: str, over: str, length: int, count: int, folder: pathlib.Path) -> float:
    report = folder / "bench.json"
    subprocess.run([binary, "bench", "server", "--server", url, "--over", over, "--variant", "rm", "--lengths", f"{length}x{count}",
                    "--samples-per-request", str(SAMPLES), "--callers", str(CALLERS), "--singles", "0", "--rounds", "1",
                    "--warmup-rounds", "0", "--json", str(report)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    return rate(json.loads(report.read_text(encoding="utf-8")))


def rate(report: object) -> float:
    """The closed loop's samples a second, wherever the report has it."""
    found = [value for key, value in pairs(report) if key == "samples_per_second"]
    return statistics.median(value if isinstance(value, float) else value["median"] for value in found)


def pairs(value: object) -> list[tuple[str, object]]:
    if isinstance(value, dict):
        return [pair for key, item in value.items() for pair in [(key, item), *pairs(item)]]
    return [pair for item in value for pair in pairs(item)] if isinstance(value, list) else []


def through_python(client: rewarm.Client, length: int, count: int) -> float:
    draw = random.Random(0)
    ids = [[draw.randrange(1, 1000) for _ in range(length)] for _ in range(count)]
    began = time.monotonic()
    assert len(client.score_token_ids(ids)) == count
    return count / (time.monotonic() - began)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("binary")
    options.add_argument("--rounds", type=int, default=7)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for model, variant, length, count in [("demo family", DEMO, 32, 8192), ("MiniLM's shape", minilm(folder / "m"), 64, 256)]:
            with rewarm.serve({"variants": {"rm": variant}}, binary=given.binary, http="127.0.0.1:0") as server, \
                    rewarm.Client(server.address) as client:
                turns = {
                    "gRPC": lambda: through_rust(given.binary, f"http://{server.address}", "grpc", length, count, folder),
                    "HTTP": lambda: through_rust(given.binary, f"http://{server.http}", "http", length, count, folder),
                    "Python": lambda: through_python(client, length, count),
                }
                for turn in turns.values():
                    turn()
                seen = [{way: turn() for way, turn in turns.items()} for _ in range(given.rounds)]
            for way in turns:
                quotients = sorted(round[way] / round["gRPC"] for round in seen)
                print(f"{model}, {count} samples of {length} tokens, {way}: {statistics.median(round[way] for round in seen):,.0f} "
                      f"samples/s; of gRPC's {statistics.median(quotients):.2f} ({quotients[0]:.2f} to {quotients[-1]:.2f})", flush=True)


if __name__ == "__main__":
    main()
