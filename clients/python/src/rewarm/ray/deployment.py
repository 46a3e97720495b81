"""Replicas on a cluster: placed, started, scaled and stopped by whoever deployed them.

Everything belongs to the process that called `deploy`: when that ends, however it does, Ray ends the actors, and the servers
end with them. Ray ends an actor without a word to its child, so servers are drained by `stop` before any actor is killed.

# Why not one placement group for each replica?

A group is granted as a whole: a cluster that grows on demand starts all its nodes at once. What is added later is a group
of its own; whoever is removed goes in the reverse order, so that whole groups become free.
"""
# what Ray's decorators make is not in its types
# pyright: reportAttributeAccessIssue=false, reportFunctionMemberAccess=false
from __future__ import annotations

import atexit
import logging
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import ray
from ray.util import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from rewarm.client import Client
from rewarm.errors import InvalidInput, RewarmError
from rewarm.ray import follow
from rewarm.ray.directory import Directory, Report
from rewarm.ray.replica import Replica, ReplicaFailed, Spec
from rewarm.types import ClientOptions

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

#: For how long a node of its own is looked for, for each replica, before they may share.
SPREAD_SECONDS = 5.0
#: What a call of an actor may take that does next to nothing.
CALL_SECONDS = 30.0
#: Between two looks at what starts.
LOOK_SECONDS = 0.1

_log = logging.getLogger("rewarm")


