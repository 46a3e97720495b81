"""The runbook: a section for each alert, and commands that work against a real server and a real Prometheus."""

import json
import random
import re
import shlex
import socket
import subprocess
import time
import urllib.request

import pytest
from metrics import ROOT, problems
from test_prometheus import ALERTS, FOLDER, PROMTOOL, RECORDED
from tools import REWARM, run, tool

TEXT = (ROOT / "deploy/RUNBOOK.md").read_text()
SECTIONS = re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", TEXT, re.M | re.S)
LINES = [line for block in re.findall(r"```sh\n(.*?)```", TEXT, re.S) for line in block.splitlines()]
COMMANDS = [line for line in LINES if not line.startswith("export")]


def test_every_alert_has_its_section_and_every_section_its_alert():
    assert [name for name, _ in SECTIONS] == list(ALERTS)


@pytest.mark.parametrize(("name", "text"), SECTIONS, ids=[name for name, _ in SECTIONS])
def test_a_section_says_what_to_look_at_and_what_to_do(name, text):
    assert "```sh\n" in text
    assert re.search(r"^(Look|Look and do|Do)\b", text, re.M) or "Look and do as for" in text


def test_links_lead_somewhere():
    anchors = {heading.lower().replace(" ", "-") for heading in re.findall(r"^#+ (.*)$", TEXT, re.M)}
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        path, _, anchor = target.partition("#")
        assert not path or (ROOT / "deploy" / path).exists(), target
        assert path or anchor in anchors, target


def test_queries_ask_for_metrics_that_a_server_has():
    queries = [shlex.split(line)[-1] for line in COMMANDS if line.startswith("promtool query")]
    assert len(queries) >= len(ALERTS) // 2
    assert [(query, problems(query, RECORDED)) for query in queries if problems(query, RECORDED)] == []


def test_every_command_line_of_ours_is_understood():
    lines = [part.strip() for line in COMMANDS + re.findall(r"`([^`\n]*)`", TEXT) for part in line.split("|")]
    ours = [shlex.split(line.replace("$", ""))[1:] for line in lines if re.match(r"rewarm \w+ ", line)]
    assert len(ours) >= 8
    for arguments in ours:
        run(REWARM, *arguments, "--help")  # a flag that does not exist is an error before the help is shown


def free_port() -> int:
    """One that is free, and that no client is given as its own meanwhile: Linux takes those from 32768 on."""
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


def answers(url: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            return urllib.request.urlopen(url, timeout=5).close()
        except OSError:
            assert time.monotonic() < end, f"{url} did not answer within {seconds} s"
            time.sleep(0.1)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A server of the demo family and a Prometheus that scrapes it: what the commands go by."""
    folder = tmp_path_factory.mktemp("runbook")
    prometheus = tool("prometheus", "Debian: prometheus")
    members = json.dumps([str(ROOT / f"deploy/demo/member-{member}") for member in range(2)])
    (folder / "rewarm.toml").write_text(f'[variants.warm]\nmode = "warm"\nmembers = {members}\n')
    told, port = folder / "addresses.json", free_port()
    started = [subprocess.Popen([REWARM, "serve", "--config", folder / "rewarm.toml", "--addresses", told, "--listen", "127.0.0.1:0",
                                 "--admin", "127.0.0.1:0", "--metrics", "127.0.0.1:0"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)]
    try:
        end = time.monotonic() + 60
        while not told.exists():
            assert time.monotonic() < end, "the server did not start"
            time.sleep(0.1)
        addresses = json.loads(told.read_text())
        (folder / "rules.yml").write_text((FOLDER / "rules.yml").read_text())
        text = (FOLDER / "prometheus.yml").read_text().replace("rewarm:9090", addresses["metrics"])
        (folder / "prometheus.yml").write_text(text.replace("scrape_interval: 5s", "scrape_interval: 1s"))
        started.append(subprocess.Popen(
            [prometheus, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb",
             f"--web.listen-address=127.0.0.1:{port}", f"--web.user-assets={ROOT}/deploy/dashboard"],
            stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL))
        answers(f"http://{addresses['metrics']}/readyz")
        answers(f"http://127.0.0.1:{port}/-/ready")
        end = time.monotonic() + 60
        query = f"http://127.0.0.1:{port}/api/v1/query?query=rewarm_ready==1"
        while not json.load(urllib.request.urlopen(query, timeout=5))["data"]["result"]:
            assert time.monotonic() < end, "Prometheus did not scrape the server"
            time.sleep(0.2)
        yield {"SERVER": f"http://{addresses['listen']}", "METRICS": f"http://{addresses['metrics']}",
               "PROMETHEUS": f"http://127.0.0.1:{port}", "CONFIG": str(folder / "rewarm.toml"), "NO_PROXY": "127.0.0.1"}
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(timeout=60)


def test_every_command_works(place):
    path = {"PATH": f"{REWARM.rpartition('/')[0]}:/usr/bin:/bin"}
    tool(*PROMTOOL)
    failed = {}
    for command in dict.fromkeys(COMMANDS):
        assert re.match(r"(rewarm|curl|promtool|echo) ", command), f"{command}: who would run this?"
        done = subprocess.run(["bash", "-o", "pipefail", "-c", command], env=place | path, text=True, timeout=60, capture_output=True)
        if done.returncode != 0:
            failed[command] = done.stdout + done.stderr
    assert failed == {}


def test_prometheus_serves_the_dashboard(place):
    for name in ("", "dashboard.js", "plot.js", "dashboard.css", "panels.json"):
        with urllib.request.urlopen(f"{place['PROMETHEUS']}/user/{name}", timeout=5) as reply:
            assert reply.status == 200 and reply.read()
