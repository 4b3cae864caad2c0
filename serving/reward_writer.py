"""Group commit: rewards that come at the same time share one transaction.

One thread owns the connection. A reward is acknowledged only after the commit that stores it; if
PostgreSQL is away every waiting reward is refused at once, so that callers retry instead of hang.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Sequence
from typing import Any

import psycopg

from optimizer.errors import LlmoptError, Unavailable
from serving.ledger import RewardEvent, create_tables, write

__all__ = ["RewardWriter", "connect"]

_LOG = logging.getLogger(__name__)
_BATCH = 2000
_QUEUE = 50_000
_RETRY_S = 0.5

_Waiting = tuple[Sequence[RewardEvent], "asyncio.Future[list[bool]]"]


def connect(dsn: str) -> psycopg.Connection[Any]:
    """An autocommit connection that notices within seconds when the server is gone."""
    return psycopg.connect(
        dsn,
        autocommit=True,
        connect_timeout=2,
        keepalives_idle=2,
        keepalives_interval=1,
        keepalives_count=3,
        tcp_user_timeout=5000,
        options="-c statement_timeout=10000",
    )


class RewardWriter:
    """Takes events from any event loop and stores them in groups.

    Parameters
    ----------
    dsn
        URL of the ledger's database.
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._queue: queue.Queue[_Waiting | None] = queue.Queue(_QUEUE)
        self._connection: psycopg.Connection[Any] | None = None
        self._away_until = 0.0
        self.stored = 0
        self._thread = threading.Thread(target=self._run, name="reward-writer", daemon=True)
        self._thread.start()

    async def store(self, events: Sequence[RewardEvent]) -> list[bool]:
        """Store events; returns after the commit, one "duplicate" flag an event.

        Raises
        ------
        Unavailable
            If PostgreSQL is away or the queue is full; nothing was stored then.
        """
        future: asyncio.Future[list[bool]] = asyncio.get_running_loop().create_future()
        try:
            self._queue.put_nowait((events, future))
        except queue.Full:
            raise Unavailable("the reward queue") from None
        return await future

    def close(self) -> None:
        """Store what is waiting, then stop."""
        self._queue.put(None)
        self._thread.join(timeout=10)

    def waiting(self) -> int:
        """Requests whose rewards are not stored yet."""
        return self._queue.qsize()

    def _run(self) -> None:
        self._store_groups()
        if self._connection is not None:
            self._connection.close()

    def _store_groups(self) -> None:
        while True:
            first = self._queue.get()
            if first is None:
                return
            group = [first]
            size = len(first[0])
            while size < _BATCH:
                try:
                    more = self._queue.get_nowait()
                except queue.Empty:
                    break
                if more is None:
                    self._queue.put(None)
                    break
                group.append(more)
                size += len(more[0])
            self._store(group)

    def _store(self, group: list[_Waiting]) -> None:
        events = [event for waiting, _ in group for event in waiting]
        if self._connection is None and time.monotonic() < self._away_until:
            self._answer(group, None)
            return
        try:
            duplicates = write(self._connected(), events)
        except psycopg.DataError as error:
            self._store_apart(group, error)
            return
        except psycopg.Error as error:
            _LOG.warning("rewards refused, PostgreSQL is away: %s", error)
            self._disconnect()
            self._answer(group, None)
            return
        except Exception as error:  # the thread must live: it answers everybody
            self._store_apart(group, error)
            return
        self.stored += len(events) - sum(duplicates)
        self._answer(group, duplicates)

    def _store_apart(self, group: list[_Waiting], error: Exception) -> None:
        """Store request by request, so that one that can't be stored holds up no other."""
        if len(group) > 1:
            for waiting in group:
                self._store([waiting])
            return
        _LOG.error("a request's rewards can't be stored", exc_info=error)
        self._disconnect()
        self._away_until = 0.0
        self._answer(group, LlmoptError("the ledger can't store this; the replica's log says why"))

    def _connected(self) -> psycopg.Connection[Any]:
        if self._connection is None:
            self._connection = connect(self._dsn)
            create_tables(self._connection)
        return self._connection

    def _disconnect(self) -> None:
        self._away_until = time.monotonic() + _RETRY_S
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _answer(self, group: list[_Waiting], answers: list[bool] | LlmoptError | None) -> None:
        done = 0
        for events, future in group:
            answer = answers
            if isinstance(answers, list):
                answer = answers[done : done + len(events)]
            done += len(events)
            try:
                future.get_loop().call_soon_threadsafe(_resolve, future, answer)
            except RuntimeError:
                _LOG.info("a caller was gone before its reward was answered")


def _resolve(future: asyncio.Future[list[bool]], answer: list[bool] | LlmoptError | None) -> None:
    if future.done():
        return
    if answer is None:
        future.set_exception(Unavailable("PostgreSQL"))
    elif isinstance(answer, LlmoptError):
        future.set_exception(answer)
    else:
        future.set_result(answer)
