r"""The price of a dollar at which requests to come cost what is left, with floors of quality.

A request of tier :math:`t` goes to the arm with the highest :math:`q - p_t c`. On a sample of its
requests each price of a ladder gives a mean quality and a mean cost; both fall as the price rises.
Without floors the best is one price for all, :math:`p_t = \lambda / w_t` (Lagrange, :math:`w_t` the
value of quality in the tier). A floor caps the price of its tier. So the whole problem is a walk
down one path of rungs, on which the mean cost only falls:

1. all floors hold, :math:`\lambda` rises;
2. the caps of tiers that are not critical give way;
3. those of critical tiers give way, too.

The answer is the first place on it that what is left pays for, between two rungs as a rule: a share
of requests follows the upper one. Solving this anew every few requests, with what was really spent,
is "re-solving" (Jasin and Kumar, "A Re-Solving Heuristic with Bounded Revenue Loss for Network
Revenue Management", Mathematics of Operations Research 2012), whose loss does not grow with the
number of requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from optimizer.records import Matrix, Vector

__all__ = ["Frontier", "Status", "TierPrices", "solve_prices"]

_RUNGS = np.concatenate([[0.0], np.geomspace(1e-3, 1e4, 71)])
"""Ten a decade, in units of (1 / mean cost): quality decides at the first, cost at the last."""

_REACH = 0.99
"""A floor that is out of reach costs no more than this share of the best quality does: the last
percent is dear, and mostly an error of prediction."""

Status = Literal["unbound", "floors hold", "floors give way", "critical floors give way"]
"""``unbound``: the best quality costs less than what is left. The floors that give way are those of
tiers that are not critical, unless it says otherwise."""

STATUSES: tuple[Status, ...] = ("floors hold", "floors give way", "critical floors give way")


@dataclass(frozen=True, slots=True)
class Frontier:
    """What each price gives in one tier.

    Attributes
    ----------
    prices
        Shape (rungs,), ascending, in 1/USD.
    quality, cost_usd
        Shape (rungs,): means of a request; both fall.
    """

    prices: Vector
    quality: Vector
    cost_usd: Vector

    @classmethod
    def of(cls, quality: Matrix, cost_usd: Matrix, unit_usd: float) -> Frontier:
        """From a sample of requests, both of shape (n, arms); ``unit_usd`` scales the ladder."""
        prices = _RUNGS / unit_usd
        ladder = prices[:, None]
        best = np.full((len(prices), len(quality)), -np.inf)
        best_quality, best_usd = np.zeros_like(best), np.zeros_like(best)
        for arm_quality, arm_usd in zip(quality.T, cost_usd.T, strict=True):
            score = arm_quality - ladder * arm_usd
            better = score > best
            np.copyto(best, score, where=better)
            np.copyto(best_quality, arm_quality, where=better)
            np.copyto(best_usd, arm_usd, where=better)
        return cls(prices, best_quality.mean(axis=1), best_usd.mean(axis=1))

    def cap(self, floor: float) -> int:
        """The highest rung that keeps a mean quality of ``floor``, if that is within reach."""
        kept = self.quality >= min(floor, _REACH * float(self.quality.max()))
        return int(np.flatnonzero(kept)[-1]) if floor > 0 else len(self.prices) - 1


@dataclass(frozen=True, slots=True)
class TierPrices:
    """Prices of each tier, 1/USD, and the share of requests that follows ``upper``."""

    upper: tuple[float, ...]
    lower: tuple[float, ...]
    upper_share: float
    status: Status


def solve_prices(
    frontiers: Sequence[Frontier],
    share: Sequence[float],
    value: Sequence[float],
    floor: Sequence[float],
    critical: Sequence[bool],
    mean_usd: float,
) -> TierPrices:
    """Prices at which a request of the mix costs ``mean_usd`` in the mean.

    Parameters
    ----------
    frontiers
        One for each tier, all on the same ladder.
    share
        Of requests to come, sum 1.
    value
        Of quality, above 0.
    floor
        Mean quality that requests to come need.
    critical
        Whose floors give way last.
    mean_usd
        What is left for each request to come.

    Examples
    --------
    >>> one = Frontier.of(np.array([[0.8, 0.9]]), np.array([[0.001, 0.02]]), 0.01)
    >>> found = solve_prices([one], [1.0], [1.0], [0.0], [False], 0.003)
    >>> round(found.upper_share, 3), found.lower[0] > 0.1 / 0.019 > found.upper[0]
    (0.105, True)
    """
    prices, last = frontiers[0].prices, len(frontiers[0].prices) - 1
    worth = np.asarray(value) / max(value)
    free = np.searchsorted(prices, prices[:, None] / worth * (1.0 - 1e-9))
    free = np.minimum(free, last)
    caps = np.array([one.cap(least) for one, least in zip(frontiers, floor, strict=True)])
    first = np.asarray(critical)
    rungs = np.concatenate(
        [
            np.minimum(free, caps),
            np.where(first, caps, np.maximum(free, caps)),
            np.where(first, np.maximum(free, caps), last),
        ]
    )
    cost = sum(
        part * one.cost_usd[rungs[:, tier]]
        for tier, (part, one) in enumerate(zip(share, frontiers, strict=True))
    )
    pays = cost <= mean_usd
    place = int(pays.argmax()) if pays.any() else len(cost) - 1
    lower = tuple(prices[rungs[place]].tolist())
    if place == 0:
        return TierPrices(lower, lower, 0.0, "unbound")
    dear, cheap = float(cost[place - 1]), float(cost[place])
    upper_share = (mean_usd - cheap) / (dear - cheap) if dear > mean_usd > cheap else 0.0
    upper = tuple(prices[rungs[place - 1]].tolist())
    return TierPrices(upper, lower, upper_share, STATUSES[place // (last + 1)])
