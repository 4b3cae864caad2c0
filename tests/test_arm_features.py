"""From the ledger to replicas and people, on real servers, with a Valkey that really stops."""

import asyncio
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psycopg
import pytest

from feature_repo.embedding import Embedder
from feature_repo.store import FeatureStoreClient
from feature_repo.windows import ArmWindows
from infra.servers import start_valkey, wait_valkey
from optimizer.errors import Unavailable, UnknownName
from optimizer.features import pack
from optimizer.records import Outcome
from optimizer.settings import Settings
from serving import ledger
from serving.api import Api
from serving.arm_features import ArmFeatureReader
from serving.learner import Learner
from serving.learning import Learning
from serving.live_point import make_encoder
from serving.replica_state import ReplicaState
from serving.tokens import CHAMPION, Decision, TokenSigner, parse

KEY = "00" * 16
EMBEDDER = Embedder()
MODELS = ["small", "vendor/large"]


@pytest.fixture
def valkey(server_folder: Path, find_free_port: Callable[[], int]) -> Iterator[Any]:
    """A Valkey of this test alone: stopped and started by it."""
    port = find_free_port()
    url = f"redis://127.0.0.1:{port}/0"
    folder = server_folder / f"valkey-{port}"

    class Server:
        def __init__(self) -> None:
            self.url = url

        def start(self) -> None:
            self._process = start_valkey(folder, port, folder.with_suffix(".log"))
            wait_valkey(url, 60, self._process)

        def stop(self) -> None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(20)

    server = Server()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def platform(settings: Callable[..., Settings], valkey: Any) -> Settings:
    return settings(
        token_keys=[KEY],
        learner={"batch_s": 0.05},
        valkey_url=valkey.url,
        mlflow_url="http://127.0.0.1:1",
        decision_points=[{"name": "chat", "arms": [{"model": model} for model in MODELS]}],
    )


def tell(platform: Settings, model: str, outcome: Outcome, age_s: float = 0.0) -> None:
    """Write the outcome of a decision into the ledger."""
    point = platform.decision_points[0]
    encoder = make_encoder(point, EMBEDDER)
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


def wait_until(true: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def wait_for_position(learner: Learner, position: int) -> None:
    wait_until(lambda: learner.counted == position, 10)


def get(state: ReplicaState, path: str) -> httpx.Response:
    async def call() -> httpx.Response:
        transport = httpx.ASGITransport(app=Api(state))  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.get(path)

    return asyncio.run(call())


def windows_age_s(state: ReplicaState) -> float:
    text = state.metrics.render().decode()
    return float(re.search(r"^llmopt_windows_age_seconds (\S+)", text, re.M)[1])


def test_outcomes_reach_replicas_and_people_and_outlive_valkey(platform, valkey) -> None:
    tell(platform, "small", Outcome(quality=1.0, cost_usd=0.5), age_s=120)  # before its start
    learning = Learning(platform)
    learning.start()
    store = FeatureStoreClient(platform)
    state = ReplicaState(platform)
    try:
        unknown = get(state, "/v1/features/chat/none")
        assert unknown.status_code == 404
        assert unknown.json()["value"] == "chat/none"
        assert "chat/vendor/large" in unknown.json()["detail"]

        def hour(model: str) -> float:
            found = state.features.windows["chat"].get(model)
            return found.features[60].count if found else -1.0

        wait_until(lambda: hour("small") == 1.0 and hour("vendor/large") == 0.0, 60)
        written_at = time.monotonic()
        tell(platform, "vendor/large", Outcome(quality=0.0, latency_s=2.0))
        wait_until(lambda: hour("vendor/large") == 1.0, 5)
        assert store.read_windows("chat", MODELS)["vendor/large"].features[1].error_rate == 1.0
        print(f"ledger to replica: {time.monotonic() - written_at:.2f} s")

        for path in ("/v1/features/chat/vendor/large", "/v1/features/chat%2Fvendor%2Flarge"):
            answer = get(state, path)
            assert answer.status_code == 200, answer.text
            content = answer.json()
            assert content["entity"] == "chat/vendor/large"
            assert content["windows"]["1m"]["count"] == 1.0
            assert content["windows"]["60m"]["latency_p95_s"] == pytest.approx(2.0, rel=0.011)
            assert content["statistics"]["error_rate"] == 1.0
            assert 0.0 <= content["windows_age_s"] < 10.0
            assert 0.0 <= content["statistics_age_s"] < 10.0
        small = get(state, "/v1/features/chat/small").json()["windows"]
        assert (small["1m"]["count"], small["5m"]["count"]) == (0.0, 1.0)
        assert windows_age_s(state) < 10.0

        valkey.stop()
        before = windows_age_s(state)
        wait_until(lambda: windows_age_s(state) > before + 0.5, 10)
        tell(platform, "vendor/large", Outcome(quality=1.0))
        content = get(state, "/v1/features/chat/vendor/large").json()
        assert content["windows"]["60m"]["count"] == 1.0
        assert content["read_age_s"] > 0.4

        valkey.start()
        wait_until(lambda: hour("vendor/large") == 2.0, 20)
        assert windows_age_s(state) < 10.0
    finally:
        state.close()
        learning.close()
        store.close()


def test_before_anything_was_read_and_after_an_hour_without_people_get_503(platform) -> None:
    heard: list[tuple[str, dict[str, Any]]] = []
    reader = ArmFeatureReader(
        platform, {"chat": MODELS}, lambda *told: heard.append(told), lambda: None
    )
    with pytest.raises(Unavailable, match="feature store"):
        reader.entity("chat/small")
    assert reader.age_s() == reader.windows_age_s() == float("inf")
    with pytest.raises(UnknownName, match="chat/vendor/large"):
        reader.entity("small")


def test_windows_after_a_restart_are_those_of_one_fold(platform) -> None:
    point = platform.decision_points[0]
    rng = np.random.default_rng(7)
    for part in range(1, 4):
        learner = Learner(platform, point, EMBEDDER)
        learner.start()
        for _ in range(15):
            outcome = Outcome(float(rng.random()), float(rng.random()), float(rng.random()))
            tell(platform, MODELS[int(rng.integers(2))], outcome, age_s=float(rng.uniform(0, 1800)))
        wait_for_position(learner, 15 * part)
        learner.close()
    learner = Learner(platform, point, EMBEDDER)
    learner.start()
    wait_until(lambda: learner.remembers, 10)
    now = time.time()
    whole = ArmWindows()
    models = {arm.id: arm.model for arm in point.records()}
    with psycopg.connect(platform.postgres_dsn()) as connection:
        for row in ledger.read(connection, "chat", 0, 100):
            decision = parse(row.token)
            model = models[decision.arm_id]
            whole.update(model, decision.decided_at, row.before, row.after)
    with learner.statistics_lock:
        assert learner.windows.values(MODELS, now) == whole.values(MODELS, now)
    assert whole.values(MODELS, now)["small"][60].count > 0
    learner.close()
