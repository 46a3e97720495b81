"""The parts of `rewarm.ray` that need no Ray: the directory, and the life of a replica. `tests/clients/ray.py` has the rest."""
import asyncio
import importlib
import pathlib
import sys
import time
import types

import pytest
from conftest import MEMBERS, PROMPT

import rewarm

FOLDER = pathlib.Path(rewarm.__file__).parent / "ray"


@pytest.fixture(scope="module", autouse=True)
def package():
    """`rewarm.ray` without its `__init__`, which wants Ray; taken away after, for who has it."""
    bare = types.ModuleType("rewarm.ray")
    bare.__path__ = [str(FOLDER)]
    before = {name: module for name, module in sys.modules.items() if name.startswith("rewarm.ray")}
    sys.modules["rewarm.ray"] = bare
    yield
    for name in [name for name in sys.modules if name.startswith("rewarm.ray")]:
        del sys.modules[name]
    sys.modules.update(before)


def module(name):
    return importlib.import_module(f"rewarm.ray.{name}")


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def run(test):
    """A test of a directory, with a clock for both times."""
    directory, clock = module("directory"), Clock()

    async def main():
        await test(directory.Directory(clock, clock), clock)

    asyncio.run(main())


def report(replica, state="ready", life="one", number=1, address=None):
    address = f"{replica}:1" if address is None else address
    return module("directory").Report(replica, life, number, state, address if state == "ready" else "")


def test_the_list_has_who_is_ready_and_its_revision_grows():
    async def test(directory, clock):
        assert await directory.changed(0, 0.0) == (0, ())
        assert not await directory.report(report("a", "starting"))
        assert await directory.changed(0, 0.0) == (0, ())
        assert await directory.report(report("a", number=2))
        first, addresses = await directory.changed(0, 0.0)
        assert addresses == ("a:1",) and first >= 1_000_000
        await directory.report(report("b"))
        second, addresses = await directory.changed(first, 60.0)
        assert second > first and addresses == ("a:1", "b:1")
        for state in ("unhealthy", "failed", "stopped", "starting"):
            await directory.report(report("b", "ready", number=clock.now))
            assert (await directory.changed(-1, 0.0))[1] == ("a:1", "b:1")
            clock.now += 1
            await directory.report(report("b", state, number=clock.now))
            assert (await directory.changed(-1, 0.0))[1] == ("a:1",), state
            clock.now += 1
    run(test)


def test_whoever_waits_is_told_of_a_change():
    async def test(directory, clock):
        waiting = asyncio.ensure_future(directory.changed(0, 60.0))
        await asyncio.sleep(0)
        assert not waiting.done()
        await directory.report(report("a"))
        assert (await asyncio.wait_for(waiting, 5))[1] == ("a:1",)
    run(test)


def test_old_reports_change_nothing():
    async def test(directory, clock):
        await directory.report(report("a", number=5))
        # out of order, in one life
        assert await directory.report(report("a", "starting", number=4))
        assert (await directory.changed(-1, 0.0))[1] == ("a:1",)
        # the actor was restarted; the old one still speaks
        await directory.report(report("a", life="two", number=1, address="a:2"))
        assert (await directory.changed(-1, 0.0))[1] == ("a:2",)
        await directory.report(report("a", life="one", number=6))
        assert (await directory.changed(-1, 0.0))[1] == ("a:2",)
        # it was ready once, whatever its life
        assert await directory.report(report("a", "starting", life="three"))
    run(test)


def test_who_leaves_or_is_silent_is_left_out():
    async def test(directory, clock):
        silence = module("directory").SILENCE_SECONDS
        await directory.report(report("a"))
        await directory.report(report("b"))
        clock.now += silence - 1
        await directory.report(report("b", number=2))
        clock.now += 2
        assert (await directory.changed(-1, 0.0))[1] == ("b:1",)
        # where all are silent, none is
        clock.now += silence
        assert (await directory.changed(-1, 0.0))[1] == ("a:1", "b:1")
        await directory.report(report("a", number=2))
        await directory.report(report("b", number=3))
        await directory.withdraw(["b"])
        assert (await directory.changed(-1, 0.0))[1] == ("a:1",)
        await directory.report(report("b", number=4))
        assert (await directory.changed(-1, 0.0))[1] == ("a:1",)
        await directory.forget(["b"])
        await directory.report(report("b", number=5))
        assert [said.replica for said in await directory.reports()] == ["a"]
    run(test)


class Told:
    """In place of the directory: what a replica said."""

    def __init__(self, was_ready=False):
        self.reports, self.was_ready = [], was_ready

    def __call__(self, said):
        self.reports.append(said)
        self.was_ready |= said.state == "ready"
        return self.was_ready

    def wait(self, what):
        end = time.monotonic() + 30
        while not (self.reports and what(self.reports[-1])):
            assert time.monotonic() < end, self.reports
            time.sleep(0.01)
        return self.reports[-1]


def replica(told, config, **options):
    parts = module("replica")
    return parts.Replica("0", parts.Spec(config, patience=20, **options), "127.0.0.1", "node", told)


def test_a_server_that_is_killed_is_started_again_elsewhere_and_stop_drains(monkeypatch):
    told = Told()
    monkeypatch.setattr(module("replica"), "BACKOFF", (0.01, 0.01))
    own = replica(told, {"variants": {"warm": {"mode": "warm", "members": MEMBERS}}})
    first = told.wait(lambda said: said.state == "ready")
    with rewarm.Client(first.address, timeout=20) as client:
        rewards = client.score(PROMPT, ["one", "two"])
    assert "rewarm_queue_tokens" in own.page("/metrics")
    own._server._process.kill()
    second = told.wait(lambda said: said.state == "ready" and said.start != first.start)
    assert second.restarts == 1 and second.address != first.address
    assert "SIGKILL" in next(said.reason for said in told.reports if said.reason)
    with rewarm.Client(second.address, timeout=20) as client:
        assert client.score(PROMPT, ["one", "two"]) == rewards
    child = own._server
    assert own.stop().state == "stopped" and child.exit_code == 0
    assert [said.number for said in told.reports] == sorted({said.number for said in told.reports})


def test_a_server_that_cannot_start_is_not_tried_again_unless_it_could_before(tmp_path, monkeypatch):
    monkeypatch.setattr(module("replica"), "BACKOFF", (0.01, 0.01))
    bad = {"variants": {"warm": {"mode": "warm", "model": str(tmp_path / "nowhere")}}}
    for was_ready, tries in ((False, 1), (True, module("replica").MAX_FAILURES)):
        told = Told(was_ready)
        own = replica(told, bad)
        said = told.wait(lambda said: said.state == "failed")
        assert "nowhere" in said.reason and "exit code 1" in said.reason
        assert said.restarts == tries - 1
        assert own.stop().state == "failed"
    told = Told()
    own = replica(told, {}, binary=str(tmp_path / "none"))
    assert "there is no program" in told.wait(lambda said: said.state == "failed").reason
    own.stop()


def test_a_server_has_the_threads_and_the_cards_that_its_actor_was_given():
    Spec = module("replica").Spec
    assert Spec(num_cpus=4.5).surroundings() == {
        "REWARM_THREADS": "4", "CUDA_VISIBLE_DEVICES": ""}
    assert Spec(num_cpus=0, num_gpus=1).surroundings() == {}
    assert Spec(num_cpus=0.5, environment={"REWARM_THREADS": "7"}).surroundings()["REWARM_THREADS"] == "7"


def test_without_ray_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "rewarm.ray")
    with pytest.raises(ImportError, match="pip install ray"):
        rewarm.Client("ray:somewhere")
