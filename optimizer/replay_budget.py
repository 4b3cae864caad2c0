"""A budget that holds to the cent, whatever the policy does."""

from __future__ import annotations

import numpy as np

from optimizer.baselines import Flags
from optimizer.errors import InvalidInput
from optimizer.recorded import RecordedOutcomes

__all__ = ["Purse"]


class Purse:
    """Says which models the rest of a budget allows.

    The policy paces itself (`optimizer.policies.price`); this is what stops it where it does not.
    A model is a candidate while, if the request costs as much as that model's dearest, the cheapest
    model can still be paid for all requests to come. The cheapest is always one.

    The costs to come of the cheapest model are taken from the recording, only as a sum; live, a
    limit on output tokens gives such a bound.

    Parameters
    ----------
    budget_usd
        For the whole pass.
    recorded
        The requests in the order of the pass, n of them.
    there
        Shape (n, k): whether a model can be had for a request.

    Raises
    ------
    InvalidInput
        If the budget does not pay for the cheapest model.
    """

    def __init__(self, budget_usd: float, recorded: RecordedOutcomes, there: Flags) -> None:
        cost = recorded.cost_usd
        total = np.where(there.all(axis=0), cost.sum(axis=0), np.inf)
        self._cheapest = int(total.argmin())
        if total[self._cheapest] > budget_usd:
            raise InvalidInput(
                "budget",
                budget_usd,
                f"the cheapest model, {recorded.models[self._cheapest]}, alone costs "
                f"{total[self._cheapest]:.6g} USD for these {len(cost)} requests",
            )
        own = cost[:, self._cheapest]
        self._kept: list[float] = (own[::-1].cumsum()[::-1] - own).tolist()
        self._dearest: list[float] = cost.max(axis=0).tolist()
        self._most = max(self._dearest)
        self._rest = budget_usd

    def candidates(self, step: int, arms: int) -> list[int] | None:
        """Indices of the models that may be chosen, of the first ``arms``; None for all."""
        free = self._rest - self._kept[step]
        if free >= self._most:
            return None
        return [arm for arm in range(arms) if arm == self._cheapest or self._dearest[arm] <= free]

    def pay(self, cost_usd: float) -> None:
        """Take what a request cost from the rest."""
        self._rest -= cost_usd
