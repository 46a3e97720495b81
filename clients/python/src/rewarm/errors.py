"""What can go wrong, in the words of the reader who has to mend it.

Every exception has plain fields and pickles, because trainers carry them between processes: a `grpc.RpcError` loses its
code inside Ray. `code` is the gRPC status as a string (`"UNAVAILABLE"`), empty where the server was not asked.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rewarm.types import Score


class RewarmError(Exception):
    """The parent of all of them."""

    def __init__(self, message: str = "", *, code: str = "", address: str = "", attempts: int = 0) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        #: The server that answered last.
        self.address = address
        #: How often the request that failed was sent.
        self.attempts = attempts


class InvalidInput(RewarmError, ValueError):
    """A sample or an option that is not what it must be; nothing was sent."""

    def __init__(self, message: str = "", *, index: int | None = None) -> None:
        super().__init__(message)
        #: Which sample, counted from 0 in what was passed; None for an option.
        self.index = index


class InvalidRequest(RewarmError):
    """The server refused the request as it is; the message names the field, with samples counted as they were passed."""


class FingerprintMismatch(RewarmError):
    """The reward model is not the pinned one, or changed within one call. Stop: rewards are no longer comparable."""


class AccessDenied(RewarmError):
    """The server does not let this client in, or its token may not do this; or its certificate is not one to trust."""


class Overloaded(RewarmError):
    """The queue stayed full until the deadline, or would have."""


class Unavailable(RewarmError):
    """No server answered until the deadline: none listens, or all are loading or draining."""


class DeadlineExceeded(RewarmError):
    """The deadline passed while the server worked."""


class ServerError(RewarmError):
    """A defect: of the server, of something between, or of an answer that breaks the contract. Report it."""


@dataclass(frozen=True)
class Failure:
    """Why one sample has no reward."""

    #: Which sample, counted from 0 in what was passed.
    index: int
    #: `"INVALID_ARGUMENT"` (too long, empty, bad ids, template failure), `"INTERNAL"`, ...
    code: str
    message: str


class SamplesFailed(RewarmError):
    """Some samples have no reward; the others have been scored."""

    def __init__(self, message: str = "", *, failures: tuple[Failure, ...] = (),
                 scores: tuple[Score | None, ...] = ()) -> None:
        super().__init__(message)
        #: In the order of the samples.
        self.failures = failures
        #: As many as samples, in their order, with None for those that failed.
        self.scores = scores
