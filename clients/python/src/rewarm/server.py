"""Starts a server as a child, for tests, notebooks and the actors of `rewarm.ray`.

The server itself ends, in good order, when this process is gone, however it went (`--end-with-parent`); so none is left
behind. Ports are free ones, and it writes where they are into a file (`--addresses`).
"""
from __future__ import annotations

import atexit
import http.client
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from rewarm.access import Credentials
from rewarm.errors import RewarmError
from rewarm.program import find

if TYPE_CHECKING:
    from typing_extensions import Self

#: Lines of the log that an error quotes.
QUOTED_LINES = 10
#: How long a killed process may take to be gone.
END_SECONDS = 10.0
#: What a port with TLS answers to plain text.
SPEAKS_TLS = "speaks TLS"
#: Between two looks at whether it is ready.
LOOK_SECONDS = 0.02


def serve(
    config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    *,
    binary: str | os.PathLike[str] | None = None,
    listen: str = "127.0.0.1:0",
    metrics: str = "127.0.0.1:0",
    http: str | None = None,
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    timeout: float = 120.0,
) -> Server:
    """Starts `rewarm serve` and returns once its models are loaded.

    `config` is a file, or its tables as a dict; without one, the demo family is served, which the program carries.
    `binary` is the program: `REWARM_BINARY` unless given, else the one of the wheel, else `rewarm` on the PATH.
    `http` opens that port, `"127.0.0.1:0"` a free one. `arguments` follow `rewarm serve`, and `environment` is added to ours.
    """
    server = launch(config, binary=binary, listen=listen, metrics=metrics, http=http, arguments=arguments,
                    environment=environment)
    try:
        server.wait_until_ready(timeout)
    except BaseException:
        server.stop(patience=0.0)
        raise
    return server


def launch(
    config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    *,
    binary: str | os.PathLike[str] | None = None,
    listen: str = "127.0.0.1:0",
    metrics: str = "127.0.0.1:0",
    http: str | None = None,
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Server:
    """As `serve`, and returns at once."""
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
    command += ["--admin", "127.0.0.1:0", "--metrics", metrics, *arguments]
    command += [] if http is None else ["--http", http]
    command += [] if config is None else ["--config", os.fspath(config)]
    return Server(command, folder, environment or {})


class Server:
    """A running server; a context manager that stops it."""

    def __init__(self, command: Sequence[str], folder: tempfile.TemporaryDirectory[str],
                 environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._published = Path(folder.name) / "addresses.json"
        self._owner = os.getpid()
        # its pages may want a token, and a client's certificate
        self._credentials = Credentials({}, environment={**os.environ, **environment})
        self._is_tls = False
        #: Where gRPC, the admin service and the metrics listen, and HTTP where it does.
        self.address = self.admin = self.metrics = self.http = ""
        #: An id of this start.
        self.start = ""
        #: The last lines of its log, JSON objects.
        self.log: deque[str] = deque(maxlen=1000)
        self._process = subprocess.Popen(
            [*command, "--addresses", str(self._published), "--end-with-parent", str(self._owner)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            env={**os.environ, **environment},
            # Ctrl-C in a terminal is for us, and we stop it
            start_new_session=True,
        )
        assert self._process.stderr is not None
        self._reader = threading.Thread(target=self._read, args=(self._process.stderr,), daemon=True)
        self._reader.start()
        atexit.register(self.stop)

    @property
    def is_running(self) -> bool:
        return self.exit_code is None

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; below 0 it is the signal that ended it."""
        return self._process.poll()

    def is_ready(self) -> bool:
        """Whether it says so: loaded, healthy, and not about to stop."""
        return self.page("/readyz")[0] == 200

    def page(self, path: str) -> tuple[int, str]:
        """Status and text of a page of the metrics port; 0 where nothing answers."""
        status, text = self._get(path)
        if status >= 400 and SPEAKS_TLS in text and not self._is_tls:
            self._is_tls = True
            status, text = self._get(path)
        return status, text

    def _get(self, path: str) -> tuple[int, str]:
        # not urllib, which may ask a proxy
        connection = http.client.HTTPConnection(self.metrics, timeout=END_SECONDS)
        if self._is_tls:
            connection = http.client.HTTPSConnection(self.metrics, timeout=END_SECONDS, context=self._credentials.of_child())
        try:
            connection.request("GET", path, headers=dict(self._credentials.metadata(self.metrics)))
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except (OSError, http.client.HTTPException):
            return 0, ""
        finally:
            connection.close()

    def stop(self, *, patience: float = 40.0) -> None:
        """SIGTERM: what it has admitted is finished. After `patience` seconds SIGKILL. Returns when it has ended."""
        if os.getpid() != self._owner:
            # a fork's copy: the server is its parent's
            return
        atexit.unregister(self.stop)
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(patience)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
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

    def wait_until_ready(self, timeout: float) -> None:
        """Raises, with the end of its log, if it has ended or is not ready in time."""
        deadline = time.monotonic() + timeout
        while self.is_running:
            if not self.address and self._published.exists():
                told = json.loads(self._published.read_text(encoding="utf-8"))
                self.address, self.admin, self.metrics, self.start = (
                    told[name] for name in ("listen", "admin", "metrics", "start"))
                self.http = told.get("http", "")
            if self.address and self.is_ready():
                return
            if time.monotonic() > deadline:
                break
            time.sleep(LOOK_SECONDS)
        if self.is_running:
            what = f"is not ready after {timeout:g} s"
        else:
            # the log's last lines may still be on their way
            self._reader.join(END_SECONDS)
            what = f"did not start: {self.end()}"
        raise RewarmError("\n".join([f"the server {what}; its log ends:", *self.log_tail()]))

    def log_tail(self) -> list[str]:
        """The last lines of its log, for an error's message."""
        return list(self.log)[-QUOTED_LINES:]

    def end(self) -> str:
        """How it ended, in words."""
        code = self.exit_code
        if code is None:
            return "it runs"
        if code >= 0:
            return f"exit code {code}"
        cause = ": the machine was out of memory, or somebody killed it" if code == -signal.SIGKILL else ""
        return f"ended by {signal.Signals(-code).name}{cause}"


def _toml(value: Any) -> str:
    """A value of a configuration; JSON's strings, numbers and lists are TOML's too."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml(str(key))} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(os.fspath(value) if isinstance(value, os.PathLike) else value)
