"""One number for a quality and a cost, by which parameters of a model are compared."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from optimizer.reward import Objective

__all__ = ["Worth"]

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Worth:
    """``quality_weight * quality + cost_weight * (1 - cost_usd / cost_unit_usd)``.

    Linear in both, so that it may be taken of means. It is the reward without latency, which
    evaluators don't tell, and without its clip: a cost above the cap goes on to count.

    Attributes
    ----------
    quality_weight, cost_weight
        0 or more, sum 1.
    cost_unit_usd
        Above 0.
    quality_floor
        In (0, 1], or None: then the cheapest setting at this share of the best quality wins, and
        the weights only guide the search.
    """

    quality_weight: float = 1.0
    cost_weight: float = 0.0
    cost_unit_usd: float = 1.0
    quality_floor: float | None = None

    @classmethod
    def of(cls, objective: Objective) -> Worth:
        """What a decision point maximises, as far as quality and cost tell.

        Examples
        --------
        >>> from optimizer.reward import Weights
        >>> Worth.of(Objective(Weights(quality=3, cost=1, latency=1), cost_cap_usd=0.02))
        Worth(quality_weight=0.75, cost_weight=0.25, cost_unit_usd=0.02, quality_floor=None)
        """
        cap = objective.cost_cap_usd
        if cap is None:
            return cls(quality_floor=objective.quality_floor)
        quality, cost = objective.shares()[:2]
        if objective.quality_price_usd is not None:
            quality, cost = objective.quality_price_usd, cap
        elif objective.quality_floor is not None or quality + cost == 0:
            quality = cost = 1.0
        total = quality + cost
        return cls(quality / total, cost / total, cap, objective.quality_floor)

    def __call__(self, quality: Values, cost_usd: Values) -> Values:
        """Of arrays of the same shape."""
        result: Values = self.quality_weight * quality
        if self.cost_weight:
            result = result + self.cost_weight * (1.0 - cost_usd / self.cost_unit_usd)
        return result

    def error(self, quality: Values, cost_usd: Values) -> Values:
        """Standard error of the worth, of independent errors of its parts."""
        result: Values = np.hypot(
            self.quality_weight * quality, self.cost_weight * cost_usd / self.cost_unit_usd
        )
        return result
