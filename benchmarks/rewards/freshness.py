"""How long until each replica decides with what a reward taught.

Each replica is asked for a decision again and again, over a connection of its own; the answer tells
the ledger position that its policy has learned up to. A reward is there when that is its position
or a later one, so up to one pause between two questions is counted too much.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from types import TracebackType
from typing import Self

import numpy as np
import psycopg

from benchmarks.rewards.stack import Stack

__all__ = ["Probes", "delays_s"]

_EVERY_S = 0.02
_TRIES = 200

Seen = list[tuple[float, int]]
"""Unix time of an answer, and the policy version in it."""


class Probes:
    """Asks, from entering until leaving.

    Attributes
    ----------
    seen
        For each replica.
    """

    def __init__(self, stack: Stack, point: str) -> None:
        self._body = json.dumps({"decision_point": point, "context": {}}).encode()
        self._clients = _one_client_each(stack)
        self.seen: list[Seen] = [[] for _ in self._clients]
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=pair, daemon=True)
            for pair in zip(self._clients, self.seen, strict=True)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        for client in self._clients:
            client.close()

    def _ask(self, client: http.client.HTTPConnection, seen: Seen) -> None:
        newest = -1
        while not self._stop.wait(_EVERY_S):
            client.request("POST", "/v1/decisions", self._body)
            answer = json.loads(client.getresponse().read())
            if answer["policy_version"] > newest:
                newest = answer["policy_version"]
                seen.append((time.time(), newest))


def delays_s(dsn: str, point: str, probes: Probes, first: int, last: int) -> list[np.ndarray]:
    """Seconds from a reward's transaction to each replica, for positions in (first, last].

    Rewards that a replica has not been seen with are infinitely late.
    """
    with psycopg.connect(dsn) as connection:
        rows = connection.execute(
            "SELECT position, extract(epoch FROM received_at)::float8 FROM rewards WHERE "
            "decision_point = %s AND position > %s AND position <= %s ORDER BY position",
            (point, first, last),
        ).fetchall()
    positions, received_at = (np.array(column) for column in zip(*rows, strict=True))
    delays = []
    for seen in probes.seen:
        times, versions = (np.array(column) for column in zip(*seen, strict=True))
        at = np.searchsorted(versions, positions)
        delays.append(np.append(times, np.inf)[at] - received_at)
    return delays


def _one_client_each(stack: Stack) -> list[http.client.HTTPConnection]:
    """The kernel spreads connections over replicas: open more until each has one."""
    clients: dict[int, http.client.HTTPConnection] = {}
    wanted = {process.pid for process in stack.replicas()}
    for _ in range(_TRIES):
        client = http.client.HTTPConnection("127.0.0.1", stack.ports["fast_lane"], timeout=20)
        client.connect()
        pid = stack.replica_of(client.sock.getsockname()[1])
        if pid is None or pid in clients:
            client.close()
            continue
        clients[pid] = client
        if clients.keys() == wanted:
            break
    return list(clients.values())
