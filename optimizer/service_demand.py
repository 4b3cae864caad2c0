"""What decision points will need: requests expected each hour, and what arms give and cost."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

import pandas as pd

from optimizer.budget_plan import Demand, Option
from optimizer.budget_settings import ServiceBudget

__all__ = ["LEAST_ROWS", "arm_options", "demands_of", "hours_left", "requests_by_hour"]

LEAST_ROWS = 20
"""Outcomes of an arm with known quality and cost, below which a plan does not use it."""

_HOUR = timedelta(hours=1)
_LEAST_SEEN_H = 0.5


def arm_options(outcomes: pd.DataFrame) -> tuple[Option, ...]:
    """Mean quality and cost of each model, as if it answered every request.

    Rows are weighted by the inverse of their propensity and the sum of weights is 1 (the
    self-normalised estimate of Hajek), since a policy gives an arm the requests that suit it.

    Parameters
    ----------
    outcomes
        With columns model, role, propensity, quality, cost_usd; fallbacks are left out, since what
        they decide is not drawn.

    Returns
    -------
    By name, those with at least `LEAST_ROWS` complete outcomes.
    """
    known = outcomes[outcomes["role"] != "fallback"].dropna(subset=["quality", "cost_usd"])
    found = []
    for model, rows in known.groupby("model", sort=True):
        if len(rows) < LEAST_ROWS:
            continue
        weight = 1.0 / rows["propensity"]
        weight /= weight.sum()
        quality, cost = ((weight * rows[name]).sum() for name in ("quality", "cost_usd"))
        found.append(Option(str(model), min(max(float(quality), 0.0), 1.0), float(cost)))
    return tuple(found)


def requests_by_hour(decided_at: pd.Series[pd.Timestamp], end: datetime) -> dict[int, float]:
    """Requests expected in each hour of the day, UTC: the mean of the days that were seen.

    An hour of the day that was seen for less than half an hour is taken to be like the mean.

    Parameters
    ----------
    decided_at
        Times of past decisions, before ``end``.

    Examples
    --------
    >>> import pandas as pd
    >>> seen = pd.Series(pd.date_range("2026-01-01", "2026-01-03", freq="30min", tz="UTC")[:-1])
    >>> requests_by_hour(seen, datetime.fromisoformat("2026-01-03T00:00:00+00:00"))[7]
    2.0
    """
    if decided_at.empty:
        return {}
    first = decided_at.min().to_pydatetime()
    seen_h = dict.fromkeys(range(24), 0.0)
    for hour, share in hours_left(first, end):
        seen_h[hour.hour] += share - max(hour + _HOUR - end, timedelta()) / _HOUR
    mean = len(decided_at) / max((end - first) / _HOUR, 1.0)
    counts = decided_at.dt.hour.value_counts()
    return {
        hour: float(counts.get(hour, 0)) / seen if seen >= _LEAST_SEEN_H else mean
        for hour, seen in seen_h.items()
    }


def hours_left(at: datetime, end: datetime) -> Iterator[tuple[datetime, float]]:
    """The hours from ``at`` to ``end``, each with the share of it that is still to come."""
    hour = at.replace(minute=0, second=0, microsecond=0)
    while hour < end:
        share = 1.0 - max(at - hour, timedelta()) / _HOUR
        if share > 0:
            yield hour, share
        hour += _HOUR


def demands_of(
    service: str,
    outcomes: pd.DataFrame,
    at: datetime,
    end: datetime,
    promised: ServiceBudget,
) -> list[Demand]:
    """What a decision point needs in each hour from ``at`` to ``end``.

    Parameters
    ----------
    outcomes
        Of the past, before ``at``; see `arm_options` and `requests_by_hour`.
    promised
        Value, floor and cap; the cap of an hour that has begun shrinks with what is left of it.

    Returns
    -------
    Empty if no arm is known well enough, or no requests are expected.
    """
    options = arm_options(outcomes)
    expected = requests_by_hour(outcomes["decided_at"], at)
    if not options:
        return []
    return [
        Demand(
            service,
            expected[hour.hour] * share,
            options,
            promised.value,
            promised.quality_floor,
            promised.critical,
            None if promised.cap_usd is None else promised.cap_usd * share,
            hour.isoformat(timespec="minutes"),
        )
        for hour, share in hours_left(at, end)
        if expected.get(hour.hour, 0.0) > 0
    ]
