"""What is online, what was logged and what the ledger says are the same, on real servers."""

import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import psycopg
import pytest
import redis
from feast.infra.offline_stores.contrib.postgres_offline_store.postgres import (
    PostgreSQLOfflineStore,
)
from typer.testing import CliRunner

from feature_repo.aggregates import ArmFeatures
from feature_repo.arm_rows import STATISTICS_COLUMNS
from feature_repo.embedding import Embedder
from feature_repo.offline_store import AsOfPostgreSQLOfflineStore
from feature_repo.push_log import PushedRows, PushLog, pushed_as_of
from feature_repo.store import FeatureStoreClient
from infra.cli import main
from optimizer.arm_traits import ArmTraits
from optimizer.errors import InvalidInput
from optimizer.features import pack
from optimizer.records import Outcome
from optimizer.settings import Settings
from serving import ledger
from serving.feature_parity import check_now, check_span
from serving.learning import Learning
from serving.live_point import make_encoder
from serving.tokens import CHAMPION, FALLBACK, Decision, TokenSigner
from serving.training_set import training_set

KEY = "00" * 16
EMBEDDER = Embedder()
MODELS = ["small", "vendor/large"]


@pytest.fixture
def platform(settings: Callable[..., Settings]) -> Settings:
    return settings(
        token_keys=[KEY],
        learner={"batch_s": 0.05},
        mlflow_url="http://127.0.0.1:1",
        decision_points=[{"name": "chat", "arms": [{"model": model} for model in MODELS]}],
    )


@pytest.fixture
def store(platform: Settings) -> Iterator[FeatureStoreClient]:
    client = FeatureStoreClient(platform)
    client.apply()
    yield client
    client.close()


def statistics(count: float, at_s: float, position: int | None = None) -> PushedRows:
    return PushedRows.of_statistics("chat", {"small": ArmFeatures(count=count)}, at_s, position)


def logged(platform: Settings) -> list[tuple[float, int | None]]:
    query = "SELECT count, position FROM feast.arm_statistics ORDER BY event_timestamp"
    with psycopg.connect(platform.postgres_dsn()) as connection:
        return connection.execute(query).fetchall()


class Traffic:
    """Decisions and their outcomes: some late, corrected or retracted."""

    def __init__(self, platform: Settings, connection: psycopg.Connection[Any]) -> None:
        self._point = platform.decision_points[0]
        self._connection = connection
        self._random = np.random.default_rng(5)
        self._size = make_encoder(self._point, EMBEDDER).size
        self._schema = make_encoder(self._point, EMBEDDER).schema_id
        self.made: list[ledger.RewardEvent] = []
        ledger.create_tables(connection)

    def step(self, *, fresh: int = 3, role: int = CHAMPION) -> None:
        events = []
        for _ in range(fresh):
            age_s = float(self._random.choice([0.0, 0.0, 30.0, 400.0, 4000.0]))
            arm = self._point.records()[int(self._random.random() < 0.5)]
            features = np.round(self._random.random(self._size) * 16) / 16
            decision = Decision(
                role, self._random.bytes(16), time.time() - age_s, arm.id, 0.5, 0,
                self._schema, "chat", pack(features),
            )  # fmt: skip
            raw, _ = TokenSigner([KEY]).sign(decision)
            self._connection.execute(
                "INSERT INTO decisions (decision_point, decision_id, decided_at, model, role, "
                "propensity, policy_version, token) "
                "VALUES ('chat', %s, to_timestamp(%s), %s, 'champion', 0.5, 0, %s)",
                (decision.decision_id.hex(), decision.decided_at, arm.model, raw),
            )
            outcome = Outcome(*(float(value) for value in self._random.random(3)))
            events.append(ledger.RewardEvent("chat", decision.decision_id, "", outcome, False, raw))
        self.made += events
        events.append(self.correction())
        ledger.write(self._connection, events)

    def correction(self) -> ledger.RewardEvent:
        old = self.made[int(self._random.integers(len(self.made)))]
        retract = bool(self._random.random() < 0.3)
        outcome = Outcome() if retract else Outcome(quality=float(self._random.random()))
        return ledger.RewardEvent("chat", old.decision_id, "", outcome, retract, old.token)


