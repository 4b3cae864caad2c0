"""Whether features are fresh, whole and in range: the rules, and real servers with real faults."""

import asyncio
import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import psycopg
import pytest
import redis
import yaml
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.helpers import _mmh3
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from hypothesis import given
from hypothesis import strategies as st

import infra
from feature_repo.aggregates import ArmFeatures
from feature_repo.arm_rows import STATISTICS_COLUMNS
from feature_repo.catalogue import feature
from feature_repo.embedding import Embedder
from feature_repo.health import ViewHealth, feature_alerts, view_health
from feature_repo.ranges import clipped, clipped_outcome
from feature_repo.report import FeatureReport, Pushed, ReportBoard
from feature_repo.store import FeatureStoreClient
from feature_repo.windows import WINDOWS_MIN, WindowFeatures
from optimizer.errors import Unavailable
from optimizer.features import pack
from optimizer.records import Outcome
from optimizer.settings import FeatureLimits, Settings
from serving import ledger
from serving.api import Api
from serving.learning import Learning
from serving.live_point import make_encoder
from serving.openapi import document
from serving.replica_state import ReplicaState
from serving.tokens import CHAMPION, Decision, TokenSigner

KEY = "00" * 16
MODELS = ["small", "large"]
RULES = Path(infra.__file__).parent / "prometheus" / "alerts.yaml"
FINE = ViewHealth("arm_windows", "chat", 0.4, 9.0, 2, 0, 0, None)
ANY_FLOAT = st.floats(allow_nan=True, allow_infinity=True)


@given(st.tuples(*[st.none() | ANY_FLOAT] * len(STATISTICS_COLUMNS)))
def test_whatever_comes_what_is_kept_is_in_range_and_every_change_is_named(row) -> None:
    rows, violations = clipped(STATISTICS_COLUMNS, {"small": row})
    for name, before, after in zip(STATISTICS_COLUMNS, row, rows["small"], strict=True):
        one = feature(name)
        assert after is None or one.low <= after <= one.high
        assert (name in violations.get("small", ())) == (before is not None and before != after)
        if before is not None and not math.isfinite(before):
            assert after is None


@given(st.builds(Outcome, ANY_FLOAT, ANY_FLOAT, ANY_FLOAT, st.floats(0, 1)))
def test_a_clipped_outcome_can_be_counted(outcome) -> None:
    kept, violations = clipped_outcome(outcome)
    kept.check()
    assert clipped_outcome(kept) == (kept, ())
    assert bool(violations) == (kept != outcome)


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        ({}, []),
        ({"online_age_s": 1.0}, []),
        ({"online_age_s": 1.01}, ["stale"]),
        ({"online_age_s": None}, ["stale"]),
        ({"view": "model_facts", "online_age_s": 1800.0, "missing": None}, []),
        ({"view": "model_facts", "online_age_s": 3601.0, "missing": None}, ["stale"]),
        ({"offline_age_s": 3600.0}, []),
        ({"offline_age_s": 3601.0}, ["offline_stale"]),
        ({"offline_age_s": None}, []),
        ({"missing": 2}, []),
        ({"missing": 1, "lost": 1}, ["missing"]),
        ({"violation_age_s": 60.0}, ["out_of_range"]),
        ({"violation_age_s": 61.0}, []),
        (
            {"online_age_s": 9.0, "offline_age_s": 4e3, "lost": 1, "violation_age_s": 0.0},
            ["stale", "offline_stale", "missing", "out_of_range"],
        ),
    ],
)
def test_alerts_follow_the_limits(change, reasons) -> None:
    alerts = feature_alerts([replace(FINE, **change)], FeatureLimits())
    assert [alert.reason for alert in alerts] == reasons
    wide = FeatureLimits(online_s=1e9, offline_s=1e9, violation_s=1e-9)
    assert {one.reason for one in feature_alerts([replace(FINE, **change)], wide)} <= {
        *(["stale"] if change.get("online_age_s", 0.0) is None else []),
        *(["missing"] if "lost" in change else []),
        *(["out_of_range"] if change.get("violation_age_s") == 0.0 else []),
    }


