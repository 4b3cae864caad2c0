"""Reward events that were refused, in PostgreSQL: what came, and why it was not taken.

The same body refused again is the same letter, counted once more: a client that keeps trying makes
no rows. Each reason has room for so many letters, the newest, so that a flood of garbage pushes out
garbage and not the events that a forgotten key or decision point has refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from psycopg.rows import class_row

from optimizer.errors import InvalidInput, InvalidToken, TooLarge, TooLate, UnknownName
from serving.problems import shorten

__all__ = [
    "ACCEPTED",
    "BODY_BYTES",
    "DUPLICATE",
    "REASONS",
    "DeadLetter",
    "StoredLetter",
    "count_letters",
    "drop_letters",
    "find_letters",
    "make_letter",
    "mark_letter",
    "reason_of",
    "store_letters",
]

BODY_BYTES = 8 << 10
"""So much of a body is kept."""

REASONS = ("malformed", "too_large", "invalid_token", "unknown_name", "too_late", "invalid_value")

ACCEPTED, DUPLICATE = "accepted", "duplicate"
"""Outcomes of a replay after which a letter is done."""

_PER_REASON = 10_000
_SHOWN_CHARACTERS = 500

_TABLES = """
CREATE TABLE IF NOT EXISTS dead_letters (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    received_at timestamptz NOT NULL DEFAULT now(),
    last_at timestamptz NOT NULL DEFAULT now(),
    times bigint NOT NULL,
    reason text NOT NULL,
    field text NOT NULL,
    value text NOT NULL,
    remedy text NOT NULL,
    path text NOT NULL,
    body bytea NOT NULL,
    body_bytes bigint NOT NULL,
    digest bytea NOT NULL UNIQUE,
    replayed_at timestamptz,
    outcome text
);
CREATE INDEX IF NOT EXISTS dead_letters_reason ON dead_letters (reason, id);
CREATE INDEX IF NOT EXISTS dead_letters_time ON dead_letters (last_at);
"""
_LOCK = 0x6C6C6D646561

_STORE = """
INSERT INTO dead_letters AS old
    (times, reason, field, value, remedy, path, body, body_bytes, digest)
