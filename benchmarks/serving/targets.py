"""Where load is sent, and free ports for those who listen."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import psutil

__all__ = ["Door", "Unavailable", "free_ports", "has_answered"]

_BELOW_EPHEMERAL = (20_000, 32_000)

Groups = Mapping[str, set[psutil.Process]]


class Unavailable(Exception):
    """A target that cannot be started here; the report says why."""


@dataclass(frozen=True)
class Door:
    """Something that answers HTTP.

    Attributes
    ----------
    name
        In the report.
    port
        On 127.0.0.1.
    paths
        For each kind of payload that it takes.
    groups
        Its processes: ``server`` are those that answer, ``beside`` the rest that belongs to it.
    """

    name: str
    port: int
    paths: Mapping[str, str]
    groups: Callable[[], Groups]


def free_ports(number: int) -> list[int]:
    """Ports nobody listens on, below those that the kernel gives to clients."""
    found: list[int] = []
    candidates = random.SystemRandom()
    while len(found) < number:
        port = candidates.randint(*_BELOW_EPHEMERAL)
        with socket.socket() as attempt:
            try:
                attempt.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found


def has_answered(port: int) -> bool:
    """Whether something accepts connections there."""
    with socket.socket() as attempt:
        attempt.settimeout(1.0)
        return attempt.connect_ex(("127.0.0.1", port)) == 0
