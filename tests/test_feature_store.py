import math
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import psycopg
import pytest
import yaml
from feast import FeatureService, FeatureStore

from feature_repo.aggregates import ArmFeatures
from feature_repo.connections import offline_store, online_store, registry_url, repo_config
from feature_repo.definitions import (
    OBJECTS,
    arm_statistics,
    arm_windows,
    decision_v1,
    request_features,
)
from feature_repo.partitions import partitions
from feature_repo.store import FeatureStoreClient
from optimizer.errors import InvalidInput, InvalidSettings, Unavailable
from optimizer.features import SIDE_COLUMNS, FeatureEncoder
from optimizer.records import Context
from optimizer.settings import Settings

FOLDER = Path(__file__).parents[1] / "feature_repo"
SMALL = ArmFeatures(quality=0.5, cost_usd=0.001, latency_s=0.2, error_rate=0.1, count=12.5)
NEW = ArmFeatures(count=1.0)
TABLES = ("feast.arm_statistics", "feast.arm_windows")


@pytest.fixture
def client(settings):
    client = FeatureStoreClient(settings())
    client.apply()
    yield client
    client.close()


def test_what_is_pushed_is_read(client):
    values = {"small": SMALL, "vendor/large": NEW}
    client.push("chat", values, time.time())
    assert client.read("chat", ["small", "vendor/large", "unknown"]) == values


def test_decision_points_do_not_mix(client):
    client.push("chat", {"small": SMALL}, time.time())
    assert client.read("summarise", ["small"]) == {}


def test_the_newest_push_wins_whatever_comes_last(client):
    now = time.time()
    client.push("chat", {"small": NEW}, now)
    client.push("chat", {"small": SMALL}, now - 60)
    assert client.read("chat", ["small"]) == {"small": NEW}
    client.push("chat", {"small": SMALL}, now + 0.01)
    assert client.read("chat", ["small"]) == {"small": SMALL}


def test_a_part_that_is_no_longer_known_is_none_again(client):
    client.push("chat", {"small": SMALL}, time.time())
    client.push("chat", {"small": NEW}, time.time())
    assert client.read("chat", ["small"]) == {"small": NEW}


def test_nothing_is_pushed_read_or_logged_for_nothing(client):
    client.push("chat", {}, time.time())
    client.log("chat", {}, time.time())
    assert client.read("chat", []) == {}


def test_history_is_what_was_known_at_the_time(client):
    now = time.time()
    early, late = ArmFeatures(quality=0.1, count=1.0), ArmFeatures(quality=0.2, count=2.0)
    client.log("chat", {"small": early}, now - 600)
    client.log("chat", {"small": late}, now - 300)
    ages = {"before": 700, "first": 450, "second": 100, "expired": -4000}
    moments = [datetime.fromtimestamp(now - age, UTC) for age in ages.values()]
    frame = pd.DataFrame({"arm_key": "chat/small", "event_timestamp": moments, "when": list(ages)})
    joined = client.history(frame).set_index("when")
    assert joined.loc["first", "quality"] == 0.1 and joined.loc["first", "count"] == 1.0
    assert joined.loc["second", "quality"] == 0.2
    assert math.isnan(joined.loc["before", "quality"])
    assert math.isnan(joined.loc["expired", "quality"])
    assert joined["cost_usd"].isna().all()


def test_history_adds_request_features_where_requests_are_given(client):
    at_s = 1_700_000_000.0
    frame = pd.DataFrame(
        {
            "arm_key": ["chat/small", "chat/large"],
            "event_timestamp": [datetime.fromtimestamp(at_s, UTC)] * 2,
            "prompt": ["Add 12 and 30", "Write"],
            "input_tokens": [10, 2000],
            "expected_output_tokens": [5, 100],
            "priority_level": ["high", "low"],
            "at_s": [at_s, at_s + 3600],
        }
    )
    joined = client.history(frame).set_index("arm_key")
    encoder = FeatureEncoder((), 0)
    context = Context("Add 12 and 30", None, 10, 5, "high")
    expected = dict(zip(encoder.names, encoder.encode(context, None, at_s), strict=True))
    for name in SIDE_COLUMNS:
        assert joined.loc["chat/small", name] == expected[name]


def test_request_features_are_all_those_of_the_encoder():
    assert [field.name for field in request_features.features] == list(SIDE_COLUMNS)
    assert set(SIDE_COLUMNS) <= set(FeatureEncoder((), 0).names)


def test_arm_features_are_the_columns_of_the_view():
    assert [field.name for field in arm_statistics.features] == list(ArmFeatures.__slots__)


