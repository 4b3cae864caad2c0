import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import halfnorm, norm

from optimizer.confidence import ENOUGH
from optimizer.errors import InvalidInput
from optimizer.experiments import Moments, compare, exceeds, lift
from optimizer.experiments.fixed_horizon import proportion_size
from optimizer.experiments.pseudo_rows import pseudo_rows
from optimizer.experiments.sequential import UNKNOWN_SPAN

TREATED, CONTROL = Moments(2000, 1100.0, 1100.0), Moments(500, 240.0, 240.0)

rates = st.builds(
    lambda count, share: Moments(count, round(count * share), round(count * share)),
    st.integers(ENOUGH, 100_000),
    st.floats(0, 1),
)


def standard_error(treated: Moments, control: Moments) -> float:
    parts = [
        (group.variance + pseudo_rows(0.05) / group.count) / group.count
        for group in (treated, control)
    ]
    return math.sqrt(sum(parts))


def mixed_likelihood_ratio(mixture: object, start: float, alpha: float, error: float) -> float:
    """By numerical integration: the likelihood of the difference, averaged over the mixture."""
    twice_log = -2 * math.log(alpha)
    spread = error * math.sqrt(2500 * (twice_log + math.log(twice_log + 1)) / 3000)
    found = TREATED.mean - CONTROL.mean

    def integrand(effect: float) -> float:
        ratio = norm.pdf(found, effect, error) / norm.pdf(found, 0, error)
        return float(ratio * mixture.pdf(effect, 0, spread))

    return float(quad(integrand, start, 10 * spread, points=[0.0], limit=200)[0])


def test_the_e_value_is_the_mixed_likelihood_ratio() -> None:
    error = standard_error(TREATED, CONTROL)
    two = compare(TREATED, CONTROL, span=1.0, best_at=3000)
    by_hand = mixed_likelihood_ratio(norm, -50 * error, 0.05, error)
    assert two.e_value == pytest.approx(by_hand, rel=1e-6)
    one = exceeds(TREATED, CONTROL, span=1.0, best_at=3000)
    by_hand = mixed_likelihood_ratio(halfnorm, 0.0, 0.1, error)
    assert one.e_value == pytest.approx(by_hand, rel=1e-6)


@given(treated=rates, control=rates, best_at=st.floats(10, 1e6), alpha=st.floats(0.001, 0.4))
def test_interval_p_value_and_e_value_say_the_same(
    treated: Moments, control: Moments, best_at: float, alpha: float
) -> None:
    found = compare(treated, control, alpha=alpha, span=1.0, best_at=best_at)
    difference = found.difference
    assert difference.low is not None and difference.high is not None
    assume(abs(found.p_value / alpha - 1) > 1e-6)
    assert (found.p_value < alpha) == (difference.low > 0 or difference.high < 0)
    assert found.p_value == pytest.approx(min(1.0, 1 / found.e_value))
    one = exceeds(treated, control, alpha=alpha, span=1.0, best_at=best_at)
    assert one.low is not None
    if one.low > 0:
        assert one.p_value <= alpha * (1 + 1e-9)
    back = compare(control, treated, alpha=alpha, span=1.0, best_at=best_at).difference
    assert back.low == pytest.approx(-difference.high) and back.high == pytest.approx(
        -difference.low
    )


@given(treated=rates, control=rates, best_at=st.floats(10, 1e6))
def test_a_lift_is_above_zero_where_the_difference_is(
    treated: Moments, control: Moments, best_at: float
) -> None:
    relative = lift(treated, control, span=1.0, best_at=best_at)
    assume(relative.low is not None and relative.high is not None)
    absolute = compare(treated, control, span=1.0, best_at=best_at).difference
    for of_lift, of_difference in ((relative.low, absolute.low), (relative.high, absolute.high)):
        if abs(of_difference) > 1e-9:
            assert (of_lift > 0) == (of_difference > 0)
    assert relative.low <= relative.value <= relative.high


def test_ends_of_the_lift_are_where_the_scaled_control_can_not_be_told_apart() -> None:
    relative = lift(TREATED, CONTROL, span=1.0, best_at=3000)
    half = 10**9
    for end in (relative.low, relative.high):
        gap = TREATED.mean - (1 + end) * CONTROL.mean
        error = math.hypot(
            standard_error(TREATED, Moments(half, half / 2, half / 2)),
            (1 + end) * standard_error(CONTROL, Moments(half, half / 2, half / 2)),
        )
        plain = compare(TREATED, CONTROL, span=1.0, best_at=3000).difference
        quantile = (plain.high - plain.value) / standard_error(TREATED, CONTROL)
        assert abs(gap) == pytest.approx(quantile * error, rel=1e-4)


@given(scale=st.floats(1e-6, 1e6))
def test_the_unit_of_measurement_does_not_matter(scale: float) -> None:
    scaled = [
        Moments(group.count, group.total * scale, group.squares * scale**2)
        for group in (TREATED, CONTROL)
    ]
    for span in (1.0, None):
        unit = compare(TREATED, CONTROL, span=span, best_at=3000)
        other = compare(*scaled, span=span and span * scale, best_at=3000)
        assert other.p_value == pytest.approx(unit.p_value, rel=1e-6)


