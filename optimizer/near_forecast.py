"""The next three hours in steps of ten minutes, for whoever must ask for capacity ahead of load.

A forecast that is made once an hour grows old within it. What has been measured since corrects it:
of the deviation (on the scale of log(1 + rate)) of what is measured now, the share `persistence` is
expected to be still there a lead time later. That share is the least-squares slope, over the
backtest, of the deviation then on the deviation now. What is left over gives the margin: its
one-sided split-conformal quantile (Vovk et al., 2005).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from optimizer.errors import InvalidInput
from optimizer.records import Matrix, Vector

__all__ = ["NEAR_STEPS", "STEP_S", "NearForecast", "near_forecast"]

STEP_S = 600.0
NEAR_STEPS = 18
"""Three hours: an hourly forecast that is missed once still reaches beyond any lead time."""

_STEPS_AN_HOUR = int(3600 / STEP_S)
_LEAST_ERRORS = 100


@dataclass(frozen=True, slots=True)
class NearForecast:
    """Rates step by step, and how far to trust them.

    Attributes
    ----------
    rates
        Requests a second, means over ten minutes, from the moment of the forecast on;
        `NEAR_STEPS` of them.
    persistence
        Share of a deviation of log(1 + rate) that is still there `lead_s` later, in [0, 1].
    margin
        What is added to log(1 + rate) to cover `level` of cases `lead_s` ahead, 0 or more.
    lead_s, level
        What the two were made for: seconds, and a share in (0, 1).
    """

    rates: tuple[float, ...]
    persistence: float
    margin: float
    lead_s: float
    level: float


def near_forecast(
    rates: Vector,
    tested: Sequence[tuple[Vector, Vector]],
    lead_s: float = STEP_S,
    level: float = 0.95,
) -> NearForecast | None:
    """Attach persistence and margin to a forecast.

    Parameters
    ----------
    rates
        The forecast, shape (n,), n at least `NEAR_STEPS`.
    tested
        Of each hour of a backtest: what was forecast then, and what came; the latter may be
        shorter where the truth is not known yet.
    lead_s
        How much earlier capacity is asked for, in (0, 3600]; rounded up to whole ten minutes.
    level
        Share of cases that rate and margin together are to cover, in (0, 1).

    Returns
    -------
    None where there are too few errors to say anything.

    Raises
    ------
    InvalidInput
        Naming what is out of range.

    Examples
    --------
    >>> flat = np.full(18, 5.0)
    >>> made = near_forecast(flat, [(flat, flat)] * 30)
    >>> made.rates[:2], made.margin
    ((5.0, 5.0), 0.0)
    """
    if not 0 < lead_s <= 3600:
        raise InvalidInput("lead_s", lead_s, "seconds above 0, at most 3600")
    if not 0 < level < 1:
        raise InvalidInput("level", level, "a share between 0 and 1, such as 0.95")
    lead = math.ceil(lead_s / STEP_S)
    pairs = np.concatenate([_deviations(said, came, lead) for said, came in tested] or [_NONE])
    rank = math.ceil((len(pairs) + 1) * level)
    if len(pairs) < _LEAST_ERRORS or rank > len(pairs):
        return None
    now, later = pairs.T
    power = float(now @ now)
    persistence = min(max(float(now @ later) / power, 0.0), 1.0) if power else 0.0
    left = np.sort(later - persistence * now)
    return NearForecast(
        tuple(float(rate) for rate in rates[:NEAR_STEPS]),
        persistence,
        max(float(left[rank - 1]), 0.0),
        lead_s,
        level,
    )


_NONE: Matrix = np.empty((0, 2))


def _deviations(said: Vector, came: Vector, lead: int) -> Matrix:
    """Deviations now and a lead time later, for each step of the hour in which it is the newest."""
    known = min(len(came), _STEPS_AN_HOUR + lead)
    errors = np.log1p(came[:known]) - np.log1p(said[:known])
    return np.column_stack([errors[:-lead], errors[lead:]]) if known > lead else _NONE
