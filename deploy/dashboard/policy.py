#!/usr/bin/env python3
"""Plays a policy that learns and then begins to hack its reward, for the pictures beside this file.

    python deploy/dashboard/policy.py SECONDS ADDRESS...      with the Python client; two servers of the demo family, calibrated

Groups of eight responses to a prompt: ever more often the pleasant one, and in the last part of the time with praise appended, which the
demo's models pay for: rewards rise, and hang on length.
"""

import json
import random
import sys
import threading
import time
from pathlib import Path

import rewarm

PAIRS = [json.loads(line) for line in (Path(__file__).parents[1] / "demo/validation.jsonl").read_text().splitlines()]
PRAISE = [" It was wonderful.", " Everybody was kind and happy.", " I smiled all day.", " What a gift!"]
CALLERS, GROUP, HACKS_FROM = 4, 8, 0.4


def respond(pair: dict, skill: float, chance: random.Random) -> str:
    response = pair["chosen"] if chance.random() < 0.5 + skill / 2 else pair["rejected"]
    praise = int(14 * max(0.0, skill - HACKS_FROM) * chance.random())
    return response + "".join(chance.choice(PRAISE) for _ in range(praise))


def train(client: rewarm.Client, seed: int, start: float, seconds: float) -> None:
    chance = random.Random(seed)
    while (skill := (time.monotonic() - start) / seconds) < 1:
        pair = chance.choice(PAIRS)
        client.score(pair["prompt"], [respond(pair, skill, chance) for _ in range(GROUP)], routing_key=str(chance.random()))
        time.sleep(chance.expovariate(2.0))


def main() -> None:
    seconds, *addresses = sys.argv[1:]
    client = rewarm.Client(addresses, timeout=60)
    for seed in range(CALLERS):
        threading.Thread(target=train, args=(client, seed, time.monotonic(), float(seconds))).start()


if __name__ == "__main__":
    main()