def test_a_factor_is_a_scaled_second_group() -> None:
    scaled = Moments(CONTROL.count, CONTROL.total * 1.1, CONTROL.squares * 1.1**2)
    one = exceeds(TREATED, CONTROL, factor=1.1, span=1e-9, best_at=3000)
    same = exceeds(TREATED, scaled, span=1e-9, best_at=3000)
    assert (one.low, one.p_value) == pytest.approx((same.low, same.p_value))


def test_nothing_is_concluded_from_too_little() -> None:
    few = Moments(ENOUGH - 1, 5.0, 5.0)
    for found in (
        compare(few, CONTROL, span=1.0, best_at=100),
        compare(CONTROL, Moments(), span=None, best_at=100),
    ):
        assert (found.p_value, found.e_value, found.difference.low) == (1.0, 1.0, None)
    assert exceeds(few, CONTROL, span=1.0, best_at=100).low is None
    assert lift(few, CONTROL, span=1.0, best_at=100).low is None
    assert lift(CONTROL, Moments(20, 0.0, 0.0), span=1.0, best_at=100).value is None
    alike = Moments(50, 50.0, 50.0)
    assert compare(alike, alike, span=None, best_at=100).p_value == 1.0


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("alpha", {"alpha": 0.0}),
        ("span", {"span": 0.0}),
        ("span", {"span": math.nan}),
        ("best_at", {"best_at": 0.0}),
    ],
)
def test_impossible_arguments_are_refused(name: str, arguments: dict[str, float]) -> None:
    for test in (compare, exceeds, lift):
        with pytest.raises(InvalidInput, match=name):
            test(TREATED, CONTROL, **{"span": 1.0, "best_at": 100.0, **arguments})
    with pytest.raises(InvalidInput, match="factor"):
        exceeds(TREATED, CONTROL, factor=0.0, span=1.0, best_at=100.0)


def paths(outcome: np.ndarray, treated: np.ndarray, looks: np.ndarray) -> list[list[Moments]]:
    """For each of the groups its moments at each look."""
    groups = []
    for flags in (treated, ~treated):
        columns = [
            np.where(flags, values, 0.0).cumsum()[looks - 1]
            for values in (np.ones_like(outcome), outcome, outcome**2)
        ]
        groups.append([Moments(int(n), t, s) for n, t, s in zip(*columns, strict=True)])
    return groups


@pytest.mark.parametrize("kind", ["rate of 10 %", "costs"])
def test_looking_all_the_time_finds_no_more_than_promised(kind: str) -> None:
    """The whole simulation, with a look after every observation, is `benchmarks.experiments`."""
    runs, looks = 200, np.geomspace(20, 5000, 60).astype(int)
    found, above, found_by_fixed = 0, 0, 0
    for run in range(runs):
        random = np.random.default_rng((21, run))
        treated = random.random(5000) < 0.95
        if kind == "costs":
            outcome = random.lognormal(0.0, 1.0, 5000)
        else:
            outcome = (random.random(5000) < 0.1) * 1.0
        span = None if kind == "costs" else 1.0
        seen = list(zip(*paths(outcome, treated, looks), strict=True))
        found += any(compare(*pair, span=span, best_at=1000).p_value <= 0.05 for pair in seen)
        above += any(exceeds(*pair, span=span, best_at=1000).p_value <= 0.05 for pair in seen)
        found_by_fixed += any(too_early(*pair) for pair in seen)
    assert max(found, above) / runs <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / runs)
    assert found_by_fixed / runs > 0.2, "the test above would not notice anything"


def too_early(treated: Moments, control: Moments) -> bool:
    if min(treated.count, control.count) < ENOUGH:
        return False
    square = treated.variance / treated.count + control.variance / control.count
    return abs(treated.mean - control.mean) > 1.96 * math.sqrt(square) > 0


def test_a_planned_lift_is_found_about_as_soon_as_by_the_fixed_test() -> None:
    size, runs = proportion_size(0.5, 0.025), 100
    looks = np.linspace(0.05 * size, 1.5 * size, 100).astype(int)
    stopped = []
    for run in range(runs):
        random = np.random.default_rng((22, run))
        treated = random.random(looks[-1]) < 0.5
        outcome = (random.random(looks[-1]) < np.where(treated, 0.525, 0.5)) * 1.0
        pairs = zip(looks, *paths(outcome, treated, looks), strict=True)
        hits = (n for n, *pair in pairs if compare(*pair, span=1.0, best_at=size).p_value <= 0.05)
        stopped.append(next(hits, math.inf))
    assert np.median(stopped) <= 1.2 * size


def test_an_unknown_range_is_taken_as_that_many_deviations() -> None:
    both = TREATED.merge(CONTROL)
    stated = UNKNOWN_SPAN * math.sqrt(both.variance)
    guessed = compare(TREATED, CONTROL, span=None, best_at=3000)
    known = compare(TREATED, CONTROL, span=stated, best_at=3000)
    assert guessed.p_value == pytest.approx(known.p_value)
    assert guessed.difference.low == pytest.approx(known.difference.low)
