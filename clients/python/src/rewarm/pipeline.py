"""Which request goes where and when, until all are answered. No I/O and no clock: the clients drive it.

A call has one deadline. A few of its requests are on their way at a time; each goes to the addresses in turn. What may be
tried again is: a full queue, which tells when (`grpc-retry-pushback-ms`), and a server that is not there, elsewhere at
once and here a little later. Scoring has no effects, so a request whose answer got lost is simply sent again. The
addresses may change under a call (`follow`); what is on its way to one that has gone stays there until it fails.
"""
from __future__ import annotations

import heapq
import logging
import random
import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rewarm.errors import (
    AccessDenied,
    DeadlineExceeded,
    FingerprintMismatch,
    InvalidRequest,
    Overloaded,
    RewarmError,
    ServerError,
    Unavailable,
)
from rewarm.plan import Request

#: Requests on their way at a time, to each address.
CONCURRENT_REQUESTS = 8
#: Seconds before an address that is not there is asked again, where it does not say: the first and the longest.
BACKOFF = (0.05, 2.0)
#: Seconds between two lines in the log about requests that are sent again.
LOG_SECONDS = 10.0

_ERRORS: dict[str, type[RewarmError]] = {
    "INVALID_ARGUMENT": InvalidRequest,
    "OUT_OF_RANGE": InvalidRequest,
    "UNIMPLEMENTED": InvalidRequest,
    "FAILED_PRECONDITION": FingerprintMismatch,
    "RESOURCE_EXHAUSTED": Overloaded,
    "UNAVAILABLE": Unavailable,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "UNAUTHENTICATED": AccessDenied,
    "PERMISSION_DENIED": AccessDenied,
}

_log = logging.getLogger("rewarm")


@dataclass
class Sending:
    """A request that is to be sent now, or was."""

    index: int
    #: Where to; empty until it is due for the first time.
    address: str = ""
    attempts: int = 0
    #: By address: when it may be asked again, and how often it was not there.
    not_before: dict[str, float] = field(default_factory=dict)
    absences: dict[str, int] = field(default_factory=dict)
    #: Addresses with which no handshake succeeds.
    distrusted: set[str] = field(default_factory=set)


class Pipeline:
    """One call: `due` says what to send, `answered` and `failed` what became of it."""

    def __init__(self, requests: Sequence[Request], addresses: Sequence[str], first: int, deadline: float,
                 timeout: float) -> None:
        self.requests = requests
        self.responses: list[Any] = [None] * len(requests)
        self.deadline = deadline
        self._timeout = timeout
        self._addresses = tuple(addresses)
        self._first = first
        self._fresh = deque(Sending(index) for index in range(len(requests)))
        self._waiting: list[tuple[float, int, Sending]] = []
        self._flying = 0
        self._missing = len(requests)
        self._last = ""
        self._logged = 0.0

    @property
    def is_done(self) -> bool:
        return self._missing == 0

    def follow(self, addresses: Sequence[str], now: float) -> None:
        """From now on these are the addresses; there may be none for a while. What waits for one that is not among them
        goes elsewhere."""
        if tuple(addresses) == self._addresses:
            return
        self._addresses = tuple(addresses)
        self._waiting = [(self._place(sending, now), sending.index, sending) for _, _, sending in self._waiting]
        heapq.heapify(self._waiting)

    def due(self, now: float) -> list[Sending]:
        """What to send now. Raises once the deadline has passed."""
        if now >= self.deadline:
            if not self._addresses:
                raise Unavailable(f"no server was there when the deadline of {self._timeout:g} s passed{self._last}",
                                  code="UNAVAILABLE")
            raise DeadlineExceeded(
                f"the deadline of {self._timeout:g} s passed; {self._missing} of {len(self.requests)} requests were not "
                f"answered{self._last}", code="DEADLINE_EXCEEDED")
        found = []
        while self._has_room:
            if self._waiting and self._waiting[0][0] <= now:
                sending = heapq.heappop(self._waiting)[2]
            elif self._fresh:
                sending = self._fresh.popleft()
                sending.address = self._addresses[(self._first + sending.index) % len(self._addresses)]
            else:
                break
            sending.attempts += 1
            self._flying += 1
            found.append(sending)
        return found

    def pause(self, now: float) -> float:
        """For how long nothing is due, unless an answer comes."""
        wake = self._waiting[0][0] if self._waiting and self._has_room else self.deadline
        return max(0.0, min(wake, self.deadline) - now)

    @property
    def _has_room(self) -> bool:
        return self._flying < CONCURRENT_REQUESTS * len(self._addresses)

    def answered(self, sending: Sending, response: Any) -> None:
        self._flying -= 1
        self._missing -= 1
        self.responses[sending.index] = response

    def failed(self, sending: Sending, now: float, *, code: str, message: str, pushback: str | None,
               is_distrusted: bool = False) -> None:
        """Notes when to try again. Raises if that would not help, or not in time."""
        self._flying -= 1
        here = sending.address
        if is_distrusted:
            sending.distrusted.add(here)
            if sending.distrusted.issuperset(self._addresses):
                raise AccessDenied(f"{here}: {message}", code=code, address=here, attempts=sending.attempts)
        delay = self._delay(sending, code, pushback)
        if delay is not None:
            sending.not_before[here] = now + delay
            due = self._place(sending, now)
            if due < self.deadline:
                self._last = f"; {here} answered {code}: {message}"
                self._report(now, f"{here} answered {code}: {message}; trying again")
                heapq.heappush(self._waiting, (due, sending.index, sending))
                return
        start = self.requests[sending.index].start
        message = re.sub(r"\bsamples\[(\d+)\]", lambda found: f"samples[{int(found[1]) + start}]", message)
        if sending.attempts > 1 or code == "DEADLINE_EXCEEDED":
            message = f"{message} (attempts: {sending.attempts}, timeout: {self._timeout:g} s)"
        raise _ERRORS.get(code, ServerError)(
            f"{here} answered {code}: {message}", code=code, address=here, attempts=sending.attempts)

    def _place(self, sending: Sending, now: float) -> float:
        """Chooses where to send it again, and tells when: the first of the addresses that follow its last one, of those
        that may be asked soonest."""
        if not self._addresses:
            return now
        known = self._addresses
        # of one that has gone nothing follows: begin where the turn of this request is
        last = known.index(sending.address) if sending.address in known else self._first + sending.index
        following = [known[(last + step) % len(known)] for step in range(1, len(known) + 1)]
        sending.address = min(following, key=lambda address: max(now, sending.not_before.get(address, now)))
        return max(now, sending.not_before.get(sending.address, now))

    def _delay(self, sending: Sending, code: str, pushback: str | None) -> float | None:
        """Seconds before this address may be asked again; None if that would not help."""
        if code not in ("RESOURCE_EXHAUSTED", "UNAVAILABLE"):
            return None
        if pushback is not None:
            # a number below 0, or nonsense, says: do not
            return int(pushback) / 1000 if pushback.isdecimal() else None
        if code == "RESOURCE_EXHAUSTED":
            # not by our server: a limit of size, which the same request meets again
            return None
        absences = sending.absences.get(sending.address, 0)
        sending.absences[sending.address] = absences + 1
        first, longest = BACKOFF
        return min(longest, first * 2.0 ** min(absences, 10)) * random.uniform(0.8, 1.2)

    def _report(self, now: float, text: str) -> None:
        if now >= self._logged:
            self._logged = now + LOG_SECONDS
            _log.warning(text)
