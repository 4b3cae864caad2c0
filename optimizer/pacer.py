r"""A dollar ceiling held request by request, hour by hour, with floors of quality.

A request goes to the arm with the highest :math:`q - p_t \, k c`, where :math:`p_t` is the price of
a dollar in its tier and :math:`k` what an arm really cost for each dollar that was expected. Every
few requests the prices are solved anew (`optimizer.dual_price`), so that the requests still to come
cost what is left of the ceiling: on a sample of the last requests of each tier, with the floor that
the rest of the period needs after what it has got so far.

A price only steers. What holds the ceiling is a reserve: an arm may be taken only if what it is
expected to cost still leaves enough to answer everything to come with the cheapest arm, and tiers
that are not critical have to leave what critical ones need for their floors, too.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from optimizer.dual_price import Frontier, Status, TierPrices, solve_prices
from optimizer.errors import InvalidInput
from optimizer.records import Matrix

__all__ = ["Pacer", "Tier"]

_SAMPLE = 512
"""Requests of each tier that prices are tried on."""

_SOLVE_EVERY = 32
"""Requests between two solutions; fewer at the start and at the end of a period."""

_MEMORY = 0.1
"""The rate of requests is that of the last tenth of the period."""

_AHEAD = 1.0
"""Standard errors of a Poisson count by which fewer requests are expected: what is spent too early
is taken back by the price, what is left at the end is lost."""

_RATIO_WEIGHT = 20.0
"""Mean requests of an arm after which its own costs count as much as what was expected of it."""

_RATIO_MEMORY = 1000.0
"""Requests of an arm after which what its costs were before counts for 1/e."""

_BIAS_WEIGHT = 200.0
"""The same for its quality, which differs more from request to request."""

_SHARE_WEIGHT = 100.0
"""Requests after which the shares of tiers that came count as much as those that were expected."""

_REPAY = 20.0
"""Requests over which a shortfall of quality is paid back at the end of a period."""

_REMEMBERED = (
    "seen",
    "expected",
    "paid",
    "ratio",
    "judged",
    "missed",
    "bias",
    "came",
    "answered",
    "got",
    "turn",
    "kept",
    "pending",
)

_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0


@dataclass(frozen=True, slots=True)
class Tier:
    """Requests that are treated alike.

    Attributes
    ----------
    value
        Of a point of quality, above 0.
    quality_floor
        Mean quality to keep in each period, in [0, 1].
    critical
        Whether its floor gives way last, and money is kept back for it.
    share
        Expected share of all requests, in [0, 1]; only the ratios of tiers matter.
    """

    value: float = 1.0
    quality_floor: float = 0.0
    critical: bool = False
    share: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.value) and self.value > 0):
            raise InvalidInput("tier.value", self.value, "finite and above 0")
        for name in ("quality_floor", "share"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidInput(f"tier.{name}", getattr(self, name), "in [0, 1]")


@dataclass(slots=True)
class _Period:
    """What is known of the period that runs."""

    ceiling_usd: float = 0.0
    spent_usd: float = 0.0
    rate: float = 0.0
    seen_at: float = 0.0
    requests: int = 0
    solve_at: int = 0


class Pacer:
    """Chooses arms so that a period costs its ceiling, and no more.

    Deterministic: the same calls give the same choices. The ceiling is passed by what one request
    costs more than was expected of it, at most; and by requests of the cheapest arm if even these
    cost more than was kept back for them.

    Parameters
    ----------
    arms
        How many there are, at least one.
    tiers
        By name, at least one.

    Attributes
    ----------
    prices
        Those of now, in the order of tiers; None before the first request.

    Examples
    --------
    >>> pacer = Pacer(2, {"all": Tier()})
    >>> pacer.start(ceiling_usd=0.5, requests=100)
    >>> [pacer.choose("all", [0.8, 0.9], [0.001, 0.02], at=0.0) for _ in range(6)]
    [0, 1, 0, 0, 1, 0]
    """

    def __init__(self, arms: int, tiers: Mapping[str, Tier]) -> None:
        if arms < 1:
            raise InvalidInput("arms", arms, "at least one")
        if not tiers:
            raise InvalidInput("tiers", {}, "at least one")
        self._tiers = dict(tiers)
        self._place = {name: index for index, name in enumerate(tiers)}
        count = len(tiers)
        self._quality = np.zeros((count, _SAMPLE, arms))
        self._cost = np.zeros((count, _SAMPLE, arms))
        self._seen = [0] * count
        self._expected = [0.0] * arms
        self._paid = [0.0] * arms
        self._ratio = [1.0] * arms
        self._judged = [0.0] * arms
        self._missed = [0.0] * arms
        self._bias = [0.0] * arms
        self._came = [0.0] * count
        self._answered = [0] * count
        self._got = [0.0] * count
        self._turn = 0
        self._pending: Sequence[float] = (0.0, 0.0)
        self._kept = [0.0] * count
        self._period = _Period()
        self.prices: TierPrices | None = None

    @property
    def spent_usd(self) -> float:
        """In this period."""
        return self._period.spent_usd

    @property
    def status(self) -> Status:
        """Whether money binds and floors hold, see `optimizer.dual_price`."""
        return self.prices.status if self.prices else "unbound"

    def start(self, ceiling_usd: float, requests: float) -> None:
        """Begin a period; what was learned of costs and requests stays.

        Parameters
        ----------
        ceiling_usd
            Above 0.
        requests
            That are expected in the period, above 0.
        """
        for name, amount in (("ceiling_usd", ceiling_usd), ("requests", requests)):
            if not (math.isfinite(amount) and amount > 0):
                raise InvalidInput(name, amount, "finite and above 0")
        self._period = _Period(ceiling_usd=ceiling_usd, rate=requests)
        self._answered = [0] * len(self._tiers)
        self._got = [0.0] * len(self._tiers)
        self._came = [0.5 * count for count in self._came]

    def choose(
        self, tier: str, quality: Sequence[float], cost_usd: Sequence[float], at: float
    ) -> int:
        """Index of the arm to take; each choice is followed by `pay`.

        Parameters
        ----------
        tier
            Of the request.
        quality, cost_usd
            What is expected of each arm.
        at
            Time in the period, in [0, 1]; never earlier than before.
        """
        now, place = self._period, self._place[tier]
        row = self._seen[place] % _SAMPLE
        self._quality[place, row], self._cost[place, row] = quality, cost_usd
        self._seen[place] += 1
        if now.requests >= now.solve_at or self.prices is None:
            self._solve(at)
        assert self.prices is not None
        self._turn += 1
        upper = self._turn * _GOLDEN % 1.0 < self.prices.upper_share
        price = (self.prices.upper if upper else self.prices.lower)[place]
        ratio, bias = self._ratio, self._bias
        free = now.ceiling_usd - now.spent_usd - self.to_come(at) * self._kept[place]
        best, best_score = -1, -math.inf
        cheapest, least = 0, math.inf
        for arm, usd in enumerate(cost_usd):
            usd *= ratio[arm]
            if usd < least:
                cheapest, least = arm, usd
            score = quality[arm] + bias[arm] - price * usd
            if score > best_score and usd <= free:
                best, best_score = arm, score
        taken = best if best >= 0 else cheapest
        self._pending = cost_usd[taken], quality[taken]
        return taken

    def to_come(self, at: float) -> float:
        """Requests that are still expected in this period, at its rate of late."""
        now = self._period
        faded = now.rate * math.exp(-max(at - now.seen_at, 0.0) / _MEMORY)
        return max(1.0 - at, 0.0) * faded

    def pay(self, tier: str, arm: int, cost_usd: float, quality: float | None, at: float) -> None:
        """Take note of what a request cost, and of its quality if that is known.

        Parameters
        ----------
        cost_usd
            0 or more.
        quality
            In [0, 1]; what was expected of it if the truth comes later; None to leave the price of
            the floor as it is.
        """
        now, place = self._period, self._place[tier]
        now.rate = now.rate * math.exp(-max(at - now.seen_at, 0.0) / _MEMORY) + 1.0 / _MEMORY
        now.seen_at = max(at, now.seen_at)
        now.spent_usd += cost_usd
        now.requests += 1
        self._came[place] += 1.0
        keep = 1.0 - 1.0 / _RATIO_MEMORY
        expected_usd, expected = self._pending
        self._answered[place] += 1
        self._got[place] += expected + self._bias[arm]
        if quality is not None:
            self._judged[arm] = keep * self._judged[arm] + 1.0
            self._missed[arm] = keep * self._missed[arm] + quality - expected
        self._expected[arm] = keep * self._expected[arm] + expected_usd
        self._paid[arm] = keep * self._paid[arm] + cost_usd

    def _solve(self, at: float) -> None:
        now = self._period
        to_come = self.to_come(at)
        near_an_end = 1 + min(now.requests, int(to_come)) // 8
        now.solve_at = now.requests + min(_SOLVE_EVERY, near_an_end)
        there = [place for place, seen in enumerate(self._seen) if seen]
        tiers = [one for place, one in enumerate(self._tiers.values()) if place in there]
        samples = [min(self._seen[place], _SAMPLE) for place in there]
        unit = np.mean([self._cost[p, :n].mean() for p, n in zip(there, samples, strict=True)])
        for arm in range(len(self._ratio)):
            prior = _RATIO_WEIGHT * np.mean(
                [self._cost[p, :n, arm].mean() for p, n in zip(there, samples, strict=True)]
            )
            if prior + self._expected[arm]:
                paid = prior + self._paid[arm]
                self._ratio[arm] = float(paid / (prior + self._expected[arm]))
            self._bias[arm] = self._missed[arm] / (_BIAS_WEIGHT + self._judged[arm])
        frontiers = [
            Frontier.of(
                self._quality[p, :n] + self._bias,
                self._cost[p, :n] * self._ratio,
                max(float(unit), 1e-12),
            )
            for p, n in zip(there, samples, strict=True)
        ]
        share = self._shares()[there]
        share /= share.sum()
        soon = max(to_come - _AHEAD * math.sqrt(to_come), 0.5)
        floors = [
            self._needed(place, tier, part * to_come)
            for place, tier, part in zip(there, tiers, share.tolist(), strict=True)
        ]
        found = solve_prices(
            frontiers,
            share.tolist(),
            [one.value for one in tiers],
            floors,
            [one.critical for one in tiers],
            (now.ceiling_usd - now.spent_usd) / soon,
        )
        self.prices = self._spread(found, there)
        cheapest = sum(
            part * float(one.cost_usd[-1]) for part, one in zip(share, frontiers, strict=True)
        )
        for_critical = sum(
            part * float(one.cost_usd[one.cap(floor)] - one.cost_usd[-1])
            for part, one, tier, floor in zip(share, frontiers, tiers, floors, strict=True)
            if tier.critical
        )
        self._kept = [
            cheapest + (0.0 if one.critical else for_critical) for one in self._tiers.values()
        ]

    def _shares(self) -> Matrix:
        """Of each tier among requests to come."""
        expected = np.array([one.share for one in self._tiers.values()])
        expected = expected / expected.sum() if expected.sum() else np.ones_like(expected)
        came: Matrix = np.array(self._came) + _SHARE_WEIGHT * expected
        came /= came.sum()
        return came

    def _needed(self, place: int, tier: Tier, to_come: float) -> float:
        """Mean quality of the requests to come with which the period keeps the floor."""
        if not tier.quality_floor:
            return 0.0
        short = tier.quality_floor * self._answered[place] - self._got[place]
        return min(max(tier.quality_floor + short / (to_come + _REPAY), 0.0), 1.0)

    def _spread(self, found: TierPrices, there: Sequence[int]) -> TierPrices:
        """The same for all tiers; one without any request yet takes the price of the first."""
        upper = [found.upper[0]] * len(self._tiers)
        lower = [found.lower[0]] * len(self._tiers)
        for position, place in enumerate(there):
            upper[place], lower[place] = found.upper[position], found.lower[position]
        return TierPrices(tuple(upper), tuple(lower), found.upper_share, found.status)

    def state(self) -> dict[str, Any]:
        """Everything that is remembered, as JSON can hold it."""
        kept = {name: getattr(self, f"_{name}") for name in _REMEMBERED}
        return copy.deepcopy(kept) | {
            "quality": self._quality.tolist(),
            "cost": self._cost.tolist(),
            "period": asdict(self._period),
            "prices": asdict(self.prices) if self.prices else None,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take what `state` gave, of the same arms and tiers."""
        content = copy.deepcopy(dict(state))
        self._quality = np.array(content.pop("quality"))
        self._cost = np.array(content.pop("cost"))
        self._period = _Period(**content.pop("period"))
        prices = content.pop("prices")
        if prices is not None:
            prices |= {name: tuple(prices[name]) for name in ("upper", "lower")}
        self.prices = TierPrices(**prices) if prices else None
        for name in _REMEMBERED:
            setattr(self, f"_{name}", content[name])
