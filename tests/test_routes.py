"""Who decides: champion, challenger, experiment, control and shadow share the units of a point."""

import json
from collections import Counter
from typing import Any

import msgspec
import numpy as np
import pytest

from feature_repo.embedding import Embedder
from optimizer.policies.names import PolicySettings
from optimizer.records import Context, Observation, Outcome
from optimizer.rollout import PolicyRef, RoutingPlan, RunningExperiment
from optimizer.settings import DecisionPoint
from serving.decision_log import LoggedDecisions
from serving.live_point import LivePoint
from serving.policy_line import snapshot_of
from serving.routes import make_point_policy
from serving.schema import read_decision
from serving.snapshots import FIRST, Snapshot
from serving.tokens import (
    CHALLENGER,
    CHAMPION,
    CONTROL,
    EXPERIMENT,
    FALLBACK,
    SHADOW,
    Decision,
    TokenSigner,
    parse,
)

POINT = DecisionPoint.model_validate(
    {
        "name": "chat",
        "arms": [{"model": name} for name in ("a", "b", "c", "d")],
        "cost_cap_usd": 0.01,
        "control_share": 0.1,
        "policy": {"name": "linucb"},
    }
)
OTHER = PolicyRef("2.0")
SIGNER = TokenSigner(["00" * 16])
UNITS = [f"user-{number}" for number in range(4000)]


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder()


@pytest.fixture
def logged() -> list[LoggedDecisions]:
    return []


@pytest.fixture
def live(embedder: Embedder, logged: list[LoggedDecisions]) -> LivePoint:
    made = LivePoint(POINT, embedder, SIGNER, logged.append)
    made.shelf.take(snapshot(made, FIRST, best=0))
    return made


def snapshot(live: LivePoint, ref: PolicyRef, best: int, name: str = "linucb") -> Snapshot:
    """Of a policy that has learned that one arm is good."""
    point = POINT.model_copy(update={"policy": PolicySettings(name=name)})
    policy = make_point_policy(point, live.encoder)
    features = live.encoder.encode(Context(), None, 0.0)
    policy.learn(
        Observation(arm, features, Outcome(), Outcome(0.9 if arm == best else 0.2, 0.001), 0, n)
        for n, arm in enumerate([0, 1, 2, 3] * 50)
    )
    return snapshot_of(point, ref, policy, 200)


def plan(epoch: int = 2, **given: Any) -> RoutingPlan:
    return RoutingPlan(**({"decision_point": "chat", "epoch": epoch, "champion": FIRST} | given))


def decide(live: LivePoint, units: list[str] = UNITS, **fields: Any) -> list[Decision]:
    requests = [
        read_decision(
            json.dumps({"decision_point": "chat", "context": {}, "unit_id": unit} | fields).encode()
        )
        for unit in units
    ]
    answers = [json.loads(answer) for answer in live.decide(requests) if isinstance(answer, bytes)]
    assert len(answers) == len(units)
    return [SIGNER.verify(answer["decision_id"])[1] for answer in answers]


def share(decisions: list[Decision], role: int) -> float:
    return sum(one.role == role for one in decisions) / len(decisions)


def test_a_challenger_gets_its_share_and_units_stay(live) -> None:
    assert live.shelf.follow(plan(challenger=OTHER, challenger_share=0.25))
    live.shelf.take(snapshot(live, OTHER, best=1, name="squarecb"))
    first = decide(live)
    assert share(first, CONTROL) == pytest.approx(0.1, abs=0.02)
    assert share(first, CHALLENGER) == pytest.approx(0.9 * 0.25, abs=0.025)
    assert [one.role for one in decide(live)] == [one.role for one in first]
    arms = {role: Counter(one.arm_id for one in first if one.role == role) for role in range(4)}
    ids = [arm.id for arm in POINT.records()]
    assert arms[CHAMPION].most_common(1)[0][0] == ids[0]
    assert arms[CHALLENGER].most_common(1)[0][0] == ids[1]
    # Whoever has the challenger keeps it while its share grows, and control is control for ever.
    live.shelf.follow(plan(3, challenger=OTHER, challenger_share=0.5))
    for before, after in zip(first, decide(live), strict=True):
        assert after.epoch == 3
        assert after.unit == before.unit
        if before.role != CHAMPION:
            assert after.role == before.role


def test_a_plan_waits_for_the_policies_that_it_names(live) -> None:
    live.shelf.follow(plan(1))
    live.shelf.follow(plan(challenger=OTHER, challenger_share=1.0))
    assert {one.epoch for one in decide(live, UNITS[:300])} == {1}
    assert OTHER in live.shelf.lacking()
    live.shelf.take(snapshot(live, OTHER, best=1))
    roles = {one.role for one in decide(live, UNITS[:300])}
    assert roles == {CHALLENGER, CONTROL}


