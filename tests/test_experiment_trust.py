"""Sample ratio, self-check of the control, several variants."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import dirichlet_multinomial, multinomial
from statsmodels.stats.multitest import multipletests

from optimizer.errors import InvalidInput
from optimizer.experiments import (
    Moments,
    compare,
    compare_all,
    e_benjamini_hochberg,
    holm,
    readiness,
    sample_ratio,
    self_check,
)
from optimizer.experiments.sample_ratio import CONCENTRATION
from optimizer.experiments.self_check import split

plans = st.integers(2, 5).flatmap(
    lambda variants: st.tuples(
        st.lists(st.integers(0, 5000), min_size=variants, max_size=variants),
        st.lists(st.floats(0.01, 1), min_size=variants, max_size=variants),
    )
)


def test_the_ratio_is_that_of_two_multinomial_likelihoods() -> None:
    counts, shares = [130, 310, 560], np.array([0.1, 0.3, 0.6])
    mixed = dirichlet_multinomial.logpmf(counts, CONCENTRATION * shares, 1000)
    plan = multinomial.logpmf(counts, 1000, shares)
    found = sample_ratio(counts, [1, 3, 6])
    assert math.log(found.e_value) == pytest.approx(float(mixed - plan))
    assert found.observed == (0.13, 0.31, 0.56)


@given(plans)
def test_no_unit_is_expected_to_change_the_evidence_if_the_plan_holds(
    plan: tuple[list[int], list[float]],
) -> None:
    """A martingale: why it may be looked at after every unit."""
    counts, weights = plan
    now = sample_ratio(counts, weights)
    after = [
        sample_ratio([n + (i == j) for j, n in enumerate(counts)], weights).e_value
        for i in range(len(counts))
    ]
    expected = sum(p * e for p, e in zip(now.planned, after, strict=True))
    if now.e_value < 1e200:
        assert expected == pytest.approx(now.e_value, rel=1e-6)


def first_flag(random: np.random.Generator, true: float, planned: float) -> float:
    looks = np.arange(200, 20_001, 200)
    for count, first in zip(looks, random.binomial(200, true, looks.size).cumsum(), strict=True):
        if sample_ratio([int(first), int(count - first)], [planned, 1 - planned]).mismatch:
            return float(count)
    return math.inf


@pytest.mark.parametrize(("true", "planned"), [(0.48, 0.5), (0.04, 0.05)])
def test_a_wrong_ratio_is_flagged_within_20_000_units(true: float, planned: float) -> None:
    flags = [first_flag(np.random.default_rng((31, run)), true, planned) for run in range(150)]
    # In 97 % of runs (measured in `benchmarks.experiments`), less three standard errors.
    assert np.isfinite(flags).mean() >= 0.92


@pytest.mark.parametrize("share", [0.5, 0.05])
def test_a_right_ratio_is_never_flagged(share: float) -> None:
    flags = [first_flag(np.random.default_rng((32, run)), share, share) for run in range(100)]
    assert not np.isfinite(flags).any()


def test_ratios_that_can_not_be_checked_are_refused() -> None:
    for counts, shares in (([1], [1.0]), ([1, 2], [1.0]), ([-1, 2], [1.0, 1.0])):
        with pytest.raises(InvalidInput, match="counts"):
            sample_ratio(counts, shares)
    with pytest.raises(InvalidInput, match="shares"):
        sample_ratio([1, 2], [0.0, 1.0])
    with pytest.raises(InvalidInput, match="alpha"):
        sample_ratio([1, 2], [1.0, 1.0], alpha=0.0)
    assert sample_ratio([0, 0], [1.0, 3.0]).e_value == pytest.approx(1.0)


def test_sound_halves_stay_green_and_a_fault_in_one_measure_is_named() -> None:
    random = np.random.default_rng(33)
    quality, cost_usd = (random.random(6000) < 0.8) * 1.0, random.lognormal(-7.0, 1.0, 6000)
    quality[::10] = np.nan
    first = random.random(6000) < 0.5
    sizes = (int(first.sum()), int((~first).sum()))
    sound = {"quality": split(quality, first), "cost_usd": split(cost_usd, first)}
    green = self_check(sound, sizes, spans={"quality": 1.0})
    assert readiness(sample_ratio(sizes, (1, 1)), green).ready

    broken = sound | {"cost_usd": split(np.where(first, 1.5, 1.0) * cost_usd, first)}
    red = self_check(broken, sizes, spans={"quality": 1.0})
    assert red.red and len(red.reasons) == 1 and "cost_usd" in red.reasons[0]
    wrong = sample_ratio([2600, 3400], (1, 1))
    both = readiness(wrong, red)
    assert not both.ready and len(both.reasons) == 2 and "43.3:56.7" in both.reasons[0]


def test_unequal_halves_are_red() -> None:
    even = Moments(500, 250, 250)
    assert self_check({"quality": (even, even)}, (5000, 4000), spans={}).red
    assert readiness(None, None).ready
    with pytest.raises(InvalidInput, match="alpha"):
        self_check({}, (1, 1), spans={}, alpha=2.0)
    with pytest.raises(InvalidInput, match="first_half"):
        split(np.zeros(3), np.zeros(2, dtype=bool))


@pytest.mark.parametrize("size", [1, 3, 12])
def test_holm_equals_statsmodels(size: int) -> None:
    p_values = np.random.default_rng(size).random(size) ** 3
    p_values[-2:] = p_values[0]
    assert holm(p_values) == pytest.approx(tuple(multipletests(p_values, method="holm")[1]))


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=12), st.floats(0.01, 0.5))
def test_e_bh_is_benjamini_hochberg_of_inverse_e_values(
    e_values: list[float], alpha: float
) -> None:
    """Wang and Ramdas 2022, section 3."""
    p_values = [min(1.0, 1 / e) if e > 0 else 1.0 for e in e_values]
    expected = multipletests(p_values, alpha, method="fdr_bh")[0].tolist()
    assert list(e_benjamini_hochberg(e_values, alpha)) == expected


def test_each_variant_gets_its_part_of_the_level() -> None:
    control, variants = Moments(900, 450, 450), [Moments(900, 500, 500), Moments(900, 430, 430)]
    found = compare_all(variants, control, weights=[3, 1], span=1.0, best_at=2000)
    assert found == (
        compare(variants[0], control, alpha=0.0375, span=1.0, best_at=2000),
        compare(variants[1], control, alpha=0.0125, span=1.0, best_at=2000),
    )
    with pytest.raises(InvalidInput, match="weights"):
        compare_all(variants, control, weights=[1.0], span=1.0, best_at=2000)
    with pytest.raises(InvalidInput, match="p_values"):
        holm([1.5])
    with pytest.raises(InvalidInput, match="e_values"):
        e_benjamini_hochberg([-1.0])
    with pytest.raises(InvalidInput, match="alpha"):
        e_benjamini_hochberg([1.0], alpha=1.0)
