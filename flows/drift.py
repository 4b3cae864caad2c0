"""Drift, every quarter of an hour: has anything changed, and what is done about it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

from prefect import flow, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.deployments import run_deployment
from prefect.runtime import flow_run
from pydantic import Field

from flows.artifacts import artifact_key
from flows.spend import watch_spend
from optimizer.settings import DecisionPoint, Settings, load_settings

if TYPE_CHECKING:
    import pandas as pd

    from optimizer.drift_check import DriftCheck, Finding

__all__ = ["drift"]

EXPERIMENT = "drift"
TRAIN = "train/train"

Minutes = Annotated[
    int,
    Field(ge=1, le=1440, json_schema_extra={"description": "length of the window, in minutes"}),
]
Hours = Annotated[
    int,
    Field(
        ge=1, le=720, json_schema_extra={"description": "length of the reference before, in hours"}
    ),
]
Rows = Annotated[
    int,
    Field(
        ge=100,
        le=100_000,
        json_schema_extra={"description": "decisions read of each; of more, a sample is taken"},
    ),
]


@flow(name="drift", timeout_seconds=1800)
def drift(
    minutes: Minutes = 15, reference_hours: Hours = 24, rows: Rows = 20_000
) -> dict[str, str]:
    """Compare the last minutes of every decision point with the hours before, and act by rule.

    Parameters
    ----------
    minutes
        Length of the window, from 1 to 1440.
    reference_hours
        Length of the reference that ends where the window begins, from 1 to 720.
    rows
        Decisions that are read of each, from 100 to 100,000.

    Returns
    -------
    For each decision point, what was found in one sentence. Too little data is no failure.
    """
    settings = load_settings()
    end = flow_run.scheduled_start_time or datetime.now(UTC)
    start = end - timedelta(minutes=minutes)
    spans = [(start - timedelta(hours=reference_hours), start), (start, end)]
    if settings.budget is not None:
        watch_spend(settings)  # here, since nothing else runs as often
    said = {}
    for point in settings.decision_points:
        reference, current = load(settings, point, spans, rows)
        checked, findings = examine(settings, point, reference, current, start, end)
        if not checked.message:
            url = picture(settings.mlflow_address, point.name, end, checked, reference, current)
            create_link_artifact(
                url, f"{point.name} in MLflow", key=artifact_key("drift", point.name, "report")
            )
        show(point.name, end, checked, findings)
        done = do_what_is_due(settings, point, end)
        reasons = "; ".join(one.reason for one in findings) or checked.message or "no drift"
        said[point.name] = " | ".join([reasons, *done])
    return said


@task(retries=3, retry_delay_seconds=[2, 10, 30], cache_policy=NO_CACHE)
def load(
    settings: Settings, point: DecisionPoint, spans: list[tuple[datetime, datetime]], rows: int
) -> list[pd.DataFrame]:
    """Read reference and window."""
    from serving.drift_window import read_windows

    return read_windows(settings, point, spans, rows)


@task(retries=3, retry_delay_seconds=[2, 10, 30], cache_policy=NO_CACHE)
def examine(
    settings: Settings,
    point: DecisionPoint,
    reference: pd.DataFrame,
    current: pd.DataFrame,
    start: datetime,
    end: datetime,
) -> tuple[DriftCheck, list[Finding]]:
    """Check, and write down what was found and what is to be done."""
    from optimizer.drift_check import check
    from serving.drift_store import online_alarms, save_check
    from serving.reward_writer import connect

    checked = check(reference, current, settings.drift)
    with connect(settings.postgres_dsn()) as connection:
        findings = [*checked.findings(), *online_alarms(connection, point.name, start, end)]
        save_check(connection, point.name, end, checked, findings, settings.drift)
    return checked, findings


@task(retries=3, retry_delay_seconds=[2, 10, 30], cache_policy=NO_CACHE)
def picture(
    address: str,
    name: str,
    end: datetime,
    checked: DriftCheck,
    reference: pd.DataFrame,
    current: pd.DataFrame,
) -> str:
    """Store Evidently's page and the figures in MLflow."""
    from flows.drift_page import draw, figures
    from registry.reports import log_report

    with TemporaryDirectory() as folder:
        page = Path(folder, "drift.html")
        counted = draw(checked, reference, current, page)
        return log_report(
            address,
            EXPERIMENT,
            [page],
            {**figures(checked), "evidently_columns_drifted": float(counted)},
            {"decision_point": name, "end": end.isoformat()},
            run_name=f"{name} {end:%Y-%m-%d %H:%M}",
        )


@task(retries=3, retry_delay_seconds=[2, 10, 30], cache_policy=NO_CACHE)
def show(name: str, end: datetime, checked: DriftCheck, findings: list[Finding]) -> None:
    """Put the page and its table where people see them in Prefect."""
    from flows.drift_page import page, table

    create_markdown_artifact(page(name, end, checked, findings), key=artifact_key("drift", name))
    if checked.columns:
        create_table_artifact(table(checked), key=artifact_key("drift", name, "columns"))


@task(retries=3, retry_delay_seconds=[2, 10, 30], cache_policy=NO_CACHE)
def do_what_is_due(settings: Settings, point: DecisionPoint, end: datetime) -> list[str]:
    """Alert, forget, retrain, roll back or fall back on the static rule."""
    from serving.drift_actions import act

    def retrain() -> None:
        # The key makes one run of what a retried task asks for again.
        run_deployment(TRAIN, timeout=0, idempotency_key=f"drift-{point.name}-{end.isoformat()}")

    return act(settings, point, retrain)
