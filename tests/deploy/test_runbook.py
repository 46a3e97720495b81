"""The runbook: a section for each alert, and commands that work against a real server and a real Prometheus."""

import re
import shlex
import subprocess
import urllib.request

import pytest
from metrics import ONLY_WHERE_SET_UP, ROOT, problems
from place import place
from test_prometheus import ALERTS, PROMTOOL, RECORDED
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
    sizing = (ROOT / "deploy/kubernetes/README.md").read_text()
    lines = [part.strip() for line in COMMANDS + re.findall(r"`([^`\n]*)`", TEXT) + sizing.splitlines() for part in line.split("|")]
    ours = [shlex.split(line.replace("$", ""))[1:] for line in lines if re.match(r"rewarm \w+ ", line)]
    assert ["bench", "server"] in [words[:2] for words in ours]
    assert len(ours) >= 8
    for arguments in ours:
        run(REWARM, *arguments, "--help")  # a flag that does not exist is an error before the help is shown


@pytest.fixture(scope="module", params=["open", "closed"])
def here(request, tmp_path_factory):
    with place(tmp_path_factory.mktemp(request.param), closed=request.param == "closed") as here:
        yield here.environment


def test_every_command_works(here):
    path = {"PATH": f"{REWARM.rpartition('/')[0]}:/usr/bin:/bin"}
    tool(*PROMTOOL)
    failed = {}
    for command in dict.fromkeys(COMMANDS):
        assert re.match(r"(rewarm|curl|promtool|echo) ", command), f"{command}: who would run this?"
        done = subprocess.run(["bash", "-o", "pipefail", "-c", command], env=here | path, text=True, timeout=60, capture_output=True)
        if done.returncode != 0:
            failed[command] = done.stdout + done.stderr
    assert failed == {}


def test_prometheus_serves_the_dashboard(here):
    for name in ("", "dashboard.js", "plot.js", "dashboard.css", "panels.json"):
        with urllib.request.urlopen(f"{here['PROMETHEUS']}/user/{name}", timeout=5) as reply:
            assert reply.status == 200 and reply.read()


def test_a_closed_server_has_the_metrics_of_certificates_and_tokens(here):
    if here["METRICS"].startswith("http:"):
        pytest.skip("this one is open")
    page = run("curl", "-fsS", f"{here['METRICS']}/metrics", env=here | {"PATH": "/usr/bin:/bin"})
    for name in ONLY_WHERE_SET_UP:
        if re.match("rewarm_(token|certificate)", name):
            assert f"\n{name}{{" in page or f"\n{name} " in page, name
