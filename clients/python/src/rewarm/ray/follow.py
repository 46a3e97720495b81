"""Where the servers of a deployment are, as this process knows it: a thread waits at the directory for changes.

One for each deployment and process, while its clients are used. After a `fork` Ray does not work, and neither does this: the
child has the last list.
"""
# what Ray's decorators make is not in its types
# pyright: reportAttributeAccessIssue=false, reportFunctionMemberAccess=false
from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from typing import Any

import ray

from rewarm import channels
from rewarm.errors import InvalidInput, RewarmError

#: Seconds for which one question waits for a change, and between two where the directory is not there.
WAIT_SECONDS = 20.0
RETRY_SECONDS = 0.5
#: A list that nobody asks for is not followed any longer.
IDLE_SECONDS = 120.0


def address_of(namespace: str, name: str) -> str:
    """What clients take for their addresses."""
    return f"{channels.RAY}{namespace}/{name}"


def places(address: str) -> Callable[[], tuple[str, ...]]:
    """Tells where the servers are now; the list may be empty, and is until the directory has answered."""
    namespace, _, name = address.removeprefix(channels.RAY).rpartition("/")
    if not name or name.startswith("/"):
        raise InvalidInput(f"the address {address!r} is not ray:NAME or ray:NAMESPACE/NAME, as a deployment's `address` is")
    if not ray.is_initialized():
        raise RewarmError(f"{address}: Ray is not initialized in this process; call ray.init first")
    return _follower(namespace, name).places


def directory(namespace: str, name: str) -> Any:
    """The actor; ValueError if there is none."""
    return ray.get_actor(name, namespace or None)


@functools.lru_cache(maxsize=None)
def _follower(namespace: str, name: str) -> _Follower:
    return _Follower(namespace, name)


class _Follower:
    def __init__(self, namespace: str, name: str) -> None:
        self._actor = namespace, name
        self._known: tuple[int, tuple[str, ...]] = 0, ()
        self._lock = threading.Lock()
        self._asked = 0.0
        self._thread: threading.Thread | None = None

    def places(self) -> tuple[str, ...]:
        self._asked = time.monotonic()
        if self._thread is None or not self._thread.is_alive():
            with self._lock:
                if self._thread is None or not self._thread.is_alive():
                    self._thread = threading.Thread(target=self._follow, name="rewarm-follow", daemon=True)
                    self._thread.start()
        return self._known[1]

    def _follow(self) -> None:
        while ray.is_initialized() and time.monotonic() - self._asked < IDLE_SECONDS:
            try:
                found = directory(*self._actor)
                known = ray.get(found.changed.remote(self._known[0], WAIT_SECONDS), timeout=2 * WAIT_SECONDS)
                # 0: the directory was restarted, and nobody has reported to it yet
                if known[0]:
                    self._known = known
                else:
                    time.sleep(RETRY_SECONDS / 5)
            except Exception:  # it is not there, or is being restarted, or has gone: what is known stays
                time.sleep(RETRY_SECONDS)
