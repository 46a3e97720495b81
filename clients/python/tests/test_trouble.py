"""Servers that are busy, slow, gone, or come back; processes, threads and tasks."""
import asyncio
import contextlib
import pathlib
import pickle
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import MEMBERS, PROMPT, sentences, start

import rewarm


def free_port():
    """Below the ports that outgoing connections get: a client that looks for its server would take it, or meet itself."""
    for port in random.sample(range(23_000, 24_000), 1000):
        with contextlib.closing(socket.socket()) as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
    raise OSError("no port is free")


def test_a_full_queue_is_waited_for(kind, expected):
    # a queue of two or three requests of ours, of which sixteen come at once
    with start(batching={"max_queue_tokens": 6000, "max_batch_tokens": 2000}) as busy:
        with kind(busy.address, timeout=60) as client:
            assert client.score(PROMPT, sentences(1000)) == expected[:1000]
        refused = [line for line in metrics(busy) if line.startswith("rewarm_rejections_total{")]
        assert any(float(line.split()[-1]) > 0 for line in refused), f"the queue was never full: {refused}"


def metrics(server):
    with urllib.request.urlopen(f"http://{server.metrics}/metrics", timeout=10) as answer:
        return answer.read().decode().splitlines()


def test_an_overload_that_lasts_is_told_before_the_deadline_is_long_over(client):
    begun = time.monotonic()
    with pytest.raises((rewarm.Overloaded, rewarm.DeadlineExceeded)):
        client.score(PROMPT, sentences(5000), timeout=0.4)
    assert time.monotonic() - begun < 5  # the samples' encoding counts


def test_a_deadline_that_passes(client):
    with pytest.raises((rewarm.DeadlineExceeded, rewarm.Overloaded), match="0.001|wait"):
        client.score(PROMPT, ["one"], timeout=0.001)


def test_nobody_listens(kind):
    with kind(f"127.0.0.1:{free_port()}", timeout=0.5) as client:
        with pytest.raises(rewarm.Unavailable, match="attempts") as caught:
            client.score(PROMPT, ["one"])
        assert caught.value.code == "UNAVAILABLE" and caught.value.attempts > 2
        assert caught.value.address == client.addresses[0] if kind is rewarm.Client else True


def test_of_two_addresses_one_is_dead(kind, server, expected):
    with kind([f"127.0.0.1:{free_port()}", server.address], timeout=30) as client:
        for _ in range(4):
            assert client.score(PROMPT, sentences(300)) == expected[:300]


def test_calls_take_turns_between_addresses_and_the_addresses_of_a_name(kind):
    with start() as one, start() as two:
        for addresses in [[one.address, two.address], f"{one.address},{two.address}"]:
            before = [scored(one), scored(two)]
            with kind(addresses, timeout=30) as client:
                client.score(PROMPT, sentences(640))
            shares = [scored(one) - before[0], scored(two) - before[1]]
            assert sum(shares) == 640 and min(shares) >= 64, (addresses, shares)
        # as gRPC resolves a name with several addresses: it begins with the one that answers first
        before, end = [scored(one), scored(two)], time.monotonic() + 20
        with kind(f"ipv4:{one.address},{two.address}", timeout=30) as client:
            while not (scored(one) > before[0] and scored(two) > before[1]):
                assert time.monotonic() < end, f"one server gets all: {before}, {scored(one)}, {scored(two)}"
                for _ in range(10):
                    client.score(PROMPT, ["one"])


def scored(server):
    return sum(float(line.split()[-1]) for line in metrics(server)
               if line.startswith("rewarm_samples_total{") and 'outcome="scored"' in line)


@pytest.mark.parametrize("patience", [40.0, 0.0], ids=["SIGTERM", "SIGKILL"])
def test_a_server_that_restarts_under_load(kind, expected, patience):
    listen = f"127.0.0.1:{free_port()}"
    first = start(listen=listen)
    with first, ThreadPoolExecutor(1) as pool, kind(listen, timeout=600) as client:
        call = pool.submit(client.score, PROMPT, sentences(1500))
        while scored(first) == 0:
            assert not call.done()
        first.stop(patience=patience)
        with start(listen=listen):
            assert call.result() == expected[:1500]


