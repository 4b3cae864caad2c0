"""The budget flow on real servers: no budget, no data, a plan, an event that starts it."""

import json
import struct
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import numpy as np
import pandas as pd
import psycopg
import pytest

from flows.budget_page import figures, page, table
from optimizer.budget_settings import BudgetSettings, ServiceBudget
from optimizer.records import Outcome
from optimizer.service_demand import arm_options, demands_of, hours_left, requests_by_hour
from optimizer.settings import Settings
from serving import budget_store, ledger
from serving.budget_planning import make_plan
from serving.budget_store import StoredPlan
from serving.spend_watch import find_overspent, overspent

ARMS = [{"model": "small"}, {"model": "large"}]
POINTS = [{"name": "chat", "arms": ARMS}, {"name": "mail", "arms": ARMS}]
NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)


def decided(platform: Settings, number: int, end: datetime) -> None:
    """Decisions of the two days before, half of them large: quality 0.9 at 0.01 USD, else 0.7."""
    random = np.random.default_rng(1)
    events = []
    with psycopg.connect(platform.postgres_dsn(), autocommit=True) as connection:
        ledger.create_tables(connection)
        for row in range(number):
            large, raw = row % 2, random.bytes(16)
            at = (end - (row + 1) * timedelta(days=2) / number).replace(microsecond=0)
            time_s = struct.pack(">d", at.timestamp())
            token = b"\x02" + bytes(17) + time_s + bytes(35) + row.to_bytes(8, "big")
            connection.execute(
                "INSERT INTO decisions VALUES ('chat', %s, %s, %s, 'champion', 0.5, 1, %s)",
                (raw.hex(), at, ("small", "large")[large], token),
            )
            quality = float(random.random() < (0.7, 0.9)[large])
            outcome = Outcome(quality=quality, cost_usd=(0.001, 0.01)[large])
            events.append(ledger.RewardEvent("chat", raw, "", outcome, False, token))
        ledger.write(connection, events)


def frame(rows: int = 400) -> pd.DataFrame:
    large = np.arange(rows) % 4 == 0
    return pd.DataFrame(
        {
            "decided_at": pd.date_range(NOON - timedelta(days=2), NOON, rows + 1)[:-1],
            "model": np.where(large, "large", "small"),
            "role": "champion",
            "propensity": np.where(large, 0.25, 0.75),
            "quality": np.where(large, 0.9, 0.7),
            "cost_usd": np.where(large, 0.01, 0.001),
        }
    )


def test_options_are_weighted_by_propensities_and_rare_arms_left_out() -> None:
    rows = frame()
    rows.loc[rows.index[:40:4], ["propensity", "quality"]] = [0.05, 0.1]
    small_large = {one.name: one for one in arm_options(rows)}
    assert small_large["small"].quality == pytest.approx(0.7)
    expected = (10 / 0.05 * 0.1 + 90 / 0.25 * 0.9) / (10 / 0.05 + 90 / 0.25)
    assert small_large["large"].quality == pytest.approx(expected)
    assert [one.name for one in arm_options(rows[:60])] == ["small"]
    assert arm_options(rows.assign(role="fallback")) == ()


def test_hours_to_come_and_their_requests() -> None:
    at = NOON + timedelta(minutes=45)
    assert [share for _, share in hours_left(at, NOON + timedelta(hours=3))] == [0.25, 1.0, 1.0]
    few = frame(30)[-4:]
    assert requests_by_hour(few["decided_at"], NOON)[3] == pytest.approx(4 / 6.4)
    assert requests_by_hour(few["decided_at"][:0], NOON) == {}
    demands = demands_of(
        "chat", frame(4800), at, NOON + timedelta(hours=3), ServiceBudget(cap_usd=2.0)
    )
    assert [one.requests for one in demands] == pytest.approx([200 / 2.75 / 4, 100, 100])
    assert [one.cap_usd for one in demands] == [0.5, 2.0, 2.0]


def test_settings_name_decision_points(settings: Callable[..., Settings]) -> None:
    with pytest.raises(ValueError, match="names 'chatt', which is none of"):
        settings(budget={"usd": 1.0, "services": {"chatt": {}}})


def test_a_plan_of_the_ledger_is_stored_once_an_hour(settings: Callable[..., Settings]) -> None:
    platform = settings(decision_points=POINTS)
    budget = BudgetSettings(usd=10.0, services={"chat": ServiceBudget(quality_floor=0.8)})
    assert make_plan(platform, budget, NOON).status == "no data"
    decided(platform, 960, NOON)
    plan = make_plan(platform, budget, NOON)
    # 20 requests an hour: the morning cost 12 hours of 20 requests at 0.0055.
    assert plan.spent_usd == pytest.approx(240 * 0.0055, rel=0.02) and plan.unpriced == 0
    assert plan.status == "planned" and "left out: mail" in plan.message and len(plan.rows) == 12
    assert sum(row["cost_usd"] for row in plan.rows) == pytest.approx(240 * 0.01, rel=0.02)
    assert plan.price == 0 and plan.rows[0]["quality_price_usd"] is None
    tight = make_plan(platform, budget.model_copy(update={"usd": 2.0}), NOON)
    assert tight.status == "floors give way" and "gives way by" in tight.message
    assert sum(row["cost_usd"] for row in tight.rows) == pytest.approx(2.0 - plan.spent_usd)
    nothing = make_plan(platform, budget.model_copy(update={"usd": 1.0}), NOON)
    assert nothing.status == "infeasible" and "raise the budget" in nothing.message
    assert "raise the budget" in page(nothing) and table(nothing) == []
    assert figures(tight)["planned_usd"] == pytest.approx(2.0 - plan.spent_usd)
    with psycopg.connect(platform.postgres_dsn(), autocommit=True) as connection:
        assert budget_store.newest(connection) is None
        for one in (tight, plan, plan):
            budget_store.save(connection, one)
        assert budget_store.newest(connection) == plan
        older = StoredPlan(**{**tight.__dict__, "at": (NOON - timedelta(hours=1)).isoformat()})
        budget_store.save(connection, older)
        assert budget_store.newest(connection) == plan
        assert budget_store.newest(connection, NOON) == older
        assert connection.execute("SELECT count(*) FROM budget_plans").fetchone() == (2,)


