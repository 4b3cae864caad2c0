"""The pacer: a ceiling holds whatever comes, critical tiers keep their floor, state survives."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.dual_price import Frontier, solve_prices
from optimizer.errors import InvalidInput
from optimizer.pacer import Pacer, Tier

QUALITY = (0.79, 0.92, 0.94)
COST = (0.00003, 0.0005, 0.015)
TIERS = {
    "critical": Tier(quality_floor=0.91, critical=True, share=0.1),
    "other": Tier(share=0.9),
}


def pacer(tiers: dict[str, Tier] = TIERS) -> Pacer:
    return Pacer(len(COST), tiers)


def run(
    one: Pacer, requests: int, seed: int, first: float = 0.0, dearer: float = 1.0
) -> list[tuple[str, int, float, float]]:
    """Requests of a period in time order: tier, arm, cost and quality."""
    random = np.random.default_rng(seed)
    rows = []
    for at in np.sort(random.uniform(first, 1.0, requests)):
        tier = "critical" if random.random() < 0.1 else "other"
        arm = one.choose(tier, QUALITY, COST, at)
        cost = dearer * COST[arm] * random.uniform(0.2, 1.8)
        quality = float(random.random() < QUALITY[arm])
        one.pay(tier, arm, cost, quality, at)
        rows.append((tier, arm, cost, quality))
    return rows


@given(
    st.integers(1, 400),
    st.integers(1, 400),
    st.floats(0.00001, 0.02),
    st.floats(0.3, 3.0),
    st.integers(0, 10**6),
    st.floats(0.0, 0.99),
)
@settings(max_examples=40)
def test_a_dear_arm_passes_the_ceiling_by_no_more_than_one_request(
    requests: int, expected: int, mean_usd: float, dearer: float, seed: int, first: float
) -> None:
    one = pacer()
    ceiling = mean_usd * expected
    one.start(ceiling, expected)
    spent = 0.0
    for _, arm, cost, _ in run(one, requests, seed, first, dearer):
        assert arm == 0 or spent <= ceiling
        spent += cost
    assert one.spent_usd == pytest.approx(spent)


@pytest.mark.parametrize("mean_usd", [0.0003, 0.002, 0.006])
@pytest.mark.parametrize(("forecast", "dearer"), [(0.5, 1.0), (1.0, 1.0), (2.0, 1.0), (1.0, 2.0)])
def test_a_period_costs_its_ceiling_though_forecast_and_expected_costs_are_wrong(
    mean_usd: float, forecast: float, dearer: float
) -> None:
    one = pacer()
    for hour in range(2):
        one.start(3000 * mean_usd, 3000 * forecast)
        run(one, 3000, hour, dearer=dearer)
        most = max(0.01 * 3000 * mean_usd, dearer * COST[2])
        assert abs(one.spent_usd - 3000 * mean_usd) <= most


def test_a_critical_tier_keeps_its_floor_when_money_is_short() -> None:
    one = pacer()
    one.start(2000 * 0.00012, 2000)
    rows = run(one, 2000, 1)
    arms = {name: [QUALITY[arm] for tier, arm, _, _ in rows if tier == name] for name in TIERS}
    assert np.mean(arms["critical"]) >= 0.905 > 0.85 > np.mean(arms["other"])
    assert one.spent_usd == pytest.approx(2000 * 0.00012, rel=0.01)
    assert one.status in ("floors hold", "floors give way")


def test_the_status_says_whether_money_binds_and_floors_hold() -> None:
    tiers = {
        "critical": Tier(quality_floor=0.91, critical=True, share=0.5),
        "other": Tier(quality_floor=0.9, share=0.5),
    }
    found = {}
    for mean_usd in (0.1, 0.003, 0.0004, 0.00005):
        one = pacer(tiers)
        one.start(1000 * mean_usd, 1000)
        for step in range(100):
            tier = "other" if step % 2 else "critical"
            arm = one.choose(tier, QUALITY, COST, step / 1000)
            one.pay(tier, arm, COST[arm], QUALITY[arm], step / 1000)
        found[mean_usd] = one.status
    assert list(found.values()) == [
        "unbound",
        "floors hold",
        "floors give way",
        "critical floors give way",
    ]


def test_a_floor_holds_where_the_other_tier_pays_for_it() -> None:
    tiers = {"other": Tier(), "floor": Tier(quality_floor=0.9)}
    one = Pacer(len(COST), tiers)
    got: dict[str, list[float]] = {"other": [], "floor": []}
    one.start(2000 * 0.0003, 2000)
    for step in range(2000):
        tier = "floor" if step % 2 else "other"
        arm = one.choose(tier, QUALITY, COST, step / 2000)
        got[tier].append(QUALITY[arm])
        one.pay(tier, arm, COST[arm], QUALITY[arm], step / 2000)
    assert np.mean(got["floor"]) >= 0.895 > np.mean(got["other"])


@given(st.integers(0, 10**6), st.floats(1e-5, 0.02), st.floats(1.0, 3.0))
@settings(max_examples=30)
def test_a_dollar_is_dearer_where_less_is_left(seed: int, mean_usd: float, more: float) -> None:
    random = np.random.default_rng(seed)
    quality = np.sort(random.uniform(0.5, 1.0, (64, 3)), axis=1)
    cost = np.array(COST) * random.uniform(0.5, 1.5, (64, 1))
    one = Frontier.of(quality, cost, 0.005)
    assert (np.diff(one.cost_usd) <= 1e-15).all() and (np.diff(one.quality) <= 1e-12).all()
    tight, wide = (
        solve_prices([one, one], [0.3, 0.7], [1.0, 2.0], [0.8, 0.0], [True, False], usd)
        for usd in (mean_usd, more * mean_usd)
    )
    assert all(low >= high for low, high in zip(tight.lower, wide.lower, strict=True))
    assert 0.0 <= tight.upper_share <= 1.0


def test_the_mix_of_two_prices_costs_what_is_left() -> None:
    quality, cost = np.array([QUALITY]), np.array([COST])
    one = Frontier.of(quality, cost, 0.005)
    found = solve_prices([one], [1.0], [1.0], [0.0], [False], 0.003)
    paid = [
        COST[int((quality[0] - price * cost[0]).argmax())]
        for price in (found.upper[0], found.lower[0])
    ]
    assert np.average(paid, weights=[found.upper_share, 1 - found.upper_share]) == pytest.approx(
        0.003
    )


def test_the_same_calls_give_the_same_choices_also_after_a_restart() -> None:
    one, other = pacer(), pacer()
    for each in (one, other):
        each.start(1.0, 500)
    assert run(one, 300, 1) == run(other, 300, 1)
    again = pacer()
    again.restore(json.loads(json.dumps(one.state())))
    assert run(again, 300, 2, first=0.9) == run(one, 300, 2, first=0.9)
    assert json.dumps(again.state()) == json.dumps(one.state())


def test_a_quiet_end_of_the_period_frees_what_was_kept() -> None:
    one = pacer()
    one.start(1.0, 1000)
    assert one.to_come(0.0) == 1000
    assert one.to_come(0.5) < 10 and one.to_come(1.0) == 0


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: pacer({}), "tiers"),
        (lambda: Pacer(0, TIERS), "arms"),
        (lambda: pacer().start(0.0, 10), "ceiling_usd"),
        (lambda: pacer().start(1.0, 0), "requests"),
        (lambda: Tier(value=0), "tier.value"),
        (lambda: Tier(quality_floor=2.0), "tier.quality_floor"),
        (lambda: Tier(share=-1.0), "tier.share"),
    ],
)
def test_values_out_of_range_are_named(call, field) -> None:
    with pytest.raises(InvalidInput, match=f"^{field}="):
        call()
