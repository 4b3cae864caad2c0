"""The drift flow on real servers, and what it does about drift."""

import json
import re
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import psycopg
import pytest
from typer.testing import CliRunner

from feature_repo.embedding import Embedder
from infra.cli import main
from optimizer.drift_check import DriftCheck, Finding
from optimizer.errors import Unavailable
from optimizer.features import pack
from optimizer.records import Outcome
from optimizer.settings import DecisionPoint, Settings
from serving import audit, ledger, plans, variants
from serving.drift_actions import act
from serving.drift_store import drift_history, online_alarms, save_check
from serving.ledger_partitions import decided_at
from serving.live_point import make_encoder
from serving.reward_writer import connect
from serving.tokens import CHAMPION, Decision, TokenSigner

KEY = "00" * 16
END = datetime(2026, 1, 1, 12, tzinfo=UTC)
CHECK = DriftCheck(1000, 500)
WORSE = Finding("quality", "quality went from 0.900 to 0.800", {"before": 0.9, "after": 0.8})


def planned(platform: Settings) -> DecisionPoint:
    point = platform.decision_points[0]
    with connect(platform.postgres_dsn()) as connection:
        ledger.create_tables(connection)
        plans.ensure(connection, point, make_encoder(point, Embedder()).schema, 0.0)
    return point


def found(platform: Settings, end: datetime = END, finding: Finding = WORSE) -> str:
    with connect(platform.postgres_dsn()) as connection:
        [action] = save_check(connection, "chat", end, CHECK, [finding], platform.drift)
    return action


def trail(platform: Settings) -> list[str]:
    with connect(platform.postgres_dsn()) as connection:
        return [entry.action for entry in audit.trail(connection, "chat")]


def champion(platform: Settings) -> Any:
    with connect(platform.postgres_dsn()) as connection:
        plan = plans.current(connection, "chat")
        return variants.variants(connection, "chat")[plan.champion.variant]


def rule(settings: Callable[..., Settings], action: str) -> Settings:
    return settings(drift={"rules": {"quality": action}, "forget_horizon": 500})


def never() -> None:
    pytest.fail("no training was asked for")


def test_one_drift_is_acted_upon_once(settings: Callable[..., Settings]) -> None:
    platform = rule(settings, "alert")
    point = planned(platform)
    assert [found(platform), found(platform)] == ["alert", "alert"]
    assert len(act(platform, point, never)) == 1 and act(platform, point, never) == []
    assert found(platform, END + timedelta(minutes=15)) == "wait"
    assert found(platform, END + timedelta(hours=7)) == "alert"
    assert len(act(platform, point, never)) == 1
    assert trail(platform) == ["drift.alert", "drift.alert"]


@pytest.mark.parametrize(
    ("action", "wanted"), [("static", {"name": "static"}), ("forget", {"forgetting": "discounted"})]
)
def test_the_plan_gets_another_champion_and_rollback_brings_the_old_one_back(
    settings: Callable[..., Settings], action: str, wanted: dict[str, str]
) -> None:
    platform = rule(settings, action)
    point = planned(platform)
    old = champion(platform)
    found(platform)
    act(platform, point, never)
    new = champion(platform)
    assert wanted.items() <= new.model_dump().items() and new != old
    assert trail(platform) == [f"drift.{action}"]
    back = rule(settings, "rollback")
    found(back, END + timedelta(days=1))
    act(back, point, never)
    assert champion(back) == old and trail(back)[0] == "policy.rollback"


def test_a_rollback_without_anything_to_take_back_is_an_alert(
    settings: Callable[..., Settings],
) -> None:
    platform = rule(settings, "rollback")
    point = planned(platform)
    found(platform)
    [sentence] = act(platform, point, never)
    assert "not possible" in sentence and trail(platform) == ["drift.alert"]


def test_an_action_that_fails_is_done_by_the_next_run(settings: Callable[..., Settings]) -> None:
    platform = rule(settings, "retrain")
    point = planned(platform)
    found(platform)

    def away() -> None:
        raise Unavailable("Prefect")

    with pytest.raises(Unavailable):
        act(platform, point, away)
    assert trail(platform) == []
    asked: list[int] = []
    act(platform, point, lambda: asked.append(1))
    assert asked == [1] and trail(platform) == ["drift.retrain"]


