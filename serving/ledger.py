"""The reward ledger in PostgreSQL: idempotent, append-only, read in order by the learner.

Each row is one event that changed something, with what is known about its decision before and
after: the learner folds rows and looks nothing up. Positions are counted for each decision point
under a row lock that is held until commit, so positions become visible in order and without gaps:
a reader that has seen position n will never find a smaller one later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg

from optimizer.records import Outcome

__all__ = [
    "WINDOW_CLOSED",
    "LedgerRow",
    "Proxy",
    "RewardEvent",
    "close_windows",
    "create_tables",
    "head",
    "read",
    "real_values",
    "write",
]

WINDOW_CLOSED = "(window closed)"
"""Event id of the default reward of a decision whose attribution window closed without any."""

_PROXY = "(window closed: quality model "
"""Start of the event id where a quality model predicted the quality instead."""

_TABLES = """
CREATE TABLE IF NOT EXISTS ledger_heads (
    decision_point text PRIMARY KEY,
    position bigint NOT NULL
);
CREATE TABLE IF NOT EXISTS rewards (
    decision_point text NOT NULL,
    position bigint NOT NULL,
    decision_id uuid NOT NULL,
    event_id text NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now(),
    quality float8, cost_usd float8, latency_s float8, feedback float8,
    known_before float8[] NOT NULL,
    known_after float8[] NOT NULL,
    token bytea NOT NULL,
    PRIMARY KEY (decision_point, position)
);
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
);
CREATE INDEX IF NOT EXISTS decisions_time ON decisions (decision_point, decided_at);
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
_TABLES_LOCK = 0x6C6C6D6F7074

Values = tuple[float | None, ...]
_NOTHING: Values = (None, None, None, None)

Proxy = Callable[[Sequence[bytes]], tuple[int, Sequence[float]] | None]
"""Predicts the qualities of decisions from the bytes of their tokens: the version of the model, and
a quality in [0, 1] for each; None while there is no model."""


@dataclass(frozen=True, slots=True)
class RewardEvent:
    """One event about one decision.

    Attributes
    ----------
    decision_id
        16 bytes.
    event_id
        "" where the caller gave none.
    outcome
        The values it brings; values of the same event that it does not name stay.
    retract
        Take back everything this event said before.
    token
        The bytes of the decision's token.
    """

    decision_point: str
    decision_id: bytes
    event_id: str
    outcome: Outcome
    retract: bool
    token: bytes


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


def real_values(known: Sequence[float | None]) -> Sequence[float | None]:
    """The four parts of what is known about a decision, without a quality that was predicted.

    Where the quality is a proxy, ``known_before`` and ``known_after`` have a fifth number, the
    version of the quality model that predicted it.
    """
    return known if len(known) == len(_NOTHING) else (None, *known[1 : len(_NOTHING)])


def create_tables(connection: psycopg.Connection[Any]) -> None:
    """Create what is missing; safe when several processes start at once."""
    row = connection.execute("SELECT to_regclass('policy_checkpoints')").fetchone()
    if row is not None and row[0] is not None:  # the last of them: all are there
        return
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_TABLES_LOCK,))
        connection.execute(_TABLES)


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
    ids = list({event.decision_id for event in events})
    with connection.transaction(), connection.cursor(binary=True) as cursor:
        cursor.execute(
            "INSERT INTO ledger_heads SELECT unnest(%s::text[]), 0 ON CONFLICT DO NOTHING",
            (points,),
        )
        cursor.execute(
            "SELECT decision_point, position FROM ledger_heads WHERE decision_point = ANY(%s) "
            "ORDER BY decision_point FOR UPDATE",
            (points,),
        )
        positions: dict[str, int] = dict(cursor.fetchall())
        cursor.execute(
            "SELECT decision_id, event_id, quality, cost_usd, latency_s, feedback FROM rewards "
            "WHERE decision_id = ANY(%s::uuid[]) ORDER BY decision_id, position",
            ([raw.hex() for raw in ids],),
        )
        known: dict[bytes, dict[str, Values]] = {raw: {} for raw in ids}
        for decision_id, event_id, *values in cursor.fetchall():
            known[decision_id.bytes][event_id] = tuple(values)
        duplicates, rows = _fold(events, known, positions)
        if rows:
            with cursor.copy(
                "COPY rewards (decision_point, position, decision_id, event_id, quality, cost_usd,"
                " latency_s, feedback, known_before, known_after, token) FROM STDIN"
            ) as copy:
                for row in rows:
                    copy.write_row(row)
            cursor.execute(
                "UPDATE ledger_heads AS head SET position = new.position FROM "
                "(SELECT unnest(%s::text[]) AS name, unnest(%s::bigint[]) AS position) AS new "
                "WHERE head.decision_point = new.name",
                (points, [positions[name] for name in points]),
            )
    return duplicates


