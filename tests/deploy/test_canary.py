"""`rewarm canary` against a real Prometheus and two closed servers with traffic: to the end, and back."""

import http.client
import json
import os
import re
import signal
import ssl
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import pytest
from place import Place, Server, place, secret, wait
from tools import REWARM

# A look a second, each over a few scrapes. How long the least of requests takes is told by whatever else this machine does.
QUICK = ["--pause=2", "--poll=1", "--window=4", "--patience=20", "--min-requests=5", "--max-slowdown=10000", '--matchers=job="rewarm"']


def ask(here: Place, server: Server, number: int) -> Iterator[int]:
    tls = ssl.create_default_context(cafile=here.environment["REWARM_CA"])
    door = http.client.HTTPSConnection(server.addresses["http"], context=tls, timeout=5)
    try:
        for number in count(number):
            door.request("POST", "/get_reward", json.dumps({"query": [f"text {number}"]}), {
                "authorization": f"Bearer {secret('trainer')}", "content-type": "application/json"})
            answer = door.getresponse()
            answer.read()
            yield answer.status
    finally:
        door.close()


@contextmanager
def traffic(here: Place):
    """Some twenty requests a second at each server, each with a key of its own; the statuses that came."""
    over, statuses = threading.Event(), set()

    def talk(server: Server) -> None:
        number = 0
        while not over.is_set():
            try:
                for status in ask(here, server, number):
                    statuses.add(status)
                    number += 1
                    if over.wait(0.05):
                        break
            except (OSError, http.client.HTTPException):
                over.wait(0.1)  # it is being started anew

    threads = [threading.Thread(target=talk, args=[server]) for server in here.servers]
    for thread in threads:
        thread.start()
    try:
        yield statuses
    finally:
        over.set()
        for thread in threads:
            thread.join()


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    with place(tmp_path_factory.mktemp("canary"), closed=True, servers=2) as here, traffic(here) as statuses:
        yield here
    assert {200} <= statuses <= {200, 503}, "503 while one loads"


def share(here: Place, server: Server, variant: str) -> float | None:
    """What a server says itself; none while it loads."""
    request = urllib.request.Request(f"https://{server.addresses['metrics']}/metrics", headers={"authorization": f"Bearer {secret('prometheus')}"})
    tls = ssl.create_default_context(cafile=here.environment["REWARM_CA"])
    with urllib.request.urlopen(request, timeout=5, context=tls) as answer:
        found = re.search(rf'^rewarm_route_weight{{variant="{variant}"}} (\S+)$', answer.read().decode(), re.M)
    return float(found[1]) if found else None


def shares(here: Place, variant: str) -> list[float]:
    return [share(here, server, variant) for server in here.servers]


def idle(here: Place) -> str:
    """The variant without traffic, once Prometheus has seen that both servers agree."""
    without = [[name for name in ("warm", "ens") if share(here, server, name) == 0] for server in here.servers]
    [name], others = without[0], without[1:]
    assert others == [[name]]
    wait(lambda: len(here.query(f'rewarm_route_weight{{variant="{name}"}} == 0')) == 2, "Prometheus sees it")
    return name


def start(here: Place, variant: str, *arguments: str, **environment: str) -> subprocess.Popen:
    admins = [f"--admin=https://{server.addresses['admin']}" for server in here.servers]
    known = {name: here.environment[name] for name in ("NO_PROXY", "REWARM_CA", "REWARM_TOKEN")}
    flags = dict(word.split("=", 1) for word in [*QUICK, *arguments])  # a later one in place of an earlier
    words = [f"{flag}={value}" for flag, value in flags.items()]
    return subprocess.Popen([REWARM, "canary", variant, *admins, f"--prometheus={here.prometheus}", *words], text=True,
                            env={"PATH": os.environ["PATH"]} | known | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def end(canary: subprocess.Popen) -> tuple[int, str]:
    said, _ = canary.communicate(timeout=60)
    return canary.returncode, said


def test_it_goes_to_the_end_on_both_servers_and_on_one_that_is_started_anew(here):
    variant = idle(here)
    canary = start(here, variant, "--steps=20,100")
    wait(lambda: shares(here, variant) == [0.2, 0.2], "both have the first share")
    here.servers[1].end()
    here.servers[1].start()

    def is_told() -> bool:
        try:
            return share(here, here.servers[1], variant) in (0.2, 1)
        except OSError:
            return False

    wait(is_told, "the new process has the share again")
    code, said = end(canary)
    assert code == 0, said
    assert "20.0% for 2s" in said and "100.0% for 2s" in said and f"`{variant}` holds at 100.0%" in said
    assert re.search(r"failed requests 0.00%, others 0.00%; samples without reward 0.00%, others 0.00%; p99 \d+ ms, others \d+ ms", said), said
    assert shares(here, variant) == [1, 1]


@pytest.mark.parametrize(("guard", "reason"), [
    ("--max-slowdown=0.01", "more than 0.01 times as long"),
    ('--alert=rewarm_route_weight{variant="VARIANT"} > 0.4', "finds {"),
])
def test_a_broken_guard_takes_all_back(here, guard, reason):
    variant = idle(here)
    code, said = end(start(here, variant, "--steps=50", guard.replace("VARIANT", variant)))
    assert code == 1, said
    assert "50.0% for 2s" in said and "goes back: " in said and reason in said and "all is as before: " in said
    assert shares(here, variant) == [0, 0]


def test_an_alert_that_fires_before_the_start_is_an_error_and_nothing_moves(here):
    variant = idle(here)
    code, said = end(start(here, variant, "--steps=50", '--alert=rewarm_ready{job="rewarm"} == 1'))
    assert code == 1, said
    assert "nothing was changed: rewarm_ready" in said and "already, before the start" in said and "50.0%" not in said, said
    assert shares(here, variant) == [0, 0]


def test_who_is_asked_to_end_takes_all_back(here):
    variant = idle(here)
    canary = start(here, variant, "--steps=50", "--pause=60")
    wait(lambda: shares(here, variant) == [0.5, 0.5], "both have the share")
    canary.send_signal(signal.SIGTERM)
    code, said = end(canary)
    assert code == 1 and "it was asked to end" in said, said
    assert shares(here, variant) == [0, 0]


@pytest.mark.parametrize(("token", "reason"), [("", "token"), (secret("nobody"), "token"), (secret("trainer"), "admin")])
def test_without_a_token_for_the_admin_service_it_says_so(here, token, reason):
    variant = idle(here)
    code, said = end(start(here, variant, "--steps=50", "--patience=1", REWARM_TOKEN=token))
    assert code == 1 and reason in said, said
    assert shares(here, variant) == [0, 0]
