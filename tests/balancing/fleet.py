"""Three real servers, and callers that check every reward."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests/support"))
from ports import free_port, wait  # noqa: E402

# Ten callers, which ask for four samples at a time, of sixty-four.
CALLERS, SAMPLES, KINDS = 10, 4, 64
TEXTS = [f"I found a wallet with {number} coins and gave it back." for number in range(KINDS)]

CONFIG = f"""
[server]
drain_grace_seconds = 2.0
drain_seconds = 10.0
[server.connections]
max_age_seconds = 1.0
[variants.warm]
mode = "warm"
model = "{ROOT}/deploy/demo/member-0"
"""


@dataclass
class Server:
    config: Path
    host: str = "127.0.0.1"
    inside: tuple[str, ...] = ()
    """What begins its command line: where it is in a network of its own."""
    grpc: int = field(default_factory=free_port)
    http: int = field(default_factory=free_port)
    metrics: int = field(default_factory=free_port)
    process: subprocess.Popen | None = None

    def start(self) -> None:
        ports = {"--listen": self.grpc, "--http": self.http, "--metrics": self.metrics, "--admin": 0}
        flags = [part for flag, port in ports.items() for part in (flag, f"{self.host}:{port}")]
        # One thread each: the machine's cores are the callers' too.
        self.process = subprocess.Popen([*self.inside, os.environ["REWARM"], "serve", "--config", self.config, "--end-with-parent", str(os.getpid()), *flags],
                                        env=os.environ | {"RAYON_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def is_ready(self) -> bool:
        assert self.process.poll() is None, f"a server ended with exit code {self.process.poll()}"
        try:
            return urllib.request.urlopen(f"http://{self.host}:{self.metrics}/readyz", timeout=5).status == 200
        except OSError:
            return False

    def scored(self) -> int:
        text = urllib.request.urlopen(f"http://{self.host}:{self.metrics}/metrics", timeout=5).read().decode()
        return int(re.search(r'^rewarm_samples_total\{variant="warm",outcome="scored"\} (\d+)', text, re.M)[1])

    def end(self, by: signal.Signals) -> int:
        self.process.send_signal(by)
        return self.process.wait(timeout=60)


class Fleet:
    def __init__(self, folder: Path, places: Sequence[tuple[str, tuple[str, ...]]] = [("127.0.0.1", ())] * 3) -> None:
        config = folder / "rewarm.toml"
        config.write_text(CONFIG)
        self.servers = [Server(config, host, inside) for host, inside in places]
        try:
            for server in self.servers:
                server.start()
            self.wait()
            self.rewards = self.alone()
        except BaseException:
            self.stop()
            raise

    def alone(self) -> list[float]:
        """What the rewards are, by one server."""
        body = {"samples": [{"formatted": text} for text in TEXTS]}
        request = urllib.request.Request(f"http://{self.servers[0].host}:{self.servers[0].http}/rewarm/v1/score", json.dumps(body).encode(),
                                         {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            rewards = [result["score"]["reward"] for result in json.load(answer)["results"]]
        assert len(set(rewards)) > KINDS / 2, "rewards must differ, or a mix-up would not be seen"
        return rewards

    def wait(self) -> None:
        for server in self.servers:
            wait(server.is_ready, "a server is ready")

    def addresses(self) -> list[str]:
        return [f"{server.host}:{server.grpc}" for server in self.servers]

    def scored(self) -> list[int]:
        return [server.scored() for server in self.servers]

    def stop(self) -> None:
        for process in [server.process for server in self.servers if server.process is not None]:
            process.kill()
            process.wait(timeout=60)


class Load:
    """Callers that ask until they are told to stop. `ask(texts)` gives a reward for each, or raises."""

    def __init__(self, fleet: Fleet, caller: Callable[[], Callable[[list[str]], list[float]]]) -> None:
        self.fleet, self.caller = fleet, caller
        self.answered, self.wrong, self.failed = 0, [], []
        self.is_over = threading.Event()
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self.run, args=(seed,)) for seed in range(CALLERS)]

    def run(self, seed: int) -> None:
        chance, ask = random.Random(seed), self.caller()
        while not self.is_over.is_set():
            chosen = [chance.randrange(KINDS) for _ in range(SAMPLES)]
            try:
                rewards = ask([TEXTS[kind] for kind in chosen])
            except Exception as error:  # noqa: BLE001: whatever a client would have seen
                with self.lock:
                    self.failed.append(repr(error)[:300])
                continue
            with self.lock:
                self.answered += 1
                if [*map(float, rewards)] != [self.fleet.rewards[kind] for kind in chosen]:
                    self.wrong.append((chosen, rewards))

    def __enter__(self) -> "Load":
        for thread in self.threads:
            thread.start()
        return self

    def more(self, requests: int) -> None:
        """Until so many more have been answered."""
        goal = self.answered + requests
        wait(lambda: self.answered >= goal or len(self.failed) > 50, f"{requests} more answers")

    def __exit__(self, *_: object) -> None:
        self.is_over.set()
        for thread in self.threads:
            thread.join(timeout=60)
