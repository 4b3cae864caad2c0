"""The hourly report: what each decision point did, and what it saved against control."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import pandas as pd
from prefect import flow, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from pydantic import Field

from flows import report_page
from flows.artifacts import artifact_key
from optimizer.report import ReportSummary, over_time, summarise
from optimizer.settings import load_settings
from registry.reports import log_report
from serving.outcomes import outcomes_frame

__all__ = ["report"]

EXPERIMENT = "reports"


# Prefect overwrites a plain `description` with what it finds in a docstring of Google's form.
Hours = Annotated[
    int, Field(ge=1, le=8760, json_schema_extra={"description": "length of the span, in hours"})
]


@flow(name="report", timeout_seconds=1800)
def report(hours: Hours = 1) -> dict[str, str]:
    """Report on the last hours of every decision point.

    Parameters
    ----------
    hours
        Length of the span, from 1 to 8760 (a year).

    Returns
    -------
    For each decision point, the URL of its report in MLflow.
    """
    settings = load_settings()
    end = flow_run.scheduled_start_time or datetime.now(UTC)
    start = end - timedelta(hours=hours)
    urls = {}
    for point in settings.decision_points:
        outcomes = load(settings.postgres_dsn(), point.name, start, end)
        summary = summarise(outcomes, point.objective(), point.control_share)
        key = _key(point.name, hours)
        show(key, point.name, start, end, summary)
        url = store(settings.mlflow_address, point.name, start, end, summary, outcomes)
        create_link_artifact(url, f"{point.name} in MLflow", key=f"{key}-mlflow")
        urls[point.name] = url
    return urls


@task(retries=3, retry_delay_seconds=[2, 10, 30], cache_policy=NO_CACHE)
def load(dsn: str, decision_point: str, start: datetime, end: datetime) -> pd.DataFrame:
    """Read the decisions of the span with their outcomes."""
    return outcomes_frame(dsn, decision_point, start, end)


@task(retries=3, retry_delay_seconds=[2, 10, 30], cache_policy=NO_CACHE)
def show(key: str, name: str, start: datetime, end: datetime, summary: ReportSummary) -> None:
    """Put the page and its table where people see them in Prefect."""
    create_markdown_artifact(report_page.page(name, start, end, summary), key=key)
    create_table_artifact(report_page.table(summary), key=f"{key}-figures")


@task(retries=3, retry_delay_seconds=[2, 10, 30], cache_policy=NO_CACHE)
def store(
    address: str,
    name: str,
    start: datetime,
    end: datetime,
    summary: ReportSummary,
    outcomes: pd.DataFrame,
) -> str:
    """Store page, plot and figures in MLflow."""
    with TemporaryDirectory() as folder:
        files = [Path(folder, "report.md")]
        files[0].write_text(report_page.page(name, start, end, summary), encoding="utf-8")
        if summary.decisions:
            files.append(Path(folder, "quality_and_cost.png"))
            report_page.draw(over_time(outcomes, start, end), start, end, files[1])
        return log_report(
            address,
            EXPERIMENT,
            files,
            report_page.figures(summary),
            {"decision_point": name, "start": start.isoformat(), "end": end.isoformat()},
            run_name=f"{name} {end:%Y-%m-%d %H:%M}",
        )


def _key(name: str, hours: int) -> str:
    """Each span has pages of its own."""
    key = artifact_key("report", name)
    return key if hours == 1 else f"{key}-{hours}h"
