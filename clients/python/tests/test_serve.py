"""`rewarm.serve` leaves no server behind."""
import os
import pathlib
import signal
import subprocess
import sys
import time
import urllib.request

import pytest
from conftest import MEMBERS, start

import rewarm

SOURCES = str(pathlib.Path(rewarm.__file__).parents[1])


def is_alive(address):
    try:
        rewarm.Client(address, timeout=0.3).info()
    except rewarm.Unavailable:
        return False
    return True


def test_it_starts_answers_and_ends_in_good_order():
    with start() as server:
        assert server.is_running and is_alive(server.address)
    assert not server.is_running and not is_alive(server.address)
    assert server._process.returncode == 0
    server.stop()


def test_http_is_open_where_it_is_asked_for():
    with start(http="127.0.0.1:0") as server:
        with urllib.request.urlopen(f"http://{server.http}/health") as answer:
            assert answer.status == 200
    with start() as server:
        assert server.http == ""


def test_what_does_not_start_says_why(tmp_path):
    with pytest.raises(rewarm.RewarmError, match="nowhere"):
        rewarm.serve({"variants": {"warm": {"mode": "warm", "model": str(tmp_path / "nowhere")}}})
    with pytest.raises(rewarm.RewarmError, match="no program"):
        rewarm.serve(binary=str(tmp_path / "rewarm"))


@pytest.mark.parametrize("end", ["raise SystemExit(3)", "1/0", "os.kill(os.getpid(), signal.SIGKILL)",
                                 "os.kill(os.getpid(), signal.SIGTERM)", "os._exit(0)"])
def test_it_ends_with_its_parent(end):
    script = f"""
import os, signal, sys
sys.path.insert(0, {SOURCES!r})
import rewarm
server = rewarm.serve({{"variants": {{"warm": {{"mode": "warm", "members": {MEMBERS!r}}}}}}})
print(server.address, flush=True)
{end}
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    address = done.stdout.strip()
    assert address, done.stderr
    end_of_wait = time.monotonic() + 10
    while is_alive(address):
        assert time.monotonic() < end_of_wait, "the server is still there"


def test_a_fork_does_not_stop_its_parents_server():
    with start() as server:
        child = os.fork()
        if child == 0:
            server.stop()
            os._exit(0)
        os.waitpid(child, 0)
        assert is_alive(server.address)
        # one that holds the pipe open does not keep the server
        child = os.fork()
        if child == 0:
            signal.pause()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert not is_alive(server.address)
