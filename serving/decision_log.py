"""The decision log: every decision appended to PostgreSQL in batches, off the decision path.

Rows are written in PostgreSQL's binary format and are mostly slices of tokens, cut for thousands at
once: the thread that writes them shares Python's lock with the one that decides.

If PostgreSQL is away the buffer fills up to its bound; then the oldest decisions are dropped and
counted. Learning is not touched by that, since it reads tokens, not this log.
"""

from __future__ import annotations

import logging
import struct
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import psycopg

from optimizer.byte_rows import Piece, Seconds, byte_rows
from serving.background_writer import BackgroundWriter
from serving.ledger import create_tables
from serving.tokens import ID_AT, PROPENSITY_AT, ROLES, SHADOW, TIME_AT, VERSION_AT

__all__ = ["DecisionLog", "LoggedDecisions"]

_LOG = logging.getLogger(__name__)
_BUFFER = 200_000
_FLUSH_S = 0.5
_CHUNK = 10_000
_COPY_HEAD, _COPY_END = b"PGCOPY\n\xff\r\n\0" + bytes(8), b"\xff\xff"
_POSTGRES_EPOCH_S = 946_684_800.0

_Alike = dict[tuple[str, int], list[bytes]]
"""Tokens by model and role."""


class LoggedDecisions(NamedTuple):
    """Decisions made together, as columns; what else the log holds is read from the tokens."""

    decision_point: str
    models: Sequence[str]
    roles: Sequence[int]
    tokens: Sequence[bytes]


class DecisionLog(BackgroundWriter):
    """A bounded buffer with a thread that empties it.

    Parameters
    ----------
    dsn
        URL of the log's database.
    """

    def __init__(self, dsn: str) -> None:
        self._buffer: deque[LoggedDecisions] = deque()
        self._failed: list[LoggedDecisions] = []
        # Each number is changed by one thread only, so that no lock is needed.
        self._added = self._lost = self.written = 0
        super().__init__(dsn, "decision-log", _FLUSH_S)

    def add(self, decisions: LoggedDecisions) -> None:
        """Log them soon; by one thread only."""
        self._buffer.append(decisions)
        self._added += len(decisions.tokens)
        while self.waiting() > _BUFFER:
            try:
                self._lost += len(self._buffer.popleft().tokens)
            except IndexError:  # the other thread was faster
                return

    def waiting(self) -> int:
        """Decisions that are not written yet."""
        return self._added - self._lost - self.written

    def dropped(self) -> int:
        """Decisions lost because the buffer was full."""
        return self._lost

    def connect(self) -> psycopg.Connection[Any]:
        """With the tables of the ledger."""
        made = super().connect()
        create_tables(made)
        return made

    def store(self) -> None:
        """Write the buffer, some thousands at once."""
        while self._failed or self._buffer:
            batches, self._failed = self._failed, []
            lines = sum(len(batch.tokens) for batch in batches)
            while self._buffer and lines < _CHUNK:
                batches.append(self._buffer.popleft())
                lines += len(batches[-1].tokens)
            try:
                self._write(batches)
            except psycopg.Error as error:
                _LOG.warning("decision log is behind, PostgreSQL is away: %s", error)
                self.disconnect()
                self._failed = batches
                return
            self.written += lines

    def _write(self, batches: list[LoggedDecisions]) -> None:
        counts: Counter[str] = Counter()
        # Tokens of a decision point are equally long, unless its settings have changed.
        points: dict[tuple[str, int], _Alike] = defaultdict(lambda: defaultdict(list))
        for name, models, roles, tokens in batches:
            counts[name] += sum(role != SHADOW for role in roles)
            alike = points[name, len(tokens[0])]
            for kind, token in zip(zip(models, roles, strict=True), tokens, strict=True):
                alike[kind].append(token)
        connection = self.connected()
        with connection.transaction(), connection.cursor() as cursor:
            with cursor.copy(
                "COPY decisions (decision_point, model, role, decision_id, decided_at, propensity,"
                " policy_version, token) FROM STDIN (FORMAT BINARY)"
            ) as copy:
                copy.write(_COPY_HEAD)
                for (name, _), alike in points.items():
                    for (model, role), rows in alike.items():
                        copy.write(_copy_rows((name, model, ROLES[role]), rows))
                copy.write(_COPY_END)
            for name in sorted(counts):
                cursor.execute(
                    "INSERT INTO decision_counts AS c VALUES (%s, %s) ON CONFLICT (decision_point) "
                    "DO UPDATE SET decisions = c.decisions + excluded.decisions",
                    (name, counts[name]),
                )


def _copy_rows(texts: tuple[str, str, str], tokens: list[bytes]) -> bytes:
    """Rows in PostgreSQL's binary COPY format, of tokens of one length: lengths before fields."""
    pieces: list[Piece] = [struct.pack(">h", 8)]
    for text in texts:
        pieces += [struct.pack(">i", len(text.encode())), text.encode()]
    for at in (ID_AT, TIME_AT, PROPENSITY_AT, VERSION_AT):
        field = Seconds(at, _POSTGRES_EPOCH_S) if at is TIME_AT else at
        pieces += [struct.pack(">i", at.stop - at.start), field]
    pieces += [struct.pack(">i", len(tokens[0])), slice(None)]
    return byte_rows(tokens, pieces)
