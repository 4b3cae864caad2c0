"""From an outcome to the parts a policy learns, and to the one number people read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from optimizer.errors import InvalidInput
from optimizer.records import Matrix, Outcome, Vector

__all__ = ["PARTS", "PART_OF_TARGET", "TARGETS", "Objective", "Weights", "parse_weights"]

PARTS = ("quality", "cost", "latency", "feedback")
"""The parts of an outcome; each arrives by itself, or never."""

TARGETS = ("quality", "cost", "latency", "feedback", "cost_utility", "latency_utility")
"""What outcome models predict. ``cost`` and ``latency`` are in units of their caps and unbounded,
so that an objective can put a price on them; the utilities are ``1 - min(value / cap, 1)``, what
the reward formula averages (the mean of a clipped cost is not the clipped mean)."""

PART_OF_TARGET = (0, 1, 2, 3, 1, 2)
"""The part whose arrival reveals each target."""


class Weights(BaseModel):
    """Weights of the reward's parts, each 0 or more, at least one above 0."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    quality: float = Field(0.5, ge=0, allow_inf_nan=False, description="weight of quality")
    cost: float = Field(0.3, ge=0, allow_inf_nan=False, description="weight of low cost")
    latency: float = Field(0.2, ge=0, allow_inf_nan=False, description="weight of low latency")
    feedback: float = Field(0.0, ge=0, allow_inf_nan=False, description="weight of user feedback")

    @model_validator(mode="after")
    def _some_weight(self) -> Weights:
        if sum(self.values()) <= 0:
            raise ValueError("at least one weight must be above 0")
        return self

    def values(self) -> tuple[float, float, float, float]:
        """The weights in the order of `PARTS`."""
        return (self.quality, self.cost, self.latency, self.feedback)


def parse_weights(text: str | None) -> Weights:
    """Read ``quality=1,cost=0``; a part that is not named keeps its default.

    Raises
    ------
    InvalidInput
        Naming the part or the value that cannot be read.

    Examples
    --------
    >>> parse_weights("quality=1,cost=0,latency=0").values()
    (1.0, 0.0, 0.0, 0.0)
    """
    given: dict[str, float] = {}
    for item in filter(None, (text or "").split(",")):
        name, _, value = item.partition("=")
        if name.strip() not in PARTS:
            raise InvalidInput("weights", item, f"write PART=NUMBER with PART one of {PARTS}")
        try:
            given[name.strip()] = float(value)
        except ValueError:
            raise InvalidInput("weights", item, "the weight must be a number") from None
    try:
        return Weights(**given)
    except ValueError:
        raise InvalidInput("weights", text, "weights are 0 or more, one above 0") from None