def test_live_traffic_agrees_and_a_training_set_does_not_change(platform, store) -> None:
    learning = Learning(platform)
    learning.start()
    point, start = platform.decision_points[0], datetime.now(UTC) - timedelta(hours=2)
    try:
        with psycopg.connect(platform.postgres_dsn(), autocommit=True) as connection:
            traffic = Traffic(platform, connection)
            deadline = time.monotonic() + 60
            while not store.read("chat", MODELS) and time.monotonic() < deadline:
                time.sleep(0.1)
            for _ in range(40):
                traffic.step()
                time.sleep(0.1)
            traffic.step(role=FALLBACK)
            live = datetime.now(UTC) - timedelta(seconds=6), datetime.now(UTC)
            found = check_now(platform, store)
            assert found.pairs == 4 and found.agrees, found.disagreements[:3]
            end = datetime.now(UTC)
            then = training_set(platform, store, point, start, end)
            head = ledger.head(connection, "chat")
            for _ in range(10):
                traffic.step(fresh=2)
            ledger.write(connection, [traffic.correction() for _ in range(60)])
            learner = learning._learners["chat"]
            deadline = time.monotonic() + 10
            while learner.counted == head and time.monotonic() < deadline:
                time.sleep(0.05)
            time.sleep(1.5)  # what follows is pushed and logged
            same = training_set(platform, store, point, start, end, as_of=end)
            now = training_set(platform, store, point, start, end)
            no_leak(connection, then.rows)
    finally:
        learning.close()
    found = check_span(platform, store, *live, 300, seed=1)
    assert found.agrees, found.disagreements[:3]
    assert found.known > 200 and found.rebuilt > 400
    assert max(found.largest.values()) < 1e-9
    for span in ((start, end), (end - timedelta(hours=5), end + timedelta(seconds=60))):
        assert check_span(platform, store, *span, 50, seed=2).agrees

    assert then.skipped == {"fallback": 3}
    pd.testing.assert_frame_equal(then.rows, same.rows.iloc[: len(then.rows)])
    assert len(then.rows) == len(same.rows) > 80
    names = [name for name in then.rows.columns if "__" in name or name == "decision_id"]
    both = then.rows[names].merge(now.rows[names], on="decision_id", suffixes=("", "_later"))
    for name in names[1:]:
        pd.testing.assert_series_equal(both[name], both[f"{name}_later"], check_names=False)
    assert not then.rows["quality"].equals(now.rows["quality"])
    assert then.rows["arm_statistics__quality"].notna().any()
    assert len([name for name in names if name.startswith("request__")]) == traffic._size


def no_leak(connection: psycopg.Connection[Any], rows: pd.DataFrame) -> None:
    """What an arm's features stand for was stored before the decision."""
    moments = [at.to_pydatetime() for at in rows["decided_at"]]
    keys = [f"chat/{model}" for model in rows["model"]]
    seen = 0
    for at, one in zip(
        moments, pushed_as_of(connection, "arm_statistics", keys, moments, 3600), strict=True
    ):
        if one is None or not one.position:
            continue
        seen += 1
        query = "SELECT max(received_at) FROM rewards WHERE position <= %s"
        assert one.at <= at
        assert connection.execute(query, (one.position,)).fetchone()[0] <= at
    assert seen > 10


def test_values_that_were_changed_afterwards_are_found(platform, store) -> None:
    now = time.time()
    for age in range(1, 50):
        store.log("chat", {"small": ArmFeatures(count=float(age))}, now - age)
    span = datetime.fromtimestamp(now - 40, UTC), datetime.fromtimestamp(now, UTC)
    assert check_span(platform, store, *span, 200, seed=1).agrees
    with psycopg.connect(platform.postgres_dsn(), autocommit=True) as connection:
        ledger.create_tables(connection)
        connection.execute("UPDATE feast.arm_statistics SET position = 0")  # an empty ledger
    found = check_span(platform, store, *span, 200, seed=1)
    assert not found.agrees and found.disagreeing == found.known == found.rebuilt > 50
    first = found.disagreements[0]
    assert (first.arm_key, first.feature) == ("chat/small", "count")
    assert first.values["rebuilt"] == 0.0 < first.values["pushed"] == first.values["history"]
    store.push("chat", {"small": ArmFeatures(count=3.5)}, now - 20)
    assert check_now(platform, store).disagreeing == 1


