import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_repo.aggregates import MEMORY_S, ArmFeatures, ArmStatistics
from optimizer.errors import InvalidInput
from optimizer.records import Outcome
from serving.arm_fold import STATISTICS_SPAN_S

NOTHING = Outcome()
HALF_LIFE_S = 300.0

shares = st.one_of(
    st.none(), st.sampled_from([0.0, 1.0]), st.floats(0, 1).map(lambda x: round(x, 6))
)
amounts = st.one_of(st.none(), st.floats(0, 100).map(lambda x: round(x, 6)))
outcomes = st.builds(Outcome, quality=shares, cost_usd=amounts, latency_s=amounts, feedback=shares)
decisions = st.lists(
    st.tuples(
        st.sampled_from(["small", "large"]),
        st.floats(0, 10 * HALF_LIFE_S).map(lambda x: round(x, 3)),
        st.lists(outcomes, min_size=1, max_size=3),
    ),
    max_size=15,
)


def feed(events):
    """Statistics after each decision's outcomes, one replacing the other, in the order given."""
    statistics = ArmStatistics(HALF_LIFE_S)
    for model, at_s, states in events:
        for before, after in zip([NOTHING, *states], states, strict=False):
            statistics.update(model, at_s, before, after)
    return statistics


def directly(events, now_s):
    """The same numbers from a table of the decisions' last outcomes."""
    rows = [
        (model, 2 ** -((now_s - at_s) / HALF_LIFE_S), *states[-1].values())
        for model, at_s, states in events
    ]
    columns = ["model", "weight", "quality", "cost_usd", "latency_s", "feedback"]
    frame = pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(columns[1:], float))
    frame["error_rate"] = (frame.quality == 0).astype(float).where(frame.quality.notna())
    found = {}
    for model, group in frame.groupby("model"):
        known = group.drop(columns=["model", "weight"]).notna().any(axis=1)
        parts = {"count": float(group.weight[known].sum())}
        for name in ("quality", "cost_usd", "latency_s", "error_rate"):
            there = group[name].notna()
            weight = group.weight[there]
            parts[name] = (
                float((group[name][there] * weight).sum() / weight.sum()) if len(weight) else None
            )
        latest_s = max(at_s for name, at_s, _ in events if name == model)
        found[model] = ArmFeatures(**parts) if now_s - latest_s <= MEMORY_S else ArmFeatures()
    return found


def same(left: ArmFeatures, right: ArmFeatures) -> bool:
    def equal(name):
        a, b = getattr(left, name), getattr(right, name)
        if a is None or b is None:
            return a is b
        return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9)

    return all(map(equal, ("quality", "cost_usd", "latency_s", "error_rate", "count")))


@given(decisions, st.floats(0, 5 * HALF_LIFE_S))
def test_equals_a_direct_computation_whatever_the_order_of_times(events, later_s):
    now_s = 10 * HALF_LIFE_S + later_s
    expected = directly(events, now_s)
    found = feed(events).values(now_s)
    assert found.keys() == expected.keys()
    for model, features in expected.items():
        assert same(found[model], features), (model, found[model], features)


@given(decisions)
def test_a_retraction_leaves_what_would_be_without_it(events):
    statistics = feed(events)
    for model, at_s, states in events:
        statistics.update(model, at_s, states[-1], NOTHING)
    for features in statistics.values(10 * HALF_LIFE_S).values():
        assert same(features, ArmFeatures())


@given(decisions)
def test_shares_stay_in_range_and_costs_are_not_negative(events):
    for features in feed(events).values(10 * HALF_LIFE_S).values():
        for value in (features.quality, features.error_rate):
            assert value is None or 0.0 <= value <= 1.0
        for value in (features.cost_usd, features.latency_s, features.count):
            assert value is None or value >= 0.0


def test_an_outcome_counts_half_after_a_half_life():
    statistics = ArmStatistics(half_life_s=60)
    statistics.update("small", 0.0, NOTHING, Outcome(quality=1.0))
    assert statistics.values(60.0)["small"].count == 0.5


def test_a_late_event_counts_by_its_age():
    statistics = ArmStatistics(half_life_s=60)
    statistics.update("small", 60.0, NOTHING, Outcome(quality=1.0))
    statistics.update("small", 0.0, NOTHING, Outcome(quality=0.0))
    features = statistics.values(60.0)["small"]
    assert features.quality == pytest.approx(2 / 3)
    assert features.count == 1.5


def test_an_error_is_a_quality_of_exactly_zero():
    statistics = ArmStatistics()
    for quality in (0.0, 1e-9, 0.5, None):
        statistics.update("small", 0.0, NOTHING, Outcome(quality=quality, cost_usd=0.1))
    assert statistics.values(0.0)["small"].error_rate == pytest.approx(1 / 3)


def test_feedback_alone_is_counted_and_says_nothing_else():
    statistics = ArmStatistics()
    statistics.update("small", 0.0, NOTHING, Outcome(feedback=1.0))
    assert statistics.values(0.0) == {"small": ArmFeatures(count=1.0)}


def test_years_without_an_event_break_nothing():
    statistics = ArmStatistics()
    statistics.update("small", 0.0, NOTHING, Outcome(quality=0.5))
    assert statistics.values(MEMORY_S)["small"].quality == 0.5
    assert statistics.values(1e9)["small"] == ArmFeatures()
    statistics.update("small", 1e9, NOTHING, Outcome(quality=1.0))
    statistics.update("small", 0.0, Outcome(quality=0.5), NOTHING)
    assert statistics.values(1e9)["small"] == ArmFeatures(quality=1.0, error_rate=0.0, count=1.0)


@pytest.mark.parametrize("half_life_s", [0.0, -1.0, math.inf, math.nan])
def test_refuses_a_half_life_that_is_none(half_life_s):
    with pytest.raises(InvalidInput, match="half_life_s"):
        ArmStatistics(half_life_s)


def test_what_was_received_before_the_span_of_a_restart_makes_no_difference():
    now_s, random = 36_000.0, np.random.default_rng(4)
    whole, again = ArmStatistics(), ArmStatistics()
    for at_s in np.sort(random.uniform(0, now_s, 50_000)):
        if now_s - STATISTICS_SPAN_S < at_s < now_s - MEMORY_S + 60:
            continue  # the worst case: many long ago, few in the last hour
        if at_s > now_s - MEMORY_S + 60 and random.random() < 0.999:
            continue
        outcome = Outcome(*random.random(3) * (1, 10, 100))
        for statistics in (whole, again):
            if statistics is whole or at_s >= now_s - STATISTICS_SPAN_S:
                statistics.update("small", float(at_s), NOTHING, outcome)
    expected, found = whole.values(now_s)["small"], again.values(now_s)["small"]
    assert found.count > 0
    for name in ("quality", "cost_usd", "latency_s", "error_rate", "count"):
        assert abs(getattr(found, name) - getattr(expected, name)) < 1e-6
