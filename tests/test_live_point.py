"""Decisions made together: in order, each by its own rules, with propensities that are true."""

import json
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from feature_repo.embedding import Embedder
from optimizer.errors import UnknownName
from optimizer.features import unpack
from optimizer.records import Context, Observation, Outcome
from optimizer.settings import DecisionPoint, Settings
from serving.decision_log import LoggedDecisions
from serving.live_point import LivePoint, Request
from serving.replica_state import ReplicaState
from serving.routes import make_point_policy
from serving.schema import read_decision
from serving.snapshots import Snapshot, SnapshotStore
from serving.tokens import CHAMPION, CONTROL, FALLBACK, TokenSigner, parse

POINT = DecisionPoint.model_validate(
    {
        "name": "chat",
        "arms": [{"model": name} for name in ("a", "b", "c", "d")],
        "tasks": ["x", "y"],
        "cost_cap_usd": 0.01,
        "static_arm": "c",
        "control_share": 0.25,
    }
)
SIGNER = TokenSigner(["00" * 16])


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder()


@pytest.fixture
def logged() -> list[LoggedDecisions]:
    return []


@pytest.fixture
def live(embedder: Embedder, logged: list[LoggedDecisions]) -> LivePoint:
    return LivePoint(POINT, embedder, SIGNER, logged.append)


