"""Addresses, and what channels to them are made with."""
from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

import grpc

from rewarm.errors import InvalidInput

PUSHBACK = "grpc-retry-pushback-ms"

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


def parse(addresses: str | Sequence[str]) -> tuple[str, ...]:
    """`"host:50051"`, several of them, or one string with commas between."""
    given = [addresses] if isinstance(addresses, str) else list(addresses)
    found: list[str] = []
    for address in given:
        if not isinstance(address, str):
            raise InvalidInput(f"the address {address!r} is not a string")
        # gRPC's own lists have commas inside
        parts = [address] if address.startswith(("ipv4:", "ipv6:")) else address.split(",")
        found += [part.strip().removeprefix("http://").removeprefix("grpc://").rstrip("/") for part in parts]
    for address in found:
        if not address or address.startswith("https://") or ":" not in address:
            raise InvalidInput(f"the address {address!r} is not host:port")
    if not found:
        raise InvalidInput("there is no address")
    return tuple(found)


def options(address: str) -> list[tuple[str, Any]]:
    """What a channel to this address is made with."""
    if address.startswith(("ipv4:", "ipv6:")):
        # gRPC would send the whole list as `:authority`, which is no host: servers reset such a stream
        return [*_OPTIONS, ("grpc.default_authority", "rewarm")]
    return _OPTIONS


def process() -> int:
    """Whose channels: those of a parent are dead after a fork."""
    return os.getpid()


def failure(error: Any) -> dict[str, Any]:
    """What a failed call of either API says, as `Pipeline.failed` wants it."""
    code: grpc.StatusCode = error.code()
    trailers = error.trailing_metadata() or ()
    pushback = next((value for key, value in trailers if key == PUSHBACK), None)
    return {"code": code.name, "message": error.details() or "no reason was given", "pushback": pushback}
