"""`llmopt learner`: its state made anew from the ledger, and how far it is."""

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psycopg
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from feature_repo.embedding import Embedder
from infra.cli import main
from optimizer.features import pack
from optimizer.records import Outcome
from optimizer.settings import Settings
from serving import audit, ledger
from serving.learner import Learner
from serving.live_point import make_encoder
from serving.policy_line import PolicyLine
from serving.replica_state import ReplicaState
from serving.tokens import CHAMPION, CONTROL, Decision, TokenSigner

KEY = "00" * 16
EMBEDDER = Embedder()


@pytest.fixture
def platform(settings: Callable[..., Settings]) -> Settings:
    return settings(token_keys=[KEY], learner={"batch_s": 0.02, "checkpoint_s": 0.05})


@pytest.fixture
def command(platform: Settings, tmp_path: Any, monkeypatch: Any) -> Callable[..., Any]:
    file = tmp_path / "llmopt.yaml"
    given = platform.model_dump(mode="json", include={"postgres_url", "valkey_url", "learner"})
    points = [{"name": "chat", "arms": [{"model": "small"}, {"model": "large"}]}]
    home = {"home": str(tmp_path), "token_keys": [KEY]}
    file.write_text(yaml.safe_dump({**given, **home, "decision_points": points}))
    monkeypatch.setenv("LLMOPT_SETTINGS", str(file))
    return lambda *words: CliRunner().invoke(main, ["learner", *words])


def write(platform: Settings, count: int, seed: int, quality: float = 0.8) -> int:
    """Store rewards of 0 and 1; gives the ledger's head."""
    random = np.random.default_rng(seed)
    point = platform.decision_points[0]
    encoder, signer = make_encoder(point, EMBEDDER), TokenSigner([KEY])
    arms = [arm.id for arm in point.records()]
    events = []
    for _ in range(count):
        control = bool(random.random() < 0.1)
        features = np.round(random.normal(size=encoder.size) * 16) / 256
        features[encoder.schema.names.index("constant")] = 1.0
        decision = Decision(
            CONTROL if control else CHAMPION,
            random.bytes(16),
            1.7e9,
            arms[int(random.integers(2))],
            0.5,
            0,
            encoder.schema_id,
            point.name,
            pack(features),
        )
        outcome = Outcome(quality=float(random.random() < quality))
        raw, _ = signer.sign(decision)
        events.append(ledger.RewardEvent("chat", decision.decision_id, "", outcome, False, raw))
    with psycopg.connect(platform.postgres_dsn(), autocommit=True) as connection:
        ledger.create_tables(connection)
        ledger.write(connection, events)
        return ledger.head(connection, "chat")


def until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not done():
        assert time.monotonic() < end
        time.sleep(0.02)


def running(platform: Settings) -> Learner:
    learner = Learner(platform, platform.decision_points[0], EMBEDDER)
    learner.start()
    return learner


def learned(platform: Settings, head: int) -> None:
    learner = running(platform)
    until(lambda: learner.position == head)
    learner.close()


def spoil(platform: Settings) -> None:
    """Change a byte of the checkpoint, as no crash does."""
    with psycopg.connect(platform.postgres_dsn(), autocommit=True) as connection:
        connection.execute(
            "UPDATE policy_checkpoints SET state = set_byte(state, length(state) / 2, 7)"
        )


