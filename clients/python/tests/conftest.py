"""Servers of the demo family for the tests: the real program, `target/debug/rewarm` unless REWARM_BINARY names one."""
from __future__ import annotations

import asyncio
import inspect
import json
import os
import pathlib

import grpc
import pytest

import rewarm
from rewarm.v1 import reward_pb2, reward_pb2_grpc

ROOT = pathlib.Path(__file__).resolve().parents[3]
MEMBERS = [str(ROOT / f"deploy/demo/member-{i}") for i in range(4)]
CHAT = ROOT / "tests/data/models/llama"
GOLDEN = json.loads((ROOT / "tests/data/demo_golden.json").read_text(encoding="utf-8"))["samples"]
PROMPT = GOLDEN[0]["prompt"]

os.environ.setdefault("REWARM_BINARY", str(ROOT / "target/debug/rewarm"))

WARM = {"mode": "warm", "members": MEMBERS}
ENS = {"mode": "ens", "members": MEMBERS, "reduction": "mean"}
VARIANTS = {"warm": WARM, "ens": ENS, "chat": {"mode": "warm", "model": str(CHAT)}}


def start(variants=("warm",), weights=None, listen="127.0.0.1:0", http=None, **tables):
    """A server of some of the variants."""
    config = {"variants": {name: VARIANTS[name] for name in variants},
              "routing": {"weights": weights or {variants[0]: 1}}, **tables}
    return rewarm.serve(config, listen=listen, http=http)


def sentences(count):
    """Different responses, whose rewards differ."""
    things = ["won the lottery", "broke my leg", "found a perfect shell", "lost my job", "ate a cake", "fixed the old car"]
    return [f"I {things[i % 6]}" + " and again" * (i // 6 % 7) + f", number {i}." for i in range(count)]


class Blocking:
    """An AsyncClient that waits, so that one test holds both clients."""

    def __init__(self, *arguments, **options):
        self.client = rewarm.AsyncClient(*arguments, **options)
        self.loop = asyncio.new_event_loop()

    def __getattr__(self, name):
        def call(*arguments, **options):
            found = getattr(self.client, name)(*arguments, **options)
            assert inspect.iscoroutine(found)
            return self.loop.run_until_complete(found)
        return call

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.loop.run_until_complete(self.client.close())
        self.loop.close()


@pytest.fixture(params=[rewarm.Client, Blocking], ids=["sync", "async"])
def kind(request):
    return request.param


@pytest.fixture(scope="session")
def server():
    with start(["warm", "ens", "chat"]) as server:
        yield server


@pytest.fixture
def client(kind, server):
    with kind(server.address, timeout=30) as client:
        yield client


@pytest.fixture(scope="session")
def expected(server):
    """The rewards of `sentences(5000)`, by the stubs alone."""
    stub = reward_pb2_grpc.RewardServiceStub(grpc.insecure_channel(server.address))
    rewards = []
    for begin in range(0, 5000, 1000):
        samples = [reward_pb2.Sample(text=reward_pb2.Text(prompt=PROMPT, response=response))
                   for response in sentences(5000)[begin:begin + 1000]]
        rewards += [result.score.reward for result in stub.Score(reward_pb2.ScoreRequest(samples=samples)).results]
    assert len(set(rewards)) > 1000, "rewards do not differ enough to show an order"
    return rewards
