"""Is a port free? Asked before anything is started."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

import psutil

from optimizer.errors import PartFailed

__all__ = ["Port", "check_ports"]


@dataclass(frozen=True)
class Port:
    """A port that a part needs, and the setting that moves it."""

    number: int
    part: str
    setting: str


def check_ports(host: str, ports: Iterable[Port]) -> None:
    """Raise where a port can't be listened on.

    Parameters
    ----------
    host
        The address that everything binds to.
    ports
        All that are needed, so that a free one can be suggested.

    Raises
    ------
    PartFailed
        One line for each port: number, part, who holds it, and the setting to change.
    """
    wanted = list(ports)
    problems = []
    for port in wanted:
        reason = _why_not(host, port.number)
        if reason is not None:
            free = _free_after(host, port.number, {other.number for other in wanted})
            problems.append(
                f"port {port.number}, needed by {port.part}, {reason}; choose another with "
                f"LLMOPT_PORTS__{port.setting.upper()}={free} or ports.{port.setting} in the "
                "settings file"
            )
    if problems:
        raise PartFailed("\n".join(problems))


def _why_not(host: str, port: int) -> str | None:
    """Why ``port`` can't be listened on, or None where it can."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind((host, port))
            # Two sockets may be bound to one port when both allow reuse; only one may listen.
            attempt.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return f"is in use{_holder(port)}"
            return f"cannot be used on {host} ({error.strerror})"
    return None


def _holder(port: int) -> str:
    """Who listens on ``port``, as far as we may see it."""
    with suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("inet"):
            if connection.status != psutil.CONN_LISTEN or not connection.pid:
                continue
            if connection.laddr and connection.laddr.port == port:
                return f" by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return ""


def _free_after(host: str, port: int, wanted: set[int]) -> int:
    candidates = (number for number in range(port + 1, 65536) if number not in wanted)
    return next((number for number in candidates if _why_not(host, number) is None), port + 1)
