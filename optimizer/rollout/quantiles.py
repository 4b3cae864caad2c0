"""A quantile with an anytime-valid interval, from a histogram with logarithmic bins."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from scipy.special import betainc, betaincc, betaln

from optimizer.confidence import BEST_AT, Estimate
from optimizer.errors import InvalidInput
from optimizer.records import Vector

__all__ = ["bin_of", "nearest_rank", "quantile", "upper_tail_mean"]

_GROWTH = 1.02
_LOG_GROWTH = math.log(_GROWTH)
_LEAST = 1e-9
"""Smaller values (a cost or a latency of 0) share the lowest bin."""

_ROUNDING = 1e-9
"""In bins: a power of the growth falls below its own upper edge, whatever the logarithm rounds."""


def bin_of(value: float) -> int:
    """The bin of a value of 0 or more: bin b holds what is above 1.02^(b-1), up to 1.02^b."""
    return math.ceil(math.log(max(value, _LEAST)) / _LOG_GROWTH - _ROUNDING)


def nearest_rank(bins: Mapping[int, int], percent: int) -> float | None:
    """The value of rank ``ceil(percent / 100 * n)`` of n, by the middle of its bin: to 1 %.

    None of nothing. ``percent`` is in 1 to 100.

    Examples
    --------
    >>> round(nearest_rank({bin_of(1.0): 94, bin_of(3.0): 6}, 95), 1)
    3.0
    """
    left = -(-percent * sum(bins.values()) // 100)
    for index in sorted(bins):
        left -= bins[index]
        if left <= 0:
            return math.sqrt(_lower(index) * _upper(index))
    return None


def upper_tail_mean(bins: Mapping[int, int], share: float) -> float:
    """Mean of the largest values, that are ``share`` in (0, 1] of all and one at least.

    Each counts as its bin's upper edge. 0 of nothing.

    Examples
    --------
    >>> round(upper_tail_mean({bin_of(1.0): 98, bin_of(5.0): 1, bin_of(7.0): 1}, 0.02), 1)
    6.1
    """
    left = wanted = max(share * sum(bins.values()), 1.0)
    total = 0.0
    for index in sorted(bins, reverse=True):
        taken = min(left, bins[index])
        total += taken * _upper(index)
        left -= taken
        if left <= 0:
            break
    return total / wanted


def quantile(
    bins: Mapping[int, int], probability: float, alpha: float = 0.05, best_at: float = BEST_AT
) -> Estimate:
    r"""A quantile and its interval, which may be read at any time.

    Of n values, s at or below x. If :math:`P(X \le x) \ge p`, then with a Beta distribution
    :math:`\pi` of mean p, cut off to values below p,

    .. math:: \int \frac{\theta^s (1 - \theta)^{n - s}}{p^s (1 - p)^{n - s}} \, d\pi(\theta)

    is a supermartingale that starts at 1, and by Ville's inequality reaches :math:`2 / \alpha` at
    any time with probability :math:`\alpha / 2` at most. Where it does, x lies below the quantile.
    Cut off to values above p it refutes that x lies at or above it, likewise. Both hold at every
    size and for every distribution, with ties too. Bins make an end at most 2 % wider.

    Parameters
    ----------
    bins
        Counts, each 1 or more, by `bin_of`.
    probability
        Of the quantile, p, in (0, 1).
    alpha
        In (0, 1): the probability that the sequence of intervals ever misses.
    best_at
        The count at which it is about tightest, above 0, chosen before looking.

    Returns
    -------
    Each end is given as soon as the values say something of it: ``low`` or ``high`` may be None
    alone.

    References
    ----------
    Howard, Ramdas: Sequential estimation of quantiles with applications to A/B testing and
    best-arm identification, Bernoulli 28 (2022). The beta mixture is Robbins's (Annals of
    Mathematical Statistics 41, 1970).

    Examples
    --------
    >>> found = quantile({bin_of(value / 1000): 1 for value in range(1, 1001)}, 0.5)
    >>> found.low < found.value < found.high
    True
    """
    if not 0 < probability < 1:
        raise InvalidInput("probability", probability, "a probability in (0, 1)")
    if not 0 < alpha < 1:
        raise InvalidInput("alpha", alpha, "a probability in (0, 1)")
    if not best_at > 0:
        raise InvalidInput("best_at", best_at, "a count above 0")
    if not bins:
        return Estimate(None, None, None, 0)
    indices = sorted(bins)
    counts = np.array([bins[index] for index in indices], dtype=np.float64)
    reached = counts.cumsum()
    count = int(reached[-1])
    # The strength of the prior that stands for `best_at`, as in `confidence.half_width`.
    twice_log = -2.0 * math.log(alpha)
    strength = best_at / (twice_log + math.log(twice_log + 1.0))
    threshold = math.log(2.0 / alpha)
    # Below the first bin lies nothing; at and below each bin, what was counted up to it.
    at_or_below = np.concatenate([[0.0], reached])
    below = _log_wealth(at_or_below, count, probability, strength, lower=True) >= threshold
    above = _log_wealth(at_or_below, count, probability, strength, lower=False) >= threshold
    first_possible = int(below.sum())
    low = _lower(indices[first_possible - 1]) if first_possible else None
    high = _upper(indices[int(above.argmax()) - 1]) if above.any() else None
    middle = indices[int(np.searchsorted(reached, probability * count))]
    return Estimate(math.sqrt(_lower(middle) * _upper(middle)), low, high, count)


def _log_wealth(
    at_or_below: Vector, count: int, probability: float, strength: float, *, lower: bool
) -> Vector:
    """Shape of ``at_or_below``; monotone in it, so that refuted values lie side by side."""
    cut = betainc if lower else betaincc
    a, b = strength * probability, strength * (1.0 - probability)
    s, f = at_or_below, count - at_or_below
    with np.errstate(divide="ignore"):  # log(0): nothing on that side, nothing refuted
        mixed = betaln(a + s, b + f) + np.log(cut(a + s, b + f, probability))
    prior = betaln(a, b) + math.log(cut(a, b, probability))
    wealth: Vector = mixed - prior - s * math.log(probability) - f * math.log1p(-probability)
    return wealth


def _upper(index: int) -> float:
    value = math.exp(index * _LOG_GROWTH)
    return value if value > _LEAST * _GROWTH else 0.0


def _lower(index: int) -> float:
    return _upper(index - 1)
