"""How many requests a second to expect, with intervals, and by which method.

Four methods forecast; the one that erred least over the recent past, at one hour, is taken. Each
origin of that backtest sees only what was known then. Intervals are made of its errors at the same
horizon, see `optimizer.forecast_intervals`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from optimizer.errors import InvalidInput
from optimizer.forecast_intervals import interval_widths
from optimizer.near_forecast import NearForecast, near_forecast
from optimizer.records import Matrix, Vector

__all__ = [
    "HORIZONS_H",
    "METHODS",
    "STEPS_AN_HOUR",
    "Forecast",
    "Forecasts",
    "backtest",
    "forecast",
    "steps",
    "walk",
]

STEPS_AN_HOUR = 6
"""Rates are means over ten minutes: within the hour there is more to see than in its mean."""

HORIZONS_H = (1, 6, 24)

METHODS = ("naive", "seasonal naive", "arima", "combined")
"""The last hour goes on; the same hours of yesterday come again; ARIMA of log(1 + rate); the mean
of that and of the last 20 minutes."""

_DAY = 24 * STEPS_AN_HOUR
_RECENT = 2
_AHEAD = HORIZONS_H[-1] * STEPS_AN_HOUR
_ORDERS = ((0, 1, 1), (1, 1, 1), (2, 1, 1), (2, 1, 2))
_ENOUGH = 2 * _DAY
"""Steps before the first origin of a backtest; with fewer nothing can be compared."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """The mean rate over the next hours.

    Attributes
    ----------
    hours
        One of `HORIZONS_H`.
    rate, low, high
        Requests a second, 0 or more; None where the past is too short for an interval.
    """

    hours: int
    rate: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Forecasts:
    """All horizons.

    Attributes
    ----------
    method
        One of `METHODS`.
    reason
        Why it was taken, a sentence for people.
    horizons
        One for each of `HORIZONS_H`.
    wape
        Error of each method at one hour over the backtest: sum of absolute errors divided by the
        sum of rates. Empty where the past is too short.
    near
        The next three hours step by step; None where the past is too short.
    """

    method: str
    reason: str
    horizons: tuple[Forecast, ...]
    wape: Mapping[str, float]
    near: NearForecast | None = None


class _Method(Protocol):
    def ahead(self) -> Vector:
        """Rates of the next `_AHEAD` steps, shape (_AHEAD,)."""

    def see(self, rates: Vector) -> None:
        """What came next."""


def forecast(
    rates: Vector,
    tested_h: int = 96,
    level: float = 0.9,
    lead_s: float = 600.0,
    lead_level: float = 0.95,
) -> Forecasts:
    """Forecast what follows.

    Parameters
    ----------
    rates
        Requests a second, means over ten minutes, oldest first, shape (n,), n at least 3.
    tested_h
        Hours of the past, the last, over which methods are compared; intervals are made of twice as
        many. Fewer where there are not so many.
    level
        Share of cases that intervals are to cover, in (0, 1).
    lead_s, lead_level
        What the margin of `Forecasts.near` is for, see `near_forecast`.

    Raises
    ------
    InvalidInput
        If a rate is below 0 or not finite, or there are too few.

    Examples
    --------
    >>> steady = forecast(np.full(400, 5.0))
    >>> steady.method, [round(one.rate, 6) for one in steady.horizons]
    ('naive', [5.0, 5.0, 5.0])
    """
    rates = np.asarray(rates, dtype=float)
    if len(rates) < 3 or not np.isfinite(rates).all() or (rates < 0).any():
        raise InvalidInput("rates", rates.tolist()[:5], "at least 3 finite numbers, none below 0")
    origins = min(2 * tested_h, (len(rates) - _ENOUGH) // STEPS_AN_HOUR)
    if origins < 24:
        ahead = _Naive(rates).ahead()
        reason = f"{len(rates) / _DAY:.1f} days are known, 3 are needed to compare methods"
        return Forecasts("naive", reason, _means(ahead, None, level), {})
    walks = {name: walk(rates, name, origins) for name in METHODS}
    tested = {name: _by_horizon(walked) for name, walked in walks.items()}
    wape = {name: _wape(found[1][-tested_h:]) for name, found in tested.items()}
    method = min(METHODS, key=lambda name: (wape[name], METHODS.index(name)))
    told = ", ".join(f"{name} {wape[name]:.3f}" for name in METHODS)
    reason = (
        f"least error an hour ahead over the last {min(origins, tested_h)} hours (WAPE): {told}"
    )
    ahead = _make(method, rates).ahead()
    near = near_forecast(ahead, walks[method], lead_s, lead_level)
    return Forecasts(method, reason, _means(ahead, tested[method], level), wape, near)


def backtest(rates: Vector, method: str, origins: int) -> dict[int, Matrix]:
    """What a method said at each of the last hours, and what came.

    Parameters of ARIMA are estimated once, before the first origin; from there it only sees.

    Parameters
    ----------
    rates
        As in `forecast`.
    method
        One of `METHODS`.
    origins
        How many hours back it starts.

    Returns
    -------
    By horizon in hours, shape (m, 2): forecast and truth of those origins whose truth is known.
    """
    return _by_horizon(walk(rates, method, origins))


def walk(rates: Vector, method: str, origins: int) -> list[tuple[Vector, Vector]]:
    """The same step by step: what was said at each of the last hours, and what came, where known.

    Parameters
    ----------
    rates, method, origins
        As in `backtest`.

    Returns
    -------
    Of each origin, oldest first, shapes (n,) and (m,), m at most n.
    """
    start = len(rates) - origins * STEPS_AN_HOUR
    model = _make(method, rates[:start])
    walked = []
    for origin in range(start, len(rates), STEPS_AN_HOUR):
        walked.append((model.ahead(), rates[origin : origin + _AHEAD]))
        model.see(rates[origin : origin + STEPS_AN_HOUR])
    return walked


def _by_horizon(walked: list[tuple[Vector, Vector]]) -> dict[int, Matrix]:
    found: dict[int, list[tuple[float, float]]] = {hours: [] for hours in HORIZONS_H}
    for said, came in walked:
        for hours, pairs in found.items():
            steps = hours * STEPS_AN_HOUR
            if steps <= len(came):
                pairs.append((float(said[:steps].mean()), float(came[:steps].mean())))
    return {hours: np.array(pairs).reshape(-1, 2) for hours, pairs in found.items()}


def steps(counts: Mapping[int, int], length: int) -> Vector:
    """Counts by step as a series that begins where traffic does; at least the last 3 steps."""
    first = min(min(counts, default=length), max(length - 3, 0))
    return np.array([float(counts.get(step, 0)) for step in range(first, length)])


def _wape(pairs: Matrix) -> float:
    said, came = pairs.T
    total = float(np.abs(came).sum())
    missed = float(np.abs(said - came).sum())
    return missed / total if total else 0.0 if not missed else math.inf


def _means(
    ahead: Vector, tested: Mapping[int, Matrix] | None, level: float
) -> tuple[Forecast, ...]:
    horizons = []
    for hours in HORIZONS_H:
        rate = float(ahead[: hours * STEPS_AN_HOUR].mean())
        width = math.inf if tested is None else interval_widths(tested[hours], hours, level)[-1]
        low = high = None
        if math.isfinite(width):
            low = max(math.expm1(math.log1p(rate) - width), 0.0)
            high = math.expm1(math.log1p(rate) + width)
        horizons.append(Forecast(hours, rate, low, high))
    return tuple(horizons)


def _make(method: str, rates: Vector) -> _Method:
    makers: dict[str, Callable[[Vector], _Method]] = {
        "naive": _Naive,
        "seasonal naive": _SeasonalNaive,
        "arima": _Arima,
        "combined": _Combined,
    }
    return makers[method](rates)


class _Naive:
    def __init__(self, rates: Vector, steps: int = STEPS_AN_HOUR) -> None:
        self._steps = steps
        self._recent = rates[-steps:]

    def ahead(self) -> Vector:
        return np.full(_AHEAD, self._recent.mean())

    def see(self, rates: Vector) -> None:
        self._recent = np.r_[self._recent, rates][-self._steps :]


class _SeasonalNaive:
    def __init__(self, rates: Vector) -> None:
        self._day = rates[-_DAY:]

    def ahead(self) -> Vector:
        return np.resize(self._day, _AHEAD)

    def see(self, rates: Vector) -> None:
        self._day = np.r_[self._day, rates][-_DAY:]


class _Arima:
    """Order by the corrected information criterion (Hurvich and Tsai, 1989)."""

    def __init__(self, rates: Vector) -> None:
        from statsmodels.tsa.arima.model import ARIMA  # takes a second to import

        logs = np.log1p(rates)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of starting values and convergence: AICc decides
            fitted = [ARIMA(logs, order=order, trend="n").fit() for order in _ORDERS]
        self._model: Any = min(fitted, key=lambda one: one.aicc)

    def ahead(self) -> Vector:
        ahead: Vector = np.maximum(np.expm1(self._model.forecast(_AHEAD)), 0.0)
        return ahead

    def see(self, rates: Vector) -> None:
        self._model = self._model.extend(np.log1p(rates))


class _Combined:
    def __init__(self, rates: Vector) -> None:
        self._parts: tuple[_Method, ...] = (_Arima(rates), _Naive(rates, _RECENT))

    def ahead(self) -> Vector:
        ahead: Vector = np.mean([part.ahead() for part in self._parts], axis=0)
        return ahead

    def see(self, rates: Vector) -> None:
        for part in self._parts:
            part.see(rates)