SELECT * FROM unnest(%s::bigint[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[],
    %s::bytea[], %s::bigint[], %s::bytea[])
ON CONFLICT (digest) DO UPDATE SET last_at = now(), times = old.times + excluded.times,
    reason = excluded.reason, field = excluded.field, value = excluded.value,
    remedy = excluded.remedy,
    outcome = CASE WHEN old.outcome IN ('accepted', 'duplicate') THEN NULL ELSE old.outcome END
"""
_FIND = """
SELECT id, received_at, last_at, times, reason, field, value, remedy, path, body, body_bytes,
    replayed_at, outcome
FROM dead_letters
WHERE (%(reason)s::text IS NULL OR reason = %(reason)s)
    AND (%(ids)s::bigint[] IS NULL OR id = ANY (%(ids)s))
    AND (NOT %(open)s OR outcome IS NULL OR outcome NOT IN ('accepted', 'duplicate'))
ORDER BY id DESC LIMIT %(limit)s
"""


@dataclass(slots=True)
class DeadLetter:
    """A refused event on its way to the table.

    Attributes
    ----------
    reason
        One of `REASONS`.
    field, value, remedy
        Of the error; the value as JSON, cut.
    path
        Where it was sent, or where one like it can be: an item of a batch has that of one event.
    body
        Its first `BODY_BYTES` bytes.
    body_bytes
        How long it was; 0 where it was too long to be read.
    digest
        Of the whole body and the path.
    times
        How often it came.
    """

    reason: str
    field: str
    value: str
    remedy: str
    path: str
    body: bytes
    body_bytes: int
    digest: bytes
    times: int = 1


@dataclass(frozen=True, slots=True)
class StoredLetter:
    """A row of the table; `received_at` is when it came first, `last_at` when it came last."""

    id: int
    received_at: datetime
    last_at: datetime
    times: int
    reason: str
    field: str
    value: str
    remedy: str
    path: str
    body: bytes
    body_bytes: int
    replayed_at: datetime | None
    outcome: str | None

    @property
    def whole(self) -> bool:
        """Whether all of it was kept, so that it can be sent again."""
        return 0 < self.body_bytes == len(self.body)

    @property
    def done(self) -> bool:
        """Whether a replay has brought it into the ledger."""
        return self.outcome in (ACCEPTED, DUPLICATE)


def reason_of(error: InvalidInput) -> str:
    """The short name of why an event was refused, one of `REASONS`.

    Examples
    --------
    >>> reason_of(InvalidInput("quality", 7, "at most 1"))
    'invalid_value'
    """
    kinds = {
        TooLarge: "too_large",
        TooLate: "too_late",
        InvalidToken: "invalid_token",
        UnknownName: "unknown_name",
    }
    for kind, reason in kinds.items():
        if isinstance(error, kind):
            return reason
    return "malformed" if error.field == "body" else "invalid_value"


def make_letter(error: InvalidInput, body: bytes, path: str) -> DeadLetter:
    """What is kept of a refused event."""
    return DeadLetter(
        reason_of(error),
        _storable(error.field),
        json.dumps(shorten(error.value), default=str)[:_SHOWN_CHARACTERS],
        _storable(error.remedy),
        path,
        body[:BODY_BYTES],
        len(body),
        hashlib.blake2b(body, digest_size=16, person=path.encode()[-16:]).digest(),
    )


def store_letters(connection: psycopg.Connection[Any], letters: Sequence[DeadLetter]) -> None:
    """Store letters, no two with the same digest; of each reason only the newest are kept."""
    create_tables(connection)
    columns = [
        *("times", "reason", "field", "value", "remedy", "path", "body", "body_bytes", "digest")
    ]
    with connection.transaction():
        connection.execute(_STORE, [[getattr(one, name) for one in letters] for name in columns])
        for reason in {letter.reason for letter in letters}:
            connection.execute(
                "DELETE FROM dead_letters WHERE reason = %(reason)s AND id <= (SELECT id FROM "
                "dead_letters WHERE reason = %(reason)s ORDER BY id DESC OFFSET %(kept)s LIMIT 1)",
                {"reason": reason, "kept": _PER_REASON},
            )


def find_letters(
    connection: psycopg.Connection[Any],
    *,
    ids: Iterable[int] | None = None,
    reason: str | None = None,
    open_only: bool = False,
    limit: int,
) -> list[StoredLetter]:
    """The newest letters.

    Parameters
    ----------
    ids
        Only these.
    reason
        Only of this one.
    open_only
        Only those that no replay has brought into the ledger.
    limit
        At most so many.

    Raises
    ------
    UnknownName
        If there is no such reason.
    """
    if reason is not None and reason not in REASONS:
        raise UnknownName("reason", reason, f"one of {', '.join(REASONS)}")
    create_tables(connection)
    asked = None if ids is None else list(ids)
    with connection.cursor(row_factory=class_row(StoredLetter)) as cursor:
        given = {"ids": asked, "reason": reason, "open": open_only, "limit": limit}
        return cursor.execute(_FIND, given).fetchall()


def mark_letter(connection: psycopg.Connection[Any], letter_id: int, outcome: str) -> None:
    """Say what a replay came to."""
    connection.execute(
        "UPDATE dead_letters SET replayed_at = now(), outcome = %s WHERE id = %s",
        (_storable(outcome), letter_id),
    )


def count_letters(connection: psycopg.Connection[Any], before: datetime) -> int:
    """How many letters came last before a moment."""
    create_tables(connection)
    query = "SELECT count(*) FROM dead_letters WHERE last_at < %s"
    row = connection.execute(query, (before,)).fetchone()
    return 0 if row is None else int(row[0])


def drop_letters(connection: psycopg.Connection[Any], before: datetime) -> int:
    """Drop letters that came last before a moment; gives how many."""
    create_tables(connection)
    return connection.execute("DELETE FROM dead_letters WHERE last_at < %s", (before,)).rowcount


def create_tables(connection: psycopg.Connection[Any]) -> None:
    """Create what is missing; safe when several processes start at once."""
    if connection.execute("SELECT to_regclass('dead_letters')").fetchone() != (None,):
        return
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        connection.execute(_TABLES)


def _storable(text: str) -> str:
    """Cut, and without what PostgreSQL's text cannot hold: NUL, half of a surrogate pair."""
    cut = text[:_SHOWN_CHARACTERS].replace("\0", "\\0")
    return cut.encode(errors="backslashreplace").decode()