def health(found: dict[str, float] | None, report: FeatureReport | None) -> ViewHealth:
    return view_health("arm_windows", "chat", 2, found, report, None, 100.0)


def test_the_age_is_that_of_what_was_to_be_known() -> None:
    report = FeatureReport({"arm_windows": {"chat": Pushed(90.0, 2, 99.5)}})
    assert health({"small": 90.0, "large": 90.0}, report).online_age_s == 0.5
    # Older than what was pushed: somebody has put old values back.
    assert health({"small": 90.0, "large": 70.0}, report).online_age_s == 30.0
    assert health({"small": 90.0, "large": 90.0}, None).online_age_s == 10.0
    assert health({}, None).online_age_s is None
    lost = health({"small": 90.0}, report)
    assert (lost.online_age_s, lost.missing, lost.lost, lost.missing_share) == (0.5, 1, 1, 0.5)
    gone = health({}, report)
    assert (gone.online_age_s, gone.lost) == (None, 2)
    unread = health(None, report)
    assert (unread.online_age_s, unread.missing, unread.lost) == (0.5, None, 0)


def test_an_arm_that_is_no_longer_pushed_or_never_was_is_no_fault() -> None:
    report = FeatureReport({"arm_windows": {"chat": Pushed(90.0, 1, 99.5)}})
    left = health({"small": 90.0, "large": 20.0}, report)
    assert (left.online_age_s, left.lost) == (0.5, 0)
    report = FeatureReport({"arm_windows": {"chat": Pushed(90.0, 0, 99.5)}})
    new = health({}, report)
    assert (new.online_age_s, new.missing, new.lost) == (0.5, 2, 0)


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
    made = FeatureStoreClient(platform)
    made.apply()
    yield made
    made.close()


