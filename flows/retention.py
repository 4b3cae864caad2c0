"""What is older than the settings' retention: exported to parquet files, and dropped."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from pydantic import Field

from optimizer.settings import Settings, load_settings
from serving.expiry import Expired, drop_expired, export_folder

__all__ = ["STEPS", "retention", "retire"]

STEPS = ("features", "ledger", "audit", "reports", "runs")

DryRun = Annotated[
    bool, Field(json_schema_extra={"description": "only say what would go, and change nothing"})
]


@flow(name="retention", timeout_seconds=6 * 3600)
def retention(dry_run: DryRun = False) -> dict[str, int]:
    """Export and drop what is over, each as long ago as the settings say.

    Parameters
    ----------
    dry_run
        Only say what would go.

    Returns
    -------
    For each kind of thing, how many partitions, tables or experiments it went from.
    """
    settings = load_settings()
    now = flow_run.scheduled_start_time or datetime.now(UTC)
    found = [one for step in STEPS for one in drop(settings, step, now, dry_run)]
    show(settings, now, found, dry_run)
    gone = [one for one in found if not one.kept_because]
    return {kind: sum(one.kind == kind for one in gone) for kind in {one.kind for one in gone}}


@task(retries=3, retry_delay_seconds=[2, 60, 300], cache_policy=NO_CACHE, task_run_name="{step}")
def drop(settings: Settings, step: str, now: datetime, dry_run: bool) -> list[Expired]:
    """One of the steps."""
    return retire(settings, step, now, dry_run)


def retire(settings: Settings, step: str, now: datetime, dry_run: bool) -> list[Expired]:
    """One of `STEPS`, also without Prefect's engine around it."""
    days = settings.retention
    if step == "reports":
        from flows.forecast import EXPERIMENT as FORECASTS
        from flows.report import EXPERIMENT as REPORTS
        from registry.old_runs import drop_runs  # MLflow takes seconds to import

        before = now - timedelta(days=days.reports_days)
        runs = drop_runs(settings.mlflow_address, (REPORTS, FORECASTS), before, dry_run=dry_run)
        return [Expired("reports", f"{name} in MLflow", count) for name, count in runs.items()]
    if step == "runs":
        from flows.deployments import DEPLOYMENTS
        from flows.old_runs import drop_flow_runs

        names = [one.name for one in DEPLOYMENTS]
        count = drop_flow_runs(names, now - timedelta(days=days.runs_days), dry_run=dry_run)
        return [Expired("runs", "flow runs in Prefect", count)] if count else []
    return drop_expired(settings, step, now, dry_run)


@task(retries=3, retry_delay_seconds=[2, 10, 30], cache_policy=NO_CACHE)
def show(settings: Settings, now: datetime, found: list[Expired], dry_run: bool) -> None:
    """Put the page and its table where people see them in Prefect."""
    create_markdown_artifact(_page(settings, now, found, dry_run), key="retention")
    rows = [
        {
            "kind": one.kind,
            "name": one.name,
            "rows or runs": "not counted" if one.count is None else one.count,
            "bytes": "unknown" if one.bytes is None else one.bytes,
            "copy": one.file or "none",
            "kept because": one.kept_because,
        }
        for one in found
    ]
    create_table_artifact(rows, key="retention-dropped")


def _page(settings: Settings, now: datetime, found: list[Expired], dry_run: bool) -> str:
    days, folder = settings.retention, export_folder(settings)
    gone = [one for one in found if not one.kept_because]
    size = sum(one.bytes or 0 for one in gone) / 1e6
    verb = "would go" if dry_run else "went"
    lines = [
        "# Retention",
        "",
        f"{now:%Y-%m-%d %H:%M} UTC",
        "",
        f"{len(gone)} things {verb}, {size:.1f} MB; see the table retention-dropped."
        if gone
        else "Nothing is older than it is kept.",
        "",
        f"Kept: features {days.features_days} days, decisions {days.decisions_days}, rewards "
        f"{days.ledger_days}, audit {days.audit_days}, reports {days.reports_days}, runs of flows "
        f"{days.runs_days}.",
        "Copies: " + ("none" if folder is None else f"parquet files in {folder}") + ".",
    ]
    lines += [f"- {one.name} stays: {one.kept_because}." for one in found if one.kept_because]
    return "\n".join([*lines, ""])
