"""Facts about responses, stored for the quality model to learn from: off the road, in groups.

What is stored are the numbers of `optimizer.response_facts`, never a text. Nothing waits for it: if
PostgreSQL is away, facts wait up to a bound, beyond which they are dropped and counted. Of a
decision that is told twice the later response holds, whichever replica it came to.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

import psycopg

from optimizer.records import Vector
from optimizer.response_facts import FACTS_ID
from serving.background_writer import BackgroundWriter
from serving.ledger import create_tables
from serving.ledger_partitions import decided_at
from serving.tokens import ID_AT

__all__ = ["ResponseLog"]

_LOG = logging.getLogger(__name__)
_STORE_EVERY_S = 1.0
_WAITING = 20_000
"""Some ten megabytes."""

_STORE = """
INSERT INTO response_facts AS old (decision_id, decided_at, told_at, facts_id, facts)
VALUES (%s, %s, %s, %s, %s)
ON CONFLICT (decision_id, decided_at) DO UPDATE
SET told_at = excluded.told_at, facts_id = excluded.facts_id, facts = excluded.facts
WHERE old.told_at <= excluded.told_at
"""


class _Told(NamedTuple):
    """A row of the table, less what all have."""

    decision_id: bytes
    decided_at: datetime
    told_at: datetime
    facts: Vector


class ResponseLog(BackgroundWriter):
    """A bounded buffer with a thread that empties it.

    Parameters
    ----------
    dsn
        URL of the database of the decision log.
    """

    def __init__(self, dsn: str) -> None:
        self._waiting: dict[bytes, _Told] = {}
        self._in_hand: dict[bytes, _Told] = {}
        self._lock = threading.Lock()
        self._lost = 0
        super().__init__(dsn, "response-log", _STORE_EVERY_S)

    def add(self, token: bytes, facts: Vector) -> None:
        """Store them within seconds, if there is room; from any thread.

        Parameters
        ----------
        token
            The bytes of the decision's token, verified.
        facts
            Of `optimizer.response_facts`, NaN where not known.
        """
        decision_id = token[ID_AT]
        with self._lock:
            if decision_id not in self._waiting and self.waiting() >= _WAITING:
                self._lost += 1
                return
            told_at = datetime.now(UTC)
            self._waiting[decision_id] = _Told(decision_id, decided_at(token), told_at, facts)

    def waiting(self) -> int:
        """Decisions whose facts are not stored yet."""
        return len(self._waiting) + len(self._in_hand)

    def dropped(self) -> int:
        """Responses lost because the buffer was full."""
        return self._lost

    def connect(self) -> psycopg.Connection[Any]:
        """With the tables of the ledger."""
        made = super().connect()
        create_tables(made)
        return made

    def store(self) -> None:
        """Store the facts that wait."""
        with self._lock:
            self._in_hand, self._waiting = self._waiting, {}
        if not self._in_hand:
            return
        left: dict[bytes, _Told] = {}
        try:
            self._write(self._in_hand.values())
        except psycopg.Error as error:
            _LOG.warning("facts about responses wait, PostgreSQL is away: %s", error)
            self.disconnect()
            left = self._in_hand
        with self._lock:  # what came meanwhile is newer
            self._waiting, self._in_hand = left | self._waiting, {}

    def _write(self, told: Iterable[_Told]) -> None:
        # In one order everywhere, or two replicas could wait for each other.
        rows = [
            (UUID(bytes=one.decision_id), one.decided_at, one.told_at, FACTS_ID, one.facts.tolist())
            for one in sorted(told, key=lambda one: one.decision_id)
        ]
        connection = self.connected()
        with connection.transaction(), connection.cursor() as cursor:
            cursor.executemany(_STORE, rows)
