"""The decision log: every decision appended to PostgreSQL in batches, off the decision path.

Rows are written in PostgreSQL's binary format, mostly slices of tokens: text rows took a tenth of a
replica's time at 4,000 decisions a second.

If PostgreSQL is away the buffer fills up to its bound; then the oldest decisions are dropped and
counted. Learning is not touched by that, since it reads tokens, not this log.
"""

from __future__ import annotations

import logging
import struct
import threading
from collections import Counter, deque
from functools import lru_cache
from typing import Any, NamedTuple

import psycopg

from serving.ledger import create_tables
from serving.reward_writer import connect
from serving.tokens import ROLES, stored_fields

__all__ = ["DecisionLog", "LoggedDecision"]

_LOG = logging.getLogger(__name__)
_BUFFER = 200_000
_FLUSH_S = 0.5
_CHUNK = 5_000
_COPY_HEAD, _COPY_END = b"PGCOPY\n\xff\r\n\0" + bytes(8), b"\xff\xff"
_COPY_ROW = struct.Struct(">i16siqi8si8si")
_POSTGRES_EPOCH_S = 946_684_800.0


class LoggedDecision(NamedTuple):
    """One line of the log; what else it holds is read from the token."""

    decision_point: str
    model: str
    role: int
    token: bytes


class DecisionLog:
    """A bounded buffer with a thread that empties it.

    Parameters
    ----------
    dsn
        URL of the log's database.
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._buffer: deque[LoggedDecision] = deque(maxlen=_BUFFER)
        self.extend = self._buffer.extend
        self._connection: psycopg.Connection[Any] | None = None
        self._stop = threading.Event()
        self.written = 0
        self._thread = threading.Thread(target=self._run, name="decision-log", daemon=True)
        self._thread.start()

    def waiting(self) -> int:
        """Decisions in the buffer."""
        return len(self._buffer)

    def dropped(self, decided: int) -> int:
        """Decisions lost because the buffer was full, given how many were appended in all."""
        return max(decided - self.written - len(self._buffer), 0)

    def close(self) -> None:
        """Write what is in the buffer, then stop."""
        self._stop.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._stop.wait(_FLUSH_S):
            self._flush()
        self._flush()
        if self._connection is not None:
            self._connection.close()

    def _flush(self) -> None:
        while self._buffer:
            lines: list[LoggedDecision] = []
            while self._buffer and len(lines) < _CHUNK:
                lines.append(self._buffer.popleft())
            try:
                self._write(lines)
            except psycopg.Error as error:
                _LOG.warning("decision log is behind, PostgreSQL is away: %s", error)
                if self._connection is not None:
                    self._connection.close()
                    self._connection = None
                self._put_back(lines)
                return
            self.written += len(lines)

    def _put_back(self, lines: list[LoggedDecision]) -> None:
        room = _BUFFER - len(self._buffer)
        self._buffer.extendleft(reversed(lines[-room:] if room else []))

    def _write(self, lines: list[LoggedDecision]) -> None:
        if self._connection is None:
            self._connection = connect(self._dsn)
            create_tables(self._connection)
        counts = Counter(line.decision_point for line in lines)
        with self._connection.transaction(), self._connection.cursor() as cursor:
            with cursor.copy(
                "COPY decisions (decision_point, model, role, decision_id, decided_at, propensity,"
                " policy_version, token) FROM STDIN (FORMAT BINARY)"
            ) as copy:
                copy.write(b"".join([_COPY_HEAD, *map(_copy_row, lines), _COPY_END]))
            for name in sorted(counts):
                cursor.execute(
                    "INSERT INTO decision_counts AS c VALUES (%s, %s) ON CONFLICT (decision_point) "
                    "DO UPDATE SET decisions = c.decisions + excluded.decisions",
                    (name, counts[name]),
                )


def _copy_row(line: LoggedDecision) -> bytes:
    """A row in PostgreSQL's binary COPY format: each field with its length before it."""
    fields = stored_fields(line.token)
    microseconds = round((fields.decided_at - _POSTGRES_EPOCH_S) * 1e6)
    return (
        _texts(line.decision_point, line.model, line.role)
        + _COPY_ROW.pack(
            16,
            fields.decision_id,
            8,
            microseconds,
            8,
            fields.propensity,
            8,
            fields.policy_version,
            len(line.token),
        )
        + line.token
    )


@lru_cache(maxsize=1024)
def _texts(decision_point: str, model: str, role: int) -> bytes:
    """How a row begins: the number of fields, and its texts."""
    texts = [text.encode() for text in (decision_point, model, ROLES[role])]
    return struct.pack(">h", 8) + b"".join(struct.pack(">i", len(text)) + text for text in texts)
