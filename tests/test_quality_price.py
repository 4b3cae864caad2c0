"""A price on quality: policies then maximise what quality is worth, minus what it costs."""

from __future__ import annotations

import numpy as np
import pytest

from infra.replays import ReplayRequest, run_replay
from optimizer.errors import InvalidInput
from optimizer.policies import PolicySettings, make_policy
from optimizer.records import Arm, Observation, Outcome
from optimizer.reward import TARGETS, Objective, Weights
from optimizer.settings import DecisionPoint

ARMS = [Arm("small"), Arm("middle"), Arm("large")]
KINDS = np.array([[1.0, 0.0], [1.0, 1.0]])
QUALITY = np.array([[0.80, 0.85, 0.90], [0.30, 0.60, 0.90]])
"""Of each kind of request and arm: the second kind is hard."""
COST_USD = np.array([0.001, 0.003, 0.010])
CAP_USD = 0.01


def priced(usd: float) -> Objective:
    return Objective(Weights(), CAP_USD, quality_price_usd=usd)


@pytest.mark.parametrize("name", ["randucb", "linthompson", "squarecb"])
def test_the_choice_is_the_best_arm_by_the_true_score_at_every_price(name: str) -> None:
    """One policy, taught once: prices are changed afterwards, and nothing is relearned."""
    random = np.random.default_rng(1)
    policy = make_policy(PolicySettings(name=name), ARMS, 2, Objective(Weights(), CAP_USD))
    seen = []
    for step in range(3000):
        kind, arm = random.integers(2), random.integers(3)
        quality = float(random.random() < QUALITY[kind, arm])
        outcome = Outcome(quality, float(COST_USD[arm]))
        seen.append(Observation(int(arm), KINDS[kind], Outcome(), outcome, step, step + 1))
    policy.learn(seen)
    chosen = []
    for usd in (0.002, 0.02, 1.0):
        policy.objective = priced(usd)
        best = (usd * QUALITY - COST_USD).argmax(axis=1)
        found = policy.probabilities_many(KINDS).argmax(axis=1)
        assert (found == best).all(), (usd, found, best)
        chosen.append(tuple(best))
    assert len(set(chosen)) == 3, "the prices tell nothing apart"


def test_the_score_is_that_of_quality_at_its_price_minus_cost() -> None:
    parts = np.array([[0.9, 0.004, 3.0, 1.0], [0.2, 0.02, 0.1, 0.0]])
    for usd in (0.001, 0.03, 5.0):
        objective = priced(usd)
        score = objective.target_table(parts) @ objective.target_weights()
        worth = usd * parts[:, 0] - parts[:, 1]
        assert score == pytest.approx(worth / (usd + CAP_USD))
    assert np.flatnonzero(priced(1.0).target_weights()).tolist() == [
        TARGETS.index("quality"),
        TARGETS.index("cost"),
    ]


def test_people_still_read_the_reward_of_the_weights() -> None:
    plain, outcome = Objective(Weights(), CAP_USD), Outcome(quality=0.9, cost_usd=0.004)
    assert priced(0.03).reward(outcome) == plain.reward(outcome)


def test_a_higher_price_buys_more_quality_at_more_cost() -> None:
    """On recorded outcomes; a pass is noisy in the third digit of quality."""
    results = [
        run_replay(ReplayRequest("paretobandit", quality_price_usd=usd)).result
        for usd in (0.002, 0.02, 2.0)
    ]
    quality, cost = ([one[name] for one in results] for name in ("quality", "cost_usd"))
    assert cost == sorted(cost) and cost[2] > 5 * cost[0]
    assert quality[1] > quality[0] and quality[2] > quality[1] - 0.003
    for one in results[:2]:
        assert one["net_value_usd"] > 0.98 * one["best_single_net_value_usd"]
        assert one["net_value_usd"] < one["oracle_net_value_usd"]


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"quality_price_usd": 0.0}, "quality_price_usd"),
        ({"quality_price_usd": float("inf")}, "quality_price_usd"),
        ({"quality_price_usd": 0.1, "cost_cap_usd": None}, "cost_cap_usd"),
        ({"quality_price_usd": 0.1, "quality_floor": 0.9}, "quality_floor"),
        ({"quality_price_usd": 0.1, "budget_usd": 0.9}, "budget_usd"),
    ],
)
def test_a_price_that_makes_no_sense_is_refused(wrong: dict[str, float], named: str) -> None:
    with pytest.raises(InvalidInput, match=named):
        Objective(Weights(), **({"cost_cap_usd": CAP_USD} | wrong))


def test_a_decision_point_takes_a_floor_or_a_price() -> None:
    given = {"name": "chat", "arms": [{"model": "small"}], "cost_cap_usd": CAP_USD}
    point = DecisionPoint.model_validate(given | {"quality_price_usd": 0.5})
    assert point.objective() == priced(0.5)
    with pytest.raises(InvalidInput, match="leave it or quality_floor out"):
        DecisionPoint.model_validate(given | {"quality_price_usd": 0.5, "quality_floor": 0.9})
