import math

import numpy as np
import pytest
from scipy import stats

from optimizer.errors import InvalidInput
from optimizer.experiments.fixed_horizon import (
    mean_power,
    mean_size,
    proportion_power,
    proportion_size,
    read_once_means,
    read_once_proportions,
)
from optimizer.experiments.moments import Moments


def moments(values: np.ndarray) -> Moments:
    return Moments(values.size, float(values.sum()), float((values**2).sum()))


def test_proportions_as_in_newcombes_table() -> None:
    """Newcombe 1998, table II, first column, method 10."""
    found = read_once_proportions(Moments(70, 56, 56), Moments(80, 48, 48)).difference
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)


def test_the_z_test_is_the_root_of_chi_squared() -> None:
    found = read_once_proportions(Moments(70, 56, 56), Moments(80, 48, 48))
    table = stats.chi2_contingency([[56, 14], [48, 32]], correction=False)
    assert found.p_value == pytest.approx(table.pvalue)


def test_welch_equals_scipy() -> None:
    random = np.random.default_rng(3)
    treated, control = random.normal(1.0, 3.0, 25), random.gamma(2.0, 1.0, 90)
    expected = stats.ttest_ind(treated, control, equal_var=False)
    found = read_once_means(moments(treated), moments(control), alpha=0.1)
    assert found.p_value == pytest.approx(expected.pvalue)
    low, high = expected.confidence_interval(0.9)
    assert (found.difference.low, found.difference.high) == pytest.approx((low, high))


def test_groups_without_spread_are_no_error() -> None:
    ones, zeros = Moments(20, 20, 20), Moments(20)
    assert read_once_proportions(ones, ones).p_value == 1.0
    assert read_once_means(ones, ones).p_value == 1.0
    assert read_once_means(ones, zeros).p_value == 0.0


@pytest.mark.parametrize(("effect", "each"), [(0.2, 393), (0.5, 64), (0.8, 26)])
def test_sizes_of_means_as_in_cohens_table(effect: float, each: int) -> None:
    """Cohen 1988, table 2.4.1, two-sided 5 %, power 80 %: rounded to whole groups."""
    assert mean_size(effect, 1.0) == pytest.approx(2 * each, abs=1)


def test_sizes_of_proportions_as_in_fleiss_table() -> None:
    """Fleiss 1981: 50 % against 60 %, two-sided 5 %, power 80 %, no continuity correction: 388."""
    assert math.ceil(proportion_size(0.5, 0.1) / 2) == 388


@pytest.mark.parametrize("share", [0.5, 0.95, 0.1])
def test_size_and_power_are_inverse(share: float) -> None:
    size = proportion_size(0.2, 0.02, power=0.9, share=share)
    assert proportion_power(0.2, 0.02, size, share=share) == pytest.approx(0.9, abs=0.005)
    size = mean_size(0.1, 1.3, power=0.9, share=share)
    assert mean_power(0.1, 1.3, size, share=share) == pytest.approx(0.9, abs=0.005)


def test_power_is_what_a_simulation_finds() -> None:
    size = proportion_size(0.3, 0.06)
    random = np.random.default_rng(8)
    found = [
        read_once_proportions(Moments(size // 2, won, won), Moments(size // 2, lost, lost)).p_value
        for won, lost in random.binomial(size // 2, [0.36, 0.3], (1000, 2)).tolist()
    ]
    power = float((np.array(found) <= 0.05).mean())
    assert power == pytest.approx(0.8, abs=3 * math.sqrt(0.16 / 1000))


def test_impossible_arguments_are_refused() -> None:
    good = Moments(20, 10, 10)
    with pytest.raises(InvalidInput, match="read_once_means"):
        read_once_proportions(good, Moments(20, 10, 30))
    with pytest.raises(InvalidInput, match="control"):
        read_once_proportions(good, Moments())
    with pytest.raises(InvalidInput, match="treated"):
        read_once_means(Moments(1, 1, 1), good)
    with pytest.raises(InvalidInput, match="alpha"):
        read_once_means(good, good, alpha=1.0)
    with pytest.raises(InvalidInput, match="difference"):
        proportion_size(0.9, 0.2)
    with pytest.raises(InvalidInput, match="rate"):
        proportion_power(0.0, 0.2, 100)
    with pytest.raises(InvalidInput, match="share"):
        mean_size(0.1, 1.0, share=1.0)
    with pytest.raises(InvalidInput, match="deviation"):
        mean_power(0.1, 0.0, 100)
    with pytest.raises(InvalidInput, match="difference"):
        mean_size(0.0, 1.0)
