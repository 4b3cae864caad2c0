"""Widths of forecast intervals that adapt to how often the last ones missed.

A quantile of past errors covers what it says only while errors to come are like those. Traffic
changes, and the errors of neighbouring origins a day ahead are nearly the same error. So the level
of the quantile is moved after each interval whose truth became known: down a little when it
covered, up when it missed (adaptive conformal inference).
"""

from __future__ import annotations

import math

import numpy as np

from optimizer.records import Matrix, Vector

__all__ = ["STEP", "interval_widths"]

STEP = 0.02
"""How far one hit or miss moves the level. Gibbs and Candès use 0.005, for thousands of steps; this
was the best of .005, .02 and .05 on recorded traffic before the days that benchmarks judge."""


def interval_widths(pairs: Matrix, hours: int, level: float = 0.9, step: float = STEP) -> Vector:
    """Half the widths of intervals for log(1 + rate), of each origin by what was known there.

    The quantile that is asked of the errors begins at ``level``, and each interval whose truth
    becomes known adds ``step (missed - (1 - level))``, where ``missed`` is 0 or 1. So over many
    origins the share of misses nears ``1 - level``, whatever the errors do, as long as wider
    intervals are to be had; the more slowly the later truths are known.

    Parameters
    ----------
    pairs
        Shape (n, 2): forecast and truth, 0 or more, an origin each hour, oldest first.
    hours
        How many hours after its origin a truth is known, 1 or more.
    level
        Share of cases to cover, in (0, 1).
    step
        0 keeps the level: split conformal intervals (Vovk et al., 2005).

    Returns
    -------
    Shape (n + hours,), the last one for an origin now. Infinite until there are as many errors as
    ``level`` needs; never more than the largest error so far once there are.

    References
    ----------
    Gibbs and Candès (2021), Adaptive conformal inference under distribution shift.

    Examples
    --------
    >>> told = np.array([[0.0, np.expm1(error)] for error in (0.1, 0.2, 0.3, 0.4)])
    >>> interval_widths(told, hours=1, level=0.5, step=0.0).round(3).tolist()
    [inf, 0.1, 0.2, 0.2, 0.3]
    """
    said, came = np.log1p(pairs).T
    errors = np.abs(said - came)
    widths = np.full(len(pairs) + hours, math.inf)
    asked = level
    for origin in range(hours, len(widths)):
        told = origin - hours
        if math.isfinite(widths[told]):
            asked += step * (float(errors[told] > widths[told]) - (1.0 - level))
        known = np.sort(errors[: told + 1])
        if math.ceil((len(known) + 1) * level) <= len(known):
            rank = math.ceil((len(known) + 1) * asked)
            widths[origin] = known[min(max(rank, 1), len(known)) - 1]
    return widths