def test_a_span_or_number_of_pairs_that_is_none_is_refused(platform, store) -> None:
    now = datetime.now(UTC)
    with pytest.raises(InvalidInput, match="start"):
        check_span(platform, store, now, now, 10, seed=1)
    with pytest.raises(InvalidInput, match="pairs"):
        check_span(platform, store, now - timedelta(hours=1), now, 0, seed=1)
    with pytest.raises(InvalidInput, match="start"):
        training_set(platform, store, platform.decision_points[0], now, now)


def test_the_join_by_index_answers_as_feasts_own(platform, store, monkeypatch) -> None:
    random, now = np.random.default_rng(3), time.time()
    for _ in range(60):
        model = MODELS[int(random.random() < 0.5)]
        values = {model: ArmFeatures(float(random.random()), count=float(random.random()))}
        store.log("chat", values, now - round(float(random.uniform(0, 9000)), 1))
    store.log("chat", {"small": ArmFeatures(count=1001.0)}, now - 100)
    store.log("chat", {"small": ArmFeatures(count=1002.0)}, now - 100)  # later made, same time
    ages = [100.0, *random.uniform(-4000, 9000, 80)]
    frame = pd.DataFrame(
        {
            "arm_key": [f"chat/{model}" for model in random.choice([*MODELS, "none"], len(ages))],
            "event_timestamp": [datetime.fromtimestamp(now - age, UTC) for age in ages],
            "place": range(len(ages)),
        }
    )
    frame.loc[0, "arm_key"] = "chat/small"
    ours = store.history(frame).sort_values("place", ignore_index=True)
    monkeypatch.setattr(
        AsOfPostgreSQLOfflineStore,
        "get_historical_features",
        staticmethod(PostgreSQLOfflineStore.get_historical_features),
    )
    feasts = store.history(frame).sort_values("place", ignore_index=True)
    pd.testing.assert_frame_equal(ours, feasts)
    assert ours["count"][0] == 1002.0 and ours["count"].notna().any() and ours["count"].isna().any()


def test_a_row_that_says_nothing_new_is_written_after_a_while_again(platform, store) -> None:
    log, now = PushLog(platform.postgres_dsn()), time.time()
    log.start()
    for age, count in ((900, 1.0), (895, 1.0), (890, 2.0), (885, 2.0), (200, 2.0), (195, 1.0)):
        log.add(statistics(count, now - age, 1000 - age))
    log.close()
    assert logged(platform) == [(1.0, 100), (2.0, 110), (2.0, 800), (1.0, 805)]
    assert (log.waiting, log.dropped) == (0, 0)


def test_rows_wait_while_postgres_is_away_and_the_oldest_are_dropped(platform, store) -> None:
    log, now = PushLog(platform.postgres_dsn(), limit_rows=3), time.time()
    with psycopg.connect(platform.postgres_dsn(), autocommit=True) as connection:
        database = connection.info.dbname
    with psycopg.connect(platform.postgres_dsn("postgres"), autocommit=True) as server:
        server.execute(f'ALTER DATABASE "{database}" ALLOW_CONNECTIONS false')
        log.start()
        for step in range(5):
            log.add(statistics(float(step), now + step, step))
        time.sleep(1.0)
        assert (log.waiting, log.dropped) == (3, 2)
        log.add(statistics(4.0, now + 5, 5))  # kept: what it repeats might have been dropped
        server.execute(f'ALTER DATABASE "{database}" ALLOW_CONNECTIONS true')
    log.close()
    assert logged(platform) == [(3.0, 3), (4.0, 4), (4.0, 5)]
    assert log.waiting == 0