def _fold(
    events: Iterable[RewardEvent],
    known: dict[bytes, dict[str, Values]],
    positions: dict[str, int],
) -> tuple[list[bool], list[tuple[Any, ...]]]:
    """Apply events to what is known; gives the duplicates and the rows to append."""
    duplicates: list[bool] = []
    rows: list[tuple[Any, ...]] = []
    for event in events:
        said = known[event.decision_id]
        old = said.get(event.event_id, _NOTHING)
        new: Values = _NOTHING
        if not event.retract:
            new = tuple(
                was if value is None else value
                for was, value in zip(old, event.outcome.values(), strict=True)
            )
        duplicates.append(new == old)
        if new == old:
            continue
        before = _combine(said)
        said[event.event_id] = new
        after = _combine(said)
        positions[event.decision_point] += 1
        rows.append(
            (
                event.decision_point,
                positions[event.decision_point],
                event.decision_id.hex(),
                event.event_id,
                *new,
                before,
                after,
                event.token,
            )
        )
    return duplicates, rows


def _combine(said: dict[str, Values]) -> list[float | None]:
    """Mean of each part over the events that give it; the default only where there is no other.

    A fifth number follows where that default is a proxy, see `real_values`.
    """
    closed, default = next(
        ((name, parts) for name, parts in said.items() if _closes(name)), ("", _NOTHING)
    )
    result: list[float | None] = []
    version: float | None = None
    for part in range(len(_NOTHING)):
        values = [
            value
            for event_id, parts in said.items()
            if (value := parts[part]) is not None and not _closes(event_id)
        ]
        if values:
            result.append(sum(values) / len(values))
        else:
            result.append(default[part])
            if part == 0 and default[0] is not None and closed.startswith(_PROXY):
                version = float(closed.removeprefix(_PROXY).rstrip(")"))
    if version is not None:
        result.append(version)
    return result


def _closes(event_id: str) -> bool:
    return event_id == WINDOW_CLOSED or event_id.startswith(_PROXY)


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


def close_windows(
    connection: psycopg.Connection[Any],
    decision_point: str,
    default_quality: float | None,
    older_than: datetime,
    limit: int,
    proxy: Proxy | None = None,
) -> int:
    """Give a quality to logged decisions whose window closed without any reward.

    It is what ``proxy`` predicts; the default where there is no proxy, or no model yet. Without
    either, nothing is closed.

    Returns
    -------
    How many decisions were closed; fallbacks are left alone, since they do not teach.
    """
    rows = connection.execute(
        "SELECT decision_id, token FROM decisions d WHERE decision_point = %s AND decided_at < %s "
        "AND role NOT IN ('fallback', 'shadow') AND NOT EXISTS (SELECT FROM rewards r WHERE "
        "r.decision_id = d.decision_id) ORDER BY decided_at LIMIT %s",
        (decision_point, older_than, limit),
    ).fetchall()
    tokens = [bytes(token) for _, token in rows]
    predicted = proxy(tokens) if proxy is not None and tokens else None
    if predicted is not None:
        event_id, qualities = f"{_PROXY}{predicted[0]})", predicted[1]
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
