"""A day of load in steps of half a minute, and replicas that follow what was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from optimizer.forecasting import METHODS, STEPS_AN_HOUR, walk
from optimizer.near_forecast import NEAR_STEPS
from optimizer.records import Matrix, Vector

__all__ = ["STEP_S", "Hour", "ask", "hourly_walks", "load", "outcome", "ready"]

STEP_S = 30
_WINDOW_S = 600
_DAY = 24 * STEPS_AN_HOUR
_TESTED_H = 96


@dataclass(frozen=True)
class Hour:
    """What the flow would know at a full hour.

    Attributes
    ----------
    rates
        The forecast, shape (`NEAR_STEPS`,).
    tested
        As `near_forecast` takes it.
    """

    rates: Vector
    tested: Sequence[tuple[Vector, Vector]]


def load(rates: Vector, dispersion: float, seed: int) -> Vector:
    """Requests a second in each half minute.

    Straight lines between the middles of windows, and gamma noise whose variance is that of counts
    with this index of dispersion (variance of the count divided by its mean).

    Parameters
    ----------
    rates
        Means over ten minutes, shape (n,).
    """
    per_window = _WINDOW_S // STEP_S
    at = (np.arange(len(rates) * per_window) + 0.5) / per_window - 0.5
    path = np.interp(at, np.arange(len(rates)), rates)
    random = np.random.default_rng(seed)
    scale = dispersion / STEP_S
    return np.where(path > 0, random.gamma(np.maximum(path, 1e-9) / scale) * scale, 0.0)


def hourly_walks(rates: Vector, first_day: int) -> dict[int, Hour]:
    """Forecasts as the flow makes them each hour, from a day on, by hour since the start.

    The method is chosen, and parameters are estimated, once a day and not each hour, which would
    take hours; both from the past alone. The errors that margins are made of are renewed each hour.
    """
    hours = {}
    for day in range(first_day, len(rates) // _DAY):
        known = day * _DAY
        tested_h = min(_TESTED_H, (known - 2 * _DAY) // STEPS_AN_HOUR)
        walks = {name: walk(rates[: known + _DAY], name, tested_h + 24) for name in METHODS}
        method = min(METHODS, key=lambda name: _missed(walks[name][:tested_h]))
        for hour in range(24):
            origin = tested_h + hour
            hours[day * 24 + hour] = Hour(
                walks[method][origin][0][:NEAR_STEPS],
                [
                    (said, came[: (origin - before) * STEPS_AN_HOUR])
                    for before, (said, came) in enumerate(walks[method][:origin])
                ][-_TESTED_H:],
            )
    return hours


def ask(wanted: Matrix, holds_s: Vector) -> Matrix:
    """Replicas asked for, by Ray Serve's rule: up at once, down after a hold time without need.

    Parameters
    ----------
    wanted
        Replicas wanted at each step by each setting, shape (n, settings).
    holds_s
        Seconds, shape (settings,).
    """
    target, since = wanted[0].copy(), np.full(wanted.shape[1], np.inf)
    asked = np.empty_like(wanted)
    for step, now in enumerate(wanted):
        below = now < target
        since = np.where(below, np.minimum(since, step * STEP_S), np.inf)
        move = (now > target) | (below & (step * STEP_S - since >= holds_s))
        since[move] = np.inf
        target = np.where(move, now, target)
        asked[step] = target
    return asked


def ready(asked: Matrix, start_s: int) -> Matrix:
    """Replicas that serve: those that were asked for all the time of a start-up.

    Parameters
    ----------
    asked
        Shape (n, settings).
    start_s
        Seconds from asking for a replica to its first answer.
    """
    window = start_s // STEP_S + 1
    found: Matrix = pd.DataFrame(asked).rolling(window, min_periods=1).min().to_numpy()
    return found


def outcome(
    asked: Matrix, serving: Matrix, rates: Vector, per_replica: float
) -> tuple[Vector, Vector, Vector]:
    """Replica-hours, share of half minutes beyond capacity, share of requests beyond it.

    A replica is paid for from when it is asked for.

    Parameters
    ----------
    asked, serving
        Replicas at each step by each setting, shape (n, settings).
    rates
        The load, shape (n,).
    """
    beyond = np.maximum(rates[:, None] - serving * per_replica, 0.0)
    return (
        asked.sum(axis=0) * STEP_S / 3600.0,
        (beyond > 0).mean(axis=0),
        beyond.sum(axis=0) / rates.sum(),
    )


def _missed(walked: Sequence[tuple[Vector, Vector]]) -> float:
    return sum(
        abs(float(said[:STEPS_AN_HOUR].mean() - came[:STEPS_AN_HOUR].mean()))
        for said, came in walked
    )
