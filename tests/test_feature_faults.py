"""The failure rules of the feature store, with servers that really stop and come back."""

import asyncio
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from feature_repo.aggregates import ArmFeatures
from feature_repo.store import FeatureStoreClient
from infra.servers import start_postgres, start_valkey, wait_postgres, wait_valkey
from optimizer.errors import Unavailable
from optimizer.settings import Settings
from serving import ledger
from serving.api import Api
from serving.arm_features import ArmFeatureReader
from serving.learning import Learning
from serving.replica_state import ReplicaState

KEY = "00" * 16
MODELS = ["small", "large"]
BAD = ArmFeatures(quality=0.0, cost_usd=0.1, latency_s=1.0, error_rate=1.0, count=50.0)


class Server:
    """A server of one test: stopped as if its machine had gone, and started again."""

    def __init__(
        self,
        url: str,
        folder: Path,
        start: Callable[[Path, int, Path], subprocess.Popen[bytes]],
        wait: Callable[[str, float, subprocess.Popen[bytes]], None],
        how: signal.Signals,
    ) -> None:
        self.url = url
        self._folder, self._start, self._wait, self._how = folder, start, wait, how
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        port = int(self.url.rpartition(":")[2].partition("/")[0])
        self._process = self._start(self._folder, port, self._folder.with_suffix(".log"))
        self._wait(self.url, 60, self._process)

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(self._how)
            self._process.wait(20)
            self._process = None


@pytest.fixture
def valkey(server_folder: Path, find_free_port: Callable[[], int]) -> Iterator[Server]:
    port = find_free_port()
    url, folder = f"redis://127.0.0.1:{port}/0", server_folder / f"valkey-{port}"
    # Killed within its first minute, it has saved nothing: it comes back empty.
    server = Server(url, folder, start_valkey, wait_valkey, signal.SIGKILL)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def postgres(server_folder: Path, find_free_port: Callable[[], int]) -> Iterator[Server]:
    port = find_free_port()
    url, folder = f"postgresql://postgres@127.0.0.1:{port}/postgres", server_folder / f"pg-{port}"
    server = Server(url, folder, start_postgres, wait_postgres, signal.SIGQUIT)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def platform(settings: Callable[..., Settings], valkey: Server) -> Settings:
    return settings(
        token_keys=[KEY],
        learner={"batch_s": 0.05},
        valkey_url=valkey.url,
        mlflow_url="http://127.0.0.1:1",
        decision_points=[{"name": "chat", "arms": [{"model": model} for model in MODELS]}],
    )


