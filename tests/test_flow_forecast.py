"""The forecast flow on real servers, and the command that shows what it stored."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import numpy as np
import psycopg
import pytest
from typer.testing import CliRunner

from infra.cli import main
from optimizer.settings import Settings
from serving import ledger
from serving.traffic import newest_forecast

DAYS = 3


def traffic(dsn: str, until: datetime) -> None:
    """A daily wave of decisions, about six in ten minutes."""
    random = np.random.default_rng(1)
    with psycopg.connect(dsn, autocommit=True) as connection:
        ledger.create_tables(connection)
        counts = random.poisson(6 + 4 * np.sin(2 * np.pi * np.arange(DAYS * 144) / 144))
        minutes = np.repeat(10 * np.arange(len(counts)) + 1, counts).tolist()
        connection.execute(
            "INSERT INTO decisions SELECT 'chat', gen_random_uuid(), %s + m * interval '1 minute', "
            "'small', 'champion', 1, 0, 'token' FROM unnest(%s::int[]) AS m",
            (until - timedelta(days=DAYS), minutes),
        )


@pytest.mark.timeout(600)
def test_a_forecast_is_stored_shown_and_drawn(
    settings: Callable[..., Settings],
    flows: Any,
    mlflow_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scaling = {"ahead_s": 600.0, "decisions_per_s": 0.005}
    platform = settings(mlflow_url=mlflow_url, serving={"autoscaling": scaling})
    dsn = platform.postgres_dsn()
    traffic(dsn, datetime.now(UTC).replace(minute=0, second=0, microsecond=0))
    assert "least error an hour ahead" in flows.run(platform, f"forecast(days={DAYS})")

    found = newest_forecast(dsn, "chat")
    assert found is not None and found[1].near is not None
    made_at, made = found
    assert made.near.lead_s == 600.0 and made.near.margin > 0
    assert f"by **{made.method}**" in flows.artifacts("forecast-chat")[0]
    assert "mean of the next" in flows.artifacts("forecast-chat-figures")[0]
    (link,) = flows.artifacts("forecast-chat-mlflow")
    run_id = link.rpartition("/runs/")[2].partition(")")[0]
    api = f"{mlflow_url}/api/2.0/mlflow"
    files = httpx.get(f"{api}/artifacts/list", params={"run_id": run_id}).json()["files"]
    assert [(one["path"], one["file_size"] > 10_000) for one in files] == [("forecast.png", True)]

    monkeypatch.setenv("LLMOPT_SETTINGS", flows.environment(platform)["LLMOPT_SETTINGS"])
    answer = CliRunner().invoke(main, ["forecast", "--json"])
    assert answer.exit_code == 0 and "from 1 to 4 are allowed" in answer.stderr
    shown = json.loads(answer.stdout)
    (point,) = shown["decision_points"]
    assert datetime.fromisoformat(point["made_at"]) == made_at
    assert point["near"]["rates"] == list(made.near.rates)
    assert 1 < shown["replicas"]["wanted"] <= 4
    assert "ahead of load" in shown["replicas"]["why"]
