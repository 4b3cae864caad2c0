"""Off-policy estimators, against values worked out by hand, and what they refuse."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from optimizer.errors import InvalidInput, InvalidRecording
from optimizer.offpolicy import ESTIMATORS, LoggedDecisions, evaluate, targets
from optimizer.offpolicy.draws import Draws
from optimizer.offpolicy.estimators import Rows, scores
from optimizer.offpolicy.evaluation import estimate
from optimizer.offpolicy.intervals import lower_bound
from optimizer.offpolicy.outcome_model import Predictions, predict
from optimizer.offpolicy.support import support
from optimizer.policies import PolicySettings, make_policy
from optimizer.records import Arm
from optimizer.reward import Objective, Weights

QUALITY = Objective(Weights(quality=1, cost=0, latency=0))


def four_rows(clip: float = 3.0) -> Rows:
    """Weights 2, 0, 4 and 1."""
    draws = Draws(np.array([1.0, 0.0, 1.0, 0.5]), np.array([0.5, 0.5, 0.25, 0.5]))
    predictions = Predictions(np.array([0.5, 0.5, 0.6, 0.7]), np.array([0.4, 0.5, 0.5, 0.9]))
    return Rows(draws, np.array([1.0, 1.0, 0.0, 0.5]), predictions, clip)


def log_of(rows: int, seed: int = 0, **columns: object) -> LoggedDecisions:
    """Two arms, drawn evenly; the second is better by 0.2."""
    random = np.random.default_rng(seed)
    arms = random.integers(2, size=rows)
    frame = pd.DataFrame(
        {
            "decided_at": np.arange(rows, dtype=float),
            "model": np.array(["a", "b"])[arms],
            "propensity": 0.5,
            "quality": (random.random(rows) < 0.6 + 0.2 * arms) * 1.0,
            "cost_usd": 0.01 + 0.01 * arms,
            "feature_x": random.normal(size=rows),
            **columns,
        }
    )
    return LoggedDecisions.from_frame(frame)


BY_HAND = {
    "ips": (2 * 1 + 0 + 4 * 0 + 1 * 0.5) / 4,
    "snips": (2 * 1 + 0 + 4 * 0 + 1 * 0.5) / (2 + 0 + 4 + 1),
    "dm": (0.5 + 0.5 + 0.6 + 0.7) / 4,
    "dr": (0.5 + 2 * 0.6 + 0.5 + 0 + 0.6 - 4 * 0.5 + 0.7 - 1 * 0.4) / 4,
    "switch": (0.5 + 2 * 0.6 + 0.5 + 0 + 0.6 + 0.7 - 1 * 0.4) / 4,
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_each_estimator_is_what_one_finds_by_hand(name: str) -> None:
    assert scores(name, four_rows()).values.mean() == pytest.approx(BY_HAND[name])
    assert estimate(name, four_rows()).value == pytest.approx(BY_HAND[name])


def test_a_weight_at_the_clip_is_kept_and_one_above_is_dropped() -> None:
    assert scores("switch", four_rows(clip=4.0)).dropped == 0.0
    assert scores("switch", four_rows(clip=3.9)).dropped == pytest.approx(4 / 4)


def test_effective_sample_size_by_hand() -> None:
    assert four_rows().draws.effective_sample_size == pytest.approx(7**2 / (4 + 16 + 1))


def test_heavy_weights_that_did_not_come_up_are_counted_as_well() -> None:
    """An arm of propensity 0.01 was never drawn: every weight seen is 1."""
    target = np.array([1.0] * 50 + [0.0] * 50)
    logged = np.array([1.0] * 50 + [0.99] * 50)
    draws = Draws(np.tile(target, 2), np.tile(logged, 2))
    assert draws.effective_sample_size == 100
    assert draws.expected_sample_size == pytest.approx(200 / ((1 + 100) / 2))
    assert not support(draws, 10.0).enough


def test_the_target_that_logged_gets_what_was_logged() -> None:
    log = log_of(300)
    found = evaluate(log, targets.uniform(log), QUALITY)
    assert found.support.effective_sample_size == pytest.approx(300)
    for name in ("ips", "snips"):
        result = found.results[name]
        assert result.measures["quality"].value == pytest.approx(log.quality.mean())
        assert result.difference.value == pytest.approx(0.0, abs=1e-12)
        assert result.verdict.answer == "undecided"


def test_a_better_and_a_worse_arm_are_told_from_the_log() -> None:
    log = log_of(4000)
    better = evaluate(log, targets.always(log, ("b",)), QUALITY, policy="static:b")
    worse = evaluate(log, targets.always(log, ("a",)), QUALITY, policy="static:a")
    assert better.verdict.answer == "better"
    assert worse.verdict.answer == "worse"
    assert "static:b would have scored better" in better.verdict.sentence
    cost = better.results["dr"].measures["cost_usd"]
    assert cost.value == pytest.approx(0.02, rel=0.02)
    assert better.logged["cost_usd"].value == pytest.approx(0.015, rel=0.05)
    assert "latency_s" not in better.logged


def test_too_small_an_effective_sample_refuses_a_verdict_and_says_why() -> None:
    log = log_of(2000)
    found = evaluate(log.rows(slice(0, 120)), targets.always(log, ("b",))[:120], QUALITY)
    assert found.support.effective_sample_size < 100
    for result in found.results.values():
        assert result.verdict.answer == "unsupported"
        assert "effective sample size" in result.verdict.sentence
        assert "100 are needed" in result.verdict.sentence
        assert "control_share" in result.verdict.sentence
    assert evaluate(log, targets.always(log, ("b",)), QUALITY).verdict.answer != "unsupported"


def test_wrong_propensities_refuse_a_verdict() -> None:
    log = log_of(3000, propensity=0.9)
    found = evaluate(log, targets.always(log, ("b",)), QUALITY)
    assert found.support.enough
    assert not found.support.balanced
    assert found.verdict.answer == "unsupported"
    assert "weights average" in found.verdict.sentence


def test_outcomes_that_go_missing_for_one_arm_refuse_a_verdict() -> None:
    log = log_of(4000)
    gone = (log.arms == 1) & (np.arange(4000) % 2 == 0)
    half = log_of(4000, quality=np.where(gone, np.nan, log.quality))
    found = evaluate(half, targets.always(half, ("b",)), QUALITY)
    assert found.evaluated < found.decided == 4000
    assert found.verdict.answer == "unsupported"


def test_all_successes_are_no_certainty() -> None:
    log = log_of(1000, quality=1.0)
    for result in evaluate(log, targets.always(log, ("b",)), QUALITY).results.values():
        low = result.measures["quality"].low
        assert low is not None and low < 0.999


def test_the_direct_method_is_never_surer_than_the_doubly_robust() -> None:
    log = log_of(1500)
    results = evaluate(log, targets.always(log, ("b",)), QUALITY).results
    dm, dr = (results[name].measures["reward"] for name in ("dm", "dr"))
    assert dm.low is not None and dm.high is not None and dm.value is not None
    assert dr.low is not None and dr.high is not None
    assert dm.low <= min(dr.low, dm.value) and dm.high >= max(dr.high, dm.value)


def test_switch_is_wider_by_what_it_leaves_to_the_model() -> None:
    rows = Rows(
        Draws(np.tile([1.0, 0.0], 500), np.full(1000, 0.5)),
        np.tile([1.0, 0.0], 500),
        Predictions(np.full(1000, 0.5), np.full(1000, 0.5)),
        clip=1.0,
    )
    found = estimate("switch", rows)
    assert found.value == pytest.approx(0.5)
    assert (found.low, found.high) == (0.0, 1.0)


def test_predictions_come_from_earlier_rows_only() -> None:
    random = np.random.default_rng(1)
    features = np.column_stack([np.ones(400), random.normal(size=400)])
    arms = random.integers(3, size=400)
    values = random.random(400)
    chances = np.full((400, 3), 1 / 3)
    before = predict(features, arms, values, chances)
    for cut in (1, 7, 57, 399):
        later_arms, later = arms.copy(), values.copy()
        later_arms[cut:] = 2 - later_arms[cut:]
        later[cut:] = 1 - later[cut:]
        after = predict(features, later_arms, later, chances)
        assert np.array_equal(after.of_target[: cut + 1], before.of_target[: cut + 1])


def test_predictions_find_what_is_linear() -> None:
    random = np.random.default_rng(2)
    features = np.column_stack([np.ones(3000), random.random((3000, 2))])
    arms = random.integers(2, size=3000)
    truth = features @ np.array([[0.1, 0.2, 0.3], [0.5, -0.1, 0.2]]).T
    values = truth[np.arange(3000), arms]
    model = predict(features, arms, values, np.tile([0.25, 0.75], (3000, 1)))
    expected = truth @ np.array([0.25, 0.75])
    assert np.abs(model.of_target - expected)[1000:].max() < 0.02
    assert np.abs(model.of_drawn - values)[1000:].max() < 0.02


@given(st.lists(st.floats(0, 50), min_size=1, max_size=200))
def test_a_lower_bound_lies_between_floor_and_mean(values: list[float]) -> None:
    array = np.array(values)
    assert 0.0 <= lower_bound(array, 0.05) <= array.mean() + 1e-9


def test_a_lower_bound_is_what_its_wealth_says() -> None:
    """At the bound, the mean wealth of the bets is 1 / alpha."""
    values = np.tile([1.0, 1.0, 0.0, 1.0], 50)
    bound = lower_bound(values, 0.05)
    bets = np.geomspace(1e-4, 0.9, 32)
    guess = np.concatenate([[0.0], values.cumsum()[:-1] / np.arange(1, 200)])
    squares = ((values - guess) ** 2).sum()
    wealth = np.exp(bets * (values.sum() - 200 * bound) + (np.log1p(-bets) + bets) * squares)
    assert wealth.mean() == pytest.approx(20.0, rel=1e-6)
    # The exact bound of 150 successes in 200 that may be read once only is higher.
    grid = np.linspace(0.5, 0.75, 2501)
    once = grid[binom.sf(149, 200, grid) >= 0.05].min()
    assert bound < once < bound + 0.08


def test_a_lower_bound_holds_whatever_the_upper_tail() -> None:
    """Weights of 500 with probability 1 / 500, looked at after every tenth of the rows."""
    missed = 0
    for path in range(300):
        values = (np.random.default_rng((4, path)).random(3000) < 0.002) * 500.0
        missed += any(lower_bound(values[:size], 0.05) > 1.0 for size in range(300, 3001, 300))
    assert missed / 300 <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 300)


def test_a_policy_learns_along_the_log_from_earlier_rows_only() -> None:
    log = log_of(300)

    def along(decisions: LoggedDecisions, batch: int = 1) -> np.ndarray:
        arms = [Arm(name) for name in decisions.arm_names]
        settings = PolicySettings(name="thompson")
        policy = make_policy(settings, arms, decisions.features.shape[1], QUALITY)
        return targets.learning(decisions, policy, batch)

    chances = along(log)
    assert np.allclose(chances.sum(axis=1), 1.0)
    assert chances[-50:, 1].mean() > 0.9
    assert np.array_equal(along(log.rows(slice(0, 100))), chances[:100])
    assert (np.diff(along(log, batch=50)[:50], axis=0) == 0).all()
    arms = [Arm(name) for name in log.arm_names]
    still = make_policy(PolicySettings(name="random"), arms, 2, QUALITY)
    assert np.allclose(targets.frozen(log, still), 0.5)


def test_impossible_arguments_are_refused() -> None:
    log = log_of(20)
    with pytest.raises(InvalidRecording, match="rows"):
        log.rows(np.zeros(20, dtype=bool))
    with pytest.raises(InvalidRecording, match="model"):
        LoggedDecisions.from_frame(log.to_frame(), ("a", "c"))
    with pytest.raises(InvalidRecording, match="reward"):
        evaluate(log, targets.uniform(log), Objective(Weights(), latency_cap_s=1.0))
    with pytest.raises(InvalidInput, match="probabilities"):
        evaluate(log, targets.uniform(log)[:, :1], QUALITY)
    with pytest.raises(InvalidInput, match="probabilities"):
        evaluate(log, 0.5 * targets.uniform(log), QUALITY)
    with pytest.raises(InvalidInput, match="clip"):
        support(four_rows().draws, 0.0)
    with pytest.raises(InvalidInput, match="policy"):
        targets.always(log, ("c",))
    with pytest.raises(InvalidInput, match="batch"):
        targets.learning(log, make_policy(PolicySettings(), [Arm("a"), Arm("b")], 2, QUALITY), 0)
    with pytest.raises(InvalidInput, match="policy"):
        targets.frozen(log, make_policy(PolicySettings(), [Arm("a")], 2, QUALITY))
    with pytest.raises(InvalidInput, match="logged"):
        Draws(np.array([0.5]), np.array([0.0]))
    for arguments in ({"alpha": 0.0}, {"alpha": 0.1, "span": 0.0}, {"alpha": 0.1, "floor": 0.5}):
        with pytest.raises(InvalidInput):
            lower_bound(np.array([0.2, 0.4]), **arguments)
