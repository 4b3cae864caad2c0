"""The reward ledger in PostgreSQL: idempotent, append-only, read in order by the learner.

What the signals of a decision come to is the matter of `serving.known_signals`.

Each row is one event that changed something, with what is known about its decision before and
after: the learner folds rows and looks nothing up. Positions are counted for each decision point
under a row lock that is held until commit, so positions become visible in order and without gaps:
a reader that has seen position n will never find a smaller one later. That lock also keeps a
position from being given twice: a unique index would need the column of the partitions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from typing import Any
from uuid import uuid4

import psycopg
from msgspec import Struct

from optimizer.records import Outcome
from serving import ledger_partitions
from serving.insert_rows import Rows
from serving.known_signals import (
    NOTHING,
    PROXY,
    WINDOW_CLOSED,
    Known,
    combine,
    is_whole,
    real_values,
    tell,
)
from serving.tokens import TIME_AT

__all__ = [
    "LedgerRow",
    "Proxy",
    "RewardEvent",
    "close_windows",
    "create_tables",
    "head",
    "read",
    "read_final",
    "write",
]

_TABLES = """
CREATE TABLE IF NOT EXISTS ledger_heads (
    decision_point text PRIMARY KEY,
    position bigint NOT NULL
);
CREATE TABLE IF NOT EXISTS rewards (
    decision_point text NOT NULL,
    position bigint NOT NULL,
    decided_at timestamptz NOT NULL,
    decision_id uuid NOT NULL,
    event_id text NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now(),
    quality float8, cost_usd float8, latency_s float8, feedback float8,
    known_before float8[] NOT NULL,
    known_after float8[] NOT NULL,
    token bytea NOT NULL,
    kind text NOT NULL DEFAULT '',
    value float8,
    weight float8 NOT NULL DEFAULT 1,
    occurred_at timestamptz
) PARTITION BY RANGE (decided_at);
ALTER TABLE rewards
    ADD COLUMN IF NOT EXISTS kind text NOT NULL DEFAULT '',
    ADD COLUMN IF NOT EXISTS value float8,
    ADD COLUMN IF NOT EXISTS weight float8 NOT NULL DEFAULT 1,
    ADD COLUMN IF NOT EXISTS occurred_at timestamptz;
CREATE INDEX IF NOT EXISTS rewards_position ON rewards (decision_point, position);
CREATE INDEX IF NOT EXISTS rewards_decision ON rewards (decision_id, position);
CREATE TABLE IF NOT EXISTS decisions (
    decision_point text NOT NULL,
    decision_id uuid NOT NULL,
    decided_at timestamptz NOT NULL,
    model text NOT NULL,
    role text NOT NULL,
    propensity float8 NOT NULL,
    policy_version bigint NOT NULL,
    token bytea NOT NULL
) PARTITION BY RANGE (decided_at);
CREATE INDEX IF NOT EXISTS decisions_time ON decisions (decision_point, decided_at);
CREATE TABLE IF NOT EXISTS response_facts (
    decision_id uuid NOT NULL,
    decided_at timestamptz NOT NULL,
    told_at timestamptz NOT NULL,
    facts_id bigint NOT NULL,
    facts float8[] NOT NULL,
    PRIMARY KEY (decision_id, decided_at)
) PARTITION BY RANGE (decided_at);
CREATE TABLE IF NOT EXISTS decision_counts (
    decision_point text PRIMARY KEY,
    decisions bigint NOT NULL
);
CREATE TABLE IF NOT EXISTS policy_checkpoints (
    decision_point text NOT NULL,
    variant text NOT NULL,
    lineage text NOT NULL,
    position bigint NOT NULL,
    state bytea NOT NULL,
    saved_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (decision_point, variant)
);
"""
_COLUMNS = {
    "decision_point": "text",
    "decided_at": "timestamptz",
    "decision_id": "uuid",
    "event_id": "text",
    "kind": "text",
    "value": "float8",
    "weight": "float8",
    "occurred_at": "timestamptz",
    "quality": "float8",
    "cost_usd": "float8",
    "latency_s": "float8",
    "feedback": "float8",
    "known_before": "float8[]",
    "known_after": "float8[]",
    "token": "bytea",
}
"""What `write` gives; the rest has a default."""
_TABLES_LOCK = 0x6C6C6D6F7074

_READY = """
SELECT to_regclass('policy_checkpoints') IS NOT NULL AND EXISTS (
    SELECT FROM pg_attribute WHERE attrelid = to_regclass('rewards') AND attname = 'occurred_at')