def test_applying_again_changes_nothing(client, settings):
    def versions():
        with psycopg.connect(settings().postgres_dsn()) as connection:
            query = "SELECT count(*) FROM feast.feature_view_version_history"
            return connection.execute(query).fetchone()

    before = versions()
    client.push("chat", {"small": SMALL}, time.time())
    client.apply()
    assert client.read("chat", ["small"]) == {"small": SMALL}
    assert versions() == before


def test_a_service_never_loses_a_feature(client, settings):
    made = settings()
    store = FeatureStore(config=repo_config(made.postgres_dsn(), made.valkey_address))
    richer = FeatureService(name=decision_v1.name, features=[arm_statistics, arm_windows])
    store.apply([richer])
    try:
        with pytest.raises(InvalidInput, match=r"decision_v1.*arm_windows:count_1m"):
            client.apply()
        store.refresh_registry()
        (there,) = (one for one in store.list_feature_services() if one.name == decision_v1.name)
        assert len(there.feature_view_projections) == 2
    finally:
        store.delete_feature_service(decision_v1.name)
        store.registry.write_engine.dispose()
        client.apply()


def test_two_processes_may_apply_at_once(settings):
    made = settings()
    code = (
        "import sys; from feature_repo.store import FeatureStoreClient;"
        "from optimizer.settings import Settings;"
        "FeatureStoreClient(Settings.model_validate_json(sys.stdin.read())).apply()"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(made.model_dump_json())
        process.stdin.close()
    assert [process.wait(200) for process in processes] == [0, 0]
    client = FeatureStoreClient(made)
    client.push("chat", {"small": SMALL}, time.time())
    assert client.read("chat", ["small"]) == {"small": SMALL}
    client.close()


def test_a_client_that_reads_before_anything_is_applied_recovers(settings):
    early, other = FeatureStoreClient(settings()), FeatureStoreClient(settings())
    with pytest.raises(Unavailable, match="registry"):
        early.read("chat", ["small"])
    other.apply()
    assert early.read("chat", ["small"]) == {}
    early.close()
    other.close()


def test_valkey_away_is_said_so(settings):
    client = FeatureStoreClient(settings(valkey_url="redis://127.0.0.1:1/0"))
    client.apply()
    with pytest.raises(Unavailable, match="Valkey"):
        client.read("chat", ["small"])
    with pytest.raises(Unavailable, match="Valkey"):
        client.push("chat", {"small": SMALL}, time.time())
    client.log("chat", {"small": SMALL}, time.time())
    client.close()


def test_postgres_away_is_said_so(settings):
    client = FeatureStoreClient(settings(postgres_url="postgresql://postgres@127.0.0.1:1/llmopt"))
    for call in (
        client.apply,
        lambda: client.read("chat", ["small"]),
        lambda: client.log("chat", {"small": SMALL}, 0.0),
    ):
        with pytest.raises(Unavailable, match="PostgreSQL"):
            call()


def test_reading_goes_on_without_postgres(client, settings):
    with psycopg.connect(settings().postgres_dsn(), autocommit=True) as connection:
        client.push("chat", {"small": SMALL}, time.time())
        database = connection.info.dbname
    with psycopg.connect(settings().postgres_dsn("postgres"), autocommit=True) as connection:
        connection.execute(f'DROP DATABASE "{database}" WITH (FORCE)')
    client.push("chat", {"large": NEW}, time.time())
    assert client.read("chat", ["small", "large"]) == {"small": SMALL, "large": NEW}
    with pytest.raises(Unavailable, match="PostgreSQL"):
        client.log("chat", {"small": SMALL}, time.time())


def test_the_file_for_the_command_is_what_settings_give():
    shipped = yaml.safe_load((FOLDER / "feature_store.yaml").read_text())
    defaults = Settings(decision_points=[{"name": "chat", "arms": [{"model": "small"}]}])
    ours = repo_config(defaults.postgres_dsn(), defaults.valkey_address)
    assert shipped["project"] == ours.project
    assert shipped["offline_store"] == offline_store(defaults.postgres_dsn())
    assert shipped["online_store"]["key_ttl_seconds"] == ours.online_store.key_ttl_seconds
    assert shipped["online_store"]["connection_string"].split(",")[0] == "127.0.0.1:6399"
    assert shipped["registry"]["cache_ttl_seconds"] == ours.registry.cache_ttl_seconds == 0


def test_the_ignored_files_are_all_but_the_definitions():
    modules = {path.name for path in FOLDER.glob("*.py")} - {"definitions.py"}
    assert set((FOLDER / ".feastignore").read_text().split()) == modules


def test_the_feast_command_applies_and_lists(settings, tmp_path):
    made = settings()
    for name in (".feastignore", *(path.name for path in FOLDER.glob("*.py"))):
        (tmp_path / name).write_bytes((FOLDER / name).read_bytes())
    config = yaml.safe_load((FOLDER / "feature_store.yaml").read_text())
    config["registry"]["path"] = registry_url(made.postgres_dsn()).replace(
        "search_path%3Dfeast", "search_path%3Dfeast,public"
    )
    config["online_store"]["connection_string"] = online_store(made.valkey_address)[
        "connection_string"
    ]
    config["offline_store"] = offline_store(made.postgres_dsn())
    (tmp_path / "feature_store.yaml").write_text(yaml.safe_dump(config))
    feast = Path(sys.executable).with_name("feast")
    for arguments in (["apply"], ["features", "list"]):
        result = subprocess.run(
            [feast, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=200
        )
        assert result.returncode == 0, result.stderr
    for name in (*ArmFeatures.__slots__, *SIDE_COLUMNS):
        assert name in result.stdout


def test_objects_have_different_names():
    names = [(type(thing).__name__, thing.name) for thing in OBJECTS]
    assert len(set(names)) == len(names)


def test_a_valkey_url_becomes_feasts_string():
    parts = online_store("rediss://me:a%2Cb%3D1@cache.example:6380/2?ssl_cert_reqs=none")
    text = str(parts["connection_string"])
    assert text.split(",")[0] == "cache.example:6380"
    from feast.infra.online_stores.redis import RedisOnlineStore

    nodes, options = RedisOnlineStore._parse_connection_string(text)
    assert nodes == [{"host": "cache.example", "port": "6380"}]
    assert options["password"] == "a,b=1" and options["username"] == "me"
    assert options["db"] == 2 and options["ssl"] is True and options["ssl_cert_reqs"] == "none"


@pytest.mark.parametrize("url", ["http://cache:6379", "redis://[::1]:6379/0"])
def test_a_valkey_url_feast_cannot_use_is_refused(url):
    with pytest.raises(InvalidSettings, match="valkey_url"):
        online_store(url)


def test_a_postgres_url_keeps_its_options():
    url = "postgresql://me:p%40ss@db.example:5433/shop?sslmode=verify-full&sslrootcert=ca.pem"
    offline = offline_store(url)
    assert offline["password"] == "p@ss" and offline["sslmode"] == "verify-full"
    assert offline["sslrootcert_path"] == "ca.pem" and offline["port"] == 5433
    registry = registry_url(url)
    assert registry.startswith("postgresql+psycopg://me:p%40ss@db.example:5433/shop?")
    assert "sslmode=verify-full" in registry and "search_path%3Dfeast" in registry


@pytest.mark.parametrize("url", ["postgresql://me@db:first/x", "postgresql://db/x?nonsense=1"])
def test_a_postgres_url_feast_cannot_use_is_refused(url):
    with pytest.raises(InvalidSettings, match="postgres_url"):
        registry_url(url)


def test_a_table_of_an_earlier_version_is_partitioned_without_loss(settings):
    now = time.time()
    with psycopg.connect(settings().postgres_dsn(), autocommit=True) as connection:
        connection.execute(
            "CREATE SCHEMA feast; CREATE TABLE feast.arm_statistics (arm_key text NOT NULL,"
            " event_timestamp timestamptz NOT NULL, created_at timestamptz NOT NULL,"
            " quality float8, cost_usd float8, latency_s float8, error_rate float8,"
            " count float8 NOT NULL);"
            "CREATE INDEX arm_statistics_arm_time ON feast.arm_statistics"
            " (arm_key, event_timestamp);"
        )
        connection.execute(
            "INSERT INTO feast.arm_statistics SELECT 'chat/small', to_timestamp(%s - age), now(),"
            " age, 0, 0, 0, 1 FROM unnest(ARRAY[600.0, 86400.0, -864000.0]) age",
            [now],
        )
        client = FeatureStoreClient(settings())
        client.apply()
        client.apply()
        client.log("chat", {"small": SMALL}, now - 60)
        assert [one.name for one in partitions(connection, "feast.arm_statistics")][0::4] == [
            "feast.arm_statistics_old",
            "feast.arm_statistics_default",
        ]
    moments = [datetime.fromtimestamp(now - age, UTC) for age in (500, 86000, 0, -864001)]
    frame = pd.DataFrame({"arm_key": "chat/small", "event_timestamp": moments, "age": range(4)})
    joined = client.history(frame).sort_values("age")
    assert joined["quality"].tolist() == [600.0, 86400.0, SMALL.quality, -864000.0]
    client.close()


def test_partitions_are_made_ahead_once_an_hour(client, settings):
    def days():
        with psycopg.connect(settings().postgres_dsn()) as connection:
            return {table: len(partitions(connection, table)) for table in TABLES}

    now, before = time.time(), days()
    client.prepare(now)
    client.prepare(now + 3599)
    assert days() == before
    client.prepare(now + 2 * 86400)
    assert days() == {table: count + 2 for table, count in before.items()}
