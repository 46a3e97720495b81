"""The real server, and what the clients' requests and rewards are held against.

All clients score the same texts with the small model of `tests/data/models/llama`, whose `golden.json` has the rewards that
transformers computes: so a client's reward is right if it is that number, whatever the way there.
"""
from __future__ import annotations

import json
import os
import pathlib
import sys
from importlib.metadata import PackageNotFoundError, version

import pytest
from recorder import Recorder

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "clients/python/src"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("REWARM_BINARY", str(ROOT / "target/debug/rewarm"))

MODEL = ROOT / "tests/data/models/llama"
RECORDED = ROOT / "tests/data/clients"
#: prompt, response, rendered (the whole text through the chat template), reward
TEXTS = json.loads((MODEL / "golden.json").read_text(encoding="utf-8"))["texts"]
#: Room for another order of summation in f32, and nothing else.
F32_ATOL = 1e-5


def recorded(name, client, request, rewards_at, rewards, note=""):
    """Holds a request of a client against the recorded one, `tests/data/clients/NAME.json`; UPDATE_GOLDEN=1 rewrites it.

    `rewards_at` are JSON pointers into the answer: where the client reads a reward; `rewards` the right ones.
    """
    try:
        client = f"{client} {version(client)}"
    except PackageNotFoundError:
        pass
    found = {"client": client, "model": str(MODEL.relative_to(ROOT)), **({"note": note} if note else {}),
             "request": request, "rewards_at": rewards_at, "rewards": rewards}
    file = RECORDED / f"{name}.json"
    if os.environ.get("UPDATE_GOLDEN"):
        file.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    assert json.loads(file.read_text(encoding="utf-8")) == found


@pytest.fixture
def recorder():
    """Makes recorders that answer every request with the same."""
    made = []

    def make(value, status=200):
        made.append(Recorder(lambda _: (status, value)))
        return made[-1]

    yield make
    for recorder in made:
        recorder.close()
