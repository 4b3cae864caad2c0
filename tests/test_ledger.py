"""The ledger on a real PostgreSQL, against a model of what it should hold."""

import struct
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from msgspec.structs import replace

from optimizer.records import Outcome
from optimizer.settings import Settings
from serving import ledger
from serving.ledger import RewardEvent
from serving.outcomes import outcomes_frame

NOTHING = Outcome()
NOW = datetime.now(UTC)


@pytest.fixture
def connection(settings: Callable[..., Settings]) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(settings().postgres_dsn(), autocommit=True) as made:
        ledger.create_tables(made)
        yield made


def token(decision: int, at: datetime = NOW) -> bytes:
    """As much of a token as the ledger looks at."""
    return bytes(2) + uuid.UUID(int=decision).bytes + struct.pack(">d", at.timestamp())


def event(
    decision: int,
    outcome: Outcome = NOTHING,
    event_id: str = "",
    retract: bool = False,
    at: datetime = NOW,
) -> RewardEvent:
    decision_id = uuid.UUID(int=decision).bytes
    return RewardEvent("chat", decision_id, event_id, outcome, retract, token(decision, at))


def test_a_repeat_changes_nothing_and_says_so(connection) -> None:
    first = event(1, Outcome(quality=0.5))
    assert ledger.write(connection, [first]) == [False]
    assert ledger.write(connection, [first, first]) == [True, True]
    assert ledger.head(connection, "chat") == 1


def test_a_correction_replaces_and_a_retraction_removes(connection) -> None:
    ledger.write(connection, [event(1, Outcome(quality=0.5), "e1")])
    ledger.write(connection, [event(1, Outcome(quality=0.9), "e1")])
    ledger.write(connection, [event(1, Outcome(cost_usd=0.1), "e1")])
    assert ledger.write(connection, [event(1, event_id="e1", retract=True)]) == [False]
    assert ledger.write(connection, [event(1, event_id="e1", retract=True)]) == [True]
    rows = ledger.read(connection, "chat", 0, 10)
    assert [(row.before, row.after) for row in rows] == [
        (NOTHING, Outcome(quality=0.5)),
        (Outcome(quality=0.5), Outcome(quality=0.9)),
        (Outcome(quality=0.9), Outcome(quality=0.9, cost_usd=0.1)),
        (Outcome(quality=0.9, cost_usd=0.1), NOTHING),
    ]


def test_several_events_of_a_kind_are_averaged(connection) -> None:
    ledger.write(
        connection,
        [event(1, Outcome(quality=0.0), "judge"), event(1, Outcome(quality=1.0), "user")],
    )
    assert ledger.read(connection, "chat", 0, 10)[-1].after == Outcome(quality=0.5)


@hypothesis_settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 4),
            st.sampled_from(["", "a", "b"]),
            st.none() | st.sampled_from([0.0, 0.25, 1.0]),
        ),
        max_size=20,
    ),
    st.integers(1, 7),
)
def test_the_fold_of_all_rows_is_what_was_last_said(connection, told, group) -> None:
    point = uuid.uuid4().hex
    said: dict[tuple[int, str], float] = {}
    changed = 0
    events = []
    for decision, event_id, quality in told:
        key = (decision, event_id)
        changed += said.get(key) != quality
        if quality is None:
            said.pop(key, None)
        else:
            said[key] = quality
        outcome = NOTHING if quality is None else Outcome(quality=quality)
        base = uuid.uuid5(uuid.NAMESPACE_OID, f"{point}{decision}").bytes
        events.append(
            RewardEvent(point, base, event_id, outcome, quality is None, b"t%d" % decision)
        )
    for start in range(0, len(events), group):
        ledger.write(connection, events[start : start + group])
    assert ledger.head(connection, point) == changed
    known: dict[bytes, Outcome] = {}
    for position, row in enumerate(ledger.read(connection, point, 0, 1000), start=1):
        assert row.position == position
        assert row.before == known.get(row.token, NOTHING)
        known[row.token] = row.after
    for decision in range(1, 5):
        values = [value for (of, _), value in said.items() if of == decision]
        expected = np.mean(values) if values else None
        assert known.get(b"t%d" % decision, NOTHING).quality == expected