@dataclass(frozen=True)
class Objective:
    """Turns an outcome into a reward in [0, 1], and says what a policy should maximise.

    ``reward = sum_p w_p u_p / sum_p w_p`` over the parts that count here, where ``u`` is quality,
    feedback, ``1 - min(cost / cap, 1)`` and ``1 - min(latency / cap, 1)``.

    Parameters
    ----------
    weights
        Of the four parts.
    cost_cap_usd, latency_cap_s
        Above 0, or None where this decision point has no cost or no latency at all: the weights
        are then renormalised over the other parts.
    quality_floor
        In (0, 1], or None. Policies then look for the least cost at this share of the best arm's
        quality, and the weights make only the reward that people read.
    budget_usd
        Above 0, or None. Policies then look for the highest quality at this mean cost a request.
    quality_price_usd
        Above 0, or None. What a whole point of quality (from 0 to 1) is worth for one request:
        policies then maximise ``quality_price_usd * quality - cost_usd``. It needs a cost cap,
        which is the unit that costs are learned in. At most one of floor, budget and price.

    Examples
    --------
    >>> worth = Objective(Weights(), cost_cap_usd=0.01, quality_price_usd=0.03)
    >>> [round(float(weight), 2) for weight in worth.target_weights()[:2]]
    [0.75, -0.25]
    """

    weights: Weights
    cost_cap_usd: float | None = None
    latency_cap_s: float | None = None
    quality_floor: float | None = None
    budget_usd: float | None = None
    quality_price_usd: float | None = None

    def __post_init__(self) -> None:
        if self.quality_floor is not None and not 0 < self.quality_floor <= 1:
            raise InvalidInput("quality_floor", self.quality_floor, "a share in (0, 1]")
        for name in ("budget_usd", "quality_price_usd"):
            amount = getattr(self, name)
            if amount is not None and not (np.isfinite(amount) and amount > 0):
                raise InvalidInput(name, amount, "US dollars a request, finite and above 0")
        ways = [
            name
            for name in ("quality_floor", "budget_usd", "quality_price_usd")
            if getattr(self, name) is not None
        ]
        if len(ways) > 1:
            raise InvalidInput(ways[1], getattr(self, ways[1]), f"leave it or {ways[0]} out")
        if self.quality_price_usd is not None and self.cost_cap_usd is None:
            raise InvalidInput(
                "quality_price_usd", self.quality_price_usd, "set cost_cap_usd beside it"
            )
        for name in ("cost_cap_usd", "latency_cap_s"):
            cap = getattr(self, name)
            if cap is not None and not (np.isfinite(cap) and cap > 0):
                raise InvalidInput(name, cap, "a cap is a finite number above 0, or left out")
        if not any(self.shares()):
            raise InvalidInput(
                "weights", self.weights.values(), "all the weight is on parts without a cap"
            )

    @property
    def constrained(self) -> bool:
        """Whether a floor or a budget stands in the place of weights."""
        return self.quality_floor is not None or self.budget_usd is not None

    @property
    def cost_ceiling(self) -> float | None:
        """The budget in the units of the target ``cost``."""
        return None if self.budget_usd is None else self.budget_usd / (self.cost_cap_usd or 1.0)

    def shares(self) -> tuple[float, ...]:
        """Weight of each part after renormalising over those that count, in the order of PARTS."""
        there = (True, self.cost_cap_usd is not None, self.latency_cap_s is not None, True)
        raw = [
            weight if present else 0.0
            for weight, present in zip(self.weights.values(), there, strict=True)
        ]
        total = sum(raw)
        return tuple(weight / total if total else 0.0 for weight in raw)

    def target_weights(self) -> Vector:
        """Shape (len(TARGETS),): the linear form over predicted targets that a policy maximises.

        That of the reward, unless quality has a price. Where a floor or a budget stands,
        `optimizer.policies.price` finds another.
        """
        if self.quality_price_usd is None:
            return self.reward_weights()
        assert self.cost_cap_usd is not None
        # Divided by their sum, so that scores spread as widely as rewards do.
        worth = np.zeros(len(TARGETS))
        worth[TARGETS.index("quality")] = self.quality_price_usd
        worth[TARGETS.index("cost")] = -self.cost_cap_usd
        return worth / (self.quality_price_usd + self.cost_cap_usd)

    def reward_weights(self) -> Vector:
        """Shape (len(TARGETS),): the linear form over targets that is the reward."""
        quality, cost, latency, feedback = self.shares()
        return np.array([quality, 0.0, 0.0, feedback, cost, latency])

    def target_table(self, parts: Matrix) -> Matrix:
        """The targets that outcomes reveal, in the order of TARGETS.

        Parameters
        ----------
        parts
            Shape (n, len(PARTS)), NaN where unknown.

        Returns
        -------
        Shape (n, len(TARGETS)), NaN where unknown.
        """
        quality, cost, latency, feedback = parts.T
        cost = cost / (self.cost_cap_usd or 1.0)
        latency = latency / (self.latency_cap_s or 1.0)
        return np.column_stack(
            [
                quality,
                cost,
                latency,
                feedback,
                1.0 - np.minimum(cost, 1.0),
                1.0 - np.minimum(latency, 1.0),
            ]
        )

    def reward(self, outcome: Outcome) -> float | None:
        """The reward in [0, 1], or None while a part that counts is still missing.

        Examples
        --------
        >>> objective = Objective(Weights(), cost_cap_usd=0.01)
        >>> objective.reward(Outcome(quality=1.0, cost_usd=0.005))
        0.8125
        >>> objective.reward(Outcome(cost_usd=0.005)) is None
        True
        """
        total = 0.0
        parts = np.array([outcome.values()], dtype=float)
        targets = self.target_table(parts)[0].tolist()
        for weight, target in zip(self.reward_weights().tolist(), targets, strict=True):
            if weight == 0.0:
                continue
            if np.isnan(target):
                return None
            total += weight * target
        return total

    def rewards(self, quality: Matrix, cost_usd: Matrix | None, latency_s: Matrix | None) -> Matrix:
        """Rewards of whole arrays of outcomes (no feedback), any shape, the same for all parts."""
        weight = self.shares()
        total: Matrix = weight[0] * quality
        if weight[1]:
            assert cost_usd is not None and self.cost_cap_usd is not None
            total = total + weight[1] * (1 - np.minimum(cost_usd / self.cost_cap_usd, 1))
        if weight[2]:
            assert latency_s is not None and self.latency_cap_s is not None
            total = total + weight[2] * (1 - np.minimum(latency_s / self.latency_cap_s, 1))
        return total
