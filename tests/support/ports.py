"""What tests in Python that start servers share: ports, and patience."""

import random
import socket
import time
from collections.abc import Callable


def free_port() -> int:
    """One that is free, and that no client is given as its own meanwhile: Linux takes those from 32768 on."""
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


def wait(until: Callable[[], bool], what: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.05)