def learned(live: LivePoint, position: int = 300) -> Snapshot:
    """A snapshot in which arm b is good at x, and arm d at y."""
    policy = make_point_policy(live.point, live.encoder)
    seen = []
    for number in range(position):
        arm, task = number % 4, "xy"[number // 4 % 2]
        features = live.encoder.encode(Context(task=task), None, 0.0)
        quality = 0.9 if (task, arm) in (("x", 1), ("y", 3)) else 0.3
        seen.append(Observation(arm, features, Outcome(), Outcome(quality, 0.001), 0, number))
    policy.learn(seen)
    return Snapshot(live.point.name, policy.lineage, position, policy.snapshot(), 1, 0.0)


def request(**given: Any) -> Request:
    body = {"decision_point": "chat", "context": {}} | given
    return read_decision(json.dumps(body).encode())


def decided(live: LivePoint, requests: list[Request]) -> list[dict[str, Any]]:
    answers = live.decide(requests)
    return [json.loads(answer) for answer in answers if isinstance(answer, bytes)]


def test_each_request_gets_its_own_answer(live, logged) -> None:
    live.shelf.take(learned(live))
    found = live.decide(
        [
            request(context={"task": "x"}),
            request(candidates=["nobody"]),
            request(candidates=["c"]),
            request(context={"task": "y", "prompt": "Why?", "colour": "red"}),
        ]
    )
    assert isinstance(found[1], UnknownName)
    assert found[1].field == "candidates[0]"
    first, third, fourth = (json.loads(one) for one in found if isinstance(one, bytes))
    assert third["model"] == "c"
    rows = [
        live.encoder.encode(Context(task="x"), None, 0.0),
        live.encoder.encode(
            Context("Why?", "y", extra=(("colour", "red"),)),
            Embedder().embed("Why?"),
            0.0,
        ),
    ]
    time_columns = [live.encoder.names.index(name) for name in ("hour_sin", "weekday_cos")]
    for answer, row in zip((first, fourth), rows, strict=True):
        raw, decision = SIGNER.verify(answer["decision_id"])
        kept = unpack(decision.features)
        row[time_columns[0] : time_columns[1] + 1] = kept[time_columns[0] : time_columns[1] + 1]
        np.testing.assert_array_equal(kept, row)
        assert raw in logged[0].tokens
        assert decision.propensity == answer["propensity"]
    assert sum(map(len, (batch.tokens for batch in logged))) == 3


@pytest.mark.parametrize("together", [1, 7, 300])
def test_propensities_are_the_frequencies(live, together: int) -> None:
    """Whether made one by one or together; control and policy each by their own."""
    live.shelf.take(learned(live, 24))
    number = 4200
    requests = [request(context={"task": "x"})] * together
    answers = [one for _ in range(number // together) for one in decided(live, requests)]
    tokens = [SIGNER.verify(answer["decision_id"])[1] for answer in answers]
    roles = Counter(token.role for token in tokens)
    assert roles[CONTROL] / number == pytest.approx(0.25, abs=0.04)
    assert live.counts == [roles[CHAMPION], roles[CONTROL], 0, 0, 0, 0]
    policy = live.policy
    assert policy is not None
    for role in (CHAMPION, CONTROL):
        seen = [
            (answer["model"], token)
            for answer, token in zip(answers, tokens, strict=True)
            if token.role == role
        ]
        for model in {model for model, _ in seen}:
            # The hour moves on while the test runs, and with it the probabilities a little.
            told = np.mean([token.propensity for name, token in seen if name == model])
            share = sum(name == model for name, _ in seen) / len(seen)
            assert share == pytest.approx(told, abs=4.5 * (told / len(seen)) ** 0.5 + 0.002)


def test_if_the_policy_raises_the_static_rule_decides_and_control_goes_on(live, caplog) -> None:
    live.shelf.take(learned(live))
    assert live.policy is not None
    live.policy.outcome_model = None  # type: ignore[assignment]
    answers = decided(live, [request(unit_id=str(number)) for number in range(200)])
    roles = {SIGNER.verify(answer["decision_id"])[1].role for answer in answers}
    assert roles == {FALLBACK, CONTROL}
    assert {answer["model"] for answer in answers if answer["fallback"]} == {"c"}
    assert "the static rule decides" in caplog.text


def test_arms_set_aside_are_left_to_control_and_floor(live) -> None:
    live.shelf.take(learned(live))
    live.set_aside = (1,)
    answers = decided(live, [request(context={"task": "x"})] * 400)
    champion = [one for one in answers if SIGNER.verify(one["decision_id"])[1].role == CHAMPION]
    assert sum(one["model"] == "b" for one in champion) < 10


def wait_until(true: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def test_the_longest_unused_policies_are_let_go_and_come_back(
    settings: Callable[..., Settings],
) -> None:
    names = [f"point-{number}" for number in range(12)]
    content = settings(
        token_keys=["00" * 16],
        serving={"live_policies": 10},
        decision_points=[
            {"name": name, "arms": [{"model": "a"}], "control_share": 0} for name in names
        ],
    )
    store = SnapshotStore(content.valkey_address)
    state = ReplicaState(content)
    try:
        assert state.waiting_for() == names[:10]
        for name in names:
            policy = make_point_policy(state.points[name].point, state.points[name].encoder)
            store.publish(Snapshot(name, policy.lineage, 1, policy.snapshot(), 1, 0.0))

        def live_names() -> list[str]:
            return [name for name in names if state.points[name].policy is not None]

        wait_until(lambda: live_names() == names[:10])
        (answer,) = decided(state.points[names[11]], [request(decision_point=names[11])])
        assert answer["fallback"] is True
        wait_until(lambda: names[11] in live_names())
        assert len(live_names()) == 10
        (answer,) = decided(state.points[names[11]], [request(decision_point=names[11])])
        assert answer["fallback"] is False
    finally:
        state.close()
        store.close()


def test_a_point_that_sees_facts_decides_by_them_and_its_tokens_carry_them(embedder, logged):
    point = POINT.model_copy(update={"features": "facts"})
    live = LivePoint(point, embedder, SIGNER, logged.append)
    live.shelf.take(learned(live))
    asked = request(context={"prompt": "Wie ist das Wetter?"}, unit_id="ann")
    (answer,) = decided(live, [asked])
    assert answer["fallback"] is False
    seen = dict(zip(live.encoder.names, unpack(parse(logged[0].tokens[0]).features), strict=True))
    assert seen["language_de"] == pytest.approx(0.3, abs=2e-4)
    assert any(seen[f"user_{index}"] for index in range(8))
    small = LivePoint(POINT, embedder, SIGNER, logged.append)
    assert not small.shelf.take(learned(live)), "a policy of other features is left alone"


@pytest.mark.parametrize(("features", "why"), [("full", "only replays"), ("big", "small, facts")])
def test_features_that_replicas_cannot_make_are_refused(features: str, why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        DecisionPoint.model_validate(POINT.model_dump() | {"features": features})
