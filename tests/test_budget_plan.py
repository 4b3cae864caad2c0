"""The linear program against an exact greedy, and what it says when it can't be solved."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.budget_plan import BudgetPlan, Demand, InfeasibleBudget, Option, plan_budget
from optimizer.errors import InvalidInput

ARMS = (Option("small", 0.8, 0.001), Option("middle", 0.88, 0.003), Option("large", 0.9, 0.011))


def frontier(demand: Demand) -> list[tuple[float, float]]:
    """Mean cost and quality at the corners of the concave hull, cheapest first."""
    points = sorted({(one.cost_usd, one.quality) for one in demand.options})
    hull: list[tuple[float, float]] = []
    for cost, quality in points:
        if hull and (quality <= hull[-1][1]):
            continue
        if hull and cost == hull[-1][0]:
            hull.pop()
        while len(hull) > 1 and (quality - hull[-1][1]) * (hull[-1][0] - hull[-2][0]) >= (
            hull[-1][1] - hull[-2][1]
        ) * (cost - hull[-1][0]):
            hull.pop()
        hull.append((cost, quality))
    return hull


def greedy(demands: list[Demand], budget_usd: float) -> float | None:
    """The optimum by another road: floors first, then the steepest piece of any frontier.

    Exact for concave frontiers (the fractional multiple-choice knapsack, Sinha and Zoltners 1979);
    None if the floors cost more than the budget.
    """
    spent = value = 0.0
    pieces = []
    for demand in demands:
        hull = frontier(demand)
        cost, quality = hull[0]
        for (low_cost, low), (high_cost, high) in pairwise(hull):
            slope = (high - low) / (high_cost - low_cost)
            needed = min(max((demand.quality_floor - low) / slope, 0.0), high_cost - low_cost)
            cost, quality = cost + needed, quality + needed * slope
            rest = (high_cost - low_cost - needed) * demand.requests
            pieces.append((slope * demand.value, rest))
        if quality < demand.quality_floor - 1e-9:
            return None
        spent += cost * demand.requests
        value += quality * demand.requests * demand.value
    if spent > budget_usd:
        return None
    for slope, room in sorted(pieces, reverse=True):
        used = min(room, budget_usd - spent)
        spent, value = spent + used, value + used * slope
    return value


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[Demand], float]:
    grid = st.integers(0, 20)
    demands = []
    for number in range(draw(st.integers(1, 6))):
        options = tuple(
            Option(str(one), draw(grid) / 20, draw(st.integers(1, 40)) / 1000)
            for one in range(draw(st.integers(1, 4)))
        )
        best = max(one.quality for one in options)
        floor = min(draw(grid) / 20, best)
        demands.append(
            Demand(
                str(number), draw(st.integers(1, 500)), options, draw(st.integers(1, 5)),
                floor, draw(st.booleans()),
            )
        )  # fmt: skip
    return demands, draw(st.integers(0, 20_000)) / 1000


@given(problems())
@settings(max_examples=30, deadline=None)
def test_the_optimum_is_that_of_an_exact_greedy(problem: tuple[list[Demand], float]) -> None:
    demands, budget = problem
    expected = greedy(demands, budget)
    try:
        plan = plan_budget(demands, budget)
    except InfeasibleBudget as error:
        needed = error.needed_usd
    else:
        check(plan, expected)
        return
    assert expected is None and needed is not None and needed > budget
    assert plan_budget(demands, needed * (1 + 1e-6)).cost_usd > 0


def check(plan: BudgetPlan, expected: float | None) -> None:
    budget = plan.budget_usd
    assert plan.cost_usd <= budget * (1 + 1e-6) + 1e-9
    for one in plan.allocations:
        assert sum(one.shares) == pytest.approx(1.0, abs=1e-6)
        assert one.quality >= one.demand.quality_floor - one.quality_short - 1e-6
        assert one.quality_short == 0 or not one.demand.critical
    if expected is None:
        assert plan.notes
    else:
        assert plan.value == pytest.approx(expected, rel=1e-6, abs=1e-6)
        assert not plan.notes


def test_a_dollar_is_worth_what_its_price_says() -> None:
    demands = [Demand("chat", 1000, ARMS), Demand("mail", 500, ARMS, 2.0, 0.85)]
    less, more = plan_budget(demands, 3.0), plan_budget(demands, 3.1)
    assert more.value - less.value == pytest.approx(0.1 * less.price, rel=1e-6)
    prices = [less.quality_price_usd(one) for one in less.allocations]
    for one, price in zip(less.allocations, prices, strict=True):
        assert price is not None
        scores = [price * option.quality - option.cost_usd for option in ARMS]
        taken = [score for score, share in zip(scores, one.shares, strict=True) if share > 1e-9]
        assert taken == pytest.approx([max(scores)] * len(taken), abs=1e-9)
    assert plan_budget(demands, 1000.0).price == 0
    assert plan_budget(demands, 1000.0).quality_price_usd(less.allocations[0]) is None


def test_critical_floors_come_first_and_others_give_way_by_name() -> None:
    demands = [
        Demand("ward", 1000, ARMS, quality_floor=0.9, critical=True),
        Demand("blog", 1000, ARMS, quality_floor=0.88),
    ]
    plan = plan_budget(demands, 12.5)
    ward, blog = plan.allocations
    assert ward.quality == pytest.approx(0.9) and ward.quality_short == 0
    assert blog.quality == pytest.approx(0.8 + 0.04 * 0.5)
    assert blog.quality_short == pytest.approx(0.06)
    assert "all floors together need 14 USD, the budget is 12.5 USD" in plan.notes[0]
    assert plan.notes[1].startswith("blog: floor 0.88 gives way by 0.06")


def test_what_cannot_be_done_is_explained() -> None:
    ward = Demand("ward", 1000, ARMS, quality_floor=0.9, critical=True)
    blog = Demand("blog", 1000, ARMS)
    with pytest.raises(InfeasibleBudget, match=r"ward.*need 12 USD: raise the budget by 2 USD"):
        plan_budget([ward, blog], 10.0)
    with pytest.raises(InfeasibleBudget, match="cheapest option for every request costs 2 USD"):
        plan_budget([ward, blog], 1.5)
    dear = Demand("ward", 1000, ARMS, quality_floor=0.95, critical=True)
    with pytest.raises(InfeasibleBudget, match=r"lower it to 0\.9 or less.*large"):
        plan_budget([dear], 100.0)
    capped = Demand("ward", 1000, ARMS, quality_floor=0.9, critical=True, cap_usd=5.0)
    with pytest.raises(InfeasibleBudget, match="need 11 USD: raise the cap or lower"):
        plan_budget([capped], 100.0)


def test_a_cap_binds_its_own_demand_only() -> None:
    plan = plan_budget([Demand("a", 100, ARMS, cap_usd=0.3), Demand("b", 100, ARMS)], 10.0)
    assert [round(one.cost_usd, 6) for one in plan.allocations] == [0.3, 1.1]


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"requests": 0}, "requests"), ({"value": math.nan}, "value"),
        ({"quality_floor": 1.1}, "quality_floor"), ({"cap_usd": 0.0}, "cap_usd"),
        ({"options": ()}, "options"),
    ],
)  # fmt: skip
def test_values_out_of_range_are_named(wrong: dict[str, object], field: str) -> None:
    given = {"tenant": "t", "requests": 1.0, "options": ARMS} | wrong
    with pytest.raises(InvalidInput, match=rf"t\.{field}"):
        Demand(**given)  # type: ignore[arg-type]


def test_a_day_of_many_tenants_is_solved() -> None:
    random = np.random.default_rng(1)
    demands = [
        Demand(f"t{tenant}", float(random.lognormal(4, 1)), ARMS, period=f"{hour:02}:00")
        for tenant in range(40)
        for hour in range(24)
    ]
    least = sum(one.requests for one in demands) * 0.001
    plan = plan_budget(demands, 2 * least)
    assert plan.cost_usd == pytest.approx(2 * least, rel=1e-6)
    assert plan.value == pytest.approx(greedy(demands, 2 * least), rel=1e-6)