def test_a_reader_never_passes_a_row_that_is_still_to_come(connection, settings) -> None:
    """An open transaction holds the next position: nobody can take a later one before it."""
    dsn = settings().postgres_dsn()
    ledger.write(connection, [event(1, Outcome(quality=0.1))])
    with psycopg.connect(dsn) as slow, psycopg.connect(dsn, autocommit=True) as fast:
        slow.execute("SELECT 1")  # begins a transaction that outlives the write
        ledger.write(slow, [event(2, Outcome(quality=0.2))])
        fast.execute("SET lock_timeout = '200ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            ledger.write(fast, [event(3, Outcome(quality=0.3))])
        assert [row.position for row in ledger.read(connection, "chat", 0, 10)] == [1]
        slow.commit()
        ledger.write(fast, [event(3, Outcome(quality=0.3))])
    rows = ledger.read(connection, "chat", 0, 10)
    assert [row.after.quality for row in rows] == [0.1, 0.2, 0.3]


def test_a_closed_window_gives_the_default_until_a_real_reward_comes(connection) -> None:
    at = NOW - timedelta(days=8)
    for number, role in ((1, "champion"), (2, "fallback"), (3, "champion")):
        connection.execute(
            "INSERT INTO decisions VALUES ('chat', %s, %s, 'small', %s, 0.5, 0, %s)",
            (uuid.UUID(int=number), at, role, token(number, at)),
        )
    ledger.write(connection, [event(3, Outcome(quality=1.0), at=at)])
    closed = ledger.close_windows(connection, "chat", 0.2, NOW - timedelta(days=7), 100)
    assert closed == 1
    assert ledger.close_windows(connection, "chat", 0.2, NOW - timedelta(days=7), 100) == 0
    assert ledger.read(connection, "chat", 1, 10)[0].after == Outcome(quality=0.2)
    ledger.write(connection, [event(1, Outcome(quality=0.9), at=at)])
    assert ledger.read(connection, "chat", 2, 10)[0].after == Outcome(quality=0.9)


def timed(minute: int, quality: float | None, event_id: str = "e") -> RewardEvent:
    outcome = Outcome(quality=quality)
    at = datetime(2026, 1, 1, 0, minute, tzinfo=UTC)
    return replace(event(1, outcome, event_id, quality is None), occurred_at=at)


def test_a_retraction_holds_though_what_it_takes_back_comes_later(connection) -> None:
    assert ledger.write(connection, [timed(5, None)]) == [False]
    assert ledger.write(connection, [timed(3, 0.9), timed(5, None)]) == [True, True]
    assert ledger.read(connection, "chat", 0, 10)[-1].after == NOTHING
    assert ledger.write(connection, [timed(6, 0.9)]) == [False]
    assert next(ledger.read_final(connection, "chat")).after == Outcome(quality=0.9)


def test_without_times_the_later_arrival_corrects(connection) -> None:
    ledger.write(connection, [timed(5, 0.9)])
    assert ledger.write(connection, [event(1, Outcome(quality=0.9), "e")]) == [True]
    ledger.write(connection, [event(1, Outcome(quality=0.2), "e")])
    assert ledger.read(connection, "chat", 1, 10)[0].after == Outcome(quality=0.2)
    ledger.write(connection, [timed(4, 0.6)])
    assert ledger.read(connection, "chat", 2, 10)[0].after == Outcome(quality=0.6)


def test_a_default_gives_way_to_any_reward_and_comes_back_with_its_retraction(connection) -> None:
    now = datetime.now(UTC)
    connection.execute(
        "INSERT INTO decisions VALUES ('chat', %s, %s, 'small', 'champion', 0.5, 0, 'token1')",
        (uuid.UUID(int=1), now - timedelta(days=8)),
    )
    cost = event(1, Outcome(cost_usd=0.1))
    for told in ([cost, replace(cost, outcome=NOTHING, retract=True)], [cost]):
        ledger.write(connection, told)
        ledger.close_windows(connection, "chat", 0.2, now, 100)
    assert [row.after for row in ledger.read(connection, "chat", 2, 10)] == [
        Outcome(quality=0.2),
        Outcome(cost_usd=0.1),
    ]


def test_a_ledger_of_the_version_before_goes_on(connection) -> None:
    """Its rows have neither kinds nor times, and hold all that their event said so far."""
    connection.execute("DROP TABLE rewards")
    connection.execute(
        "CREATE TABLE rewards (decision_point text NOT NULL, position bigint NOT NULL, "
        "decision_id uuid NOT NULL, event_id text NOT NULL, "
        "received_at timestamptz NOT NULL DEFAULT now(), quality float8, cost_usd float8, "
        "latency_s float8, feedback float8, known_before float8[] NOT NULL, "
        "known_after float8[] NOT NULL, token bytea NOT NULL, "
        "PRIMARY KEY (decision_point, position))"
    )
    for position, quality in ((1, 0.5), (2, None)):
        connection.execute(
            "INSERT INTO rewards (decision_point, position, decision_id, event_id, quality, "
            "cost_usd, known_before, known_after, token) "
            "VALUES ('chat', %s, %s, '', %s, 0.1, '{NULL,NULL,NULL,NULL}', %s, %s)",
            (
                position,
                uuid.UUID(int=position),
                quality,
                [quality, 0.1, None, None],
                token(position),
            ),
        )
    connection.execute("INSERT INTO ledger_heads VALUES ('chat', 2)")
    ledger.create_tables(connection)
    ledger.create_tables(connection)
    repeat = event(1, Outcome(quality=0.5, cost_usd=0.1))
    stars = replace(event(1, Outcome(feedback=1.0)), kind="stars", value=5.0, weight=2.0)
    assert ledger.write(connection, [repeat, stars]) == [True, False]
    row = ledger.read(connection, "chat", 2, 10)[0]
    assert (row.before, row.after) == (Outcome(0.5, 0.1), Outcome(0.5, 0.1, None, 1.0))


def test_outcomes_frame_joins_decisions_with_what_is_known(connection, settings) -> None:
    times = {number: NOW + timedelta(seconds=number) for number in (1, 2)}
    for number, at in times.items():
        connection.execute(
            "INSERT INTO decisions VALUES ('chat', %s, %s, 'small', 'champion', 0.5, 3, %s)",
            (uuid.UUID(int=number), at, token(number, at)),
        )
    for quality in (0.1, 0.7):
        ledger.write(connection, [event(2, Outcome(quality=quality), at=times[2])])
    frame = outcomes_frame(settings().postgres_dsn(), "chat", NOW, NOW + timedelta(hours=1))
    assert frame["quality"].isna().tolist() == [True, False]
    assert frame["quality"].iloc[1] == 0.7
    assert frame["decided_at"].is_monotonic_increasing
