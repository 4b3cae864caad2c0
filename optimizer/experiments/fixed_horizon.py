"""Tests of a fixed horizon: plan the size, read once when it is reached, never before.

Whoever looks earlier and stops when the p-value is small is wrong far more often than ``alpha``
says; for that there is `optimizer.experiments.sequential`. These are here for a plan that is kept,
and because the size they need is what a sequential test is tuned and measured by.

Not imported by the package itself: scipy.stats and statsmodels take seconds to import, and what
serves requests needs neither.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy import stats
from statsmodels.stats.power import TTestIndPower
from statsmodels.stats.proportion import (
    confint_proportions_2indep,
    power_proportions_2indep,
    proportions_ztest,
    samplesize_proportions_2indep_onetail,
)

from optimizer.confidence import Estimate
from optimizer.errors import InvalidInput
from optimizer.experiments.moments import Moments

__all__ = [
    "FixedHorizon",
    "mean_power",
    "mean_size",
    "proportion_power",
    "proportion_size",
    "read_once_means",
    "read_once_proportions",
]


@dataclass(frozen=True, slots=True)
class FixedHorizon:
    """The one reading of a test at its planned size.

    Attributes
    ----------
    difference
        Treated minus control; its interval holds for this one reading.
    p_value
        In [0, 1], two-sided.
    """

    difference: Estimate
    p_value: float


def read_once_proportions(
    treated: Moments, control: Moments, *, alpha: float = 0.05
) -> FixedHorizon:
    """The z-test of two proportions, read once, at the planned size.

    The p-value is the pooled one, the interval Newcombe's (it stays sound near 0 and 1, so in rare
    cases the two disagree on a borderline).

    Parameters
    ----------
    treated, control
        Of zeros and ones; one or more in each group.
    alpha
        In (0, 1): the interval covers in ``1 - alpha`` of experiments.

    Raises
    ------
    InvalidInput
        If a group is empty or holds more than zeros and ones, or ``alpha`` is out of its range.

    References
    ----------
    Newcombe, Statistics in Medicine 17 (1998) 873-890, method 10.

    Examples
    --------
    >>> found = read_once_proportions(Moments(2000, 1100, 1100), Moments(2000, 1000, 1000))
    >>> round(found.p_value, 4), round(found.difference.low, 4)
    (0.0015, 0.019)
    """
    _level("alpha", alpha)
    for name, group in (("treated", treated), ("control", control)):
        if group.count < 1:
            raise InvalidInput(name, group, "one observation or more")
        if not math.isclose(group.total, group.squares) or not 0 <= group.total <= group.count:
            raise InvalidInput(name, group, "zeros and ones; for other numbers read_once_means")
    low, high = confint_proportions_2indep(
        treated.total, treated.count, control.total, control.count, method="newcomb", alpha=alpha
    )
    value = treated.mean - control.mean
    both = treated.merge(control)
    p_value = 1.0  # all alike: the statistic is 0 / 0
    if 0 < both.total < both.count:
        p_value = proportions_ztest((treated.total, control.total), (treated.count, control.count))[
            1
        ]
    return FixedHorizon(Estimate(value, float(low), float(high), both.count), float(p_value))


def read_once_means(treated: Moments, control: Moments, *, alpha: float = 0.05) -> FixedHorizon:
    """Welch's t-test of two means, read once, at the planned size.

    Parameters
    ----------
    treated, control
        Two observations or more in each group.
    alpha
        In (0, 1): the interval covers in ``1 - alpha`` of experiments.

    Raises
    ------
    InvalidInput
        If a group is too small or ``alpha`` is out of its range.

    References
    ----------
    Welch, Biometrika 34 (1947) 28-35.

    Examples
    --------
    >>> found = read_once_means(Moments(10, 50, 340), Moments(20, 60, 350))
    >>> round(found.difference.value, 2), round(found.p_value, 4)
    (2.0, 0.1145)
    """
    _level("alpha", alpha)
    for name, group in (("treated", treated), ("control", control)):
        if group.count < 2:
            raise InvalidInput(name, group, "two observations or more")
    value = treated.mean - control.mean
    parts = (treated.variance / treated.count, control.variance / control.count)
    error = sum(parts)
    count = treated.count + control.count
    if error == 0:  # no spread at all: the statistic is 0 / 0, or infinite
        return FixedHorizon(Estimate(value, value, value, count), float(value == 0))
    degrees = error**2 / (parts[0] ** 2 / (treated.count - 1) + parts[1] ** 2 / (control.count - 1))
    scale = math.sqrt(error)
    width = float(stats.t.ppf(1 - alpha / 2, degrees)) * scale
    p_value = 2 * float(stats.t.sf(abs(value) / scale, degrees))
    return FixedHorizon(Estimate(value, value - width, value + width, count), p_value)


def proportion_size(
    rate: float, difference: float, *, power: float = 0.8, alpha: float = 0.05, share: float = 0.5
) -> int:
    """Observations of both groups together that the z-test of two proportions needs.

    Parameters
    ----------
    rate
        Of control, in (0, 1).
    difference
        Treated minus control, the smallest worth having; not 0, ``rate + difference`` in (0, 1).
    power
        In (0, 1): the probability to find it.
    alpha
        In (0, 1), two-sided.
    share
        Of the treated, in (0, 1).

    Raises
    ------
    InvalidInput
        If an argument is out of its range.

    Examples
    --------
    >>> proportion_size(0.5, 0.025)
    12549
    """
    _rates(rate, difference)
    _plan(power, alpha, share)
    treated = samplesize_proportions_2indep_onetail(
        difference, rate, power, ratio=(1 - share) / share, alpha=alpha
    )
    return math.ceil(float(treated) / share)


def proportion_power(
    rate: float, difference: float, size: int, *, alpha: float = 0.05, share: float = 0.5
) -> float:
    """The probability that the z-test of two proportions finds a difference.

    Parameters
    ----------
    size
        Observations of both groups together, 2 or more.
    rate, difference, alpha, share
        As in `proportion_size`, which refuses the same.

    Examples
    --------
    >>> round(proportion_power(0.5, 0.025, 12549), 3)
    0.8
    """
    _rates(rate, difference)
    _plan(0.5, alpha, share)
    found = power_proportions_2indep(
        difference, rate, size * share, ratio=(1 - share) / share, alpha=alpha
    )
    return float(found.power)


def mean_size(
    difference: float,
    deviation: float,
    *,
    power: float = 0.8,
    alpha: float = 0.05,
    share: float = 0.5,
) -> int:
    """Observations of both groups together that a t-test of two means needs.

    Parameters
    ----------
    difference
        The smallest worth having, not 0.
    deviation
        Standard deviation of an observation, above 0, in the same unit.
    power, alpha, share
        As in `proportion_size`.

    Raises
    ------
    InvalidInput
        If an argument is out of its range.

    Examples
    --------
    >>> mean_size(0.5, 1.0)
    128
    """
    _effect(difference, deviation)
    _plan(power, alpha, share)
    treated = TTestIndPower().solve_power(
        effect_size=abs(difference) / deviation,
        power=power,
        alpha=alpha,
        ratio=(1 - share) / share,
    )
    return math.ceil(float(treated) / share)


def mean_power(
    difference: float, deviation: float, size: int, *, alpha: float = 0.05, share: float = 0.5
) -> float:
    """The probability that a t-test of two means finds a difference.

    Parameters
    ----------
    size
        Observations of both groups together, 4 or more.
    difference, deviation, alpha, share
        As in `mean_size`, which refuses the same.

    Examples
    --------
    >>> round(mean_power(0.5, 1.0, 128), 3)
    0.801
    """
    _effect(difference, deviation)
    _plan(0.5, alpha, share)
    return float(
        TTestIndPower().power(
            abs(difference) / deviation, size * share, alpha, ratio=(1 - share) / share
        )
    )


def _level(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise InvalidInput(name, value, "a probability in (0, 1)")


def _plan(power: float, alpha: float, share: float) -> None:
    _level("power", power)
    _level("alpha", alpha)
    _level("share", share)


def _rates(rate: float, difference: float) -> None:
    _level("rate", rate)
    if difference == 0 or not 0 < rate + difference < 1:
        raise InvalidInput("difference", difference, "not 0, and rate + difference in (0, 1)")


def _effect(difference: float, deviation: float) -> None:
    if difference == 0 or not math.isfinite(difference):
        raise InvalidInput("difference", difference, "a number other than 0")
    if not deviation > 0:
        raise InvalidInput("deviation", deviation, "a standard deviation above 0")
