"""The weekly design: a draft of the experiment that would teach most for its cost."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

from prefect import flow, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from pydantic import Field

from flows.artifacts import artifact_key
from optimizer.settings import DecisionPoint, Settings, load_settings

if TYPE_CHECKING:
    from optimizer.experiment_plan import Plan

__all__ = ["design"]

EXPERIMENT = "designs"
ACTOR = "design"

Days = Annotated[
    int,
    Field(ge=1, le=366, json_schema_extra={"description": "days of traffic that are looked at"}),
]
HorizonDays = Annotated[
    float,
    Field(gt=0, le=3660, json_schema_extra={"description": "days over which a better arm pays"}),
]
Share = Annotated[
    float,
    Field(gt=0, le=1, json_schema_extra={"description": "of the units, for the experiment"}),
]
ObservingUsd = Annotated[
    float,
    Field(
        gt=0,
        le=1000,
        json_schema_extra={"description": "US dollars to learn one outcome: a judge, a label"},
    ),
]


@flow(name="design", timeout_seconds=3000)
def design(
    days: Days = 28,
    horizon_days: HorizonDays = 30.0,
    share: Share = 0.2,
    observing_usd: ObservingUsd = 0.001,
) -> dict[str, str]:
    """Propose the next experiment of every decision point, as a draft.

    Parameters
    ----------
    days
        Length of the span that is looked at, from 1 to 366.
    horizon_days
        Days over which a better arm pays, above 0.
    share
        Of the units, what an experiment may have, in (0, 1].
    observing_usd
        What learning one outcome costs beside its request, above 0.

    Returns
    -------
    For each decision point, what came of it in one sentence. Too little data is no failure.
    """
    settings = load_settings()
    end = flow_run.scheduled_start_time or datetime.now(UTC)
    said = {}
    for point in settings.decision_points:
        start = end - timedelta(days=days)
        planned = think(settings, point, start, end, horizon_days, share, observing_usd)
        draft = keep(settings, planned)
        show(point.name, end, planned, draft)
        if planned.proposals:
            url = store(settings.mlflow_address, point.name, end, planned, draft)
            create_link_artifact(
                url, f"{point.name} in MLflow", key=artifact_key("design", point.name, "mlflow")
            )
        said[point.name] = planned.message
    return said


@task(retries=3, retry_delay_seconds=[2, 10, 30], cache_policy=NO_CACHE)
def think(
    settings: Settings,
    point: DecisionPoint,
    start: datetime,
    end: datetime,
    horizon_days: float,
    share: float,
    observing_usd: float,
) -> Plan:
    """Read the log and rank what could be tried."""
    from feature_repo.embedding import Embedder
    from optimizer.experiment_plan import arm_label, plan
    from serving.design_log import read_decisions

    names = tuple(arm_label(arm) for arm in point.records())
    log = read_decisions(settings, point, names, Embedder(), start, end)
    return plan(
        log,
        point,
        end.timestamp(),
        horizon_days=horizon_days,
        share=share,
        observing_usd=observing_usd,
    )


@task(retries=3, retry_delay_seconds=[2, 10, 30], cache_policy=NO_CACHE)
def keep(settings: Settings, planned: Plan) -> str | None:
    """Store the draft, in the place of this flow's last one if it was not started."""
    if planned.draft is None:
        return None
    from serving.experiments import keep_draft
    from serving.reward_writer import connect

    with connect(settings.postgres_dsn()) as connection:
        return keep_draft(
            connection,
            settings,
            planned.draft,
            actor=ACTOR,
            now=datetime.now(UTC).timestamp(),
            why=planned.message,
        ).id


@task(retries=3, retry_delay_seconds=[2, 10, 30], cache_policy=NO_CACHE)
def show(name: str, end: datetime, planned: Plan, draft: str | None) -> None:
    """Put the page and its table where people see them in Prefect."""
    from flows.design_page import page, table

    create_markdown_artifact(page(name, end, planned, draft), key=artifact_key("design", name))
    if planned.proposals:
        create_table_artifact(table(planned), key=artifact_key("design", name, "proposals"))


@task(retries=3, retry_delay_seconds=[2, 10, 30], cache_policy=NO_CACHE)
def store(address: str, name: str, end: datetime, planned: Plan, draft: str | None) -> str:
    """Store page, table and plot in MLflow."""
    from flows.design_page import draw, figures, page
    from registry.reports import log_report

    with TemporaryDirectory() as folder:
        files = [Path(folder, "design.md")]
        files[0].write_text(page(name, end, planned, draft), encoding="utf-8")
        if draw(planned, Path(folder, "pareto.png")):
            files.append(Path(folder, "pareto.png"))
        return log_report(
            address,
            EXPERIMENT,
            files,
            figures(planned),
            {"decision_point": name, "draft": draft or "none"},
            run_name=f"{name} {end:%Y-%m-%d %H:%M}",
        )
