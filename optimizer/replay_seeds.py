"""Several passes that differ by their seed: means, intervals and curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

from optimizer.records import Vector

__all__ = ["COVERS", "Curve", "Interval", "interval", "over_seeds", "regret_curve"]

_LEVEL = 0.95
COVERS = (
    "95 % Student t intervals of the mean over seeds (orders, draws, delays and losses of rewards) "
    "on these recorded requests; other requests are not covered"
)

_MEASURES = (
    "quality",
    "cost_usd",
    "latency_s",
    "reward",
    "regret",
    "regret_share",
    "last_third",
    "change",
    "spent_usd",
    "quality_share",
    "saving",
    "floor_violation_rate",
    "mix_saving",
    "net_value_usd",
)
"""Of the object of a pass: what gets an interval."""

_POINTS = 400


@dataclass(frozen=True)
class Interval:
    """A mean, and the ends of its interval; both None where one number is all there is."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Curve:
    """Cumulative regret after so many requests: mean over seeds, and the ends of its intervals."""

    requests: list[int]
    mean: list[float]
    low: list[float] | None
    high: list[float] | None


def interval(values: Sequence[float]) -> Interval:
    """Mean of independent repetitions and its 95 % interval by Student's t.

    Parameters
    ----------
    values
        At least one.

    Examples
    --------
    >>> interval([1.0, 2.0, 3.0]).low is None, round(interval([1.0, 2.0, 3.0]).high, 3)
    (False, 4.484)
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, None, None)
    half = _t(len(values)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def over_seeds(passes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The object of several passes of one policy: every number its mean, and ``seeds``.

    Parameters
    ----------
    passes
        Objects of `optimizer.replay_summary.summary`, in the order of their seeds.

    Returns
    -------
    The keys of a pass, ``seed`` that of the first, and ``seeds`` with ``first``, ``count``,
    ``covers`` and, for each measure, ``mean``, ``low`` and ``high``.
    """
    joined: dict[str, Any] = _joined(passes)
    measures = {name: _intervals([one[name] for one in passes]) for name in _measures(passes[0])}
    return {
        **joined,
        "requests": passes[0]["requests"],
        "seed": passes[0]["seed"],
        "seeds": {
            "first": passes[0]["seed"],
            "count": len(passes),
            "covers": COVERS,
            **measures,
        },
    }


def regret_curve(regrets: Sequence[Vector]) -> Curve:
    """Curve of the cumulative regret, at no more than 400 points.

    Parameters
    ----------
    regrets
        Of each seed, shape (n,), in the order of the pass.
    """
    paths = np.cumsum(np.array(regrets), axis=1)
    steps = np.unique(np.linspace(0, paths.shape[1] - 1, _POINTS).astype(np.int64))
    paths = paths[:, steps]
    requests, mean = (steps + 1).tolist(), paths.mean(axis=0)
    if len(paths) < 2:
        return Curve(requests, mean.tolist(), None, None)
    half = _t(len(paths)) * paths.std(axis=0, ddof=1) / math.sqrt(len(paths))
    return Curve(requests, mean.tolist(), (mean - half).tolist(), (mean + half).tolist())


def _t(count: int) -> float:
    return float(stdtrit(count - 1, (1 + _LEVEL) / 2))


def _measures(one: dict[str, Any]) -> list[str]:
    return [name for name in _MEASURES if one.get(name) is not None]


def _joined(values: Sequence[Any]) -> Any:
    """Means of numbers, whatever holds them; texts that differ between seeds are all named."""
    first = values[0]
    if isinstance(first, dict):
        return {key: _joined([value[key] for value in values]) for key in first}
    if first is None or any(value is None for value in values):
        return None
    if isinstance(first, str):
        return " / ".join(dict.fromkeys(values))
    return sum(values) / len(values)


def _intervals(values: Sequence[Any]) -> Any:
    if isinstance(values[0], dict):
        return {
            key: _intervals([value[key] for value in values])
            for key in values[0]
            if values[0][key] is not None
        }
    found = interval(values)
    return {"mean": found.mean, "low": found.low, "high": found.high}
