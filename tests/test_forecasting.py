"""Forecasts against worlds whose answer is known, and their way through PostgreSQL."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import numpy as np
import psycopg
import pytest

from optimizer.errors import InvalidInput
from optimizer.forecast_intervals import interval_widths
from optimizer.forecasting import HORIZONS_H, METHODS, backtest, forecast
from serving import ledger
from serving.traffic import newest_forecast, rates, store_forecast

DAY = 144


def series(days: int, seed: int, season: float, memory: float) -> np.ndarray:
    """Logarithms with a daily wave and noise that remembers."""
    random = np.random.default_rng(seed)
    noise = np.zeros(days * DAY)
    for step in range(1, len(noise)):
        noise[step] = memory * noise[step - 1] + random.normal() * 0.05
    wave = season * np.sin(2 * np.pi * np.arange(len(noise)) / DAY)
    return np.exp(3.0 + wave + noise)


def test_the_seasonal_one_wins_where_days_repeat() -> None:
    made = forecast(series(8, 1, season=1.5, memory=0.0), tested_h=48)
    assert made.method == "seasonal naive"
    assert made.wape["seasonal naive"] < 0.5 * made.wape["naive"]
    assert set(made.wape) == set(METHODS)
    assert made.near is not None
    assert np.mean(made.near.rates[:6]) == pytest.approx(made.horizons[0].rate)


def test_arima_or_its_mean_wins_where_noise_returns_to_nothing() -> None:
    random = np.random.default_rng(2)
    made = forecast(np.exp(2.0 + 0.4 * random.normal(size=8 * DAY)), tested_h=48)
    assert made.method == "arima"
    assert made.wape["arima"] < made.wape["naive"]
    assert "naive" in made.reason


def test_intervals_cover_as_often_as_they_say() -> None:
    hits = []
    for seed in range(6):
        found = backtest(series(9, seed, season=0.0, memory=0.9), "naive", 120)[1]
        said, came = np.log1p(found).T
        covered = np.abs(said - came) <= interval_widths(found, 1)[:-1]
        hits.append(covered[60:].mean())
    assert 0.86 < np.mean(hits) < 0.94


@pytest.mark.parametrize("hours", [1, 6, 24])
def test_intervals_follow_errors_that_grow(hours: int) -> None:
    random = np.random.default_rng(hours)
    errors = np.abs(random.normal(size=800)) * np.linspace(0.1, 1.0, 800)
    pairs = np.column_stack([np.zeros(800), np.expm1(errors)])
    covered = {
        step: np.mean((errors <= interval_widths(pairs, hours, step=step)[:800])[200:])
        for step in (0.0, 0.02)
    }
    assert covered[0.0] < 0.85 < 0.87 < covered[0.02] < 0.93


def test_a_width_knows_no_error_of_later() -> None:
    random = np.random.default_rng(3)
    pairs = random.exponential(size=(200, 2))
    other = pairs.copy()
    other[150:] *= 100.0
    one, two = (interval_widths(given, 24) for given in (pairs, other))
    assert np.isinf(one[: 24 + 8]).all() and np.isfinite(one[24 + 8 :]).all()
    np.testing.assert_array_equal(one[: 150 + 24], two[: 150 + 24])
    assert one[-1] != two[-1]


def test_a_backtest_sees_no_future() -> None:
    known = series(6, 3, season=0.5, memory=0.5)
    other = known.copy()
    other[-6:] *= 10.0
    for method in METHODS:
        one, two = (backtest(rates_, method, 24)[1] for rates_ in (known, other))
        np.testing.assert_array_equal(one[:, 0], two[:, 0])


def test_without_a_past_the_last_hour_goes_on_and_nothing_is_promised() -> None:
    made = forecast(np.full(10, 2.0))
    assert made.method == "naive" and "3 are needed" in made.reason and not made.wape
    assert [(one.hours, one.rate, one.low) for one in made.horizons] == [
        (hours, 2.0, None) for hours in HORIZONS_H
    ]


@pytest.mark.parametrize("wrong", [[1.0, 2.0], [1.0, 2.0, -1.0], [1.0, 2.0, np.nan]])
def test_what_is_no_rate_is_refused(wrong) -> None:
    with pytest.raises(InvalidInput, match="rates"):
        forecast(np.array(wrong))


def test_decisions_are_counted_and_a_forecast_is_kept_once(settings) -> None:
    dsn = settings().postgres_dsn()
    end = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    with psycopg.connect(dsn, autocommit=True) as connection:
        ledger.create_tables(connection)
        for minutes, role in ((65, "champion"), (61, "control"), (61, "shadow"), (5, "champion")):
            connection.execute(
                "INSERT INTO decisions VALUES ('chat', %s, %s, 'small', %s, 1, 0, 'token')",
                (uuid4(), end - timedelta(minutes=minutes), role),
            )
    found = rates(dsn, "chat", end - timedelta(hours=3), end)
    np.testing.assert_allclose(found * 600, [2, 0, 0, 0, 0, 0, 1])
    assert newest_forecast(dsn, "chat") is None
    made = forecast(found)
    for _ in range(2):
        store_forecast(dsn, "chat", end, made)
    assert newest_forecast(dsn, "chat") == (end, made)
    with psycopg.connect(dsn) as connection:
        assert connection.execute("SELECT count(*) FROM forecasts").fetchone() == (1,)
