r"""Means and differences from rows whose allocation followed the outcomes (Thompson, contextual).

The plain mean of a variant's rows is biased there: a variant that began unluckily is drawn less,
so its bad luck is never made up for; and a contextual policy sends each variant the requests that
suit it. Weighting a row by the inverse of the propensity with which its variant was drawn undoes
both. The mean of variant a is that of the pseudo-outcomes

.. math::
    \varphi_i(a) = \hat\mu_{i-1}(a) + \frac{1[A_i = a]}{p_i} \bigl(y_i - \hat\mu_{i-1}(a)\bigr)

with :math:`\hat\mu_{i-1}(a)` from strictly earlier rows (AIPW), or 0 (IPW). Given the past, each
has as expectation what variant a would have brought at that row.

What holds: the intervals may be looked at after every row and cover the mean, over all rows so far,
of what the variant would have brought (of the difference: of what one would have brought more than
the other), whatever the allocation learned and although contexts or variants drift. What does not:
rows must not share a draw (users who stay with one variant), propensities must be the recorded ones
and not below a floor fixed beforehand, and rows may only be left out for reasons that have nothing
to do with the variant. A low floor makes wide intervals: at 1 % a row can weigh a hundred.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from optimizer.confidence import BEST_AT, ENOUGH, Estimate, half_width
from optimizer.errors import InvalidInput
from optimizer.experiments.pseudo_rows import pseudo_rows
from optimizer.records import Vector

__all__ = ["adaptive_difference", "adaptive_mean", "pseudo_outcomes"]

Indices = npt.NDArray[np.integer]


def pseudo_outcomes(
    outcome: Vector, drawn: Indices, propensity: Vector, variant: int, *, augmented: bool = True
) -> Vector:
    """Shape (n,): for each row an unbiased guess at what ``variant`` would have brought.

    Parameters
    ----------
    outcome
        Shape (n,), finite, in time order.
    drawn
        Shape (n,): the variant of each row.
    propensity
        Shape (n,), in (0, 1]: the probability with which that variant was drawn.
    augmented
        AIPW; else IPW, which varies more wherever outcomes are far from 0.

    Raises
    ------
    InvalidInput
        If lengths differ, an outcome is not finite or a propensity is not in (0, 1].

    References
    ----------
    Hadad, Hirshberg, Zhan, Wager, Athey: Confidence intervals for policy evaluation in adaptive
    experiments, PNAS 118 (2021).

    Examples
    --------
    >>> drawn, propensity = np.array([0, 0, 1]), np.array([0.5, 0.8, 0.2])
    >>> pseudo_outcomes(np.array([1.0, 0.0, 1.0]), drawn, propensity, 0).round(6).tolist()
    [2.0, -0.25, 0.615385]
    """
    if not outcome.shape == drawn.shape == propensity.shape:
        raise InvalidInput("drawn", drawn.shape, f"a variant and a propensity for {outcome.shape}")
    if not np.isfinite(outcome).all():
        raise InvalidInput("outcome", "not finite", "leave out rows whose outcome is not known")
    if not ((propensity > 0) & (propensity <= 1)).all():
        raise InvalidInput("propensity", "out of range", "recorded probabilities in (0, 1]")
    weight = np.where(drawn == variant, 1.0 / propensity, 0.0)
    if not augmented:
        return np.asarray(weight * outcome)
    total, weights = (weight * outcome).cumsum(), weight.cumsum()
    known = np.divide(total, weights, out=np.zeros_like(total), where=weights > 0)
    before = np.concatenate(([0.0], known[:-1]))
    return np.asarray(before + weight * (outcome - before))


def adaptive_mean(
    outcome: Vector,
    drawn: Indices,
    propensity: Vector,
    variant: int,
    *,
    floor: float,
    alpha: float = 0.05,
    span: float | None = None,
    best_at: float = BEST_AT,
) -> Estimate:
    """What a variant would have brought on all rows so far, valid at any time.

    Parameters
    ----------
    outcome, drawn, propensity, variant
        As in `pseudo_outcomes`, which refuses the same.
    floor
        In (0, 1]: the least propensity that the allocation may give, fixed beforehand.
    alpha
        In (0, 1): the probability that the sequence of intervals ever misses.
    span
        Width of the range an outcome can lie in (1 for a quality), above 0; what the outcomes
        spanned so far if None.
    best_at
        Rows at which the interval is tightest, above 0; fixed before the first look.

    Returns
    -------
    No interval while the variant has fewer than `ENOUGH` rows; no value while it has none.

    Examples
    --------
    >>> random = np.random.default_rng(1)
    >>> drawn = (random.random(2000) < 0.9).astype(int)
    >>> outcome = (random.random(2000) < np.where(drawn == 1, 0.7, 0.5)) * 1.0
    >>> propensity = np.where(drawn == 1, 0.9, 0.1)
    >>> found = adaptive_mean(outcome, drawn, propensity, 0, floor=0.1, span=1.0)
    >>> found.low < 0.5 < found.high
    True
    """
    return _estimate(outcome, drawn, propensity, (variant,), floor, alpha, span, best_at)


def adaptive_difference(
    outcome: Vector,
    drawn: Indices,
    propensity: Vector,
    treated: int,
    control: int,
    *,
    floor: float,
    alpha: float = 0.05,
    span: float | None = None,
    best_at: float = BEST_AT,
) -> Estimate:
    """How much more ``treated`` would have brought than ``control``, valid at any time.

    Parameters
    ----------
    treated, control
        Two variants.
    outcome, drawn, propensity, floor, alpha, span, best_at
        As in `adaptive_mean`.

    Returns
    -------
    No interval while one of the two has fewer than `ENOUGH` rows; no value while one has none.

    Raises
    ------
    InvalidInput
        If an argument is out of its range.

    References
    ----------
    Waudby-Smith et al. 2024 (see `optimizer.confidence.half_width`), section 3.
    """
    if treated == control:
        raise InvalidInput("control", control, "another variant than treated")
    return _estimate(outcome, drawn, propensity, (treated, control), floor, alpha, span, best_at)


def _estimate(
    outcome: Vector,
    drawn: Indices,
    propensity: Vector,
    variants: tuple[int, ...],
    floor: float,
    alpha: float,
    span: float | None,
    best_at: float,
) -> Estimate:
    """Of the first variant, minus the second where there is one."""
    if not 0 < floor <= 1:
        raise InvalidInput("floor", floor, "a probability in (0, 1]")
    if propensity.size and propensity.min() < floor * (1 - 1e-9):
        raise InvalidInput("floor", floor, f"at most the least propensity, {propensity.min():.3g}")
    if span is not None and not span > 0:
        raise InvalidInput("span", span, "the width of a range, above 0, or None")
    parts = [pseudo_outcomes(outcome, drawn, propensity, variant) for variant in variants]
    rows = min(int((drawn == variant).sum()) for variant in variants)
    count = int(outcome.size)
    if not rows:
        return Estimate(None, None, None, count)
    pseudo = parts[0] - parts[1] if len(parts) > 1 else parts[0]
    value = float(pseudo.mean())
    if rows < ENOUGH:
        return Estimate(value, None, None, count)
    width_of_range = float(np.ptp(outcome)) if span is None else span
    prior = pseudo_rows(alpha) * (width_of_range / floor) ** 2
    variance = float(pseudo.var()) + prior / count
    width = float(half_width(float(count), variance, alpha, best_at))
    return Estimate(value, value - width, value + width, count)