def test_rows_that_postgres_refuses_are_dropped_and_the_next_written(platform, store) -> None:
    log, now = PushLog(platform.postgres_dsn()), time.time()
    with psycopg.connect(platform.postgres_dsn(), autocommit=True) as connection:
        connection.execute("ALTER TABLE feast.arm_statistics ADD CHECK (position > 0)")
    log.start()
    log.add(statistics(1.0, now, 0))
    deadline = time.monotonic() + 10
    while not log.dropped and time.monotonic() < deadline:
        time.sleep(0.05)
    log.add(statistics(1.0, now + 1, 1))
    log.close()
    assert log.dropped == 1 and logged(platform) == [(1.0, 1)]


def test_what_valkey_lost_comes_back_and_nothing_older_over_newer(platform, store) -> None:
    now = time.time()
    values = {model: ArmFeatures(0.5, count=2.0) for model in MODELS}
    store.push_model_facts("chat", {model: ArmTraits(price_in_usd=1.0) for model in MODELS}, now)
    store.log("chat", values, now - 60)
    store.log("chat", {"small": ArmFeatures(0.25, count=1.0)}, now - 120)
    with redis.Redis.from_url(platform.valkey_address) as client:
        client.flushall()
    newer = ArmFeatures(0.75, count=3.0)
    store.push("chat", {"small": newer}, now - 1)
    moment = datetime.now(UTC)
    lost = store.restore("chat", MODELS, moment)
    assert lost == ["arm_statistics", "arm_windows", "model_facts"]
    assert store.read("chat", MODELS) == {"small": newer, "vendor/large": values["vendor/large"]}
    dated = store.read_dated("chat", ["vendor/large"])["vendor/large"]
    assert dated.at_s == pytest.approx(now - 60, abs=1e-5)
    assert store.restore("chat", MODELS, moment) == ["arm_windows"]  # none was ever logged
    assert len(STATISTICS_COLUMNS) == 5


def test_the_command_writes_a_set_and_says_what_differs(
    platform, store, tmp_path, monkeypatch
) -> None:
    now = time.time()
    with psycopg.connect(platform.postgres_dsn(), autocommit=True) as connection:
        traffic = Traffic(platform, connection)
        traffic.step()
    given = {
        "postgres_url": platform.postgres_dsn(),
        "valkey_url": platform.valkey_address,
        "decision_points": [{"name": "chat", "arms": [{"model": model} for model in MODELS]}],
    }
    (tmp_path / "llmopt.yaml").write_text(json.dumps(given))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLMOPT_HOME", str(tmp_path / "home"))

    def command(*arguments: str) -> tuple[int, Any]:
        made = CliRunner().invoke(main, ["features", *arguments, "--json"])
        return made.exit_code, json.loads(made.stdout)

    code, said = command("training-set", "chat", "--out", "set.parquet")
    rows = pd.read_parquet("set.parquet")
    assert (code, said["rows"]) == (0, len(rows)) and 2 <= len(rows) <= 3
    assert said["columns"] == list(rows.columns)
    store.log("chat", {"small": ArmFeatures(count=1.0)}, now)
    assert command("parity", "--pairs", "20")[0] == 0
    with psycopg.connect(platform.postgres_dsn(), autocommit=True) as connection:
        connection.execute("UPDATE feast.arm_statistics SET position = 0, count = 2")
    code, said = command("parity", "--pairs", "200", "--hours", "0.01")
    assert code == 1 and said["disagreements"][0]["values"]["pushed"] == 2.0
    for wrong in (
        ["training-set", "chat", "--out", str(tmp_path)],
        ["training-set", "chat", "--out", "x.parquet", "--hours", "0"],
        ["parity", "--hours", "nan"],
    ):
        code, said = command(*wrong)
        assert code == 1 and said["error"]["type"] == "InvalidInput"
    monkeypatch.setenv("LLMOPT_POSTGRES_URL", "postgresql://postgres@127.0.0.1:1/llmopt")
    code, said = command("parity")
    assert code == 1 and "llmopt up" in said["error"]["message"]
