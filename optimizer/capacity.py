"""How much load there must be room for, by what is measured and what is expected.

The rule: room for the larger of the rate that is measured now and the rate that is expected at the
time when what is asked for now is ready,

    log(1 + expected) = log(1 + highest forecast until then)
                        + persistence * (log(1 + measured) - log(1 + forecast for now))
                        + margin.

So a rise that the forecast knows is met before it comes, a level that the forecast missed is
corrected by what is measured, and the headroom is as wide as the forecast has lately been wrong.
Without a forecast, with one that has run out, and where more than `KNOWN` times the forecast is
measured, so that it does not know this load (an outage that ends), what is measured decides alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from optimizer.errors import InvalidInput
from optimizer.near_forecast import STEP_S, NearForecast

__all__ = ["KNOWN", "Outlook", "outlook", "replicas_for", "required_rate"]

KNOWN = 3.0
"""Beyond this factor a deviation says nothing about how much of it stays."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What forecasts say of now and of a lead time ahead.

    Attributes
    ----------
    now, ahead
        Requests a second: for now, and the highest from now until a lead time ahead.
    persistence, margin
        As in `NearForecast`.
    """

    now: float
    ahead: float
    persistence: float
    margin: float


def outlook(forecasts: Sequence[tuple[float, NearForecast]], lead_s: float) -> Outlook | None:
    """Put together the forecasts of loads that share the same replicas.

    Rates add up. Persistence and margin are means weighted by rate: the margin of a sum is at most
    that (to first order), and is that where all deviate together.

    Parameters
    ----------
    forecasts
        Age in seconds, 0 or more, and forecast of each.
    lead_s
        How far ahead, 0 or more.

    Returns
    -------
    None if there is none, or one of them does not reach so far.

    Examples
    --------
    >>> rising = NearForecast(tuple(float(rate) for rate in range(10, 28)), 0.5, 0.1, 600.0, 0.95)
    >>> outlook([(60.0, rising)], 600.0)
    Outlook(now=10.0, ahead=11.0, persistence=0.5, margin=0.1)
    >>> outlook([(3 * 3600.0, rising)], 600.0) is None
    True
    """
    if not forecasts:
        return None
    seen = []
    for age_s, one in forecasts:
        first, last = (math.floor(at / STEP_S) for at in (age_s, age_s + lead_s))
        if first < 0 or last >= len(one.rates):
            return None
        seen.append(one.rates[first : last + 1])
    steps = max(map(len, seen))
    ahead = max(sum(rates[min(step, len(rates) - 1)] for rates in seen) for step in range(steps))
    now = sum(rates[0] for rates in seen)
    weights = [max(rates) for rates in seen]
    total = sum(weights)
    shares = [one / total if total else 1.0 / len(weights) for one in weights]
    parts = [(share, one) for share, (_, one) in zip(shares, forecasts, strict=True)]
    return Outlook(
        now,
        ahead,
        sum(share * one.persistence for share, one in parts),
        sum(share * one.margin for share, one in parts),
    )


def required_rate(measured: float, expected: Outlook | None) -> float:
    """The rate to have room for; see the module's rule.

    Parameters
    ----------
    measured
        Requests a second of all replicas now, 0 or more.
    expected
        What is forecast; None to go by what is measured alone.

    Examples
    --------
    >>> required_rate(10.0, None)
    10.0
    >>> round(required_rate(10.0, Outlook(10.0, 20.0, 1.0, 0.0)), 6)
    20.0
    >>> required_rate(30.0, Outlook(10.0, 20.0, 0.0, 0.0))
    30.0
    """
    if expected is None or 1.0 + measured > KNOWN * (1.0 + expected.now):
        return measured
    deviation = math.log1p(measured) - math.log1p(expected.now)
    later = math.log1p(expected.ahead) + expected.persistence * deviation + expected.margin
    return max(measured, math.expm1(later))


def replicas_for(rate: float, per_replica: float) -> int:
    """The fewest replicas, 1 or more, that have room for a rate.

    Parameters
    ----------
    rate
        Requests a second, 0 or more.
    per_replica
        Requests a second that one is to serve, above 0.

    Raises
    ------
    InvalidInput
        If ``per_replica`` is 0 or less.

    Examples
    --------
    >>> replicas_for(0.0, 100.0), replicas_for(100.0, 100.0), replicas_for(101.0, 100.0)
    (1, 1, 2)
    """
    if per_replica <= 0:
        raise InvalidInput("per_replica", per_replica, "requests a second above 0")
    return max(math.ceil(rate / per_replica), 1)
