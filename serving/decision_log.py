"""The decision log: every decision appended to PostgreSQL in batches, off the decision path.

If PostgreSQL is away the buffer fills up to its bound; then the oldest decisions are dropped and
counted. Learning is not touched by that, since it reads tokens, not this log.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from datetime import UTC, datetime
from typing import Any, NamedTuple

import psycopg

from serving.ledger import create_tables
from serving.reward_writer import connect
from serving.tokens import ROLES

__all__ = ["DecisionLog", "LoggedDecision"]

_LOG = logging.getLogger(__name__)
_BUFFER = 200_000
_FLUSH_S = 0.5
_CHUNK = 20_000


class LoggedDecision(NamedTuple):
    """One line of the log."""

    decision_point: str
    decision_id: bytes
    decided_at: float
    model: str
    role: int
    propensity: float
    policy_version: int
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
        self.append = self._buffer.append
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
                "COPY decisions (decision_point, decision_id, decided_at, model, role, propensity,"
                " policy_version, token) FROM STDIN"
            ) as copy:
                for line in lines:
                    copy.write_row(
                        (
                            line.decision_point,
                            line.decision_id.hex(),
                            datetime.fromtimestamp(line.decided_at, UTC),
                            line.model,
                            ROLES[line.role],
                            line.propensity,
                            line.policy_version,
                            line.token,
                        )
                    )
            for name in sorted(counts):
                cursor.execute(
                    "INSERT INTO decision_counts AS c VALUES (%s, %s) ON CONFLICT (decision_point) "
                    "DO UPDATE SET decisions = c.decisions + excluded.decisions",
                    (name, counts[name]),
                )
