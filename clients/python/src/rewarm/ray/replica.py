"""One server and the life of it: started, watched, started again, stopped. What an actor is made of; nothing of Ray's.

A server that does not start is not tried again if the replica was never ready: the configuration is bad, or the model, and
the reason is told at once. Later it may be that something is not free yet, and a few tries are made.
"""
from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rewarm import server
from rewarm.errors import RewarmError
from rewarm.ray.directory import REPORT_SECONDS, Report

#: Between two looks at the child.
LOOK_SECONDS = 0.1
#: Seconds before a server is started again, after the first failure in a row and at most.
BACKOFF = (0.5, 30.0)
#: After so many failures in a row it is not tried again.
MAX_FAILURES = 5
#: A server that lived so long has not failed to start.
LIVED_SECONDS = 60.0

_NO_SERVER: dict[str, Any] = {"address": "", "metrics": "", "start": "", "pid": 0}

_log = logging.getLogger("rewarm")


class ReplicaFailed(RewarmError):
    """A server did not start; the message has its reason, and the end of its log."""

    def __init__(self, message: str = "", *, replica: str = "", node: str = "") -> None:
        super().__init__(message)
        self.replica = replica
        #: Ray's id of the node.
        self.node = node


@dataclass(frozen=True)
class Spec:
    """How a server is started."""

    config: Mapping[str, Any] | str | None = None
    binary: str | None = None
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    #: In place of every variant's; empty leaves the configuration's.
    device: str = ""
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    #: Seconds until it is ready, and for what it has admitted before it is killed.
    start_timeout: float = 600.0
    patience: float = 60.0

    def launch(self, host: str) -> server.Server:
        """Starts it on free ports of this address."""
        listen = f"[{host}]:0" if ":" in host else f"{host}:0"
        arguments = [*self.arguments, *(["--device", self.device] if self.device else [])]
        settings = self.config.get("server", {}) if isinstance(self.config, Mapping) else {}
        # several replicas may share a node: none can have a port of its choice
        http = listen if settings.get("http") else None
        return server.launch(self.config, binary=self.binary, listen=listen, metrics=listen, http=http,
                             arguments=arguments, environment=self.surroundings())

    def surroundings(self) -> dict[str, str]:
        """The variables that hold a server to what the actor was given. Ray sets none for threads but OpenMP's, and where
        no GPU was asked for it leaves all in sight."""
        threads = str(max(1, int(self.num_cpus)))
        found = {"REWARM_THREADS": threads} if self.num_cpus else {}
        if not self.num_gpus:
            found["CUDA_VISIBLE_DEVICES"] = ""
        return {**found, **self.environment}


class Replica:
    """A server that is kept alive. `report` tells the directory, and returns whether this replica was ever ready."""

    def __init__(self, name: str, spec: Spec, host: str, node: str, report: Callable[[Report], bool]) -> None:
        self._spec = spec
        self._host = host
        self._report = report
        self._lock = threading.Lock()
        self._said = Report(name, life=uuid.uuid4().hex, number=0, state="starting", node=node)
        self._server: server.Server | None = None
        self._was_ready = False
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._live, name="rewarm-replica", daemon=True)
        self._thread.start()

    def status(self) -> Report:
        return self._said

    def page(self, path: str) -> str:
        """A page of the server's metrics port; empty where there is none."""
        child = self._server
        return child.page(path)[1] if child is not None and child.metrics else ""

    def stop(self) -> Report:
        """Ends the server in good order; returns when it has ended."""
        self._is_stopping.set()
        self._thread.join()
        return self._said

    def _live(self) -> None:
        failures = 0
        try:
            while not self._is_stopping.is_set():
                self._say(state="starting", **_NO_SERVER)
                began = time.monotonic()
                reason, has_started = self._one_life()
                if self._is_stopping.is_set():
                    break
                _log.error("replica %s: %s", self._said.replica, reason)
                failures = 1 if time.monotonic() - began > LIVED_SECONDS and has_started else failures + 1
                if not self._was_ready or failures >= MAX_FAILURES:
                    self._say(state="failed", **_NO_SERVER, reason=reason)
                    while not self._is_stopping.wait(REPORT_SECONDS):
                        self._say()
                    break
                self._say(state="starting", **_NO_SERVER, reason=reason,
                          restarts=self._said.restarts + 1)
                first, longest = BACKOFF
                self._is_stopping.wait(min(longest, first * 2.0 ** (failures - 1)))
        except Exception as error:  # a defect of ours must not look like a server that starts for ever
            _log.exception("replica %s", self._said.replica)
            self._say(state="failed", **_NO_SERVER, reason=repr(error))
        finally:
            self._end()
            if self._said.state != "failed":
                self._say(state="stopped", **_NO_SERVER)

    def _one_life(self) -> tuple[str, bool]:
        """From start to end of one server: why it ended, and whether it had been ready."""
        try:
            child = self._server = self._spec.launch(self._host)
            self._wait_until_ready(child)
        except RewarmError as error:
            self._end(patience=0.0)
            return str(error), False
        if self._is_stopping.is_set():
            return "", False
        self._say(state="ready", address=child.address, metrics=child.metrics, start=child.start,
                  pid=child.pid)
        looks = 0
        while child.is_running and not self._is_stopping.wait(LOOK_SECONDS):
            looks += 1
            if looks * LOOK_SECONDS >= REPORT_SECONDS:
                looks = 0
                self._say(state="ready" if child.is_ready() else "unhealthy")
        if self._is_stopping.is_set():
            return "", True
        # the log's last lines
        child.stop()
        return "\n".join([f"the server ended: {child.end()}; its log ends:", *child.log_tail()]), True

    def _wait_until_ready(self, child: server.Server) -> None:
        deadline = time.monotonic() + self._spec.start_timeout
        while not self._is_stopping.is_set():
            try:
                return child.wait_until_ready(min(REPORT_SECONDS, max(0.0, deadline - time.monotonic())))
            except RewarmError:
                if not child.is_running:
                    raise
                if time.monotonic() >= deadline:
                    tail = "\n".join(child.log_tail())
                    raise RewarmError(
                        f"the server is not ready after {self._spec.start_timeout:g} s; its log ends:\n{tail}") from None
                self._say()

    def _end(self, patience: float | None = None) -> None:
        if self._server is not None:
            self._server.stop(patience=self._spec.patience if patience is None else patience)

    def _say(self, **changes: Any) -> None:
        with self._lock:
            self._said = replace(self._said, number=self._said.number + 1, **changes)
            said = self._said
        try:
            self._was_ready |= self._report(said)
        except Exception as error:  # the next report will do
            _log.warning("replica %s cannot report: %r", said.replica, error)
        self._was_ready |= said.state == "ready"
