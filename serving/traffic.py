"""How many decisions were asked for, and how many are expected, in PostgreSQL."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec
import psycopg

from optimizer.forecasting import Forecast, Forecasts
from optimizer.near_forecast import NearForecast

if TYPE_CHECKING:
    from optimizer.records import Vector

__all__ = ["newest_forecast", "rates", "store_forecast"]

_STEP = "10 minutes"
_STEP_S = 600.0
_TABLE = """
CREATE TABLE IF NOT EXISTS forecasts (
    decision_point text NOT NULL,
    made_at timestamptz NOT NULL,
    forecast jsonb NOT NULL,
    PRIMARY KEY (decision_point, made_at)
)
"""
_LOCK = 0x6C6C6D666F


def rates(dsn: str, decision_point: str, start: datetime, end: datetime) -> Vector:
    """Decisions a second, means over ten minutes, from the first decision of the span on.

    Shadows are not counted: nobody asked for them.

    Parameters
    ----------
    start, end
        With time zone, on whole ten minutes; the end is not included.

    Returns
    -------
    Shape (n,), n at least 3: zeros where there was nothing.
    """
    from optimizer.forecasting import steps

    query = (
        "SELECT date_bin(%s::interval, decided_at, %s) AS at, count(*) FROM decisions "
        "WHERE decision_point = %s AND decided_at >= %s AND decided_at < %s AND role <> 'shadow' "
        "GROUP BY at"
    )
    with psycopg.connect(dsn, connect_timeout=5) as connection:
        rows = connection.execute(query, (_STEP, start, decision_point, start, end)).fetchall()
    counts = {int((at - start).total_seconds() // _STEP_S): count for at, count in rows}
    return steps(counts, int((end - start).total_seconds() // _STEP_S)) / _STEP_S


def store_forecast(dsn: str, decision_point: str, made_at: datetime, made: Forecasts) -> None:
    """Keep a forecast, in the place of one that was made for the same hour."""
    with psycopg.connect(dsn, connect_timeout=5) as connection:
        _create_table(connection)
        connection.execute(
            "INSERT INTO forecasts VALUES (%s, %s, %s) ON CONFLICT (decision_point, made_at) "
            "DO UPDATE SET forecast = excluded.forecast",
            (decision_point, made_at, msgspec.json.encode(made).decode()),
        )


def newest_forecast(dsn: str, decision_point: str) -> tuple[datetime, Forecasts] | None:
    """The last one and when it was made, None if there is none."""
    with psycopg.connect(dsn, connect_timeout=5) as connection:
        _create_table(connection)
        row = connection.execute(
            "SELECT made_at, forecast FROM forecasts WHERE decision_point = %s "
            "ORDER BY made_at DESC LIMIT 1",
            (decision_point,),
        ).fetchone()
    if row is None:
        return None
    made = row[1]
    horizons = tuple(Forecast(**one) for one in made["horizons"])
    near = made.get("near")  # forecasts that were stored by older versions have none
    if near is not None:
        near = NearForecast(**{**near, "rates": tuple(near["rates"])})
    return row[0], Forecasts(made["method"], made["reason"], horizons, made["wape"], near)


def _create_table(connection: psycopg.Connection[Any]) -> None:
    row = connection.execute("SELECT to_regclass('forecasts')").fetchone()
    if row is not None and row[0] is not None:
        return
    connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
    connection.execute(_TABLE)