def test_nothing_out_of_range_is_pushed_or_logged(store, platform) -> None:
    values = {"small": ArmFeatures(1.5, -1.0, math.nan, math.inf, 3.0)}
    store.push("chat", values, 1000.0 + time.time() // 1)
    found = store.read("chat", MODELS)
    assert found == {"small": ArmFeatures(1.0, 0.0, None, None, 3.0)}
    expected = dict.fromkeys(("quality", "cost_usd", "latency_s", "error_rate"), 1)
    assert store.report.violations["arm_statistics"] == expected
    store.log("chat", values, 1000.0)
    windows = {"small": {w: WindowFeatures(count=1e12) for w in WINDOWS_MIN}}
    store.push_windows("chat", windows, time.time())
    assert store.read_windows("chat", MODELS)["small"].features[5].count == 1e9
    assert store.report.violations["arm_windows"]["count_5m"] == 1
    with psycopg.connect(platform.postgres_dsn()) as connection:
        row = connection.execute(
            "SELECT quality, cost_usd, latency_s, error_rate, count FROM feast.arm_statistics"
        ).fetchone()
    assert row == (1.0, 0.0, None, None, 3.0)


def test_a_report_of_another_version_is_none(platform) -> None:
    board = ReportBoard(platform.valkey_address)
    assert board.read() is None
    report = FeatureReport(late={"chat": 2})
    board.write(report)
    assert board.read() == report
    with redis.Redis.from_url(platform.valkey_address) as client:
        client.set("llmopt:features:report", b'{"late": 7}')
    assert board.read() is None
    board.close()
    away = ReportBoard("redis://127.0.0.1:1/0")
    with pytest.raises(Unavailable, match="Valkey"):
        away.read()
    with pytest.raises(Unavailable, match="Valkey"):
        away.write(report)


def write_as_a_stranger(platform: Settings, model: str, values: dict[str, float]) -> None:
    """Put numbers under Feast's key of an arm in Valkey, past every check of ours and of Feast."""
    value = Value(string_val=f"chat/{model}")
    key = EntityKey(join_keys=["arm_key"], entity_values=[value])
    name = serialize_entity_key(key, entity_key_serialization_version=3) + b"llmopt"
    with redis.Redis.from_url(platform.valkey_address) as client:
        assert client.exists(name), client.keys()
        for one, number in values.items():
            raw = Value(double_val=number).SerializeToString()
            assert client.hset(name, _mmh3(f"arm_statistics:{one}"), raw) == 0


def lose(platform: Settings, model: str) -> None:
    """Delete an arm's key in Valkey."""
    with redis.Redis.from_url(platform.valkey_address) as client:
        (name,) = [key for key in client.scan_iter() if f"chat/{model}".encode() in key]
        client.delete(name)


def tell(platform: Settings, model: str, outcome: Outcome, age_s: float = 0.0) -> None:
    """Write the outcome of a decision into the ledger."""
    point = platform.decision_points[0]
    encoder = make_encoder(point, Embedder())
    arm = next(arm for arm in point.records() if arm.model == model)
    decision = Decision(
        CHAMPION, time.time_ns().to_bytes(16, "big"), time.time() - age_s, arm.id, 0.5, 0,
        encoder.schema_id, point.name, pack(np.zeros(encoder.size)),
    )  # fmt: skip
    raw, _ = TokenSigner([KEY]).sign(decision)
    event = ledger.RewardEvent("chat", decision.decision_id, "", outcome, False, raw)
    with psycopg.connect(platform.postgres_dsn(), autocommit=True) as connection:
        ledger.create_tables(connection)
        ledger.write(connection, [event])


def wait_until(true: Callable[[], Any], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def get(state: ReplicaState, path: str) -> httpx.Response:
    async def call() -> httpx.Response:
        transport = httpx.ASGITransport(app=Api(state))  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.get(path)

    return asyncio.run(call())


def reasons(state: ReplicaState) -> set[tuple[str, str]]:
    alerts = get(state, "/v1/features").json()["alerts"]
    return {(alert["view"], alert["reason"]) for alert in alerts}


def sample(state: ReplicaState, name: str, **labels: str) -> float:
    shown = ",".join(f'{label}="{value}"' for label, value in sorted(labels.items()))
    text = get(state, "/metrics").text
    found = re.search(rf"^{re.escape(f'{name}{{{shown}}}')} (\S+)$", text, re.M)
    assert found, f"{name}{{{shown}}} is not in {text}"
    return float(found[1])


def test_faults_raise_alerts_that_end_with_them(platform, caplog) -> None:
    caplog.set_level("INFO", logger="serving.feature_health")
    tell(platform, "small", Outcome(quality=1.0, cost_usd=5e6, latency_s=2.0))
    tell(platform, "small", Outcome(quality=1.0), age_s=3 * 3600)
    learning = Learning(platform)
    state = ReplicaState(platform)
    assert reasons(state) == set()  # it is starting
    learning.start()
    try:
        # An idle platform: nothing is pushed for seconds, and nothing is stale.
        wait_until(lambda: sample_or_none(state, "arm_windows") is not None, 60)
        wait_until(lambda: reasons(state) == set(), 10)
        ages = []
        for _ in range(10):
            time.sleep(0.2)
            ages.append(sample_or_none(state, "arm_windows"))
        print(f"ages of windows while idle: {min(ages):.2f} to {max(ages):.2f} s")
        quiet = [record.message for record in caplog.records]
        content = get(state, "/v1/features").json()
        whole = {(one["view"], one["missing"]) for one in content["views"]}
        assert whole == {("arm_statistics", 0), ("arm_windows", 0), ("model_facts", None)}

        # Outcomes: late, and out of range.
        assert content["late_outcomes"] == {"chat": 1}
        assert content["outcome_violations"] == {"chat": {"cost_usd": 1}}
        assert sample(state, "llmopt_learner_late_outcomes_total", decision_point="chat") == 1.0
        cost = {"decision_point": "chat", "part": "cost_usd"}
        assert sample(state, "llmopt_learner_outcome_violations_total", **cost) == 1.0
        assert state.features.recent("chat", "small").cost_usd == 1000.0
        # Arms without an outcome are pushed too, so nothing is missing.
        missing = {"view": "arm_statistics", "decision_point": "chat"}
        assert sample(state, "llmopt_feature_missing_share", **missing) == 0.0

        learning.close()
        stale = {("arm_statistics", "stale"), ("arm_windows", "stale")}
        wait_until(lambda: reasons(state) == stale)
        alert = {"view": "arm_windows", "reason": "stale"}
        assert sample(state, "llmopt_feature_alert", **alert) == 1.0
        assert sample(state, "llmopt_feature_alert", view="model_facts", reason="stale") == 0.0

        # A stranger writes nonsense.
        write_as_a_stranger(
            platform, "small", {"quality": 7.0, "latency_s": math.nan, "count": math.inf}
        )
        wait_until(lambda: ("arm_statistics", "out_of_range") in reasons(state))
        recent = state.features.recent("chat", "small")
        assert (recent.quality, recent.latency_s, recent.count) == (1.0, None, 0.0)
        time.sleep(1.1)  # two more readings of the same value
        counts = {"quality": 1, "latency_s": 1, "count": 1}
        assert get(state, "/v1/features").json()["range_violations"]["arm_statistics"] == counts
        labels = {"view": "arm_statistics", "feature": "quality"}
        assert sample(state, "llmopt_feature_range_violations_total", **labels) == 1.0
        assert sample(state, "llmopt_learner_range_violations_total", **labels) == 0.0

        lose(platform, "large")
        lost = {("arm_statistics", "missing"), ("arm_windows", "missing")}
        wait_until(lambda: lost <= reasons(state))
        labels = {"view": "arm_windows", "decision_point": "chat"}
        assert sample(state, "llmopt_feature_missing_share", **labels) == 0.5
        assert sample(state, "llmopt_feature_lost_arms", **labels) == 1.0
        time.sleep(0.6)  # the reader's own look, which logs

        learning = Learning(platform)
        learning.start()
        wait_until(lambda: reasons(state) == {("arm_statistics", "out_of_range")}, 60)
        time.sleep(0.6)
        told = [record.message for record in caplog.records][len(quiet) :]
        begun = [one for one in told if "no longer" not in one]
        ended = [one for one in told if "no longer" in one]
        assert len(begun) == len(set(begun)) == 5, told
        back = sorted(one.rpartition(" ")[2] for one in ended)
        assert back == ["missing", "missing", "stale", "stale"]
    finally:
        state.close()
        learning.close()


def sample_or_none(state: ReplicaState, view: str) -> float | None:
    views = get(state, "/v1/features").json()["views"]
    (one,) = [one for one in views if one["view"] == view]
    age_s: float | None = one["online_age_s"]
    return age_s


def test_the_health_is_what_the_openapi_document_says(platform) -> None:
    state = ReplicaState(platform)
    try:
        content = get(state, "/v1/features").json()
    finally:
        state.close()
    schemas = document()["components"]["schemas"]
    for name, made in (
        ("FeaturesHealthResponse", content),
        ("ViewHealth", content["views"][0]),
    ):
        assert set(schemas[name]["required"]) == set(schemas[name]["properties"]) == set(made)
    assert "Alert" in schemas
    assert content["read_age_s"] is None
    assert content["views"][0]["online_age_s"] is None


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"decision_id":"x","quality":1.01}', "quality"),
        (b'{"decision_id":"x","cost_usd":1000000001}', "cost_usd"),
        (b'{"decision_id":"x","latency_s":-1}', "latency_s"),
        (b'{"decision_id":"x","latency_s":1e999}', "latency_s"),
        (b'{"decision_id":"x","cost_usd":NaN}', "cost_usd"),
    ],
)
def test_rewards_out_of_range_are_refused_at_the_door(platform, body, field) -> None:
    state = ReplicaState(platform)

    async def call() -> httpx.Response:
        transport = httpx.ASGITransport(app=Api(state))  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post("/v1/rewards", content=body)

    try:
        answer = asyncio.run(call())
    finally:
        state.close()
    assert answer.status_code in (400, 422)
    assert msgspec.json.decode(answer.content)["field"] == field


def test_every_metric_of_the_alert_rules_exists(platform) -> None:
    state = ReplicaState(platform)
    try:
        text = get(state, "/metrics").text
    finally:
        state.close()
    exported = set(re.findall(r"^# TYPE (\S+)", text, re.M))
    rules = [
        rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
    ]
    assert len({rule["alert"] for rule in rules}) == len(rules) > 10
    for rule in rules:
        names = set(re.findall(r"llmopt_\w+", rule["expr"]))
        assert names and names <= exported, (rule["alert"], names - exported)
        assert rule["annotations"]["summary"]
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