def test_models_that_differ_behind_one_call_are_noticed(kind):
    with start() as one, rewarm.serve({"variants": {"warm": {"mode": "warm", "model": MEMBERS[0]}}}) as two:
        with kind([one.address, two.address], timeout=30) as client:
            with pytest.raises(rewarm.FingerprintMismatch, match="servers differ"):
                client.score(PROMPT, sentences(500))


def test_clients_pickle_and_so_do_errors(kind, server):
    client = rewarm.Client(server.address, variant="ens", timeout=7)
    expected = client.score(PROMPT, ["one"])
    copy = pickle.loads(pickle.dumps(client))
    assert copy.score(PROMPT, ["one"]) == expected and repr(copy) == repr(client)
    for error in [
        rewarm.SamplesFailed("bad", failures=(rewarm.Failure(3, "INTERNAL", "why"),), scores=(None,)),
        rewarm.InvalidInput("bad", index=3),
        rewarm.Unavailable("bad", code="UNAVAILABLE", address="a:1", attempts=4),
    ]:
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error) and str(again) == "bad" and vars(again) == vars(error)


def test_an_async_client_pickles(server):
    client = pickle.loads(pickle.dumps(rewarm.AsyncClient(server.address)))
    assert len(asyncio.run(client.score(PROMPT, ["one"]))) == 1
    # and is not bound to the loop of its first call, nor keeps those that have ended
    for _ in range(3):
        assert len(asyncio.run(client.score(PROMPT, ["one"]))) == 1
    assert len(client._pools) == 1


FORKS = """
import asyncio, multiprocessing, os, sys
sys.path.insert(0, sys.argv[2])
import rewarm

client = rewarm.Client(sys.argv[1], timeout=20)
texts = [f"text {i}" for i in range(200)]
expected = client.score_texts(texts)

for _ in range(3):
    child = os.fork()
    if child == 0:
        same = client.score_texts(texts) == expected
        again = asyncio.run(rewarm.AsyncClient(sys.argv[1]).score_texts(texts)) == expected
        os._exit(0 if same and again else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert client.score_texts(texts) == expected
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(client.score_texts, [texts, texts]) == [expected] * 2
"""


def test_forks_have_connections_of_their_own(server):
    # a process of its own: gRPC survives a fork only while no other thread or event loop of the process uses it
    sources = str(pathlib.Path(rewarm.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", FORKS, server.address, sources], timeout=60, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr


def test_threads_share_a_client(server):
    with rewarm.Client(server.address, timeout=60) as client:
        expected = client.score(PROMPT, sentences(100))
        with ThreadPoolExecutor(8) as pool:
            calls = [pool.submit(client.score, PROMPT, sentences(100)) for _ in range(16)]
            assert all(call.result() == expected for call in calls)


def test_tasks_share_a_client_and_threads_have_loops_of_their_own(server):
    client = rewarm.AsyncClient(server.address, timeout=60)
    expected = rewarm.Client(server.address).score(PROMPT, sentences(100))
    outcomes = []

    async def many():
        return await asyncio.gather(*(client.score(PROMPT, sentences(100)) for _ in range(4)))

    def run():
        outcomes.extend(asyncio.run(many()))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [expected] * 12


def test_a_cancelled_call_is_cancelled_in_the_server(server):
    async def run():
        async with rewarm.AsyncClient(server.address) as client:
            call = asyncio.ensure_future(client.score(PROMPT, sentences(5000)))
            await asyncio.sleep(0.1)
            before = scored(server)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(client.score(PROMPT, sentences(5000)), 0.1)
            # the client goes on, and the server has not scored what was left
            assert len(await client.score(PROMPT, ["one"], priority="interactive")) == 1
            return scored(server) - before

    assert asyncio.run(run()) < 5000
