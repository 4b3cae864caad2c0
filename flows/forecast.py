"""The hourly forecast of traffic: mean rates of the next 1, 6 and 24 hours, with intervals."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from pydantic import Field

from flows.artifacts import artifact_key, markdown_table
from optimizer.settings import load_settings

if TYPE_CHECKING:
    from optimizer.forecasting import Forecasts

__all__ = ["forecast"]

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
    said = {}
    for point in settings.decision_points:
        made = predict(settings.postgres_dsn(), point.name, until, days)
        show(point.name, until, made)
        said[point.name] = f"{made.method}: {made.reason}"
    return said


@task(retries=3, retry_delay_seconds=[2, 10, 30], cache_policy=NO_CACHE)
def predict(dsn: str, decision_point: str, until: datetime, days: int) -> Forecasts:
    """Count, forecast and store; a repeat stores the same again."""
    from optimizer.forecasting import forecast as forecast_rates
    from serving.traffic import rates, store_forecast

    made = forecast_rates(rates(dsn, decision_point, until - timedelta(days=days), until))
    store_forecast(dsn, decision_point, until, made)
    return made


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