def deploy(
    config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    replicas: int = 1,
    *,
    num_cpus: float = 1,
    num_gpus: float = 0,
    device: str | None = None,
    name: str | None = None,
    binary: str | os.PathLike[str] | None = None,
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    start_timeout: float = 600.0,
    patience: float = 60.0,
) -> Deployment:
    """Starts servers on the cluster, and returns once all are ready; a context manager that stops them.

    `config` is a file that every node has, or its tables as a dict; paths in it are those of the nodes. Each replica has
    `num_cpus` and `num_gpus`, on a node of its own where there are as many; its server computes in as many threads, and on
    the cards that it was given (`device` is in place of every variant's; pass "" to leave the configuration's). A server
    that ends is started again, but one that never was ready raises `ReplicaFailed` with the end of its log. The rest is as
    for `rewarm.serve`; `patience` is how long a server may take to finish what it has admitted.
    """
    if isinstance(replicas, bool) or not isinstance(replicas, int) or replicas < 1:
        raise InvalidInput(f"replicas is {replicas!r}, not a number above 0")
    for option, value in (("num_cpus", num_cpus), ("num_gpus", num_gpus)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
            raise InvalidInput(f"{option} is {value!r}, not a number of 0 or more")
    if not num_cpus and not num_gpus:
        raise InvalidInput("num_cpus and num_gpus are both 0: a server needs one of them")
    if not ray.is_initialized():
        raise RewarmError("Ray is not initialized; call ray.init first")
    if config is not None and not isinstance(config, Mapping):
        # an actor's folder is not ours
        config = os.path.abspath(config)
    spec = Spec(
        config=config, binary=None if binary is None else os.fspath(binary), num_cpus=num_cpus, num_gpus=num_gpus,
        device=cards(num_gpus) if device is None else device, arguments=tuple(arguments),
        environment=dict(environment or {}), start_timeout=start_timeout, patience=patience)
    deployment = Deployment(spec, name or f"rewarm-{uuid.uuid4().hex[:8]}")
    try:
        deployment.scale(replicas)
    except BaseException:
        deployment.stop()
        raise
    return deployment


def cards(num_gpus: float) -> str:
    """The devices of a server that was given so many GPUs: Ray shows it no others, and counts from 0."""
    return ",".join(f"cuda:{index}" for index in range(max(1, int(num_gpus)))) if num_gpus else ""


class ReplicaActor:
    """A replica with what Ray knows of its place."""

    def __init__(self, replica: str, spec: Spec, namespace: str, name: str) -> None:
        reporter = Reporter(namespace, name)
        self._replica = Replica(replica, spec, *here(), reporter)

    def status(self) -> Report:
        return self._replica.status()

    def stop(self) -> Report:
        return self._replica.stop()


def here() -> tuple[str, str]:
    """Where a server listens, and the node's id: in a cluster on one machine nodes share an address."""
    return ray.util.get_node_ip_address(), ray.get_runtime_context().get_node_id()


class Reporter:
    """Tells the directory, which may be restarted."""

    def __init__(self, namespace: str, name: str) -> None:
        self._actor = namespace, name
        self._directory: Any = None

    def __call__(self, report: Report) -> bool:
        try:
            self._directory = self._directory or follow.directory(*self._actor)
            return bool(ray.get(self._directory.report.remote(report), timeout=CALL_SECONDS))
        except Exception:
            self._directory = None
            raise


@dataclass
class _Member:
    """A replica of ours."""

    replica: str
    actor: Any
    group: Any
    bundle: int


class Deployment:
    """Servers that run; `deploy` makes it."""

    def __init__(self, spec: Spec, name: str) -> None:
        self._spec = spec
        self.name = name
        namespace = ray.get_runtime_context().namespace
        #: What a client takes for its addresses, in any process of the cluster: it follows the servers.
        self.address = follow.address_of(namespace, name)
        self._actor = namespace, name
        self._members: list[_Member] = []
        self._numbers = 0
        #: Bundles that a replica has left, by their group.
        self._free: list[tuple[Any, int]] = []
        self._has_ended = False
        options: dict[str, Any] = {
            "name": name, "num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "max_concurrency": 10_000,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)}
        self._directory: Any = ray.remote(Directory).options(**options).remote()
        self._call(self._directory.reports.remote())
        atexit.register(self.stop)

    def client(self, **options: Unpack[ClientOptions]) -> Client:
        """A client that follows the servers. It pickles, as `AsyncClient(deployment.address)` does."""
        return Client(self.address, **options)

    def addresses(self) -> tuple[int, tuple[str, ...]]:
        """Where the servers are now, with the list's revision, for whoever does not follow."""
        revision, addresses = self._call(self._directory.changed.remote(-1, 0.0))
        return revision, addresses

    def status(self) -> list[Report]:
        """What each replica said last."""
        reports: list[Report] = self._call(self._directory.reports.remote())
        return reports

    def scale(self, replicas: int) -> None:
        """Starts or stops servers until there are so many. Returns when those that are new are ready, and those that go
        have finished what they had."""
        if isinstance(replicas, bool) or not isinstance(replicas, int) or replicas < 0:
            raise InvalidInput(f"replicas is {replicas!r}, not a number of 0 or more")
        if self._has_ended:
            raise RewarmError(f"the deployment {self.name} was stopped")
        if replicas < len(self._members):
            self._remove(self._members[replicas:])
        elif replicas > len(self._members):
            self._add(replicas - len(self._members))

    def stop(self) -> None:
        """Drains all servers, and ends the deployment."""
        if self._has_ended:
            return
        self._has_ended = True
        atexit.unregister(self.stop)
        if ray.is_initialized():
            self._remove(list(self._members))
            ray.kill(self._directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.stop()

    def _add(self, count: int) -> None:
        bundles = [self._free.pop() for _ in range(min(count, len(self._free)))]
        if count > len(bundles):
            try:
                group = self._placed(count - len(bundles))
            except BaseException:
                self._free += bundles
                raise
            bundles += [(group, index) for index in range(count - len(bundles))]
        added = []
        for group, index in bundles:
            replica = str(self._numbers)
            self._numbers += 1
            options: dict[str, Any] = {
                "name": f"{self.name}/{replica}", "num_cpus": self._spec.num_cpus, "num_gpus": self._spec.num_gpus,
                # calls are few: `stop` waits while `status` is asked
                "max_restarts": -1, "max_concurrency": 4,
                "scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)}
            actor = ray.remote(ReplicaActor).options(**options).remote(replica, self._spec, *self._actor)
            added.append(_Member(replica, actor, group, index))
        self._members += added
        try:
            self._wait(added)
        except BaseException:
            self._remove(added)
            raise

    def _placed(self, count: int) -> Any:
        """A group with so many bundles: on as many nodes if that can be had at once, else wherever there is room."""
        asked = {"CPU": self._spec.num_cpus, "GPU": self._spec.num_gpus}
        bundle = {resource: amount for resource, amount in asked.items() if amount}
        for strategy, seconds in (("STRICT_SPREAD", SPREAD_SECONDS), ("SPREAD", self._spec.start_timeout)):
            group = placement_group([bundle] * count, strategy=strategy)
            try:
                is_placed = group.wait(seconds)
            except BaseException:
                remove_placement_group(group)
                raise
            if is_placed:
                return group
            remove_placement_group(group)
            if strategy == "STRICT_SPREAD":
                _log.warning("%s: no %d nodes with %s each; replicas may share one", self.name, count, bundle)
        raise RewarmError(f"the cluster has no room for {count} replicas with {bundle} each after "
                          f"{self._spec.start_timeout:g} s; free are {ray.available_resources()}")

    def _wait(self, added: Sequence[_Member]) -> None:
        """Until all are ready; raises when one is not going to be."""
        # the actor's own start, and then the server's, which has a limit of its own
        deadline = time.monotonic() + self._spec.start_timeout + CALL_SECONDS
        alive = {member.actor.status.remote(): member for member in added}
        while True:
            said = {report.replica: report for report in self.status()}
            reports = [said.get(member.replica) for member in added]
            for report in reports:
                if report and report.state == "failed":
                    raise ReplicaFailed(f"replica {report.replica} on node {report.node}: {report.reason}",
                                        replica=report.replica, node=report.node)
            if all(report and report.state == "ready" for report in reports):
                return
            for done in ray.wait(list(alive), num_returns=len(alive), timeout=LOOK_SECONDS)[0] if alive else []:
                member = alive.pop(done)
                try:
                    ray.get(done)
                except ray.exceptions.RayError as error:
                    raise ReplicaFailed(f"replica {member.replica}: its actor did not start: {error}",
                                        replica=member.replica) from None
            if time.monotonic() > deadline:
                late = [member.replica for member, report in zip(added, reports) if not report or report.state != "ready"]
                raise ReplicaFailed(f"replicas {', '.join(late)} are not ready after {self._spec.start_timeout:g} s: "
                                    f"{[report for report in reports if report and report.state != 'ready']}",
                                    replica=late[0])
            time.sleep(LOOK_SECONDS)

    def _remove(self, leaving: Sequence[_Member]) -> None:
        names = [member.replica for member in leaving]
        try:
            self._call(self._directory.withdraw.remote(names))
        except ray.exceptions.RayError as error:
            _log.warning("%s: the directory does not answer: %s", self.name, error)
        # Ray would end a server without a word: it drains before its actor is killed
        stopping = [member.actor.stop.remote() for member in leaving]
        done, late = ray.wait(stopping, num_returns=len(stopping), timeout=self._spec.patience + CALL_SECONDS) if stopping else ([], [])
        for member in leaving:
            ray.kill(member.actor)
            self._members.remove(member)
            self._free.append((member.group, member.bundle))
        if late:
            _log.warning("%s: %d of %d servers did not drain in time", self.name, len(late), len(stopping))
        for group in {group.id: group for group, _ in self._free}.values():
            if not any(member.group.id == group.id for member in self._members):
                remove_placement_group(group)
                self._free = [(other, index) for other, index in self._free if other.id != group.id]
        try:
            self._call(self._directory.forget.remote(names))
        except ray.exceptions.RayError:
            pass  # told above

    def _call(self, reference: Any) -> Any:
        return ray.get(reference, timeout=CALL_SECONDS)