def answer(result: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_what_was_learned_is_what_the_ledger_gives(platform, command) -> None:
    head = write(platform, 300, 1)
    learned(platform, write(platform, 150, 2))
    result = command("rebuild", "--json")
    assert result.exit_code == 0, result.output
    found = answer(result)
    assert (found["position"], found["same"], found["watch_same"]) == (head + 150, True, True)
    assert found["differs"] == []


def test_a_spoilt_state_is_found_and_replaced_under_a_running_learner(platform, command) -> None:
    learned(platform, write(platform, 200, 3))
    spoil(platform)
    result = command("rebuild", "chat", "--json")
    assert result.exit_code == 1
    assert not answer(result)["same"]
    assert answer(result)["differs"]
    learner = running(platform)
    until(lambda: learner.position == 200)
    result = command("rebuild", "chat", "--replace", "--json")
    assert result.exit_code == 0, result.output
    assert answer(result)["replaced"]
    head = write(platform, 50, 4)
    until(lambda: learner.position == head)
    learner.close()
    assert command("rebuild").exit_code == 0
    with psycopg.connect(platform.postgres_dsn(), autocommit=True) as connection:
        actions = [entry.action for entry in audit.trail(connection, "chat")]
    assert actions.count("learner.rebuild") == 1


def test_a_ledger_that_lost_its_start_cannot_tell(platform, command) -> None:
    learned(platform, write(platform, 60, 5))
    with psycopg.connect(platform.postgres_dsn(), autocommit=True) as connection:
        connection.execute("DELETE FROM rewards WHERE position <= 10")
    result = command("rebuild", "--json")
    assert result.exit_code == 1
    assert "retention.rewards_days" in result.output


def test_before_the_first_checkpoint_and_without_such_a_variant(platform, command) -> None:
    learned(platform, write(platform, 10, 6))
    assert command("rebuild", "--variant", "none").exit_code == 1
    with psycopg.connect(platform.postgres_dsn(), autocommit=True) as connection:
        connection.execute("DELETE FROM policy_checkpoints")
    result = command("rebuild")
    assert result.exit_code == 1
    assert "no checkpoint yet" in result.output


def test_status_says_how_far_it_is(platform, command) -> None:
    head = write(platform, 120, 7)
    learned(platform, head)
    write(platform, 30, 8)
    result = command("status", "--json")
    assert result.exit_code == 0, result.output
    (one,) = answer(result)["learners"]
    assert (one["role"], one["position"], one["head"], one["backlog"]) == ("champion", 120, 150, 30)
    assert one["checkpoint"]["position"] == 120
    assert one["arrived_per_s"] == pytest.approx(150 / 60)
    assert one["watch"]["regret"]["decisions"] > 0
    assert one["watch"]["predictions"]["quality"]["count"] > 50


def test_one_alert_a_drift_whatever_crashes(platform) -> None:
    """Between the alarm and its checkpoint the learner dies, twice."""
    learned(platform, write(platform, 2500, 9, quality=0.95))
    head = write(platform, 400, 10, quality=0.3)
    for _ in range(2):
        with psycopg.connect(platform.postgres_dsn(), autocommit=True) as connection:
            line = loaded(platform, connection)
            line.learn(ledger.read(connection, "chat", line.position, 10_000))
            (seen,) = [one for one in line.watch.alarms if one.stream != "memory"]
            assert seen.stream == "reward"
    learned(platform, head)
    learned(platform, write(platform, 20, 11, quality=0.3))
    with psycopg.connect(platform.postgres_dsn(), autocommit=True) as connection:
        alerts = [one for one in audit.trail(connection, "chat") if one.action == "learner.drift"]
    forgot = [one for one in alerts if one.evidence["stream"] == "memory"]
    (alert,) = [one for one in alerts if one not in forgot]
    assert 2500 < alert.evidence["position"] < 2800
    assert alert.evidence["worse"]
    assert "worse" in alert.reason
    positions = [one.evidence["position"] for one in forgot]
    assert positions == sorted(set(positions), reverse=True)  # newest first, each once
    assert 2500 < positions[-1] < alert.evidence["position"]
    assert 0 < forgot[-1].evidence["after"] < 0.1
    assert "kept" in forgot[0].reason


def loaded(platform: Settings, connection: Any) -> PolicyLine:
    from optimizer.feature_schema import Translations

    point = platform.decision_points[0]
    line = PolicyLine(point, "1.0", Translations(make_encoder(point, EMBEDDER).schema))
    line.load(connection, lambda name, lineage: None)
    return line


def test_the_first_version_comes_early_and_then_every_ten_thousand(platform) -> None:
    with psycopg.connect(platform.postgres_dsn(), autocommit=True) as connection:
        ledger.create_tables(connection)
        line = loaded(platform, connection)
    rhythm = Settings.model_fields["learner"].default
    due = []
    for position in range(0, 25_000, 500):
        line.position = position
        if line.version_due(rhythm.version_rewards, rhythm.version_s):
            due.append(position)
    assert due == [0, 1000, 11_000, 21_000]


def test_a_replica_measures_how_long_a_reward_took(platform) -> None:
    state = ReplicaState(platform)
    learner = running(platform)
    try:
        until(lambda: state.points["chat"].policy is not None)
        write(platform, 40, 12)
        until(lambda: state.points["chat"].shelf.snapshot.position == 40)
        until(lambda: "reward=" in state.metrics.render().decode())
        samples = {
            (sample.name, sample.labels.get("reward")): sample.value
            for family in text_string_to_metric_families(state.metrics.render().decode())
            for sample in family.samples
            if not sample.labels.get("le")
        }
        for which in ("newest", "oldest"):
            assert samples["llmopt_reward_to_replica_seconds_count", which] >= 1
            assert samples["llmopt_reward_to_replica_seconds_sum", which] < 20
        assert samples["llmopt_learner_alarms_total", None] == 0
        watch = state.details("chat")["learner"]["watch"]
        assert watch["rows"] == 40
    finally:
        learner.close()
        state.close()
