"""Rewards for RL training from a rewarm server.

    with rewarm.Client("host:50051", variant="warm") as client:
        rewards = client.score(prompts, responses)

`AsyncClient` is the same for asyncio, `serve` starts a server for tests and notebooks, and `rewarm.trl`, `rewarm.verl`,
`rewarm.openrlhf` and `rewarm.slime` plug into trainers. What they raise is in `rewarm.errors`.
"""
from rewarm.aio import AsyncClient
from rewarm.client import Client
from rewarm.errors import (
    AccessDenied,
    DeadlineExceeded,
    Failure,
    FingerprintMismatch,
    InvalidInput,
    InvalidRequest,
    Overloaded,
    RewarmError,
    SamplesFailed,
    ServerError,
    Unavailable,
)
from rewarm.server import Server, serve
from rewarm.types import ClientOptions, Options, Priority, Score, ServerInfo, Truncation, Variant

__all__ = [
    "AccessDenied", "AsyncClient", "Client", "ClientOptions", "DeadlineExceeded", "Failure", "FingerprintMismatch", "InvalidInput", "InvalidRequest",
    "Options", "Overloaded", "Priority", "RewarmError", "SamplesFailed", "Score", "Server", "ServerError", "ServerInfo",
    "Truncation", "Unavailable", "Variant", "serve",
]
