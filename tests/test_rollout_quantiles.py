"""Quantiles from a histogram: within 2 %, and intervals that may be read at any time."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.errors import InvalidInput
from optimizer.records import Vector
from optimizer.rollout.quantiles import bin_of, quantile, upper_tail_mean

values = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=200)


def binned(seen: Vector) -> Counter[int]:
    return Counter(bin_of(value) for value in seen.tolist())


@given(values, st.floats(0.05, 0.99))
def test_the_quantile_is_that_of_the_values_to_two_per_cent(
    seen: list[float], probability: float
) -> None:
    exact = float(np.quantile(seen, probability, method="inverted_cdf"))
    found = quantile(binned(np.array(seen)), probability)
    assert found.value == pytest.approx(exact, rel=0.0201)
    assert found.low is None or found.low <= exact
    assert found.high is None or found.high >= exact


@given(values)
def test_the_tail_holds_the_largest_value_and_the_whole_the_mean(seen: list[float]) -> None:
    array = np.array(seen)
    assert array.max() * 0.999 <= upper_tail_mean(binned(array), 1e-9) <= array.max() * 1.021
    assert array.mean() * 0.999 <= upper_tail_mean(binned(array), 1.0) <= array.mean() * 1.021


@pytest.mark.parametrize("shape", ["long tail", "ties"])
def test_the_interval_misses_no_more_often_than_promised_whenever_one_looks(shape: str) -> None:
    """At 20 % a promise, from the first value on; the ties jump over the quantile."""
    random = np.random.default_rng(5)
    runs, missed, widths = 100, 0, []
    for _ in range(runs):
        if shape == "ties":
            stream, truth = random.choice([1.0, 2.0, 5.0], size=1500, p=[0.5, 0.44, 0.06]), 5.0
        else:
            stream, truth = random.lognormal(0.0, 0.5, 1500), float(np.exp(0.5 * 1.6448536))
        bins: Counter[int] = Counter()
        out = False
        for number, value in enumerate(stream.tolist()):
            bins[bin_of(value)] += 1
            if number % 50 and number > 5:
                continue
            found = quantile(bins, 0.95, alpha=0.2)
            out |= found.low is not None and found.low > truth
            out |= found.high is not None and found.high < truth
        missed += out
        assert found.low is not None and found.high is not None
        widths.append(found.high / found.low)
    assert missed <= 0.2 * runs
    if shape == "long tail":
        assert missed > 0, "an interval that never misses is too wide"
        assert np.mean(widths) < 1.35


def test_zeros_are_a_value() -> None:
    found = quantile({bin_of(0.0): 1000}, 0.95)
    assert (found.value, found.high) == (0.0, 0.0)
    assert upper_tail_mean({bin_of(0.0): 10}, 0.1) == 0.0


def test_nothing_says_nothing() -> None:
    found = quantile({}, 0.95)
    assert (found.value, found.low, found.high, found.count) == (None, None, None, 0)


@pytest.mark.parametrize(
    "wrong",
    [{"probability": 1.0}, {"alpha": 0.0}, {"best_at": 0.0}],
    ids=lambda one: next(iter(one)),
)
def test_arguments_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(wrong))):
        quantile({0: 1}, **{"probability": 0.95, **wrong})
