"""The comparison with control as it is read live: a real PostgreSQL."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import psycopg
import pytest

from optimizer.records import Outcome
from optimizer.settings import Settings
from serving import ledger
from serving.decision_log import DecisionLog, LoggedDecisions
from serving.replica_state import ReplicaState
from serving.savings import DAYS, ControlReader
from serving.tokens import CHAMPION, CONTROL, Decision, TokenSigner

KEY = "00" * 16
POINT = {
    "name": "chat",
    "arms": [{"model": "small"}, {"model": "large"}],
    "weights": {"quality": 1, "cost": 1, "latency": 0},
    "cost_cap_usd": 0.02,
    "control_share": 0.2,
}


@pytest.fixture
def live(settings: Callable[..., Settings]) -> Settings:
    return settings(decision_points=[POINT], token_keys=[KEY])


def traffic(live: Settings, count: int, start: datetime, control_share: float = 0.2) -> None:
    """The champion takes large in a tenth of requests; it is dearer by 9 mUSD, better by 0.1."""
    random = np.random.default_rng(count)
    point = live.decision_points[0]
    signer, log = TokenSigner([KEY]), DecisionLog(live.postgres_dsn())
    events = []
    for number in range(count):
        control = random.random() < control_share
        large = bool(random.random() < (0.5 if control else 0.1))
        decision = Decision(
            CONTROL if control else CHAMPION,
            uuid.UUID(int=int(random.integers(2**62)) * 2**64 + int(random.integers(2**62))).bytes,
            start.timestamp() + number,
            point.records()[large].id,
            0.5 if control else (0.1 if large else 0.9),
            0,
            1,
            point.name,
            b"",
            unit=number.to_bytes(8, "big"),
        )
        raw, _ = signer.sign(decision)
        log.add(LoggedDecisions(point.name, [point.arms[large].model], [decision.role], [raw]))
        quality = float(random.random() < 0.8 + 0.1 * large)
        outcome = Outcome(quality, 0.001 + 0.009 * large, 1.0 + 2.0 * large)
        events.append(ledger.RewardEvent(point.name, decision.decision_id, "", outcome, False, raw))
    log.close()
    with psycopg.connect(live.postgres_dsn(), autocommit=True) as connection:
        ledger.create_tables(connection)
        ledger.write(connection, events)


def read(live: Settings) -> dict[str, Any]:
    return ControlReader(live.postgres_dsn()).read(live.decision_points[0])


def covers(estimate: dict[str, Any], truth: float) -> bool:
    return bool(estimate["low"] <= truth <= estimate["high"])


def test_saving_and_differences_are_read_from_the_ledger(live: Settings) -> None:
    traffic(live, 3000, datetime.now(UTC) - timedelta(hours=2))
    found = read(live)
    control = found["control"]
    assert sum(control["decisions"].values()) == 3000
    assert 500 < control["decisions"]["control"] < 700
    assert covers(control["saving"], 1 - 1.9 / 5.5) and control["saving"]["low"] > 0.4
    assert covers(control["saving_usd_per_1000"], 5.5 - 1.9)
    assert covers(control["quality_difference"], -0.04)
    assert covers(control["latency_difference_s"], -0.8)
    assert control["latency_difference_s"]["high"] < 0
    assert control["reward_difference"]["value"] == pytest.approx(-0.02 + 0.09, abs=0.03)
    assert found["readiness"] == {"ready": True, "reasons": (), "trusted": True}
    assert datetime.now(UTC) - timedelta(days=DAYS + 1) < datetime.fromisoformat(control["since"])


def test_what_is_older_than_the_span_does_not_count(live: Settings) -> None:
    traffic(live, 100, datetime.now(UTC) - timedelta(days=DAYS + 2))
    found = read(live)
    assert found["control"]["saving"]["value"] is None
    assert not found["readiness"]["ready"] and found["readiness"]["trusted"]
    assert any("0 decisions of control" in reason for reason in found["readiness"]["reasons"])


def test_a_wrong_share_of_control_turns_readiness_red(live: Settings) -> None:
    traffic(live, 1500, datetime.now(UTC) - timedelta(hours=1), control_share=0.35)
    readiness = read(live)["readiness"]
    assert not readiness["ready"] and not readiness["trusted"]
    assert "planned 20.0:80.0" in readiness["reasons"][0]


def test_a_reading_is_kept_for_a_while(live: Settings) -> None:
    start = datetime.now(UTC) - timedelta(hours=3)
    traffic(live, 50, start)
    reader, point = ControlReader(live.postgres_dsn()), live.decision_points[0]
    first = reader.read(point)
    traffic(live, 60, start + timedelta(hours=1))
    assert reader.read(point) is first
    end = time.monotonic() + 20
    while (later := reader.read(point)) is first:
        assert time.monotonic() < end, "it is kept for ever"
        time.sleep(0.05)
    assert sum(later["control"]["decisions"].values()) == 110


def test_the_decision_point_shows_control_and_readiness(live: Settings) -> None:
    traffic(live, 300, datetime.now(UTC) - timedelta(hours=1))
    state = ReplicaState(live)
    try:
        details = state.details("chat")
    finally:
        state.close()
    assert set(details["readiness"]) == {"ready", "reasons", "trusted"}
    assert {"saving", "saving_usd_per_1000", "quality_difference"} < set(details["control"])
    assert details["control"]["saving"]["value"] is not None
    away = live.model_copy(update={"postgres_url": "postgresql://127.0.0.1:1/none"})
    with pytest.raises(psycopg.Error):
        ControlReader(away.postgres_dsn()).read(live.decision_points[0])