def test_older_plans_are_left_alone(live) -> None:
    assert live.shelf.follow(plan(5))
    assert not live.shelf.follow(plan(4, champion=OTHER))
    assert not live.shelf.follow(plan(5, champion=OTHER))
    assert live.shelf.routes.plan.epoch == 5


def test_a_pinned_champion_replaces_the_one_that_goes_on(live) -> None:
    pinned = PolicyRef("1.0", 120)
    live.shelf.follow(plan(champion=pinned))
    live.shelf.take(msgspec.structs.replace(snapshot(live, pinned, best=2), position=120))
    decided = decide(live)
    assert {one.policy_version for one in decided if one.role == CHAMPION} == {120}
    assert live.shelf.lacking() == []
    arms = Counter(one.arm_id for one in decided if one.role == CHAMPION)
    assert arms.most_common(1)[0][0] == POINT.records()[2].id


def test_a_challenger_that_raises_falls_back_and_the_champion_goes_on(live, caplog) -> None:
    live.shelf.follow(plan(challenger=OTHER, challenger_share=0.5))
    live.shelf.take(snapshot(live, OTHER, best=1))
    assert live.shelf.routes.challenger is not None
    live.shelf.routes.challenger.policy.outcome_model = None
    roles = Counter(one.role for one in decide(live))
    assert roles.keys() == {CHAMPION, CONTROL, FALLBACK}
    assert roles[FALLBACK] / len(UNITS) == pytest.approx(0.45, abs=0.03)
    assert "the static rule decides" in caplog.text


def test_a_shadow_is_logged_under_the_same_ids_and_never_serves(live, logged) -> None:
    live.shelf.follow(plan(shadow=OTHER))
    live.shelf.take(snapshot(live, OTHER, best=3))
    served = decide(live, UNITS[:500])
    assert SHADOW not in {one.role for one in served}
    shadows = [
        parse(token)
        for batch in logged
        for token, role in zip(batch.tokens, batch.roles, strict=True)
        if role == SHADOW
    ]
    assert {one.decision_id for one in shadows} == {one.decision_id for one in served}
    arms = Counter(one.arm_id for one in shadows)
    assert arms.most_common(1)[0][0] == POINT.records()[3].id
    assert live.counts[SHADOW] == 500


def test_an_experiment_takes_its_share_at_its_weights(live) -> None:
    ids = [arm.id.hex() for arm in POINT.records()]
    running = RunningExperiment("e1", 0.4, ((ids[2],), (ids[3], ids[1])), (0.7, 0.3))
    live.shelf.follow(plan(experiments=(running,)))
    decided = decide(live)
    tried = [one for one in decided if one.role == EXPERIMENT]
    assert len(tried) / len(decided) == pytest.approx(0.9 * 0.4, abs=0.03)
    told = {one.arm_id.hex(): one.propensity for one in tried}
    assert told == pytest.approx({ids[2]: 0.7, ids[3]: 0.15, ids[1]: 0.15})
    counts = Counter(one.arm_id.hex() for one in tried)
    for arm, propensity in told.items():
        assert counts[arm] / len(tried) == pytest.approx(propensity, abs=0.04)
    # Who may not have all of its arms is not in it.
    assert EXPERIMENT not in {one.role for one in decide(live, candidates=["a", "c"])}


def test_propensities_are_the_frequencies_with_everything_running(live) -> None:
    """Requests without a unit, each drawn anew."""
    ids = [arm.id.hex() for arm in POINT.records()]
    contextual = RunningExperiment(
        "e2", 0.3, ((ids[0],), (ids[1],)), (0.5, 0.5), sticky=False, contextual=True
    )
    live.shelf.follow(plan(challenger=OTHER, challenger_share=0.5, experiments=(contextual,)))
    live.shelf.take(snapshot(live, OTHER, best=1, name="squarecb"))
    seen = [one for _ in range(3) for one in decide(live, unit_id=None)]
    for role, expected in ((CONTROL, 0.1), (EXPERIMENT, 0.27), (CHALLENGER, 0.315)):
        assert share(seen, role) == pytest.approx(expected, abs=0.02)
        of_role = [one for one in seen if one.role == role]
        for arm in {one.arm_id for one in of_role}:
            told = np.mean([one.propensity for one in of_role if one.arm_id == arm])
            found = sum(one.arm_id == arm for one in of_role) / len(of_role)
            assert found == pytest.approx(told, abs=4.5 * (told / len(of_role)) ** 0.5 + 0.003)
