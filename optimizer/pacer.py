r"""A dollar ceiling held request by request, hour by hour, with floors of quality.

A request goes to the arm with the highest :math:`w_t (1 + \nu_t) q - \lambda c`, where :math:`w_t`
is the value of quality in its tier. The price of a dollar :math:`\lambda` follows dual mirror
descent (Balseiro, Lu, Mirrokni, "The Best of Many Worlds: Dual Mirror Descent for Online
Allocation Problems", Operations Research 2023): after each request it is multiplied by
:math:`\exp(\eta (c / \rho - 1))`, where :math:`\rho` is what is left of the ceiling for each
request to come. The price :math:`\nu_t` of a tier's floor rises by
:math:`\eta_q (floor - q)` and never falls below 0.

A price only steers. What holds the ceiling is a reserve: an arm may be taken only if its dearest
request still leaves enough to answer everything to come with the cheapest arm, and tiers that are
not critical have to leave what critical ones need for their floors, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from optimizer.errors import InvalidInput

__all__ = ["Pacer", "Tier"]

_ETA = 0.01
_ETA_FLOOR = 0.05
_MOST_STEP = 40.0
"""The step of a single dear request ends here; a lower limit would overlook what it cost."""

_FLOOR_PRICE_MOST = 50.0
_PRICES = (1e-4, 1e4)
"""Of a mean request: below and above, quality or cost alone decides."""

_MEMORY = 0.1
"""The rate of requests is that of the last tenth of the period."""


@dataclass(frozen=True, slots=True)
class Tier:
    """Requests that are treated alike.

    Attributes
    ----------
    value
        Of a point of quality, above 0.
    quality_floor
        Mean quality to keep, in [0, 1].
    critical
        Whether money is kept back for it.
    share
        Expected share of all requests, in [0, 1].
    floor_cost_usd
        Mean cost of a request that keeps the floor; what is kept back for a critical tier.
    """

    value: float = 1.0
    quality_floor: float = 0.0
    critical: bool = False
    share: float = 0.0
    floor_cost_usd: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.value) and self.value > 0):
            raise InvalidInput("tier.value", self.value, "finite and above 0")
        for name in ("quality_floor", "share"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidInput(f"tier.{name}", getattr(self, name), "in [0, 1]")
        if not 0 <= self.floor_cost_usd < math.inf:
            raise InvalidInput("tier.floor_cost_usd", self.floor_cost_usd, "0 or more")


@dataclass(slots=True)
class _State:
    """What is remembered: a few numbers."""

    ceiling_usd: float = 0.0
    spent_usd: float = 0.0
    rate: float = 0.0
    seen_at: float = 0.0
    price: float = 0.0
    floor_prices: dict[str, float] = field(default_factory=dict)


class Pacer:
    """Chooses arms so that a period costs its ceiling, and no more.

    Deterministic: the same calls give the same choices. The ceiling is passed only if the cheapest
    arm alone costs more than was kept back for it: then by requests of that arm, never of another.

    Parameters
    ----------
    dearest_usd
        Of each arm, at least one: the dearest request to expect, 0 or more. The larger of this and
        what was seen bounds a request. The cheapest by this bound is the arm of last resort.
    cheapest_usd
        Mean cost of a request of that arm, with a margin; 0 or more.
    tiers
        By name, at least one.

    Examples
    --------
    >>> pacer = Pacer([0.001, 0.020], 0.001, {"all": Tier()})
    >>> pacer.start(ceiling_usd=0.105, requests=100)
    >>> [pacer.choose("all", [0.8, 0.9], [0.001, 0.02], at=0.01) for _ in range(2)]
    [0, 0]
    """

    def __init__(
        self, dearest_usd: Sequence[float], cheapest_usd: float, tiers: Mapping[str, Tier]
    ) -> None:
        if not dearest_usd or min(dearest_usd) < 0:
            raise InvalidInput("dearest_usd", list(dearest_usd), "a cost of 0 or more of each arm")
        if not tiers:
            raise InvalidInput("tiers", {}, "at least one")
        self._dearest = list(dearest_usd)
        self._last_resort = min(range(len(dearest_usd)), key=dearest_usd.__getitem__)
        self._cheapest = cheapest_usd
        self._tiers = dict(tiers)
        self._state = _State(floor_prices=dict.fromkeys(tiers, 0.0))

    @property
    def spent_usd(self) -> float:
        """In this period."""
        return self._state.spent_usd

    @property
    def price(self) -> float:
        """Value that a dollar must bring, 0 before the first period."""
        return self._state.price

    def start(self, ceiling_usd: float, requests: float) -> None:
        """Begin a period; prices stay as they were.

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
        now = self._state
        now.ceiling_usd, now.spent_usd = ceiling_usd, 0.0
        now.rate, now.seen_at = requests, 0.0
        if not now.price:
            now.price = 0.1 * requests / ceiling_usd

    def choose(
        self, tier: str, quality: Sequence[float], cost_usd: Sequence[float], at: float
    ) -> int:
        """Index of the arm to take.

        Parameters
        ----------
        tier
            Of the request.
        quality, cost_usd
            What is expected of each arm.
        at
            Time in the period, in [0, 1]; never earlier than before.
        """
        own, now = self._tiers[tier], self._state
        free = self._free(own, at)
        worth = own.value * (1.0 + now.floor_prices[tier])
        best, best_score = self._last_resort, -math.inf
        for arm, bound in enumerate(self._dearest):
            if bound > free and arm != self._last_resort:
                continue
            score = worth * quality[arm] - now.price * cost_usd[arm]
            if score > best_score:
                best, best_score = arm, score
        return best

    def _free(self, own: Tier, at: float) -> float:
        """US dollars that this request may cost."""
        to_come = self.to_come(at)
        kept = to_come * self._cheapest
        if not own.critical:
            kept += to_come * sum(
                one.share * max(one.floor_cost_usd - self._cheapest, 0.0)
                for one in self._tiers.values()
                if one.critical
            )
        return self._state.ceiling_usd - self._state.spent_usd - kept

    def to_come(self, at: float) -> float:
        """Requests that are still expected in this period, at its rate of late."""
        now = self._state
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
        now, own = self._state, self._tiers[tier]
        now.rate = now.rate * math.exp(-max(at - now.seen_at, 0.0) / _MEMORY) + 1.0 / _MEMORY
        now.seen_at = max(at, now.seen_at)
        now.spent_usd += cost_usd
        self._dearest[arm] = max(self._dearest[arm], cost_usd)
        to_come = max(self.to_come(at), 1.0)
        target = max((now.ceiling_usd - now.spent_usd) / to_come, 1e-3 * now.ceiling_usd / now.rate)
        unit = now.rate / now.ceiling_usd
        step = min(cost_usd / target, _MOST_STEP) - 1.0
        least, most = _PRICES
        now.price = min(max(now.price * math.exp(_ETA * step), least * unit), most * unit)
        if quality is not None and own.quality_floor:
            moved = now.floor_prices[tier] + _ETA_FLOOR * (own.quality_floor - quality)
            now.floor_prices[tier] = min(max(moved, 0.0), _FLOOR_PRICE_MOST)

    def state(self) -> dict[str, Any]:
        """Everything that is remembered, as JSON can hold it."""
        return asdict(self._state) | {"dearest_usd": list(self._dearest)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take what `state` gave; a tier that it does not know starts without a floor price."""
        content = dict(state)
        self._dearest = list(content.pop("dearest_usd"))
        known = content.pop("floor_prices")
        self._state = _State(
            **content, floor_prices={tier: known.get(tier, 0.0) for tier in self._tiers}
        )
