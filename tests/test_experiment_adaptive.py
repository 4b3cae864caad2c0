import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtr

from optimizer.confidence import ENOUGH, difference
from optimizer.errors import InvalidInput
from optimizer.experiments import adaptive_difference, adaptive_mean
from optimizer.experiments.adaptive import pseudo_outcomes

FLOOR = 0.1


@given(
    rows=st.lists(
        st.tuples(st.floats(-5, 5), st.integers(0, 2), st.floats(0.05, 1)), min_size=0, max_size=20
    ),
    potential=st.lists(st.floats(-5, 5), min_size=3, max_size=3),
    weights=st.lists(st.floats(0.05, 1), min_size=3, max_size=3),
    variant=st.integers(0, 2),
    augmented=st.booleans(),
)
def test_a_row_is_expected_to_say_what_the_variant_would_have_brought(
    rows: list[tuple[float, int, float]],
    potential: list[float],
    weights: list[float],
    variant: int,
    augmented: bool,
) -> None:
    """Over the draw of the last row, whatever came before."""
    shares = np.array(weights) / sum(weights)
    expected = 0.0
    for drawn in range(3):
        outcome, variants, propensity = (
            np.array([*(row[part] for row in rows), last])
            for part, last in enumerate((potential[drawn], drawn, shares[drawn]))
        )
        last = pseudo_outcomes(outcome, variants, propensity, variant, augmented=augmented)[-1]
        expected += shares[drawn] * last
    assert expected == pytest.approx(potential[variant], abs=1e-8)


def thompson(
    seed: int, runs: int, size: int, rates: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    wins, tries, every = np.ones((2, runs)), np.full((2, runs), 2.0), np.arange(runs)
    outcome, drawn, propensity = (np.empty((size, runs)) for _ in range(3))
    for row in range(size):
        means = wins / tries
        spread = np.sqrt((means * (1 - means) / (tries + 1)).sum(axis=0))
        second = np.clip(ndtr((means[1] - means[0]) / spread), FLOOR, 1 - FLOOR)
        arm = (random.random(runs) < second).astype(int)
        outcome[row] = random.random(runs) < np.array(rates)[arm]
        drawn[row], propensity[row] = arm, np.where(arm == 1, second, 1 - second)
        wins[arm, every] += outcome[row]
        tries[arm, every] += 1
    return outcome.T, drawn.T.astype(int), propensity.T


@pytest.mark.parametrize("rates", [(0.5, 0.5), (0.03, 0.06)])
def test_intervals_cover_under_thompson_sampling_at_every_look(rates: tuple[float, float]) -> None:
    runs, size = 150, 1500
    looks = np.geomspace(30, size, 10).astype(int).tolist()
    outcome, drawn, propensity = thompson(41, runs, size, rates)
    missed = np.zeros((runs, 2), dtype=bool)
    ends = np.zeros(runs)
    for run in range(runs):
        for look in looks:
            rows = outcome[run, :look], drawn[run, :look], propensity[run, :look]
            effect = adaptive_difference(*rows, 1, 0, floor=FLOOR, span=1.0)
            level = adaptive_mean(*rows, 0, floor=FLOOR, span=1.0)
            for column, (found, truth) in enumerate(
                ((effect, rates[1] - rates[0]), (level, rates[0]))
            ):
                if found.low is not None and found.high is not None:
                    missed[run, column] |= not found.low <= truth <= found.high
        assert effect.value is not None
        ends[run] = effect.value
    slack = 2 * math.sqrt(0.05 * 0.95 / runs)
    assert missed.mean(axis=0).max() <= 0.05 + slack
    assert ends.mean() == pytest.approx(rates[1] - rates[0], abs=4 * ends.std() / math.sqrt(runs))


def test_the_plain_mean_is_biased_there_and_the_weighted_one_is_not() -> None:
    outcome, drawn, propensity = thompson(42, 2000, 200, (0.5, 0.5))
    plain, weighted = [], []
    for rows in zip(outcome, drawn, propensity, strict=True):
        if (rows[1] == 0).any():
            plain.append(rows[0][rows[1] == 0].mean())
            weighted.append(pseudo_outcomes(*rows, 0).mean())
    assert np.mean(plain) < 0.5 - 4 * np.std(plain) / math.sqrt(len(plain))
    assert np.mean(weighted) == pytest.approx(0.5, abs=4 * np.std(weighted) / math.sqrt(2000))


def test_of_a_fixed_allocation_it_is_the_difference_of_the_control() -> None:
    random = np.random.default_rng(43)
    treated = random.random(4000) >= 0.2
    outcome = random.random(4000) * np.where(treated, 1.0, 0.8)
    propensity = np.where(treated, 0.8, 0.2)
    found = adaptive_difference(outcome, treated.astype(int), propensity, 1, 0, floor=0.2, span=1.0)
    known = difference(outcome, treated, 0.2, span=1.0)
    assert found.value == pytest.approx(known.value, abs=0.003)
    assert found.high - found.low == pytest.approx(known.high - known.low, rel=0.02)


def test_too_few_rows_give_no_interval_and_impossible_arguments_are_refused() -> None:
    outcome, drawn = np.linspace(0, 1, 50), (np.arange(50) < ENOUGH - 1).astype(int)
    half = np.full(50, 0.5)
    found = adaptive_mean(outcome, drawn, half, 1, floor=0.5)
    assert found.value is not None and found.low is None
    assert adaptive_mean(outcome, drawn, half, 7, floor=0.5).value is None
    with pytest.raises(InvalidInput, match="floor"):
        adaptive_mean(outcome, drawn, half, 1, floor=0.6)
    with pytest.raises(InvalidInput, match="floor"):
        adaptive_mean(outcome, drawn, half, 1, floor=0.0)
    with pytest.raises(InvalidInput, match="span"):
        adaptive_mean(outcome, drawn, half, 1, floor=0.5, span=0.0)
    with pytest.raises(InvalidInput, match="control"):
        adaptive_difference(outcome, drawn, half, 1, 1, floor=0.5)
    with pytest.raises(InvalidInput, match="drawn"):
        pseudo_outcomes(outcome, drawn[1:], half, 1)
    with pytest.raises(InvalidInput, match="outcome"):
        pseudo_outcomes(outcome * np.nan, drawn, half, 1)
    with pytest.raises(InvalidInput, match="propensity"):
        pseudo_outcomes(outcome, drawn, 0 * half, 1)