"""

Proxy = Callable[[Sequence[bytes]], tuple[int, Sequence[float]] | None]
"""Predicts the qualities of decisions from the bytes of their tokens: the version of the model, and
a quality in [0, 1] for each; None while there is no model."""


class RewardEvent(Struct, frozen=True, gc=False):
    """One event about one decision.

    Attributes
    ----------
    decision_id
        16 bytes.
    event_id
        "" where the caller gave none.
    outcome
        The values it brings; values of the same event that it does not name stay. Of a signal
        (``kind``) at most the one part that it informs; none takes back what it said.
    retract
        Take back everything this event said before; of a signal, what this kind said.
    token
        The bytes of the decision's token.
    kind
        "" of a plain reward, each of whose parts is a kind of its own.
    value
        The raw value of a signal, for audits.
    weight
        Of a signal against others of its part, above 0.
    occurred_at
        When it happened, with a time zone; None if the caller did not say.
    """

    decision_point: str
    decision_id: bytes
    event_id: str
    outcome: Outcome
    retract: bool
    token: bytes
    kind: str = ""
    value: float | None = None
    weight: float = 1.0
    occurred_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """What the learner reads.

    Attributes
    ----------
    before, after
        What is known of the decision, before and after this row; the quality may be a proxy.
    real_before, real_after
        The same without a proxy: what counts as evidence.
    """

    position: int
    before: Outcome
    after: Outcome
    token: bytes
    received_at: datetime
    real_before: Outcome
    real_after: Outcome


def create_tables(connection: psycopg.Connection[Any]) -> None:
    """Create what is missing; safe when several processes start at once.

    Tables of a version without partitions get them, which takes as long as to write the rewards
    anew; others wait for it.
    """
    row = connection.execute(_READY).fetchone()
    # Partitions and the last column come in the same transaction as everything else.
    if row is not None and row[0] and ledger_partitions.partitioned(connection):
        return
    now = datetime.now(UTC)
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_TABLES_LOCK,))
        if not ledger_partitions.partitioned(connection):  # another process may have been faster
            ledger_partitions.adopt_tables(connection, now)
        connection.execute(_TABLES)
        ledger_partitions.ensure_weeks(connection, now)


def write(connection: psycopg.Connection[Any], events: Sequence[RewardEvent]) -> list[bool]:
    """Store events in one transaction; when this returns they are durable.

    Parameters
    ----------
    connection
        In autocommit mode.
    events
        In the order they came.

    Returns
    -------
    For each event, True if it changed nothing (a repeat, or a retraction of what is not there).
    """
    points = sorted({event.decision_point for event in events})
    times = [ledger_partitions.decided_at(event.token) for event in events]
    ids = ledger_partitions.by_week(
        (event.decision_id, time) for event, time in zip(events, times, strict=True)
    )
    drafted = _fold(events, times, {})
    # Others wait for the lock on the positions: under it are two round trips and little else.
    with connection.pipeline(), connection.transaction():
        heads = _lock_heads(connection, points)
        found = [
            connection.execute(
                "SELECT uuid_send(decision_id), event_id, kind, weight, occurred_at, quality, "
                "cost_usd, latency_s, feedback, known_after FROM rewards "
                "WHERE decision_id = ANY(%s::uuid[]) AND decided_at >= %s AND decided_at < %s "
                "ORDER BY decision_id, position",
                (f"{{{','.join(some)}}}", low, high),  # one text: psycopg adapts no list
                binary=True,
            )
            for low, high, some in ids
        ]
        positions: dict[str, int] = dict(heads.fetchall())
        if len(positions) < len(points):
            connection.execute(
                "INSERT INTO ledger_heads SELECT unnest(%s::text[]), 0 ON CONFLICT DO NOTHING",
                (points,),
            )
            positions = dict(_lock_heads(connection, points).fetchall())
        known: dict[bytes, Known] = {}
        for raw, event_id, kind, weight, occurred_at, *values, after in chain(*found):
            decision = known.setdefault(raw, Known({}, NOTHING))
            tell(decision.cells, event_id, kind, values, weight, occurred_at)
            decision.parts = after
        if known:
            drafted = _fold(events, times, known)
        if drafted.rows is not None:
            drafted.rows.add("position", "int8", drafted.positions(positions))
            drafted.rows.insert(connection, "rewards")
            connection.execute(
                "UPDATE ledger_heads AS head SET position = new.position FROM "
                "(SELECT unnest(%s::text[]) AS name, unnest(%s::bigint[]) AS position) AS new "
                "WHERE head.decision_point = new.name",
                (points, [positions[name] for name in points]),
            )
    return drafted.duplicates


@dataclass(frozen=True, slots=True)
class _Draft:
    """What a group of events comes to: which are duplicates, and the rows of the others.

    Attributes
    ----------
    rows
        All but their positions; None if there are none.
    points
        Decision points of the rows.
    """

    duplicates: list[bool]
    rows: Rows | None
    points: list[str]

    def positions(self, heads: dict[str, int]) -> list[int]:
        """Of the rows, after ``heads``, which are moved on."""
        given = []
        for point in self.points:
            heads[point] += 1
            given.append(heads[point])
        return given


def _lock_heads(connection: psycopg.Connection[Any], points: Sequence[str]) -> psycopg.Cursor[Any]:
    """Positions of decision points, which stay until the transaction ends."""
    return connection.execute(
        "SELECT decision_point, position FROM ledger_heads WHERE decision_point = ANY(%s) "
        "ORDER BY decision_point FOR UPDATE",
        (points,),
        binary=True,
    )


def _fold(
    events: Sequence[RewardEvent], times: Sequence[datetime], known: dict[bytes, Known]
) -> _Draft:
    """Apply events to what is known, which is changed.

    Most decisions get one event: nothing is looked up or combined for these.
    """
    events_of = Counter([event.decision_id for event in events])
    duplicates: list[bool] = []
    rows: list[tuple[Any, ...]] = []
    points: list[str] = []
    after: Sequence[float | None]
    for event, time in zip(events, times, strict=True):
        values = NOTHING if event.retract else event.outcome.values()
        raw = event.decision_id
        before: Sequence[float | None] = NOTHING
        if raw not in known and events_of[raw] == 1 and is_whole(event.event_id, values):
            after = values
        else:
            decision = known.setdefault(raw, Known({}, NOTHING))
            if not tell(
                decision.cells, event.event_id, event.kind, values, event.weight, event.occurred_at
            ):
                duplicates.append(True)
                continue
            before, after = decision.parts, combine(decision.cells)
            decision.parts = after
        duplicates.append(False)
        points.append(event.decision_point)
        rows.append(
            (
                event.decision_point,
                time,
                raw,
                event.event_id,
                event.kind,
                event.value,
                event.weight,
                event.occurred_at,
                *values,
                before,
                after,
                event.token,
            )
        )
    return _Draft(duplicates, Rows(_COLUMNS, rows) if rows else None, points)


def head(connection: psycopg.Connection[Any], decision_point: str) -> int:
    """Number of events stored for a decision point, duplicates not counted."""
    row = connection.execute(
        "SELECT position FROM ledger_heads WHERE decision_point = %s", (decision_point,)
    ).fetchone()
    return row[0] if row else 0


def read(
    connection: psycopg.Connection[Any], decision_point: str, after: int, limit: int
) -> list[LedgerRow]:
    """The next rows after a position, in order."""
    with connection.cursor(binary=True) as cursor:
        cursor.execute(
            "SELECT position, known_before, known_after, token, received_at FROM rewards "
            "WHERE decision_point = %s AND position > %s ORDER BY position LIMIT %s",
            (decision_point, after, limit),
        )
        return [
            LedgerRow(
                position,
                Outcome(*before[:4]),
                Outcome(*known[:4]),
                bytes(token),
                received_at,
                Outcome(*real_values(before)),
                Outcome(*real_values(known)),
            )
            for position, before, known, token, received_at in cursor
        ]


def read_final(connection: psycopg.Connection[Any], decision_point: str) -> Iterator[LedgerRow]:
    """What is known in the end, one row a decision, in the order of decisions.

    A policy that is taught these rows is a function of what was told, whatever the order, the
    repeats and the delays: the same signals with times give the same bytes. Positions count the
    rows, and what was known before is nothing.

    Parameters
    ----------
    connection
        In autocommit mode or not; the rows are those of one moment.
    """
    with connection.transaction(), connection.cursor(f"final_{uuid4().hex}", binary=True) as cursor:
        cursor.execute(
            "SELECT known_after, token, received_at FROM (SELECT DISTINCT ON (decision_id) "
            "decision_id, known_after, token, received_at FROM rewards WHERE decision_point = %s "
            "ORDER BY decision_id, position DESC) AS last WHERE known_after <> %s::float8[] "
            "ORDER BY substring(token FROM %s FOR %s), decision_id",
            (decision_point, list(NOTHING), TIME_AT.start + 1, TIME_AT.stop - TIME_AT.start),
        )
        for position, (known, token, received_at) in enumerate(cursor, start=1):
            after, real = Outcome(*known[:4]), Outcome(*real_values(known))
            yield LedgerRow(position, Outcome(), after, bytes(token), received_at, Outcome(), real)


def close_windows(
    connection: psycopg.Connection[Any],
    decision_point: str,
    default_quality: float | None,
    older_than: datetime,
    limit: int,
    proxy: Proxy | None = None,
) -> int:
    """Give a quality to logged decisions whose window closed without any reward.

    One that was taken back counts as none. The quality is what ``proxy`` predicts; the default
    where there is no proxy, or no model yet. Without either, nothing is closed.

    Returns
    -------
    How many decisions were closed; fallbacks are left alone, since they do not teach.
    """
    rows = connection.execute(
        "SELECT decision_id, token FROM decisions d WHERE decision_point = %s AND decided_at < %s "
        "AND role NOT IN ('fallback', 'shadow') AND coalesce((SELECT known_after FROM rewards r "
        "WHERE r.decision_id = d.decision_id AND r.decided_at = d.decided_at "
        "ORDER BY position DESC LIMIT 1) = %s::float8[], true) ORDER BY decided_at LIMIT %s",
        (decision_point, older_than, list(NOTHING), limit),
    ).fetchall()
    tokens = [bytes(token) for _, token in rows]
    predicted = proxy(tokens) if proxy is not None and tokens else None
    if predicted is not None:
        event_id, qualities = f"{PROXY}{predicted[0]})", predicted[1]
    elif default_quality is not None:
        event_id, qualities = WINDOW_CLOSED, [default_quality] * len(tokens)
    else:
        return 0
    events = [
        RewardEvent(
            decision_point, decision_id.bytes, event_id, Outcome(quality=quality), False, token
        )
        for (decision_id, _), token, quality in zip(rows, tokens, qualities, strict=True)
    ]
    if events:
        write(connection, events)
    return len(events)
