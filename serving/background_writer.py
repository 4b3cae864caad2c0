"""A thread that writes to PostgreSQL what others leave in a buffer, now and then and at the end."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import Any

import psycopg

from serving.reward_writer import connect

__all__ = ["BackgroundWriter"]

_CLOSE_S = 10.0


class BackgroundWriter(ABC):
    """Calls `store` at intervals; it begins at once, so fill in what `store` needs before.

    Parameters
    ----------
    dsn
        URL of the database.
    name
        Of the thread.
    every_s
        Between two calls.
    """

    def __init__(self, dsn: str, name: str, every_s: float) -> None:
        self._dsn, self._every_s = dsn, every_s
        self._connection: psycopg.Connection[Any] | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @abstractmethod
    def store(self) -> None:
        """Write what is waiting; keep it where PostgreSQL is away, and raise nothing."""

    def close(self) -> None:
        """Write what is waiting, then stop."""
        self._stop.set()
        self._thread.join(timeout=_CLOSE_S)

    def connected(self) -> psycopg.Connection[Any]:
        """The thread's connection, made where there is none."""
        if self._connection is None:
            self._connection = self.connect()
        return self._connection

    def connect(self) -> psycopg.Connection[Any]:
        """A new connection, on which all that `store` needs is there."""
        return connect(self._dsn)

    def disconnect(self) -> None:
        """Let go of a connection that failed."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            self.store()
        self.store()
        self.disconnect()