class Client:
    """Calls a replica's application the way a server does."""

    def __init__(self, state: ReplicaState) -> None:
        self._app = Api(state)
        self._loop = asyncio.new_event_loop()

    def request(self, method: str, path: str, **given: Any) -> httpx.Response:
        async def call() -> httpx.Response:
            transport = httpx.ASGITransport(app=self._app)  # type: ignore[arg-type]
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, **given)

        return self._loop.run_until_complete(call())

    def decide(self) -> dict[str, Any]:
        answer = self.request(
            "POST", "/v1/decisions", json={"decision_point": "chat", "context": {}}
        )
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def reward(self, decision: dict[str, Any]) -> httpx.Response:
        body = {"decision_id": decision["decision_id"], "quality": 1.0}
        return self.request("POST", "/v1/rewards", json=body)

    def features(self, model: str) -> dict[str, Any]:
        answer = self.request("GET", f"/v1/features/chat/{model}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def hour(self) -> float:
        """Outcomes of the last hour that the replica knows of."""
        windows = [self.features(model)["windows"] for model in MODELS]
        return sum(one["60m"]["count"] for one in windows if one is not None)

    def close(self) -> None:
        self._loop.close()


@pytest.fixture
def replica() -> Iterator[Callable[[Settings], tuple[ReplicaState, Client]]]:
    made: list[tuple[ReplicaState, Client]] = []

    def make(platform: Settings) -> tuple[ReplicaState, Client]:
        state = ReplicaState(platform)
        made.append((state, Client(state)))
        return made[-1]

    yield make
    for state, client in made:
        state.close()
        client.close()


@pytest.fixture
def learning() -> Iterator[Callable[[Settings], Learning]]:
    made: list[Learning] = []

    def make(platform: Settings) -> Learning:
        made.append(Learning(platform))
        made[-1].start()
        return made[-1]

    yield make
    for one in made:
        one.close()


def wait_until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def test_a_valkey_that_comes_back_empty_is_filled_without_a_restart(
    platform, valkey, replica, learning
) -> None:
    learning(platform)
    state, client = replica(platform)
    for _ in range(5):
        assert client.reward(client.decide()).status_code == 202
    wait_until(lambda: state.features.age_s() < 5 and client.hour() == 5.0, 60)
    store = FeatureStoreClient(platform)
    tier = ["model_facts:tier"]
    facts = lambda: online(store, tier)  # noqa: E731
    wait_until(lambda: None not in facts())

    valkey.stop()
    age_s = state.features.age_s()
    wait_until(lambda: state.features.age_s() > age_s + 1.0)
    known = client.features("small")
    for _ in range(3):
        decision = client.decide()
        assert not decision["fallback"]
        assert client.reward(decision).status_code == 202
    assert client.hour() == 5.0
    assert client.features("small")["windows"] == known["windows"]
    assert client.features("small")["read_age_s"] > known["read_age_s"] > 1.0

    valkey.start()  # empty
    wait_until(lambda: client.hour() == 8.0)
    assert state.features.age_s() < 5.0
    wait_until(lambda: None not in facts())
    store.close()


def online(store: FeatureStoreClient, features: list[str]) -> list[Any]:
    """Values of the arms, as any user of Feast reads them."""
    with store._opened() as opened:
        rows = [{"arm_key": f"chat/{model}"} for model in MODELS]
        answer = opened.get_online_features(features=features, entity_rows=rows).to_dict()
    return [value for name, values in answer.items() if name != "arm_key" for value in values]


def test_after_the_limit_what_was_known_falls_to_the_defaults(platform, valkey, replica) -> None:
    """The limit is an hour; a reader with a shorter one takes the replica's place here."""
    store = FeatureStoreClient(platform)
    store.apply()
    state, client = replica(platform)
    state.features.close(5)
    state.features = ArmFeatureReader(
        platform, {"chat": MODELS}, state._use_statistics, lambda: None, last_s=2.0
    )
    state.features.start()
    store.push("chat", {"small": BAD}, time.time())
    wait_until(lambda: state.points["chat"].set_aside == (0,), 60)
    valkey.stop()
    wait_until(lambda: state.points["chat"].set_aside == ())
    assert state.features.age_s() > 2.0  # not before
    assert client.request("GET", "/v1/features/chat/small").status_code == 503
    assert state.features.recent("chat", "small") is None
    client.decide()

    valkey.start()
    store.push("chat", {"small": BAD}, time.time())
    wait_until(lambda: state.points["chat"].set_aside == (0,))
    store.close()


def test_without_postgresql_features_flow_and_rewards_wait(
    platform, postgres, replica, learning
) -> None:
    platform = platform.model_copy(update={"postgres_url": postgres.url})
    learning(platform)
    state, client = replica(platform)
    for _ in range(5):
        assert client.reward(client.decide()).status_code == 202
    wait_until(lambda: state.features.age_s() < 5 and client.hour() == 5.0, 60)
    wait_until(lambda: state.points["chat"].policy is not None)

    postgres.stop()
    pushed_at = pushed(state)
    decision = client.decide()
    refused = client.reward(decision)
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    wait_until(lambda: pushed(state) > pushed_at + 1.0)  # pushed and read, both without PostgreSQL
    assert state.features.age_s() < 5.0
    assert not client.decide()["fallback"]

    late, late_client = replica(platform)  # starts while Feast's registry is away
    assert not late_client.decide()["fallback"]
    assert late.features.age_s() == float("inf")
    assert late_client.request("GET", "/v1/features/chat/small").status_code == 503

    postgres.start()
    wait_until(lambda: client.reward(decision).status_code == 202)
    wait_until(lambda: client.hour() == 6.0)
    wait_until(lambda: late.features.age_s() < 5 and late_client.hour() == 6.0)
    with psycopg.connect(platform.postgres_dsn()) as connection:
        assert ledger.head(connection, "chat") == 6


def pushed(state: ReplicaState) -> float:
    """When the newest windows that the replica has read were true (Unix time, seconds)."""
    return max(dated.at_s for dated in state.features.windows["chat"].values())


def test_who_opens_the_store_while_another_applies_waits_for_it(settings) -> None:
    made = settings()
    applying, early = FeatureStoreClient(made), FeatureStoreClient(made)
    thread = threading.Thread(target=applying.apply)
    thread.start()
    found = None
    while found is None:
        with suppress(Unavailable):  # any other error is that of a registry half made
            found = early.read("chat", MODELS)
    thread.join()
    assert found == {}
    early.close()
    applying.close()
