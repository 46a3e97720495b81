"""Starts a server as a child, for tests and notebooks.

The child is watched over by a shell that holds a pipe to this process: when the pipe closes, because we stop the server or
because this process is gone, however it went, the server gets a SIGTERM. So none is left behind.
"""
from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from rewarm.errors import RewarmError
from rewarm.program import find

if TYPE_CHECKING:
    from typing_extensions import Self

# Only the server keeps the pipe of the log, so that its end is seen. A TERM ends the shell's `read`, and nothing else.
WATCH = 'trap : TERM; "$@" & exec 2>&-; read -r line; trap "" TERM; kill -TERM $!; wait $!'
#: Lines of the log that an error quotes.
QUOTED_LINES = 10
#: How long a killed process may take to be gone.
END_SECONDS = 10.0


def serve(
    config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    *,
    binary: str | os.PathLike[str] | None = None,
    listen: str = "127.0.0.1:0",
    arguments: Sequence[str] = (),
    timeout: float = 120.0,
) -> Server:
    """Starts `rewarm serve` and returns once its models are loaded.

    `config` is a file, or its tables as a dict; without one, the demo family is served, where the clone is at hand.
    `binary` is the program: `REWARM_BINARY` unless given, else the one of the wheel, else `rewarm` on the PATH.
    """
    program = str(binary or find() or "")
    if not program:
        raise RewarmError("there is no server to start: pass binary=, set REWARM_BINARY, or put `rewarm` on the PATH")
    if shutil.which(program) is None:
        raise RewarmError(f"there is no program {program!r}")
    folder = tempfile.TemporaryDirectory(prefix="rewarm-")
    if isinstance(config, Mapping):
        path = Path(folder.name) / "rewarm.toml"
        # nobody but us sends requests: nothing to wait for before it ends
        tables = {**config, "server": {"drain_grace_seconds": 0, **config.get("server", {})}}
        path.write_text("".join(f"{_toml(key)} = {_toml(value)}\n" for key, value in tables.items()), encoding="utf-8")
        config = path
    command = [program, "serve", "--log-format", "json", "--listen", listen]
    command += ["--admin", "127.0.0.1:0", "--metrics", "127.0.0.1:0", *arguments]
    command += [] if config is None else ["--config", os.fspath(config)]
    server = Server(command, folder)
    try:
        server._wait_until_ready(timeout)
    except BaseException:
        server.stop(patience=0.0)
        raise
    return server


class Server:
    """A running server; a context manager that stops it."""

    def __init__(self, command: Sequence[str], folder: tempfile.TemporaryDirectory[str]) -> None:
        self._folder = folder
        self._owner = os.getpid()
        #: Where gRPC, the admin service and the metrics listen.
        self.address = self.admin = self.metrics = ""
        #: The last lines of its log, JSON objects.
        self.log: deque[str] = deque(maxlen=1000)
        self._is_ready = threading.Event()
        self._has_ended = False
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", WATCH, "rewarm", *command],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            # Ctrl-C in a terminal is for us, and we stop it
            start_new_session=True,
        )
        assert self._process.stderr is not None
        self._reader = threading.Thread(target=self._read, args=(self._process.stderr,), daemon=True)
        self._reader.start()
        atexit.register(self.stop)

    @property
    def is_running(self) -> bool:
        return not self._has_ended and self._process.poll() is None

    def stop(self, *, patience: float = 40.0) -> None:
        """SIGTERM: what it has admitted is finished. After `patience` seconds SIGKILL. Returns when it has ended."""
        if os.getpid() != self._owner:
            # a fork's copy: the server is its parent's
            return
        atexit.unregister(self.stop)
        if self._process.poll() is None:
            assert self._process.stdin is not None
            # twice the same: forks of ours may hold the pipe open
            self._process.stdin.close()
            self._process.terminate()
            try:
                self._process.wait(patience)
            except subprocess.TimeoutExpired:
                pass
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self._process.wait()
            # its log has ended when it has, and then its ports are free
            self._reader.join(END_SECONDS)
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.stop()

    def _read(self, lines: IO[str]) -> None:
        with lines:
            for line in lines:
                self.log.append(line.rstrip("\n"))
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue
                if entry.get("message") == "listening":
                    self.address, self.admin, self.metrics = (entry[name] for name in ("listen", "admin", "metrics"))
                elif entry.get("message") == "readiness changed":
                    self._is_ready.set()
        self._has_ended = True
        self._is_ready.set()

    def _wait_until_ready(self, timeout: float) -> None:
        if self._is_ready.wait(timeout) and not self._has_ended:
            return
        what = "did not start" if self._has_ended else f"is not ready after {timeout:g} s"
        raise RewarmError("\n".join([f"the server {what}; its log ends:", *list(self.log)[-QUOTED_LINES:]]))


def _toml(value: Any) -> str:
    """A value of a configuration; JSON's strings, numbers and lists are TOML's too."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml(str(key))} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(os.fspath(value) if isinstance(value, os.PathLike) else value)
