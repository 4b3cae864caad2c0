"""Signals that are repeated, late, out of order, corrected and taken back end in the same ledger.

A machine tells signals with times to a real PostgreSQL in an order, in batches and with repeats of
its own. At the end the same signals are told again from the start in another way: ledger and policy
must be those of the first time, and the ledger must be what a model without any order says.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any
from uuid import UUID

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, Phase
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from optimizer.feature_schema import FeatureSchema, Translations
from optimizer.features import pack
from optimizer.policies import Policy
from optimizer.records import Outcome
from optimizer.reward import PARTS
from optimizer.settings import DecisionPoint, Settings
from optimizer.signals import CATALOGUE, PLAIN_KINDS
from serving import ledger
from serving.ledger import LedgerRow, RewardEvent
from serving.policy_line import fold
from serving.routes import make_point_policy
from serving.tokens import CHAMPION, Decision, TokenSigner

Connection = psycopg.Connection[Any]

START = datetime(2026, 1, 1, tzinfo=UTC)
DECISIONS = 4
DEFAULT_QUALITY = 0.25
SCHEMA = FeatureSchema(("constant", "task=a", "task=b"), (0, 1, 1))
KINDS = {"stars": 3.0, "thumbs": 1.0, "task_done": 0.1, "edit_distance": 0.7, "quality": 1.0}
"""Weights that no sum of floats gets exactly."""


def point(name: str, forgetting: str) -> DecisionPoint:
    return DecisionPoint(
        name="chat",
        arms=[{"model": "a"}, {"model": "b"}],
        policy={"name": name, "forgetting": forgetting},
        cost_cap_usd=0.01,
    )


def token_of(number: int) -> bytes:
    random_ = np.random.default_rng(number)
    arms = point("static", "never").records()
    decision = Decision(
        CHAMPION,
        UUID(int=number).bytes,
        # Not in the order of ids, and two at the same time.
        START.timestamp() + (number * 7 % 3),
        arms[number % 2].id,
        0.5,
        0,
        SCHEMA.schema_id,
        "chat",
        pack(np.array([1.0, *random_.normal(size=2)])),
    )
    return TokenSigner(["00" * 16]).sign(decision)[0]


TOKENS = [token_of(number) for number in range(DECISIONS)]

parts = st.none() | st.sampled_from([0.0, 0.1, 0.7, 1.0])
"""Few values and times, so that signals meet and tie."""
plain = st.builds(Outcome, parts, parts, parts, parts)


@st.composite
def events(draw: st.DrawFn) -> RewardEvent:
    number = draw(st.integers(0, DECISIONS - 1))
    kind = draw(st.sampled_from(["", *KINDS]))
    outcome, weight = draw(plain), 1.0
    if kind:
        value = draw(st.sampled_from([0.0, 0.1, 0.3, 1.0]))
        part = PARTS.index(CATALOGUE[kind].part)
        outcome = Outcome(*(value if index == part else None for index in range(4)))
        weight = KINDS[kind]
    retract = outcome == Outcome() or draw(st.integers(0, 4)) == 0
    return RewardEvent(
        "chat",
        UUID(int=number).bytes,
        draw(st.sampled_from(["", "e1", "e2"])),
        Outcome() if retract else outcome,
        retract,
        TOKENS[number],
        kind,
        None,
        weight,
        START + timedelta(minutes=draw(st.integers(0, 5))),
    )


def expected(told: list[RewardEvent], logged: set[int]) -> dict[bytes, Outcome]:
    """What is known of each decision: a function of the set of events."""
    claims: dict[tuple[bytes, str, str], list[tuple[Any, ...]]] = {}
    for event in told:
        for part, value in enumerate(event.outcome.values()):
            if value is None and not event.retract:
                continue
            if event.kind and (value is None) != event.retract:
                continue
            kind = event.kind or PLAIN_KINDS[part]
            place = 0 if value is None else part
            claim = (event.occurred_at, event.retract, value or 0.0, place, event.weight)
            claims.setdefault((event.token, event.event_id, kind), []).append(claim)
    heard: dict[bytes, list[list[tuple[Fraction, Fraction]]]] = {}
    for (token, _, _), made in claims.items():
        _, retracted, value, part, weight = max(made)
        if not retracted:
            said = heard.setdefault(token, [[], [], [], []])
            said[part].append((Fraction(weight), Fraction(value)))
    known = {
        token: Outcome(*(float(_mean(said)) if said else None for said in of_parts))
        for token, of_parts in heard.items()
    }
    for number in logged:
        known.setdefault(TOKENS[number], Outcome(quality=DEFAULT_QUALITY))
    return known


def _mean(said: list[tuple[Fraction, Fraction]]) -> Fraction:
    return sum((w * v for w, v in said), Fraction()) / sum((w for w, _ in said), Fraction())


def taught(rows: list[LedgerRow], name: str, forgetting: str) -> Policy:
    policy = make_point_policy(point(name, forgetting), SCHEMA)
    skipped: Counter[str] = Counter()
    fold(policy, Translations(SCHEMA), rows, skipped)
    assert not skipped
    return policy


class Machine(RuleBasedStateMachine):
    """Signals on their way, and those that have come."""

    connection: Connection

    def __init__(self) -> None:
        super().__init__()
        empty(self.connection)
        self.waiting: list[RewardEvent] = []
        self.told: list[RewardEvent] = []
        self.logged: set[int] = set()

    @rule(sent=st.lists(events(), min_size=1, max_size=6))
    def send(self, sent: list[RewardEvent]) -> None:
        self.waiting += sent

    @rule(random_=st.randoms(use_true_random=False), count=st.integers(1, 8))
    def deliver(self, random_: random.Random, count: int) -> None:
        """Some of what is waiting comes, in any order, also what was sent last."""
        random_.shuffle(self.waiting)
        batch, self.waiting = self.waiting[:count], self.waiting[count:]
        self._write(batch)

    @rule(random_=st.randoms(use_true_random=False))
    def repeat(self, random_: random.Random) -> None:
        if self.told:
            again = random_.choices(self.told, k=3)
            assert ledger.write(self.connection, again) == [True] * 3

    @rule(number=st.integers(0, DECISIONS - 1))
    def log(self, number: int) -> None:
        """Often after the first rewards."""
        log(self.connection, number, self.logged)

    @rule()
    def close(self) -> None:
        close_windows(self.connection)

    def teardown(self) -> None:
        self._write(self.waiting)
        close_windows(self.connection)
        first = list(ledger.read_final(self.connection, "chat"))
        came = ledger.read(self.connection, "chat", 0, 10_000)

        empty(self.connection)
        random_ = random.Random(len(self.told))
        again = self.told + random_.choices(self.told, k=len(self.told) // 2)
        random_.shuffle(again)
        logged: set[int] = set()
        while again:
            size = random_.randint(1, 10)
            ledger.write(self.connection, again[:size])
            del again[:size]
        for number in sorted(self.logged, reverse=True):
            log(self.connection, number, logged)
        close_windows(self.connection)
        second = list(ledger.read_final(self.connection, "chat"))

        assert [(row.token, row.after) for row in first] == [
            (row.token, row.after) for row in second
        ]
        known = expected(self.told, self.logged)
        assert {row.token for row in first} == set(known)
        for row in first:
            for mine, model in zip(row.after.values(), known[row.token].values(), strict=True):
                assert (mine is None) == (model is None)
                assert mine is None or mine == pytest.approx(model, abs=1e-15)
        for name, forgetting in (("tuned", "drift"), ("beta+epsilon", "discounted")):
            rebuilt = [taught(rows, name, forgetting).to_bytes() for rows in (first, second)]
            assert rebuilt[0] == rebuilt[1]
        as_they_came(came, first)

    def _write(self, batch: list[RewardEvent]) -> None:
        self.told += batch
        if batch:
            ledger.write(self.connection, batch)


def as_they_came(came: list[LedgerRow], final: list[LedgerRow]) -> None:
    """A policy that forgets nothing ends where the final ledger leads, whatever way it took."""
    for name in ("linucb", "beta+epsilon"):
        live, rebuilt = taught(came, name, "never"), taught(final, name, "never")
        for mine, theirs in zip(
            live.outcome_model.sums.arrays().values(),
            rebuilt.outcome_model.sums.arrays().values(),
            strict=True,
        ):
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-9)
        if name == "linucb" and len(came) >= 32:
            continue  # it has estimated variances on the way, from what it knew then
        for features in np.eye(3):
            for mine, theirs in zip(
                live.outcome_model.score(features),
                rebuilt.outcome_model.score(features),
                strict=True,
            ):
                np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-9)


def empty(connection: Connection) -> None:
    connection.execute("DELETE FROM rewards")
    connection.execute("DELETE FROM ledger_heads")
    connection.execute("DELETE FROM decisions")


def log(connection: Connection, number: int, logged: set[int]) -> None:
    if number not in logged:
        logged.add(number)
        connection.execute(
            "INSERT INTO decisions VALUES ('chat', %s, %s, 'a', 'champion', 0.5, 0, %s)",
            (UUID(int=number), START, TOKENS[number]),
        )


def close_windows(connection: Connection) -> None:
    later = START + timedelta(days=30)
    ledger.close_windows(connection, "chat", DEFAULT_QUALITY, later, 100)


@pytest.fixture
def connection(settings: Callable[..., Settings]) -> Iterator[Connection]:
    with psycopg.connect(settings().postgres_dsn(), autocommit=True) as made:
        ledger.create_tables(made)
        made.execute("SET synchronous_commit = off")
        yield made


def test_any_order_ends_in_the_same_ledger_and_policy(connection: Connection) -> None:
    class OnThis(Machine):
        pass

    OnThis.connection = connection
    run_state_machine_as_test(
        OnThis,
        settings=hypothesis_settings(
            max_examples=30,
            stateful_step_count=12,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
        ),
    )
