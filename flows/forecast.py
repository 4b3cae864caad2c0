"""The hourly forecast of traffic: mean rates of the next 1, 6 and 24 hours, with intervals."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

from prefect import flow, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from pydantic import Field

from flows.artifacts import artifact_key, markdown_table
from optimizer.settings import Settings, load_settings

if TYPE_CHECKING:
    from optimizer.forecasting import Forecasts
    from optimizer.records import Vector

__all__ = ["forecast"]

EXPERIMENT = "forecasts"

Days = Annotated[
    int, Field(ge=1, le=90, json_schema_extra={"description": "days of traffic to learn from"})
]


@flow(name="forecast", timeout_seconds=1800)
def forecast(days: Days = 14) -> dict[str, str]:
    """Forecast the traffic of every decision point.

    Parameters
    ----------
    days
        How much of the past is looked at, from 1 to 90 days.

    Returns
    -------
    For each decision point, the method that was taken and why. Too little traffic is no failure.
    """
    settings = load_settings()
    now = flow_run.scheduled_start_time or datetime.now(UTC)
    until = now.replace(minute=0, second=0, microsecond=0)
    done = {}
    for point in settings.decision_points:
        done[point.name] = predict(settings, point.name, until, days)
        show(point.name, until, done[point.name][0])
    for name, (made, seen) in done.items():  # after all: capacity waits for no picture
        picture(settings, name, until, made, seen)
    return {name: f"{made.method}: {made.reason}" for name, (made, _) in done.items()}


@task(retries=3, retry_delay_seconds=[2, 10, 30], cache_policy=NO_CACHE)
def predict(
    settings: Settings, decision_point: str, until: datetime, days: int
) -> tuple[Forecasts, Vector]:
    """Count, forecast and store; a repeat stores the same again."""
    from optimizer.forecasting import forecast as forecast_rates
    from optimizer.near_forecast import STEP_S
    from optimizer.settings import Autoscaling
    from serving.traffic import rates, store_forecast

    dsn = settings.postgres_dsn()
    scaling = settings.serving.autoscaling or Autoscaling()
    seen = rates(dsn, decision_point, until - timedelta(days=days), until)
    made = forecast_rates(seen, lead_s=scaling.ahead_s or STEP_S, lead_level=scaling.ahead_level)
    store_forecast(dsn, decision_point, until, made)
    return made, seen


@task(retries=3, retry_delay_seconds=[2, 10, 30], cache_policy=NO_CACHE)
def show(name: str, until: datetime, made: Forecasts) -> None:
    """Put the page and its table where people see them in Prefect."""
    rows = [
        {
            "mean of the next": f"{one.hours} h",
            "requests/s": f"{one.rate:.4g}",
            "90 % interval": "not enough data"
            if one.low is None or one.high is None
            else f"{one.low:.4g} to {one.high:.4g}",
        }
        for one in made.horizons
    ]
    errors = [f"- {method}: {error:.3f}" for method, error in made.wape.items()]
    lines = [
        f"# Traffic of {name}",
        "",
        f"From {until:%Y-%m-%d %H:%M} UTC, by **{made.method}**: {made.reason}.",
        "",
        *markdown_table(rows),
        "",
        *(["Error an hour ahead (WAPE):", "", *errors, ""] if errors else []),
    ]
    key = artifact_key("forecast", name)
    create_markdown_artifact("\n".join(lines), key=key)
    create_table_artifact(rows, key=f"{key}-figures")


@task(retries=3, retry_delay_seconds=[2, 10, 30], cache_policy=NO_CACHE)
def picture(settings: Settings, name: str, until: datetime, made: Forecasts, seen: Vector) -> None:
    """Keep a picture and the figures in MLflow, and link them."""
    from optimizer.forecast_plot import draw_forecast
    from registry.reports import log_report

    rates = {f"rate_{one.hours}h": one.rate for one in made.horizons}
    errors = {
        f"wape_{method.replace(' ', '_')}": error
        for method, error in made.wape.items()
        if math.isfinite(error)
    }
    with TemporaryDirectory() as folder:
        file = Path(folder) / "forecast.png"
        draw_forecast(seen, until, made, file)
        url = log_report(
            settings.mlflow_address,
            EXPERIMENT,
            [file],
            rates | errors,
            {"decision_point": name, "made_at": until.isoformat(), "method": made.method},
            run_name=f"{name} {until:%Y-%m-%d %H:%M}",
        )
    create_link_artifact(url, f"{name} in MLflow", key=artifact_key("forecast", name, "mlflow"))
