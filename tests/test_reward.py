import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.errors import InvalidInput
from optimizer.records import Outcome
from optimizer.reward import Objective, Weights, parse_weights

share = st.floats(0, 1)
outcomes = st.builds(
    Outcome,
    quality=share,
    cost_usd=st.floats(0, 100),
    latency_s=st.floats(0, 1000),
    feedback=share,
)


@given(
    outcomes,
    st.builds(Weights, quality=st.floats(0.1, 5), cost=share, latency=share, feedback=share),
    st.none() | st.floats(1e-6, 10),
    st.none() | st.floats(1e-3, 100),
)
def test_a_reward_lies_between_0_and_1(outcome, weights, cost_cap, latency_cap) -> None:
    objective = Objective(weights, cost_cap, latency_cap)
    reward = objective.reward(outcome)
    assert reward is not None
    assert -1e-9 <= reward <= 1 + 1e-9


def test_the_formula_by_hand() -> None:
    objective = Objective(Weights(), cost_cap_usd=0.02, latency_cap_s=4.0)
    outcome = Outcome(quality=0.8, cost_usd=0.005, latency_s=1.0)
    expected = 0.5 * 0.8 + 0.3 * 0.75 + 0.2 * 0.75
    assert objective.reward(outcome) == pytest.approx(expected)
    without_latency = Objective(Weights(), cost_cap_usd=0.02)
    assert without_latency.reward(outcome) == pytest.approx((0.5 * 0.8 + 0.3 * 0.75) / 0.8)
    table = objective.rewards(np.array([[0.8]]), np.array([[0.005]]), np.array([[1.0]]))
    assert table[0, 0] == pytest.approx(expected)


@pytest.mark.parametrize("missing", ["quality", "cost_usd", "latency_s"])
def test_a_reward_with_a_part_missing_is_incomplete(missing: str) -> None:
    parts = {"quality": 0.8, "cost_usd": 0.005, "latency_s": 1.0}
    del parts[missing]
    objective = Objective(Weights(), cost_cap_usd=0.02, latency_cap_s=4.0)
    assert objective.reward(Outcome(**parts)) is None


def test_weights_are_read_and_refused() -> None:
    assert parse_weights(None) == Weights()
    assert parse_weights("quality=1,cost=0").values() == (1.0, 0.0, 0.2, 0.0)
    for wrong in ("quality", "speed=1", "cost=x", "cost=-1", "quality=0,cost=0,latency=0"):
        with pytest.raises(InvalidInput, match="weights"):
            parse_weights(wrong)
    with pytest.raises(InvalidInput, match="without a cap"):
        Objective(parse_weights("quality=0,cost=1,latency=0"))


@pytest.mark.parametrize("cap", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_caps_are_refused(cap: float) -> None:
    with pytest.raises(InvalidInput, match="cost_cap_usd"):
        Objective(Weights(), cost_cap_usd=cap)
