"""The budget: hour by hour, what is left of it is spread over decision points and hours."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from uuid import NAMESPACE_URL, uuid5

from prefect import flow, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event
from prefect.runtime import flow_run

from optimizer.budget_settings import BudgetSettings
from optimizer.settings import Settings, load_settings

if TYPE_CHECKING:
    from serving.budget_store import StoredPlan

__all__ = ["THRESHOLD_EVENT", "budget"]


THRESHOLD_EVENT = "llmopt.budget.threshold"
"""Sent when another share of `serving.spend_watch.SHARES` is spent, for automations of the user's
own."""

EXPERIMENT = "budgets"


@flow(name="budget", timeout_seconds=1200)
def budget() -> str:
    """Plan what is left of the period's budget.

    Returns
    -------
    What came of it in one sentence. Too little data, or a budget that does not do, is no failure.
    """
    settings = load_settings()
    if settings.budget is None:
        return "no budget is set: `budget.usd` in the settings is what may be spent a period"
    at = flow_run.scheduled_start_time or datetime.now(UTC)
    at = datetime.fromtimestamp(at.timestamp(), UTC)  # Prefect's own kind divides otherwise
    plan = solve(settings, settings.budget, at)
    before = store(settings.postgres_dsn(), plan)
    announce(plan, before)
    show(plan)
    if plan.price is not None:
        url = log(settings.mlflow_address, plan)
        create_link_artifact(url, "the plan in MLflow", key="budget-mlflow")
    return f"{plan.status}: {plan.message}"


@task(retries=3, retry_delay_seconds=[2, 10, 30], cache_policy=NO_CACHE)
def solve(settings: Settings, given: BudgetSettings, at: datetime) -> StoredPlan:
    """Read spend and outcomes, and solve the linear program."""
    from serving.budget_planning import make_plan

    return make_plan(settings, given, at)


@task(retries=3, retry_delay_seconds=[2, 10, 30], cache_policy=NO_CACHE)
def store(dsn: str, plan: StoredPlan) -> float:
    """Store the plan; US dollars that the one before it, of the same period, said were spent."""
    import psycopg

    from serving import budget_store

    with psycopg.connect(dsn, autocommit=True) as connection:
        before = budget_store.newest(connection, datetime.fromisoformat(plan.at))
        budget_store.save(connection, plan)
    same = before is not None and before.period_start == plan.period_start
    return before.spent_usd if before is not None and same else 0.0


@task(retries=3, retry_delay_seconds=[2, 10, 30], cache_policy=NO_CACHE)
def announce(plan: StoredPlan, spent_before_usd: float) -> None:
    """Send an event for each share that was crossed; sent again, it is the same event."""
    from serving.spend_watch import shares_crossed

    for share in shares_crossed(plan.budget_usd, spent_before_usd, plan.spent_usd):
        emit_event(
            THRESHOLD_EVENT,
            {"prefect.resource.id": "llmopt.budget", "prefect.resource.name": "budget"},
            payload={
                "share": share,
                "spent_usd": plan.spent_usd,
                "budget_usd": plan.budget_usd,
                "period_start": plan.period_start,
            },
            id=uuid5(NAMESPACE_URL, f"{THRESHOLD_EVENT}/{plan.period_start}/{share}"),
        )


@task(retries=3, retry_delay_seconds=[2, 10, 30], cache_policy=NO_CACHE)
def show(plan: StoredPlan) -> None:
    """Put the page and its table where people see them in Prefect."""
    from flows.budget_page import page, table

    create_markdown_artifact(page(plan), key="budget")
    create_table_artifact(table(plan), key="budget-allocations")


@task(retries=3, retry_delay_seconds=[2, 10, 30], cache_policy=NO_CACHE)
def log(address: str, plan: StoredPlan) -> str:
    """Store page and figures in MLflow."""
    from flows.budget_page import figures, page
    from registry.reports import log_report

    with TemporaryDirectory() as folder:
        file = Path(folder, "budget.md")
        file.write_text(page(plan), encoding="utf-8")
        return log_report(
            address,
            EXPERIMENT,
            [file],
            figures(plan),
            {"period_start": plan.period_start, "at": plan.at, "status": plan.status},
            run_name=f"budget {plan.at[:16]}",
        )
