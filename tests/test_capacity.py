"""Room for what is measured and what is expected; what replicas tell, and what the policy makes."""

import time
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.capacity import Outlook, outlook, replicas_for, required_rate
from optimizer.errors import InvalidInput
from optimizer.forecasting import forecast
from optimizer.near_forecast import NEAR_STEPS, NearForecast, near_forecast
from serving.autoscaling import replicas_for_rate
from serving.expected_load import ExpectedLoad
from serving.traffic import newest_forecast, store_forecast

RATES = st.floats(0, 1e6)
RISING = NearForecast(tuple(10.0 * step for step in range(1, NEAR_STEPS + 1)), 0.5, 0.0, 600, 0.95)


@given(RATES, RATES, RATES, st.floats(0, 1), st.floats(0, 3))
def test_there_is_always_room_for_what_is_measured(
    measured: float, now: float, more: float, persistence: float, margin: float
) -> None:
    expected = Outlook(now, now + more, persistence, margin)
    required = required_rate(measured, expected)
    assert required >= measured
    wider = Outlook(now, now + more, persistence, margin + 0.1)
    assert required_rate(measured, wider) >= required
    assert required <= max(measured, 3 * np.expm1(np.log1p(now + more) + margin) + 2) * (1 + 1e-9)


def test_a_deviation_is_expected_to_stay_in_part() -> None:
    half = Outlook(now=99.0, ahead=199.0, persistence=0.5, margin=0.0)
    assert required_rate(99.0, half) == pytest.approx(199.0)
    assert required_rate(24.0, half) == pytest.approx(99.0)
    assert required_rate(99.0 * 2.25 + 1.25, half) == pytest.approx(299.0)


def test_a_forecast_that_does_not_know_the_load_is_left_aside() -> None:
    """An outage that ends where the forecast has it end later: 2000 times 2000 is no load."""
    assert required_rate(2000.0, Outlook(0.0, 2000.0, 0.9, 0.1)) == 2000.0


def test_the_highest_rate_until_then_counts_and_loads_add_up() -> None:
    falling = NearForecast(RISING.rates[::-1], 1.0, 0.2, 600.0, 0.95)
    both = outlook([(0.0, RISING), (650.0, falling)], 1200.0)
    assert both is not None
    assert (both.now, both.ahead) == (10.0 + 170.0, 180.0)
    assert 0.5 < both.persistence < 1.0 and 0.0 < both.margin < 0.2


@pytest.mark.parametrize("age_s", [-1.0, 3 * 3600.0 - 600.0, 1e6])
def test_a_forecast_that_does_not_reach_so_far_says_nothing(age_s: float) -> None:
    assert outlook([(0.0, RISING), (age_s, RISING)], 600.0) is None
    assert outlook([], 600.0) is None


def test_no_replica_serves_nothing() -> None:
    with pytest.raises(InvalidInput, match="per_replica"):
        replicas_for(1.0, 0.0)


def test_margins_cover_as_often_as_they_say() -> None:
    """Of deviations that halve in ten minutes, half is corrected and the rest is covered."""
    random, flat = np.random.default_rng(1), np.full(NEAR_STEPS, 100.0)

    def came() -> np.ndarray:
        deviation, found = 0.0, []
        for _ in range(NEAR_STEPS):
            deviation = 0.5 * deviation + 0.1 * random.normal()
            found.append(np.expm1(np.log1p(100.0) + deviation))
        return np.array(found)

    made = near_forecast(flat, [(flat, came()) for _ in range(400)], 600.0, 0.9)
    assert made is not None
    assert made.persistence == pytest.approx(0.5, abs=0.05)
    hits = []
    for _ in range(400):
        measured = came()
        room = required_rate(measured[2], Outlook(100.0, 100.0, made.persistence, made.margin))
        hits.append(max(measured[2], measured[3]) <= max(room, measured[2]))
    assert 0.87 < np.mean(hits) < 0.95


@pytest.mark.parametrize(("lead_s", "level"), [(0.0, 0.9), (3601.0, 0.9), (600.0, 1.0)])
def test_a_lead_or_level_out_of_range_is_refused(lead_s: float, level: float) -> None:
    with pytest.raises(InvalidInput, match=r"lead_s|level"):
        near_forecast(np.ones(NEAR_STEPS), [], lead_s, level)


def context(metrics: dict[str, dict[str, float]]) -> Any:
    return SimpleNamespace(aggregated_metrics=metrics, target_num_replicas=1)


def told(one: Outlook) -> dict[str, dict[str, float]]:
    return {f"expected_{name}": {"a": value} for name, value in asdict(one).items()}


def test_the_policy_asks_ahead_of_load_and_does_without_a_forecast() -> None:
    policy, rates = replicas_for_rate(100.0), {"decisions_per_s": {"a": 150.0, "b": 40.0}}
    assert policy(context(rates))[0] == 2
    assert policy(context(rates | told(Outlook(190.0, 550.0, 1.0, 0.0))))[0] == 6
    assert policy(context(rates | told(Outlook(0.0, 0.0, 0.0, 0.0))))[0] == 2
    lacking = told(Outlook(190.0, 550.0, 1.0, 0.0))
    del lacking["expected_margin"]
    assert policy(context(rates | lacking))[0] == 2


def test_replicas_follow_stored_forecasts_until_they_run_out(settings) -> None:
    dsn = settings().postgres_dsn()
    clock = [time.time()]
    made_at = datetime.fromtimestamp(clock[0], UTC) - timedelta(minutes=5)
    load = ExpectedLoad(dsn, ["chat", "mail"], 600.0, every_s=0.05, clock=lambda: clock[0])
    made = replace(forecast(np.full(400, 2.0)), near=RISING)
    store_forecast(dsn, "chat", made_at, made)
    load.read()
    assert load.report() == {}  # nothing is known of the other decision point
    store_forecast(dsn, "mail", made_at, made)
    assert newest_forecast(dsn, "mail") == (made_at, made)
    deadline = time.monotonic() + 20
    while not load.report():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert load.report()["expected_now"] == pytest.approx(2 * RISING.rates[0])
    clock[0] += 3 * 3600
    assert load.report() == {}
    load.close(5)


def test_a_forecast_of_an_older_version_is_read(settings) -> None:
    dsn = settings().postgres_dsn()
    made_at = datetime(2026, 1, 2, 3, tzinfo=UTC)
    made = forecast(np.full(400, 2.0))
    store_forecast(dsn, "chat", made_at, made)
    with psycopg.connect(dsn) as connection:
        connection.execute("UPDATE forecasts SET forecast = forecast - 'near'")
    found = newest_forecast(dsn, "chat")
    assert found is not None and found[1].near is None and found[1].horizons == made.horizons


def test_postgresql_away_leaves_the_measured_load(find_free_port) -> None:
    dsn = f"postgresql://postgres@127.0.0.1:{find_free_port()}/llmopt"
    load = ExpectedLoad(dsn, ["chat"], 600.0, every_s=0.01)
    time.sleep(0.1)
    assert load.report() == {}
    load.close(5)
