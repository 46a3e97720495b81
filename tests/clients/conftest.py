"""The real server, and what the clients' requests and rewards are held against.

All clients score the same texts with the small model of `tests/data/models/llama`, whose `golden.json` has the rewards that
transformers computes: so a client's reward is right if it is that number, whatever the way there.
"""
from __future__ import annotations

import contextlib
import json
import os
import pathlib
import random
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from importlib.metadata import PackageNotFoundError, version

import pytest
from recorder import Recorder

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "clients/python/src"))

import rewarm

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("REWARM_BINARY", str(ROOT / "target/debug/rewarm"))

MODEL = ROOT / "tests/data/models/llama"
RECORDED = ROOT / "tests/data/clients"
#: prompt, response, rendered (the whole text through the chat template), reward
TEXTS = json.loads((MODEL / "golden.json").read_text(encoding="utf-8"))["texts"]
#: Room for another order of summation in f32, and nothing else.
F32_ATOL = 1e-5
TOKEN = "a-token-of-the-tests-0123456789"


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


class Real:
    """A server of the model at ports that stay, so that it can go and come back."""

    def __init__(self, server=None, **batching):
        self.grpc, self.http = (f"127.0.0.1:{port}" for port in free_ports(2))
        self._config = {"variants": {"chat": {"mode": "warm", "model": str(MODEL), "dtype": "f32"}}, "batching": batching,
                        "server": server or {}}
        self.start()

    def start(self):
        self._server = rewarm.serve(self._config, listen=self.grpc, arguments=["--http", self.http])

    def stop(self):
        self._server.stop()

    @contextlib.contextmanager
    def away(self, seconds=1.5):
        """It goes, and comes back while the block runs."""
        self.stop()
        back = threading.Timer(seconds, self.start)
        back.start()
        yield
        back.join()

    def count(self, metric, **labels):
        """The sum of a counter's series that have these labels."""
        with urllib.request.urlopen(f"http://{self._server.metrics}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        wanted = [f'{name}="{value}"' for name, value in labels.items()]
        return sum(float(line.split()[-1]) for line in lines
                   if line.startswith(metric + "{") and all(label in line for label in wanted))


def free_ports(count):
    """Below the ports that outgoing connections get: one of those could take the place of a server that is away."""
    found = []
    for port in random.sample(range(22_000, 22_100), 100):
        with contextlib.closing(socket.socket()) as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise OSError("no port is free")


def outcomes(ask, failed, enough):
    """Asks until `enough()`, 20 s at most: the answers, and what `failed` makes of the errors of clients that try once."""
    answers, errors, deadline = [], [], time.monotonic() + 20
    while not enough(answers, errors):
        assert time.monotonic() < deadline, (len(answers), errors[-3:])
        try:
            answers.append(ask())
        except Exception as error:
            errors.append(failed(error))
    return answers, errors


def refused(server):
    """How often the queue was full."""
    return server.count("rewarm_rejections_total")


@pytest.fixture
def server():
    real = Real()
    yield real
    real.stop()


@pytest.fixture
def closed(tmp_path):
    """One that wants a token; `http` has it in front, as a trainer's URL does."""
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(f'[tokens.trainer]\ntoken = "{TOKEN}"\n', encoding="utf-8")
    real = Real(server={"tokens": tokens})
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"http://{real.http}/v1/models", timeout=10)
    real.http = f"any:{TOKEN}@{real.http}"  # requests leaves out a user without a password
    yield real
    real.stop()


@pytest.fixture
def busy():
    """One with room for a few samples, and work that takes all of it."""
    real = Real(max_queue_tokens=1024, max_batch_tokens=256)
    ended = threading.Event()

    def load():
        with rewarm.Client(real.grpc, timeout=60) as client:
            while not ended.is_set():
                client.score("hello", ["well"] * 30)

    workers = [threading.Thread(target=load) for _ in range(4)]
    for worker in workers:
        worker.start()
    while refused(real) == 0:
        time.sleep(0.01)
    yield real
    ended.set()
    for worker in workers:
        worker.join()
    real.stop()


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