@pytest.mark.timeout(600)
def test_the_flow_stores_its_plan_and_the_command_shows_it(
    settings: Callable[..., Settings], flows: Any, mlflow_url: str
) -> None:
    given = {"usd": 100.0, "period": "day", "services": {"chat": {"quality_floor": 0.75}}}
    platform = settings(decision_points=POINTS, mlflow_url=mlflow_url, budget=given)
    decided(platform, 960, datetime.now(UTC))
    assert flows.run(platform, "budget()").startswith("planned")
    assert "**planned**" in flows.artifacts("budget")[0]
    assert mlflow_url in flows.artifacts("budget-mlflow")[0]
    said = flows.python(platform, "-c", "from infra.cli import main; main()", "budget", "--json")
    found = json.loads(said)
    assert found["budget_usd"] == 100.0 and found["spent_usd_by_decision_point"].keys() <= {"chat"}
    assert found["plan"]["status"] == "planned"


def plan_of(at: datetime, spent_usd: float, hours: int = 3) -> StoredPlan:
    """Of 10 USD a day, 1 USD each hour."""
    rows = [
        {"hour": (at + timedelta(hours=hour)).isoformat(), "cost_usd": 1.0} for hour in range(hours)
    ]
    start, end = BudgetSettings(usd=10.0).span(at)
    times = [one.isoformat() for one in (start, end, at)]
    return StoredPlan(*times, 10.0, spent_usd, 0, "planned", "a test", 1.0, rows)


def test_a_plan_holds_until_more_is_spent_than_it_gave() -> None:
    plan = plan_of(NOON, 1.0)
    assert overspent(plan, 1.9, NOON + timedelta(minutes=30)) is None
    found = overspent(plan, 2.1, NOON + timedelta(minutes=30))
    assert found is not None and "2.1 USD are spent, 2 were planned" in found.message
    assert overspent(plan, 2.1, NOON + timedelta(minutes=61)) is None
    crossed = overspent(plan, 5.0, NOON + timedelta(hours=3))
    assert crossed is not None and crossed.reason == "50% of the budget"
    assert overspent(plan_of(NOON, 5.0), 5.9, NOON) is None
    without = plan_of(NOON, 1.0, hours=0)
    assert overspent(without, 4.9, NOON) is None and overspent(without, 5.0, NOON)


def budget_runs(prefect_url: str) -> list[Any]:
    """Those that no schedule made."""
    body = {"deployments": {"name": {"any_": ["budget"]}}}
    found = httpx.post(f"{prefect_url}/flow_runs/filter", json=body).raise_for_status().json()
    return [one for one in found if not one["auto_scheduled"]]


@pytest.mark.timeout(300)
def test_spend_starts_the_budget_once(
    settings: Callable[..., Settings], flows: Any, prefect_url: str
) -> None:
    platform = settings(decision_points=POINTS, budget={"usd": 10.0})
    now = datetime.now(UTC)
    decided(platform, 960, now)
    with psycopg.connect(platform.postgres_dsn(), autocommit=True) as connection:
        assert find_overspent(platform, now) is None  # nothing to compare with
        start = BudgetSettings(usd=10.0).span(now)[0]
        plan = StoredPlan(
            *(one.isoformat() for one in (start, start + timedelta(days=1), start)),
            1e-6, 0.0, 0, "planned", "a test",
        )  # fmt: skip
        budget_store.save(connection, plan)
    assert find_overspent(platform, now + timedelta(days=1)) is None
    # As the runner does after the server: twice told is one trigger all the same.
    call = (
        "from flows.deployments import *; from flows.registration import *\n"
        "from flows.spend import watch_spend; from optimizer.settings import load_settings\n"
        "for one in DEPLOYMENTS:\n"
        "    if one.event: deployment(one).apply()\n"
        "print(watch_spend(load_settings()))"
    )
    assert "100% of the budget" in flows.python(platform, "-c", call)
    made = httpx.post(f"{prefect_url}/automations/filter", json={}).raise_for_status().json()
    assert [one["name"] for one in made if one["actions"][0]["type"] == "run-deployment"] == [
        "budget__automation_1"
    ]
    deadline = time.monotonic() + 60
    while not (found := budget_runs(prefect_url)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert [one["state_type"] for one in found] == ["SCHEDULED"]
    # What a system of the user's own sends in the same minute starts no second run.
    event = {
        "occurred": datetime.now(UTC).isoformat(),
        "event": "llmopt.spend",
        "resource": {"prefect.resource.id": "billing.invoices"},
        "id": str(uuid.uuid4()),
    }
    httpx.post(f"{prefect_url}/events", json=[event]).raise_for_status()
    time.sleep(3)
    assert [one["id"] for one in budget_runs(prefect_url)] == [found[0]["id"]]
