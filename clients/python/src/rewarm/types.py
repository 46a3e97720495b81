"""What comes back: plain frozen data, which pickles."""
from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypedDict

#: Which of the requests that wait goes first.
Priority = Literal["interactive", "normal", "background"]
#: What to do with a sample that is longer than the model's limit: refuse it, or drop tokens on that side.
Truncation = Literal["reject", "left", "right"]


class Access(TypedDict, total=False):
    """How a client gets in; what is absent is taken from the environment (`REWARM_TOKEN`, ..., see `rewarm.access`)."""

    #: The bearer token, or a file that has it, which is read again when it changes.
    token: str | None
    token_file: str | os.PathLike[str] | None
    #: Whether to speak TLS. Absent: where the address begins with https://, or one of the following is there.
    tls: bool | None
    #: Files in PEM: who signed the server's certificate (absent: the public roots), and the client's own, for mTLS.
    ca: str | os.PathLike[str] | None
    certificate: str | os.PathLike[str] | None
    key: str | os.PathLike[str] | None
    #: The name that the server's certificate has, where the address has another.
    server_name: str | None


class Options(TypedDict, total=False):
    """What every call takes by keyword; given to a client, it is the default of its calls."""

    #: The variant that scores; absent, the server's routing decides.
    variant: str | None
    #: Calls with the same key go to the same variant; absent, the prompts decide, and no group of one prompt is split.
    routing_key: str | None
    priority: Priority
    truncation: Truncation
    #: Fails with `FingerprintMismatch` unless this is the fingerprint of the variant that scores.
    expected_fingerprint: str | None
    #: Seconds for the whole call, with all its requests, pauses and retries. 600 unless given.
    timeout: float


class ClientOptions(Options, Access, total=False):
    """What a client takes by keyword."""


@dataclass(frozen=True)
class Score:
    """A reward and what it was computed from."""

    #: Unbounded; only differences carry meaning.
    reward: float
    #: Tokens that were scored, special tokens included.
    tokens: int
    #: Tokens that were dropped because the sample was too long; 0 unless `truncation` asked for it.
    truncated_tokens: int
    #: The variant that scored, and its fingerprint.
    variant: str
    fingerprint: str
    #: One reward for each member of the variant.
    member_rewards: tuple[float, ...] = ()
    #: Population standard deviation of `member_rewards`; None unless the variant is an ensemble.
    reward_std: float | None = None


@dataclass(frozen=True)
class Variant:
    """A model, or an ensemble, that a server holds."""

    name: str
    #: `"warm"` or `"ens"`.
    mode: str
    #: A digest of everything that determines a reward.
    fingerprint: str
    #: Directories of the members, in order.
    members: tuple[str, ...]
    max_tokens: int
    #: How a prompt and a response become one sequence: `"chat_template"`, `"sentence_pair"`, ...
    text_rule: str
    #: What decides rewards and is not in the checkpoint's config.
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ServerInfo:
    """What a server serves."""

    version: str
    #: By name.
    variants: Mapping[str, Variant]
    #: Shares of the calls that name no variant.
    routing: Mapping[str, float]
    max_samples_per_request: int
    #: Of one request; 0 where an older server does not say it, here and below.
    max_message_bytes: int = 0
    #: Of one request: it has to fit in the queue of its variant.
    max_queue_tokens: int = 0
