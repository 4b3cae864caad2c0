"""Windows through Feast: from the ledger to what replicas and people read."""

import time

import psycopg
import pytest

from feature_repo.definitions import arm_windows
from feature_repo.store import FeatureStoreClient
from feature_repo.windows import COLUMNS, WINDOWS_MIN, WindowFeatures

FULL = WindowFeatures(3.0, 0.5, 0.001, 0.003, 0.2, 0.15, 0.4, 0.25)
EMPTY = {minutes: WindowFeatures() for minutes in WINDOWS_MIN}


@pytest.fixture
def client(settings):
    client = FeatureStoreClient(settings())
    client.apply()
    yield client
    client.close()


def test_windows_that_are_pushed_are_read_with_their_time(client) -> None:
    now = time.time()
    values = {"small": dict.fromkeys(WINDOWS_MIN, FULL), "vendor/large": EMPTY}
    client.push_windows("chat", values, now)
    found = client.read_windows("chat", ["small", "vendor/large", "unknown"])
    assert {model: dated.features for model, dated in found.items()} == values
    assert found["small"].at_s == pytest.approx(now, abs=1e-5)
    assert client.read_windows("chat", []) == {}


def test_logged_windows_are_rows_of_their_table(client, settings) -> None:
    client.log_windows("chat", {"small": EMPTY | {5: FULL}}, time.time())
    client.log_windows("chat", {}, time.time())
    with psycopg.connect(settings().postgres_dsn()) as connection:
        query = "SELECT arm_key, count_5m, latency_p95_s_5m, quality_mean_1m FROM feast.arm_windows"
        assert connection.execute(query).fetchall() == [("chat/small", 3.0, 0.4, None)]


def test_columns_of_windows_are_those_of_the_view() -> None:
    assert {field.name for field in arm_windows.features} == set(COLUMNS)