def test_two_runs_at_once_act_once(settings: Callable[..., Settings]) -> None:
    platform = rule(settings, "static")
    point = planned(platform)

    def run() -> None:
        found(platform)
        act(platform, point, never)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    act(platform, point, never)
    assert trail(platform) == ["drift.static"]


def test_an_alert_that_nobody_took_stays_due(
    settings: Callable[..., Settings], find_free_port: Callable[[], int]
) -> None:
    url = f"http://127.0.0.1:{find_free_port()}/"
    platform = settings(alerts={"webhook_url": url, "attempts": 1})
    point = planned(platform)
    found(platform)
    with pytest.raises(Unavailable):
        act(platform, point, never)
    assert trail(platform) == ["drift.alert"]  # written down all the same, and once
    with pytest.raises(Unavailable):
        act(platform, point, never)
    with connect(platform.postgres_dsn()) as connection:
        [window] = drift_history(connection, "chat")
    assert window["findings"][0]["acted_at"] and window["findings"][0]["told_at"] is None


def test_alarms_of_the_learner_are_one_finding(settings: Callable[..., Settings]) -> None:
    platform = settings()
    now = datetime.now(UTC)
    with connect(platform.postgres_dsn()) as connection:
        span = (now - timedelta(minutes=1), now + timedelta(minutes=1))
        assert online_alarms(connection, "chat", *span) == []
        for _ in range(3):
            audit.record(connection, "chat", "learner", "learner.drift", "it fell", {"arm": ""})
        [finding] = online_alarms(connection, "chat", *span)
    assert (finding.what, finding.reason) == ("online", "3 alarms of the learner: it fell")


def decided(platform: Settings, number: int, quality: float, age_s: float, span_s: float) -> None:
    """Decisions with their rewards, in the log and in the ledger."""
    point = platform.decision_points[0]
    encoder, arms = make_encoder(point, Embedder()), point.records()
    random, signer = np.random.default_rng(number), TokenSigner([KEY])
    at = time.time() - age_s
    events = []
    with psycopg.connect(platform.postgres_dsn(), autocommit=True) as connection:
        ledger.create_tables(connection)
        plans.ensure(connection, point, encoder.schema, 0.0)
        with connection.cursor() as cursor, cursor.copy("COPY decisions FROM STDIN") as copy:
            for row in range(number):
                features = random.normal(size=encoder.size) / 16
                decision = Decision(
                    CHAMPION, random.bytes(16), at + span_s * row / number, arms[row % 2].id, 0.5,
                    0, encoder.schema_id, "chat", pack(features),
                )  # fmt: skip
                raw, _ = signer.sign(decision)
                copy.write_row(
                    (
                        "chat", uuid.UUID(bytes=decision.decision_id),
                        decided_at(raw),
                        arms[row % 2].model, "champion", 0.5, 0, raw,
                    )
                )  # fmt: skip
                told = Outcome(quality=float(random.random() < quality), cost_usd=1e-3)
                event = ledger.RewardEvent("chat", decision.decision_id, "", told, False, raw)
                events.append(event)
        ledger.write(connection, events)


@pytest.mark.timeout(600)
def test_the_flow_says_what_it_lacks_and_then_finds_a_drop(
    settings: Callable[..., Settings],
    flows: Any,
    mlflow_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    platform = settings(mlflow_url=mlflow_url, token_keys=[KEY], budget={"usd": 1.0})
    assert "0 decisions in the reference and 0 in the window" in flows.run(platform, "drift()")
    decided(platform, 3001, 0.9, age_s=7200, span_s=3600)
    decided(platform, 1500, 0.7, age_s=600, span_s=500)
    told = flows.run(platform, "drift()")
    assert "alert: quality went" in told
    before, after = map(float, re.findall(r"went from (\S+) to (\d\.\d+)", told)[0])
    assert before == pytest.approx(0.9, abs=0.02) and after < 0.75
    assert "drift.alert" in trail(platform)
    pages = flows.artifacts("drift-chat")
    assert "**quality**" in pages[0] and "Not checked" in pages[1]
    monkeypatch.setenv("LLMOPT_SETTINGS", flows.environment(platform)["LLMOPT_SETTINGS"])
    shown = CliRunner().invoke(main, ["drift", "--json"])
    windows = json.loads(shown.stdout)["windows"]
    assert windows[0]["drop"]["before"] > 0.85 and windows[1]["message"]
    assert {one["what"] for one in windows[0]["findings"]} >= {"quality"}
