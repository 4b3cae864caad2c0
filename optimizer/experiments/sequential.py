r"""Two groups compared at any time: look after every observation, stop when you like.

The test is the mixture sequential probability ratio test with a normal mixture, and its dual, the
asymptotic confidence sequence of `optimizer.confidence`. Both say the same: the interval of level
``alpha`` leaves 0 exactly when the e-value reaches ``1 / alpha``.

With :math:`z` the difference over its standard error and :math:`x = n \rho^2`,

.. math:: E = (1 + x)^{-1/2} \exp\Bigl(\frac{z^2}{2} \frac{x}{1 + x}\Bigr)

What has to be fixed before the first look is ``best_at``, the number of observations (both groups
together) at which the interval is tightest. Take the fixed-horizon size for the smallest effect
worth having (`optimizer.experiments.fixed_horizon`): an effect of that size is then found after
about as many observations as the fixed test needs, a larger one sooner.

The promise is an asymptotic one. Small groups are guarded by pseudo-rows at the far end of the
range (`optimizer.experiments.pseudo_rows`), as many as the level needs: give ``span`` wherever a
range is known, and ask for the level you act at, since a p-value far below it leans on tails that
were guarded for another. It holds for observations that are independent of each other (units, not
the requests of one unit) and for shares that stay as planned; where the allocation follows the
outcomes, use `optimizer.experiments.adaptive`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.special import log_ndtr

from optimizer.confidence import ENOUGH, Estimate, half_width
from optimizer.errors import InvalidInput
from optimizer.experiments.moments import Moments
from optimizer.experiments.pseudo_rows import pseudo_rows

__all__ = ["Comparison", "Exceedance", "compare", "exceeds", "lift"]

UNKNOWN_SPAN = 8.0
"""Standard deviations that stand for the width of a range nobody knows."""

_MOST = 690.0
"""An e-value beyond exp(690) is given as exp(690): JSON knows no infinity."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Of two means, valid at any time.

    Attributes
    ----------
    difference
        Treated minus control; no interval while a group has fewer than `ENOUGH` observations.
    p_value
        In (0, 1]; under the null the probability that it is ever at most ``a`` is at most ``a``.
    e_value
        0 or more: the evidence against equality, expected to be at most 1 under the null whenever
        one stops. 1 while there is no interval.
    """

    difference: Estimate
    p_value: float
    e_value: float


@dataclass(frozen=True, slots=True)
class Exceedance:
    """One-sided: how sure it is that one mean is above a multiple of another.

    Attributes
    ----------
    value
        The mean of the first minus the multiple of the second; None where a group is empty.
    low
        Lower end of its one-sided interval; None while a group is too small.
    p_value, e_value
        As in `Comparison`, against "not above".
    """

    value: float | None
    low: float | None
    p_value: float
    e_value: float


def compare(
    treated: Moments,
    control: Moments,
    *,
    alpha: float = 0.05,
    span: float | None,
    best_at: float,
) -> Comparison:
    """Whether two means differ, at any look.

    Parameters
    ----------
    treated, control
        Of the observations of each group so far.
    alpha
        In (0, 1): the probability that the sequence of intervals ever misses.
    span
        Width of the range an observation can lie in (1 for a quality or a rate), above 0; None if
        there is no such range.
    best_at
        Observations of both groups together at which the interval is tightest, above 0. Chosen
        before the first look and kept.

    Raises
    ------
    InvalidInput
        If ``alpha``, ``span`` or ``best_at`` is out of its range.

    References
    ----------
    Johari, Koomen, Pekelis, Walsh: Always valid inference, Operations Research 70 (2022);
    Waudby-Smith et al. 2024 (see `optimizer.confidence.half_width`).

    Examples
    --------
    >>> found = compare(Moments(2000, 1100, 1100), Moments(2000, 1000, 1000), span=1, best_at=4000)
    >>> round(found.difference.value, 3), round(found.difference.low, 4), round(found.p_value, 4)
    (0.05, 0.0019, 0.0358)
    """
    count, variance = _variance(treated, control, 1.0, span, alpha)
    width = float(half_width(max(count, 1.0), variance or 0.0, alpha, best_at))
    value = treated.mean - control.mean
    if variance is None:
        return Comparison(Estimate(_known(value), None, None, int(count)), 1.0, 1.0)
    scaled = _scaled(count, alpha, best_at)
    evidence = _standardised(value, variance / count) ** 2 * scaled / (1 + scaled)
    log_e = 0.5 * (evidence - math.log1p(scaled))
    return Comparison(Estimate(value, value - width, value + width, int(count)), *_p_and_e(log_e))


def exceeds(
    first: Moments,
    second: Moments,
    *,
    factor: float = 1.0,
    alpha: float = 0.05,
    span: float | None,
    best_at: float,
) -> Exceedance:
    r"""How sure it is, at any look, that ``first.mean > factor * second.mean``.

    The one test that guardrails need. With a limit of 5 % on the loss of quality,
    ``exceeds(treated, control, factor=0.95)`` shows that the limit is kept (non-inferiority) and
    ``exceeds(control, treated, factor=1 / 0.95)`` that it is broken; with a limit of 10 % on cost,
    ``exceeds(treated, control, factor=1.1)`` shows that it is broken.

    The mixture is the positive half of the normal one: with :math:`y^2 = z^2 x / (1 + x)` the
    e-value is :math:`2 (1 + x)^{-1/2} e^{y^2 / 2} \Phi(y)`. The lower end uses
    :math:`\Phi(y) \ge 1 - e^{-y^2 / 2} / 2`, which costs nothing that can be seen.

    Parameters
    ----------
    first, second
        Of the observations of each group so far.
    factor
        Above 0.
    alpha
        In (0, 0.5): the probability that the sequence of lower ends is ever above the truth.
    span, best_at
        As in `compare`.

    Raises
    ------
    InvalidInput
        If an argument is out of its range.

    References
    ----------
    Waudby-Smith et al. 2024 (see `optimizer.confidence.half_width`), Appendix B.

    Examples
    --------
    >>> better = exceeds(Moments(2000, 1100, 1100), Moments(2000, 1000, 1000), span=1, best_at=4000)
    >>> round(better.low, 4), round(better.p_value, 4)
    (0.0061, 0.0183)
    """
    if not 0 < alpha < 0.5:
        raise InvalidInput("alpha", alpha, "a probability in (0, 0.5)")
    if not factor > 0:
        raise InvalidInput("factor", factor, "a multiple above 0")
    count, variance = _variance(first, second, factor, span, alpha)
    value = first.mean - factor * second.mean
    scaled = _scaled(max(count, 1.0), 2 * alpha, best_at)
    if variance is None:
        return Exceedance(_known(value), None, 1.0, 1.0)
    error = variance / count
    root = _standardised(value, error) * math.sqrt(scaled / (1 + scaled))
    log_e = math.log(2) + 0.5 * (root * root - math.log1p(scaled)) + float(log_ndtr(root))
    needed = 2 * math.log(0.5 + math.sqrt(1 + scaled) / (2 * alpha))
    width = math.sqrt(error * (1 + scaled) / scaled * needed)
    return Exceedance(value, value - width, *_p_and_e(log_e))


def lift(
    treated: Moments,
    control: Moments,
    *,
    alpha: float = 0.05,
    span: float | None,
    best_at: float,
) -> Estimate:
    """The relative difference ``treated / control - 1`` and its interval, valid at any time.

    The interval is the set of all ``r`` for which that of ``treated - (1 + r) control`` contains 0
    (Fieller 1954, with the anytime-valid width for the quantile).

    Parameters
    ----------
    treated, control, alpha, span, best_at
        As in `compare`; the mean of control above 0, such as a cost or a rate.

    Returns
    -------
    No interval while a group is too small, nor while the mean of control can't be told from 0; no
    value where that mean is not above 0.

    Examples
    --------
    >>> found = lift(Moments(2000, 1100, 1100), Moments(2000, 1000, 1000), span=1, best_at=4000)
    >>> round(found.value, 3), round(found.low, 3), round(found.high, 3)
    (0.1, 0.004, 0.207)
    """
    count, variance = _variance(treated, control, 1.0, span, alpha)
    unit = float(half_width(max(count, 1.0), 1.0, alpha, best_at)) ** 2 * count
    if not control.mean > 0 or not treated.count:
        return Estimate(None, None, None, int(count))
    value = treated.mean / control.mean - 1.0
    if variance is None:
        return Estimate(value, None, None, int(count))
    added = pseudo_rows(alpha) * _range_squared(treated, control, span)
    of_treated = unit * _error(treated, added)
    of_control = unit * _error(control, added)
    square = control.mean**2 - of_control
    if square <= 0:
        return Estimate(value, None, None, int(count))
    product = treated.mean * control.mean
    constant = treated.mean**2 - of_treated
    spread = math.sqrt(max(product**2 - square * constant, 0.0))
    low, high = (product - spread) / square, (product + spread) / square
    return Estimate(value, low - 1.0, high - 1.0, int(count))


def _variance(
    first: Moments,
    second: Moments,
    factor: float,
    span: float | None,
    alpha: float,
) -> tuple[float, float | None]:
    """Count of both, and that count times the squared standard error; None of too few."""
    if span is not None and not span > 0:
        raise InvalidInput("span", span, "the width of a range, above 0, or None")
    count = float(first.count + second.count)
    if min(first.count, second.count) < ENOUGH:
        return count, None
    added = pseudo_rows(alpha) * _range_squared(first, second, span)
    return count, count * (_error(first, added) + factor**2 * _error(second, added))


def _error(group: Moments, added: float) -> float:
    """The squared standard error of a mean, with ``added`` squares in the group."""
    return (group.variance + added / group.count) / group.count


def _range_squared(first: Moments, second: Moments, span: float | None) -> float:
    if span is not None:
        return span * span
    return UNKNOWN_SPAN**2 * first.merge(second).variance


def _scaled(count: float, alpha: float, best_at: float) -> float:
    """The ``x`` of `half_width`, from its own formula: its square is linear in 1 / x."""
    twice_log = -2.0 * math.log(alpha)
    if not best_at > 0:
        raise InvalidInput("best_at", best_at, "a count above 0")
    return count * (twice_log + math.log(twice_log + 1.0)) / best_at


def _standardised(value: float, error: float) -> float:
    """All observations alike, in both groups: no evidence of anything."""
    return value / math.sqrt(error) if error > 0 else 0.0


def _p_and_e(log_e: float) -> tuple[float, float]:
    return math.exp(-min(max(log_e, 0.0), _MOST)), math.exp(min(log_e, _MOST))


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
