"""Where the servers of a deployment are: replicas report to it, clients wait for changes. An actor, and nothing of Ray's.

A list has a revision, which only grows: by the clock, so that a directory that was restarted goes on from there. Replicas
report all the time: one that is silent is left out, and a directory that was restarted knows all again in a second.
"""
from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

#: Seconds between two reports of a replica.
REPORT_SECONDS = 1.0
#: A replica that says nothing for so long is left out: its node is gone, or so busy that it is of no use.
SILENCE_SECONDS = 15.0


@dataclass(frozen=True)
class Report:
    """What a replica says about itself."""

    replica: str
    #: Another one for each start of the actor.
    life: str
    #: Counts the reports of a life: calls of a restarted actor arrive in any order.
    number: int
    #: `"starting"`, `"ready"`, `"unhealthy"` (it runs, and says that it is not ready), `"failed"` (it is not tried
    #: again), or `"stopped"`.
    state: str
    #: Where gRPC and the metrics listen; empty unless it runs.
    address: str = ""
    metrics: str = ""
    #: The server's id of its start, and its process.
    start: str = ""
    pid: int = 0
    node: str = ""
    #: How often the server was started again in this life.
    restarts: int = 0
    #: Why it failed, or why the last server ended.
    reason: str = ""


class Directory:
    """An asynchronous actor; `wall` and `clock` are the time's."""

    def __init__(self, wall: Callable[[], float] = time.time, clock: Callable[[], float] = time.monotonic) -> None:
        self._wall = wall
        self._clock = clock
        self._reports: dict[str, Report] = {}
        self._seen: dict[str, float] = {}
        #: Lives that are over, and replicas that are to leave.
        self._past: set[str] = set()
        self._withdrawn: set[str] = set()
        self._were_ready: set[str] = set()
        self._revision = 0
        self._addresses: tuple[str, ...] = ()
        self._changed = asyncio.Event()

    async def report(self, report: Report) -> bool:
        """Returns whether this replica was ever ready."""
        known = self._reports.get(report.replica)
        if report.life in self._past or (known and known.life == report.life and report.number <= known.number):
            return report.replica in self._were_ready
        if known and known.life != report.life:
            self._past.add(known.life)
        self._reports[report.replica] = report
        self._seen[report.replica] = self._clock()
        if report.state == "ready":
            self._were_ready.add(report.replica)
        self._publish()
        return report.replica in self._were_ready

    async def withdraw(self, replicas: Iterable[str]) -> None:
        """These are about to be stopped: nobody is sent there any more."""
        self._withdrawn.update(replicas)
        self._publish()

    async def forget(self, replicas: Iterable[str]) -> None:
        """These are gone."""
        for replica in replicas:
            report = self._reports.pop(replica, None)
            if report:
                self._past.add(report.life)
            self._seen.pop(replica, None)
        self._publish()

    async def reports(self) -> list[Report]:
        """The last one of each replica."""
        return [self._reports[replica] for replica in sorted(self._reports)]

    async def changed(self, known: int, timeout: float) -> tuple[int, tuple[str, ...]]:
        """The revision and the addresses, once the revision is another than `known`, or the time is over. Revision 0
        says that no replica has been ready yet."""
        deadline = self._clock() + timeout
        while True:
            self._publish()
            rest = deadline - self._clock()
            if self._revision != known or rest <= 0:
                return self._revision, self._addresses
            try:
                await asyncio.wait_for(self._changed.wait(), min(rest, REPORT_SECONDS))
            except asyncio.TimeoutError:
                pass

    def _publish(self) -> None:
        ready = [report for replica, report in sorted(self._reports.items())
                 if report.state == "ready" and replica not in self._withdrawn]
        now = self._clock()
        heard = [report for report in ready if now - self._seen[report.replica] < SILENCE_SECONDS]
        # where all are silent the fault is rather here
        addresses = tuple(report.address for report in heard or ready)
        if addresses != self._addresses:
            self._addresses = addresses
            self._revision = max(self._revision + 1, int(self._wall() * 1000))
            self._changed.set()
            self._changed = asyncio.Event()
