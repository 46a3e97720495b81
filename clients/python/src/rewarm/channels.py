"""Addresses, which may be a list that changes, and the channels to them."""
from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

from rewarm.access import Credentials, handshake
from rewarm.errors import InvalidInput

PUSHBACK = "grpc-retry-pushback-ms"
#: What begins the name of a deployment of `rewarm.ray`, in place of addresses.
RAY = "ray:"
#: How soon a call notices that a list has changed.
FOLLOW_SECONDS = 0.1

_OPTIONS: list[tuple[str, Any]] = [
    # Rewards of a large request may have more than the 4 MiB that are the default.
    ("grpc.max_receive_message_length", -1),
    # We retry ourselves: within one deadline, over several addresses, and however large the request is.
    ("grpc.enable_retries", 0),
    # A name may stand for many servers (a headless service): take turns, and look for new ones.
    ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
    ("grpc.dns_min_time_between_resolutions_ms", 5_000),
    # A server that restarts is found again in time; the defaults wait for up to two minutes. The second is also how long
    # an address that swallows packets is tried.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # A server that vanished without a word is noticed while an answer is waited for.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
]


def parse(addresses: str | Sequence[str]) -> tuple[tuple[str, ...], str]:
    """`"host:50051"`, several of them, or one string with commas between; and the scheme that they begin with, if any."""
    given = [addresses] if isinstance(addresses, str) else list(addresses)
    found: list[str] = []
    if len(given) == 1 and isinstance(given[0], str) and given[0].startswith(RAY):
        return (given[0],), ""
    schemes = set()
    for address in given:
        if not isinstance(address, str):
            raise InvalidInput(f"the address {address!r} is not a string")
        # gRPC's own lists have commas inside
        parts = [address] if address.startswith(("ipv4:", "ipv6:")) else address.split(",")
        for part in parts:
            scheme, _, place = part.strip().removeprefix("grpc://").rpartition("://")
            schemes.add(scheme)
            found.append(place.rstrip("/"))
    for address in found:
        if "@" in address:
            raise InvalidInput(f"the address of {address.rpartition('@')[2]} has a user in it: pass its token as token=")
        if not address or ":" not in address:
            raise InvalidInput(f"the address {address!r} is not host:port")
    if not found:
        raise InvalidInput("there is no address")
    if len(schemes) > 1 or not schemes <= {"", "http", "https"}:
        raise InvalidInput(f"the addresses {', '.join(map(repr, given))} do not all begin alike: with https://, http:// or neither")
    return tuple(found), schemes.pop()


def places(addresses: tuple[str, ...]) -> Callable[[], tuple[str, ...]]:
    """Tells where servers are now, for what `parse` returned."""
    if addresses[0].startswith(RAY):
        from rewarm.ray import follow  # only who names a deployment needs Ray

        return follow.places(addresses[0])
    return lambda: addresses


def is_followed(addresses: tuple[str, ...]) -> bool:
    """Whether that may change."""
    return addresses[0].startswith(RAY)


class Pool:
    """The channels of one process or event loop, made when they are needed. Those to addresses that have gone, or with
    certificates that were replaced, are let go once no call uses any."""

    def __init__(self, credentials: Credentials, make: Callable[..., tuple[Any, Any]]) -> None:
        self._credentials = credentials
        self._make = make
        self._lock = threading.Lock()
        self._open: dict[tuple[str, Any], tuple[Any, Any]] = {}
        self._unwanted: set[str] = set()
        self._calls = 0

    def begin(self) -> None:
        with self._lock:
            self._calls += 1

    def stub(self, address: str) -> Any:
        place = address, self._credentials.stamp()
        with self._lock:
            if place not in self._open:
                secure, of_credentials = self._credentials.channel()
                self._open[place] = self._make(address, secure, [*options(address), *of_credentials])
            return self._open[place][1]

    def end(self, current: tuple[str, ...]) -> list[Any]:
        """The channels that are to be closed."""
        with self._lock:
            self._calls -= 1
            if self._calls:
                return []
            stamp = self._credentials.stamp()
            gone = [place for place in self._open
                    if place[0] not in current or place[0] in self._unwanted or place[1] != stamp]
            self._unwanted.clear()
            return [self._open.pop(place)[0] for place in gone]

    def distrust(self, address: str) -> None:
        """Lets go of it at the end: gRPC would try its handshake again and again, with no call on its way."""
        with self._lock:
            self._unwanted.add(address)

    def clear(self) -> list[Any]:
        with self._lock:
            channels = [channel for channel, _ in self._open.values()]
            self._open.clear()
            return channels


def options(address: str) -> list[tuple[str, Any]]:
    """What a channel to this address is made with."""
    if address.startswith(("ipv4:", "ipv6:")):
        # gRPC would send the whole list as `:authority`, which is no host: servers reset such a stream
        return [*_OPTIONS, ("grpc.default_authority", "rewarm")]
    return _OPTIONS


def process() -> int:
    """Whose channels: those of a parent are dead after a fork."""
    return os.getpid()


def failure(error: Any, credentials: Credentials) -> dict[str, Any]:
    """What a failed call of either API says, as `Pipeline.failed` wants it."""
    code: str = error.code().name
    trailers = error.trailing_metadata() or ()
    pushback = next((value for key, value in trailers if key == PUSHBACK), None)
    message = error.details() or "no reason was given"
    meaning = handshake(message) if code == "UNAVAILABLE" else ""
    return {"code": code, "message": (meaning or message) + credentials.advice(code, message), "pushback": pushback,
            "is_distrusted": bool(meaning)}
