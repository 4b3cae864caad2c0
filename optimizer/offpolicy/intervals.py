"""Confidence sequences of importance-weighted means.

Weighted outcomes have a long upper tail: one rare row may count three hundred times. A limit
theorem needs many such rows before it can be trusted. But a weighted outcome is never below 0, and
a *lower* confidence bound needs nothing else: `lower_bound` is exact at every size, whatever the
largest weight is, known or not. The upper end of something in [0, 1] is the lower end of its
complement. Where residuals of a model are weighted, no such floor is known: `asymptotic`.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import brentq
from scipy.special import logsumexp

from optimizer.confidence import ENOUGH, PSEUDO_ROWS, Estimate, half_width
from optimizer.errors import InvalidInput
from optimizer.records import Vector

__all__ = ["asymptotic", "complementary", "lower_bound"]

_BETS = np.geomspace(1e-4, 0.9, 32)
"""Bets that are mixed evenly. Every fixed bet gives a valid bound, so their mixture does; the grid
is so fine that the best bet of any sample is close to one of them."""

_COST = -np.log1p(-_BETS) - _BETS


def lower_bound(values: Vector, alpha: float, floor: float = 0.0, span: float = 1.0) -> float:
    r"""A lower bound of the running mean of conditional means, valid at every time at once.

    For values that never fall below a floor, a predictable guess :math:`g_i` of the next one, and
    :math:`y_i = (x_i - g_i) / s \ge -1`,

    .. math:: \exp\Big(\lambda \sum_i \frac{x_i - E_{i-1} x_i}{s}
              - (-\log(1 - \lambda) - \lambda) \sum_i y_i^2\Big)

    is a supermartingale for every bet :math:`\lambda \in [0, 1)` (Fan, Grama, Liu 2015). An even
    mixture over a grid of bets stays below :math:`1 / \alpha` for ever with probability
    :math:`1 - \alpha` (Ville), and the bound is where it crosses. Nothing is assumed of the upper
    tail, of the distribution, or that the conditional means stay the same.

    Parameters
    ----------
    values
        Shape (n,), finite, in time order, each ``floor`` or more.
    alpha
        In (0, 1): the probability that the sequence of bounds is ever above the truth.
    floor
        The least a value can be, known beforehand.
    span
        How far the mean may lie above the floor, above 0. Guesses are held to that; a mean beyond
        it costs tightness, not validity.

    Returns
    -------
    The bound; ``floor`` where the values can't say more.

    Raises
    ------
    InvalidInput
        If a value is below the floor or not finite, or an argument out of its range.

    References
    ----------
    Howard, Ramdas, McAuliffe, Sekhon: Time-uniform, nonparametric, nonasymptotic confidence
    sequences, Annals of Statistics 49 (2021). Waudby-Smith, Wu, Ramdas, Karampatziakis, Mineiro:
    Anytime-valid off-policy inference for contextual bandits, ACM/IMS J. Data Science 1 (2024).

    Examples
    --------
    >>> bound = lower_bound(np.tile([0.0, 1.0], 500), alpha=0.025)
    >>> 0.42 < bound < 0.5
    True
    """
    if not 0 < alpha < 1:
        raise InvalidInput("alpha", alpha, "a probability in (0, 1)")
    if not 0 < span < math.inf:
        raise InvalidInput("span", span, "a finite number above 0")
    if not (values >= floor).all() or not np.isfinite(values).all():
        raise InvalidInput("values", float(values.min()), f"finite and {floor} or more")
    count = values.size
    if count == 0:
        return floor
    before = np.concatenate([[0.0], values.cumsum()[:-1] - floor * np.arange(1, count)])
    guess = np.minimum(before / np.maximum(np.arange(count), 1), span)
    squares = float((((values - floor - guess) / span) ** 2).sum())
    total = float((values - floor).sum()) / span
    threshold = math.log(_BETS.size / alpha)

    def excess(mean: float) -> float:
        """Log wealth if the mean, in spans above the floor, were that; above 0 it is refuted."""
        wealth = _BETS * (total - count * mean) - _COST * squares
        return float(logsumexp(wealth)) - threshold

    if excess(0.0) <= 0:
        return floor
    crossing = float(brentq(excess, 0.0, total / count, xtol=1e-12))
    return floor + span * crossing


def complementary(
    value: float, values: Vector, complements: Vector, alpha: float, floor: float = 0.0
) -> Estimate:
    """An exact interval from two lower bounds: of something, and of what it lacks to its whole.

    Parameters
    ----------
    value
        The point estimate.
    values, complements
        Shape (n,), each ``floor`` or more; their conditional means sum to ``1 + floor`` at most.
    alpha
        In (0, 1): shared evenly by the two ends.
    floor
        The least of both, -1 or 0.

    Returns
    -------
    No interval below `optimizer.confidence.ENOUGH` rows.
    """
    if values.size < ENOUGH:
        return Estimate(value, None, None, values.size)
    whole = 1.0 + floor
    low = lower_bound(values, alpha / 2, floor)
    high = whole - lower_bound(complements, alpha / 2, floor)
    return Estimate(value, low, high, values.size)


def asymptotic(values: Vector, alpha: float, reach: float, least_variance: float = 0.0) -> Estimate:
    """The interval of `optimizer.confidence.mean`, made fit for weights.

    Parameters
    ----------
    values
        Shape (n,), finite, in time order.
    alpha
        In (0, 1): the probability that the sequence of intervals ever misses.
    reach
        How far a value may lie from the mean, 0 or more: the distance of the pseudo-rows.
    least_variance
        What is known of the variance beside the values; it counts where theirs is smaller.

    Returns
    -------
    No interval below `optimizer.confidence.ENOUGH` rows.
    """
    centre = float(values.mean())
    if values.size < ENOUGH:
        return Estimate(centre, None, None, values.size)
    variance = max(float(values.var()), least_variance) + PSEUDO_ROWS * reach**2 / values.size
    width = float(half_width(float(values.size), variance, alpha))
    return Estimate(centre, centre - width, centre + width, values.size)
