r"""A budget spread over services, tenants and hours: a linear program.

Of each demand :math:`d` (a service or tenant in one hour, :math:`n_d` requests) the share
:math:`x_{do}` goes to option :math:`o`, of mean quality :math:`q_{do}` and mean cost
:math:`c_{do}`. Maximised is the value of quality

.. math:: \sum_d v_d n_d \sum_o q_{do} x_{do}

while all requests are answered, the whole costs no more than the budget, and each demand keeps its
quality floor and its own cap. The dual of the budget says what one dollar more would bring; its
inverse is the price of quality that a policy needs to follow the plan
(`optimizer.reward.Objective.quality_price_usd`).

Floors of critical demands always hold. If the budget does not pay for the other floors too, these
give way, the least valuable first, and the plan says by how much.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.optimize import linprog

from optimizer.errors import InvalidInput
from optimizer.records import Matrix, Vector

__all__ = ["Allocation", "BudgetPlan", "Demand", "InfeasibleBudget", "Option", "plan_budget"]

_EPSILON = 1e-9
_ROOM = 1e-7


@dataclass(frozen=True, slots=True)
class Option:
    """A way to answer: an arm, or a mix of arms.

    Attributes
    ----------
    quality
        Mean, in [0, 1].
    cost_usd
        Mean of a request, 0 or more.
    """

    name: str
    quality: float
    cost_usd: float


@dataclass(frozen=True, slots=True)
class Demand:
    """Requests that are expected of one service or tenant in one hour.

    Attributes
    ----------
    tenant, period
        Names; together they name the demand.
    requests
        Above 0; a forecast, so not always whole.
    options
        At least one.
    value
        Of one point of quality (0 to 1) in one request, above 0; in any unit that is the same for
        all demands.
    quality_floor
        Mean quality to keep, in [0, 1].
    critical
        Its floor comes before everything else.
    cap_usd
        The most it may cost, above 0, or None.
    """

    tenant: str
    requests: float
    options: tuple[Option, ...]
    value: float = 1.0
    quality_floor: float = 0.0
    critical: bool = False
    cap_usd: float | None = None
    period: str = ""

    def __post_init__(self) -> None:
        for name in ("requests", "value"):
            amount = getattr(self, name)
            if not (math.isfinite(amount) and amount > 0):
                raise InvalidInput(f"{self.name}.{name}", amount, "finite and above 0")
        if not 0 <= self.quality_floor <= 1:
            raise InvalidInput(f"{self.name}.quality_floor", self.quality_floor, "in [0, 1]")
        if self.cap_usd is not None and not self.cap_usd > 0:
            raise InvalidInput(f"{self.name}.cap_usd", self.cap_usd, "US dollars, above 0")
        if not self.options:
            raise InvalidInput(f"{self.name}.options", (), "at least one way to answer")
        for one in self.options:
            if not (0 <= one.quality <= 1 and 0 <= one.cost_usd < math.inf):
                raise InvalidInput(
                    f"{self.name}.options.{one.name}", one, "quality in [0, 1], cost 0 or more"
                )

    @property
    def name(self) -> str:
        """Tenant and period, for people."""
        return f"{self.tenant} {self.period}".strip()


@dataclass(frozen=True, slots=True)
class Allocation:
    """What a demand gets.

    Attributes
    ----------
    shares
        Of its requests, for each option, sum 1.
    quality, cost_usd
        Mean quality, and cost of all its requests.
    quality_short
        By how much its floor gave way; always 0 if critical.
    floor_price
        What one point less of its floor would bring, in units of value, 0 or more.
    """

    demand: Demand
    shares: tuple[float, ...]
    quality: float
    cost_usd: float
    quality_short: float
    floor_price: float


@dataclass(frozen=True, slots=True)
class BudgetPlan:
    """The best way to spend a budget.

    Attributes
    ----------
    value
        That of the objective.
    cost_usd
        Of all requests; at most the budget.
    price
        Value that one dollar more would bring, 0 or more.
    notes
        Sentences about floors that give way, empty if all hold.
    """

    budget_usd: float
    allocations: tuple[Allocation, ...]
    value: float
    cost_usd: float
    price: float
    notes: tuple[str, ...] = ()

    def quality_price_usd(self, allocation: Allocation) -> float | None:
        """Dollars that a point of quality in one request is worth under this plan.

        None where money is no object: the best quality is then affordable.
        """
        if self.price <= 0:
            return None
        demand = allocation.demand
        return (demand.value + allocation.floor_price / demand.requests) / self.price


class InfeasibleBudget(InvalidInput):
    """No plan answers all requests and keeps what is promised to critical demands.

    Attributes
    ----------
    needed_usd
        The least budget that would do; None where no budget would.
    """

    def __init__(self, field: str, value: object, remedy: str, needed_usd: float | None) -> None:
        self.needed_usd = needed_usd
        super().__init__(field, value, remedy)


def plan_budget(demands: Sequence[Demand], budget_usd: float) -> BudgetPlan:
    """Spread a budget over demands.

    Parameters
    ----------
    demands
        At least one, each name once.
    budget_usd
        0 or more, for all of them.

    Raises
    ------
    InvalidInput
        If a value is out of range.
    InfeasibleBudget
        Naming the promises that cannot be kept together, and what would resolve it.

    Examples
    --------
    >>> arms = (Option("small", 0.8, 0.001), Option("large", 0.9, 0.011))
    >>> plan = plan_budget([Demand("chat", 1000, arms), Demand("mail", 1000, arms, 3.0)], 8.0)
    >>> [(one.demand.tenant, round(one.cost_usd, 2)) for one in plan.allocations]
    [('chat', 1.0), ('mail', 7.0)]
    >>> round(plan.price, 3)
    30.0
    """
    names = [one.name for one in demands]
    if not names or len(set(names)) != len(names):
        raise InvalidInput("demands", names, "at least one, and each name once")
    if not (math.isfinite(budget_usd) and budget_usd >= 0):
        raise InvalidInput("budget_usd", budget_usd, "US dollars, finite, 0 or more")
    program = _Program(demands)
    _check_reach(program)
    critical = np.array([one.quality_floor if one.critical else 0.0 for one in demands])
    floors = np.array([one.quality_floor for one in demands])
    _check_critical(program, critical, budget_usd)
    short = np.zeros(len(demands))
    notes: tuple[str, ...] = ()
    if program.least_cost(floors) > budget_usd * (1 + _EPSILON):
        short = program.least_short(floors, critical, budget_usd)
        notes = _gave_way(program, floors, short, budget_usd)
    return program.best(floors - short, short, budget_usd, notes)


class _Program:
    """The matrices of the linear program; one variable for each option of each demand."""

    def __init__(self, demands: Sequence[Demand]) -> None:
        self.demands = demands
        owner = np.repeat(np.arange(len(demands)), [len(one.options) for one in demands])
        options = [option for one in demands for option in one.options]
        self.requests = np.array([one.requests for one in demands])
        self.worth = np.array([one.value for one in demands]) * self.requests
        quality = np.array([option.quality for option in options])
        self.cost = np.array([option.cost_usd for option in options]) * self.requests[owner]
        columns, shape = np.arange(len(options)), (len(demands), len(options))
        self.all_answered = sparse.csr_matrix((np.ones(len(options)), (owner, columns)), shape)
        self.quality = sparse.csr_matrix((quality, (owner, columns)), shape)
        self.gain = quality * self.worth[owner]
        capped = [row for row, one in enumerate(demands) if one.cap_usd is not None]
        spent = sparse.csr_matrix((self.cost, (owner, columns)), shape)
        self.capped_cost = spent[capped]
        self.caps = np.array([one.cap_usd for one in demands if one.cap_usd is not None])
        self.starts = np.cumsum([0] + [len(one.options) for one in demands])

    def least_cost(self, floors: Vector) -> float:
        """US dollars that keep the floors; infinite where the caps forbid it."""
        found = linprog(
            self.cost,
            sparse.vstack([-self.quality, self.capped_cost]),
            np.concatenate([-floors + _EPSILON, self.caps]),
            self.all_answered,
            np.ones(len(self.demands)),
            method="highs",
        )
        return float(found.fun) if found.success else math.inf

    def least_short(self, floors: Vector, critical: Vector, budget_usd: float) -> Vector:
        """How far each floor has to give way, so that the value lost is least (phase 1)."""
        number = len(self.demands)
        slack = sparse.identity(number, format="csr")
        none = sparse.csr_matrix((len(self.caps) + 1, number))
        found = linprog(
            np.concatenate([np.zeros(len(self.cost)), self.worth]),
            sparse.vstack(
                [
                    sparse.hstack([-self.quality, -slack]),
                    sparse.hstack([sparse.vstack([self.capped_cost, self.cost[None]]), none]),
                ]
            ),
            np.concatenate([-floors + _EPSILON, self.caps, [budget_usd]]),
            sparse.hstack([self.all_answered, sparse.csr_matrix((number, number))]),
            np.ones(number),
            bounds=[(0, None)] * len(self.cost)
            + [(0, floor - kept) for floor, kept in zip(floors, critical, strict=True)],
            method="highs",
        )
        assert found.success, found.message
        short: Vector = np.asarray(found.x[len(self.cost) :])
        return np.where(short > _EPSILON, short, 0.0)

    def best(
        self, floors: Vector, short: Vector, budget_usd: float, notes: tuple[str, ...]
    ) -> BudgetPlan:
        """The plan of most value (phase 2)."""
        for room in (_EPSILON, _ROOM):  # a floor just within reach may be lost to rounding
            found = linprog(
                -self.gain,
                sparse.vstack([self.cost[None], -self.quality, self.capped_cost]),
                np.concatenate([[budget_usd * (1 + room)], -floors + room, self.caps]),
                self.all_answered,
                np.ones(len(self.demands)),
                method="highs",
            )
            if found.success:
                break
        assert found.success, found.message
        duals = -found.ineqlin.marginals
        shares = np.clip(found.x, 0.0, 1.0)
        quality, cost = self.quality @ shares, self._cost_of(shares)
        allocations = tuple(
            Allocation(
                one,
                tuple(shares[self.starts[row] : self.starts[row + 1]].tolist()),
                float(quality[row]),
                float(cost[row]),
                float(short[row]),
                float(max(duals[1 + row], 0.0)),
            )
            for row, one in enumerate(self.demands)
        )
        return BudgetPlan(
            budget_usd,
            allocations,
            float(self.gain @ shares),
            float(cost.sum()),
            float(max(duals[0], 0.0)),
            notes,
        )

    def _cost_of(self, shares: Matrix) -> Vector:
        return np.add.reduceat(self.cost * shares, self.starts[:-1])


def _check_reach(program: _Program) -> None:
    """Refuse a promise that no budget could keep."""
    for one in program.demands:
        best = max(one.options, key=lambda option: option.quality)
        if one.critical and best.quality < one.quality_floor - _EPSILON:
            raise InfeasibleBudget(
                f"{one.name}.quality_floor",
                one.quality_floor,
                f"lower it to {best.quality:.4g} or less: that is the quality of its best option, "
                f"{best.name}",
                None,
            )
        alone = _Program([one])
        needed = alone.least_cost(np.array([one.quality_floor if one.critical else 0.0]))
        if one.cap_usd is not None and math.isinf(needed):
            alone.capped_cost, alone.caps = alone.capped_cost[:0], alone.caps[:0]
            needed = alone.least_cost(np.array([one.quality_floor if one.critical else 0.0]))
            raise InfeasibleBudget(
                f"{one.name}.cap_usd",
                one.cap_usd,
                f"its {one.requests:.6g} requests need {needed:.6g} USD: raise the cap"
                + (" or lower its quality floor" if one.critical else ""),
                None,
            )


def _check_critical(program: _Program, critical: Vector, budget_usd: float) -> None:
    needed = program.least_cost(critical)
    if needed <= budget_usd * (1 + _EPSILON):
        return
    cheapest = program.least_cost(np.zeros_like(critical))
    who = ", ".join(dict.fromkeys(one.tenant for one in program.demands if one.critical))
    if cheapest > budget_usd:
        what = f"the cheapest option for every request costs {cheapest:.6g} USD: raise the budget"
    else:
        what = (
            f"critical tenants ({who}) at their floors, and the cheapest option for all others, "
            f"need {needed:.6g} USD: raise the budget by {needed - budget_usd:.6g} USD or lower "
            f"floors of {who}; without them {cheapest:.6g} USD would do"
        )
    raise InfeasibleBudget("budget_usd", budget_usd, what, needed)


def _gave_way(
    program: _Program, floors: Vector, short: Vector, budget_usd: float
) -> tuple[str, ...]:
    needed = program.least_cost(floors)
    first = (
        "no budget keeps all floors: some are above the best option or need more than a cap"
        if math.isinf(needed)
        else f"all floors together need {needed:.6g} USD, the budget is {budget_usd:.6g} USD"
    )
    lines = [
        f"{one.name}: floor {one.quality_floor:.4g} gives way by {amount:.4g}"
        for one, amount in zip(program.demands, short, strict=True)
        if amount > 0
    ]
    return (first, *lines)
