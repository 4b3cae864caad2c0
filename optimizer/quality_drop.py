r"""Has the quality of arms dropped? A sequential test, read in the order in which decisions came.

Each row is a bet against "this arm is about as good as it was". For the quality :math:`y_t` in
[0, 1] of an arm whose mean was :math:`\mu`, and :math:`m = (1 - \tau) \mu`, the factor
:math:`1 + \lambda (m - y_t)` has an expectation of at most 1 as long as the arm loses no more than
the share :math:`\tau`, given the past. So it does not matter how arms were drawn: the policy may
learn from the same rows. What has to hold is that the expectation of an arm's quality does not
depend on which requests it gets; a policy that gives an arm harder requests makes it look worse.
"""

from __future__ import annotations

import msgspec
import numpy as np
from scipy.stats import norm

from optimizer.errors import InvalidInput
from optimizer.records import Indices, Vector

__all__ = ["QualityDrop", "find_drop"]

LEAST_ROWS = 200
"""Qualities of an arm in the reference before it is watched."""

_BETS = np.array([0.05, 0.1, 0.2, 0.4, 0.8])
"""The best bet is about drop / variance, which nobody knows beforehand: all are made at once. Below
1 no factor is negative."""


class QualityDrop(msgspec.Struct, frozen=True):
    """A drop that was found.

    Attributes
    ----------
    rows
        Rows of the window up to the alarm, 1 or more.
    begin
        Index of the row at which the evidence begins to grow: about when the drop began.
    before, after
        Mean quality that the arms drawn since then had in the reference, and what they had.
    """

    rows: int
    begin: int
    before: float
    after: float


def find_drop(
    reference: Vector,
    reference_arms: Indices,
    current: Vector,
    current_arms: Indices,
    tolerance: float,
    alpha: float,
) -> QualityDrop | None:
    """The first drop in a window, or None.

    Parameters
    ----------
    reference, current
        Qualities in [0, 1], shapes (n,) and (m,), the latter in time order.
    reference_arms, current_arms
        Which arm each is of, 0 or more; arms with fewer than `LEAST_ROWS` in the reference are
        left out.
    tolerance
        Relative loss that is borne, in (0, 1).
    alpha
        In (0, 1): probability of an alarm in this window where no arm loses more than that. By
        Doob's inequality, for any length: the sum of all bets begun so far, minus their number,
        is a supermartingale, so it passes ``m / alpha`` with a probability of at most ``alpha``.

    Raises
    ------
    InvalidInput
        If an argument is out of its range.

    References
    ----------
    Shin, Ramdas, Rinaldo: E-detectors: a nonparametric framework for sequential change detection,
    New England Journal of Statistics in Data Science 2 (2024): the Shiryaev-Roberts form.
    Waudby-Smith, Ramdas: Estimating means of bounded random variables by betting, JRSS B 86 (2024).

    Examples
    --------
    >>> random = np.random.default_rng(0)
    >>> one = np.zeros(5000, dtype=int)
    >>> before, same = random.random((2, 5000)) < 0.9
    >>> find_drop(before * 1.0, one, same * 1.0, one, 0.05, 0.01) is None
    True
    >>> worse = (random.random(5000) < 0.81) * 1.0
    >>> 500 < find_drop(before * 1.0, one, worse, one, 0.05, 0.01).rows < 3000
    True
    """
    for name, share in (("tolerance", tolerance), ("alpha", alpha)):
        if not 0 < share < 1:
            raise InvalidInput(name, share, "a share in (0, 1)")
    for values in (reference, current):
        if values.size and not (values.min() >= 0 and values.max() <= 1):
            raise InvalidInput("quality", float(values.max()), "qualities in [0, 1]")
    means, lows = _baselines(reference, reference_arms, int(current_arms.max(initial=0)) + 1, alpha)
    kept = np.flatnonzero(~np.isnan(lows[current_arms]))
    gains = (1.0 - tolerance) * lows[current_arms[kept]] - current[kept]
    factors = 1.0 + np.multiply.outer(gains, _BETS)
    limit = len(_BETS) * max(kept.size, 1) / alpha
    sums = np.zeros(len(_BETS))
    begin = np.zeros(len(_BETS), dtype=int)
    for row, factor in enumerate(factors):
        begin[sums < 1.0] = row
        sums = (sums + 1.0) * factor
        if sums.sum() >= limit:
            since = kept[begin[int(sums.argmax())] : row + 1]
            return QualityDrop(
                int(kept[row]) + 1,
                int(since[0]),
                float(means[current_arms[since]].mean()),
                float(current[since].mean()),
            )
    return None


def _baselines(values: Vector, arms: Indices, number: int, alpha: float) -> tuple[Vector, Vector]:
    """Mean of each arm and its lower confidence limit, NaN where there are too few rows."""
    number = max(number, int(arms.max(initial=0)) + 1)
    count = np.bincount(arms, minlength=number).astype(float)
    known = count >= LEAST_ROWS
    rows = np.where(known, count, np.nan)
    mean = np.bincount(arms, values, minlength=number) / rows
    square = np.bincount(arms, values**2, minlength=number) / rows
    error = np.sqrt(np.maximum(square - mean**2, 0.0) / rows)
    watched = max(int(known.sum()), 1)
    distance = float(norm.isf(alpha / watched))
    return mean, np.maximum(mean - distance * error, 0.0)
