"""`llmopt evaluate` on the live ledger: a real PostgreSQL, and a real store of MLflow."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from typer.testing import CliRunner

from feature_repo.embedding import Embedder
from infra.cli import main
from infra.evaluations import EvaluationRequest, run_evaluation
from infra.pareto_cli import ParetoRequest, run_pareto
from optimizer.errors import IncompatibleState, InvalidInput, Unavailable, UnknownName
from optimizer.feature_schema import Translations
from optimizer.features import pack
from optimizer.records import Outcome
from optimizer.settings import Settings
from serving import ledger
from serving.decision_log import DecisionLog, LoggedDecisions
from serving.live_point import make_encoder
from serving.logged import learned_until, read_log
from serving.policy_line import fold
from serving.routes import make_point_policy
from serving.tokens import CHAMPION, CONTROL, FALLBACK, Decision, TokenSigner

pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning")

KEY = "00" * 16
EMBEDDER = Embedder()
POINT = {
    "name": "chat",
    "arms": [{"model": "small"}, {"model": "large"}],
    "weights": {"quality": 1, "cost": 0, "latency": 0},
}


@pytest.fixture
def live(settings: Callable[..., Settings]) -> Settings:
    return settings(decision_points=[POINT], token_keys=[KEY])


def traffic(live: Settings, count: int, start: datetime, rewarded: float = 0.8) -> None:
    """Two arms drawn evenly, large better by 0.3; some fallbacks and arms that are gone."""
    random = np.random.default_rng(count)
    point = live.decision_points[0]
    encoder = make_encoder(point, EMBEDDER)
    signer, log = TokenSigner([KEY]), DecisionLog(live.postgres_dsn())
    events = []
    for number in range(count):
        role = (CHAMPION, CHAMPION, CONTROL, FALLBACK)[number % 4]
        arm = 0 if role == FALLBACK else int(random.integers(2))
        arm_id = b"gone    " if number % 100 == 1 else point.records()[arm].id
        features = random.normal(size=encoder.size) * 0.1
        features[0] = 1.0
        decision = Decision(
            role,
            uuid.UUID(int=int(start.timestamp()) * 10**6 + number).bytes,
            start.timestamp() + number,
            arm_id,
            1.0 if role == FALLBACK else 0.5,
            0,
            7 if number % 100 == 2 else encoder.schema_id,
            point.name,
            pack(features),
        )
        raw, _ = signer.sign(decision)
        model = ("small", "large")[arm]
        log.add(LoggedDecisions(point.name, [model], [role], [raw]))
        if random.random() < rewarded:
            quality = float(random.random() < 0.5 + 0.3 * arm)
            outcome = Outcome(quality=quality, cost_usd=0.001 + 0.009 * arm)
            events.append(
                ledger.RewardEvent(point.name, decision.decision_id, "", outcome, False, raw)
            )
    log.close()
    with psycopg.connect(live.postgres_dsn(), autocommit=True) as connection:
        ledger.create_tables(connection)
        ledger.write(connection, events)


def evaluated(live: Settings, now: datetime, **asked: Any) -> dict[str, Any]:
    return run_evaluation(EvaluationRequest(**asked), lambda: live, now)


def test_the_reader_joins_decisions_with_what_is_known_last(live: Settings) -> None:
    now = datetime.now(UTC)
    start = now - timedelta(hours=1)
    traffic(live, 400, start)
    point = live.decision_points[0]
    layouts = Translations(make_encoder(point, EMBEDDER).schema)
    asked = ("chat", point.records(), ("small", "large"), layouts, start)
    steps: list[tuple[int, int]] = []
    with psycopg.connect(live.postgres_dsn(), autocommit=True) as connection:
        first = ledger.read(connection, "chat", 0, 1)[0]
        row = connection.execute("SELECT decision_id FROM rewards WHERE position = 1").fetchone()
        assert row is not None
        changed = ledger.RewardEvent(
            "chat", row[0].bytes, "", Outcome(quality=0.25), False, first.token
        )
        ledger.write(connection, [changed])
        found = read_log(
            connection, *asked, now, on_step=lambda done, total: steps.append((done, total))
        )
        newest = read_log(connection, *asked, now, limit=10)
        part = read_log(connection, *asked, start + timedelta(seconds=100))
        nothing = read_log(connection, *asked, start)
        other = read_log(connection, "mail", *asked[1:], now)
        assert learned_until(connection, "chat", 0) is None
        last = learned_until(connection, "chat", 10)
        assert last is not None and now - timedelta(minutes=5) < last
    log = found.decisions
    assert log is not None and newest.decisions is not None and part.decisions is not None
    assert found.logged == 400 and steps[-1] == (400, 400)
    assert found.skipped == {"fallback": 100, "arm": 4, "schema": 4}
    assert len(log) == 400 - 108
    assert (np.diff(log.decided_at) >= 0).all()
    assert 0.25 in log.quality
    assert 0.1 < np.isnan(log.quality).mean() < 0.3
    assert set(log.propensities) == {0.5}
    assert (log.features[:, 0] == 1.0).all()
    assert newest.logged == 400 and newest.decisions.decided_at.min() > log.decided_at[-20]
    assert part.logged == 100 and part.decisions.decided_at.max() < start.timestamp() + 100
    assert nothing.decisions is None and other.decisions is None and other.logged == 0


def test_the_command_reads_the_ledger(
    live: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "llmopt.yaml"
    file.write_text(json.dumps({"decision_points": [POINT], "postgres_url": live.postgres_dsn()}))
    monkeypatch.setenv("LLMOPT_SETTINGS", str(file))
    monkeypatch.setenv("LLMOPT_HOME", str(tmp_path / "home"))
    traffic(live, 1200, datetime.now(UTC) - timedelta(hours=2))
    command = ["evaluate", "--policy", "static:large", "--export", "log.csv", "--json"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.stdout
    found = json.loads(result.stdout)
    assert found["decision_point"] == "chat"
    assert found["decisions"] == 1200 - 324
    assert found["evaluated"] == found["estimators"]["dr"]["quality"]["count"]
    assert found["verdict"]["answer"] == "better"
    best = found["estimators"]["dr"]["quality"]
    assert best["low"] < 0.8 < best["high"]
    assert any("300 decisions are left out: made by the static rule" in n for n in found["notes"])
    again = CliRunner().invoke(
        main,
        [*command[:3], "--log", "log.csv", "--decision-point", "chat", "--json"],
    )
    exported = json.loads(again.stdout)["estimators"]
    for name in ("ips", "dr"):
        for measure in ("reward", "cost_usd", "difference"):
            assert exported[name][measure] == pytest.approx(found["estimators"][name][measure])
    early = CliRunner().invoke(main, [*command[:3], "--since", "5m", "--json"])
    assert early.exit_code == 1
    assert json.loads(early.stdout)["error"]["field"] == "since"


def test_the_front_of_the_ledger_has_arms_and_roles(live: Settings) -> None:
    now = datetime.now(UTC)
    traffic(live, 2400, now - timedelta(hours=1))
    found = run_pareto(ParetoRequest(), lambda: live, now)
    by_name = {one["name"]: one for one in found["candidates"]}
    assert {name: one["kind"] for name, one in by_name.items()} == {
        "small": "arm",
        "large": "arm",
        "champion": "policy",
        "control": "policy",
    }
    assert all(by_name[name]["standing"].endswith("front") for name in ("small", "large"))
    assert by_name["large"]["quality"]["low"] < 0.8 < by_name["large"]["quality"]["high"]
    assert found["decision_point"] == "chat" and found["decisions"] == 2400 - 648


def test_a_policy_that_learns_and_the_static_rule(live: Settings) -> None:
    now = datetime.now(UTC)
    traffic(live, 900, now - timedelta(hours=1))
    learned = evaluated(live, now, policy="linucb", decision_point="chat", since="2h")
    assert learned["estimators"]["dr"]["reward"]["value"] > 0.65
    static = evaluated(live, now, policy="static")
    assert static["verdict"]["answer"] == "worse"
    with pytest.raises(UnknownName, match="mail"):
        evaluated(live, now, policy="random", decision_point="mail")


def test_the_champion_is_judged_on_what_it_has_not_seen(
    live: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    from registry.description import PolicyDescription
    from registry.versions import PolicyRegistry

    registered = live.model_copy(update={"mlflow_url": f"sqlite:///{tmp_path}/mlflow.db"})
    now = datetime.now(UTC)
    traffic(live, 600, now - timedelta(hours=1))
    with pytest.raises(UnknownName, match="no version"):
        evaluated(registered, now, policy="champion")
    point = live.decision_points[0]
    encoder = make_encoder(point, EMBEDDER)
    policy = make_point_policy(point, encoder)
    with psycopg.connect(live.postgres_dsn(), autocommit=True) as connection:
        rows = ledger.read(connection, "chat", 0, 10_000)
        fold(policy, Translations(encoder.schema), rows, Counter())
    description = PolicyDescription(
        decision_point=point,
        feature_names=encoder.names,
        feature_groups=encoder.groups,
        schema_id=encoder.schema_id,
    )
    registry = PolicyRegistry(registered.mlflow_address)
    registry.publish(description, policy.to_bytes(), position=rows[-1].position, metrics={})
    with pytest.raises(InvalidInput, match="its own lessons"):
        evaluated(registered, datetime.now(UTC), policy="champion")
    later = datetime.now(UTC) + timedelta(seconds=5)
    traffic(live, 900, later)
    found = evaluated(registered, later + timedelta(hours=1), policy="champion")
    assert found["policy"] == "champion (version 1)"
    assert found["decisions"] == 900 - 243
    assert any(f"learned from {len(rows)} rewards" in note for note in found["notes"])
    assert found["estimators"]["dr"]["reward"]["value"] > 0.7
    changed = registered.model_copy(
        update={"decision_points": (point.model_copy(update={"cost_cap_usd": 0.5}),)}
    )
    with pytest.raises(IncompatibleState, match="champion version 1"):
        evaluated(changed, later + timedelta(hours=1), policy="champion")


def test_a_postgresql_that_is_away_is_said(live: Settings) -> None:
    away = live.model_copy(update={"postgres_url": "postgresql://127.0.0.1:1/none"})
    with pytest.raises(Unavailable, match="PostgreSQL"):
        evaluated(away, datetime.now(UTC), policy="random")
