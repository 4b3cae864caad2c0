import math
import subprocess
import sys
import time
from base64 import b64encode
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import psycopg
import pytest
from feast import FeatureStore
from hypothesis import given
from hypothesis import strategies as st

from feature_repo import model_facts
from feature_repo.aggregates import ArmFeatures
from feature_repo.catalogue import (
    FAMILIES,
    FEATURES,
    WINDOW_COLUMNS,
    Feature,
    clip,
    defaults,
    feature,
    of_view,
    table,
)
from feature_repo.connections import repo_config
from feature_repo.definitions import OBJECTS, PRICE_TIERS, catalogue_v2, catalogue_v3, decision_v1
from feature_repo.embedding import Embedder
from feature_repo.on_demand import request_and_arm_columns, request_facts_columns
from feature_repo.store import FeatureStoreClient
from feature_repo.tables import table_sql
from optimizer import catalogue as models
from optimizer.arm_traits import ArmTraits
from optimizer.errors import InvalidInput, UnknownName
from optimizer.features import FeatureEncoder
from optimizer.prompt_text import LANGUAGES
from optimizer.records import Context, Outcome
from optimizer.request_history import RequestHistory

ROOT = Path(__file__).parents[1]
SUNDAY_NOON_S = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()
REQUEST = {
    "prompt": "Wie ist das Wetter in Berlin?",
    "input_tokens": 1000,
    "expected_output_tokens": 500,
    "priority_level": "high",
    "at_s": SUNDAY_NOON_S,
    "service_type": "chat",
    "task": "weather",
    "user_id": "u-7",
}
FACTS = {"small": ArmTraits(price_in_usd=2.0, price_out_usd=8.0, context_tokens=3000)}
IN_ARM = {"price_in_usd": 2.0, "price_out_usd": 8.0, "context_tokens": 3000.0}


def one_row(function, **values):
    return {
        name: column[0] for name, column in function({k: [v] for k, v in values.items()}).items()
    }


@pytest.fixture
def applied(settings):
    made = settings()
    client = FeatureStoreClient(made)
    client.apply()
    store = FeatureStore(config=repo_config(made.postgres_dsn(), made.valkey_address))
    yield client, store, made.postgres_dsn()
    client.close()
    store.registry.write_engine.dispose()


def test_every_family_has_features_and_every_name_is_one():
    assert {one.family for one in FEATURES} == set(FAMILIES)
    assert len({one.name for one in FEATURES}) == len(FEATURES) >= 25
    assert all(one.description and one.unit and one.owner for one in FEATURES)


def test_every_owner_is_a_module():
    for owner in {one.owner for one in FEATURES}:
        assert (ROOT / f"{owner.replace('.', '/')}.py").exists()


@given(st.sampled_from(FEATURES), st.floats() | st.none())
def test_what_is_clipped_is_in_range_and_only_what_was_out_of_it_is_counted(one, value):
    used, violated = clip(one.name, value)
    assert one.low <= used <= one.high
    inside = value is None or one.low <= value <= one.high
    assert violated is not inside
    if inside and value is not None:
        assert used == value


@pytest.mark.parametrize("value", [None, math.nan])
def test_what_is_not_known_is_the_default(value):
    assert {one.name: clip(one.name, value)[0] for one in FEATURES} == defaults()


def test_an_unknown_feature_is_refused_by_name():
    with pytest.raises(UnknownName, match="colour"):
        feature("colour")


@pytest.mark.parametrize(
    ("family", "low", "high", "default"),
    [
        ("mood", 0, 1, 0),
        ("time", 1, 1, 1),
        ("time", 0, math.inf, 0),
        ("time", 0, 1, 2),
        ("time", 0, 1, math.nan),
    ],
)
def test_a_feature_that_makes_no_sense_is_refused(family, low, high, default):
    with pytest.raises(InvalidInput):
        Feature("x", family, "view", "what", "1", low, high, "owner", default)


def test_the_page_is_what_the_catalogue_says():
    made = subprocess.run(
        [sys.executable, "-m", "feature_repo.catalogue"], capture_output=True, text=True, cwd=ROOT
    )
    assert made.stdout == table() == (ROOT / "docs" / "features.md").read_text()


def test_the_services_hold_what_they_should():
    views = [projection.name for projection in decision_v1.feature_view_projections]
    assert views == ["arm_statistics", "request_features"]
    held = {
        service.name: {
            field.name
            for projection in service.feature_view_projections
            for field in projection.features
        }
        for service in (catalogue_v2, catalogue_v3)
    }
    assert held["catalogue_v3"] == {one.name for one in FEATURES} > held["catalogue_v2"]


def test_the_service_names_the_fitted_state_behind_it():
    assert catalogue_v2.tags["transform.tier"] == PRICE_TIERS.version
    assert Embedder().version.endswith(catalogue_v2.tags["transform.embedding"])


def test_the_windows_are_the_columns_that_the_stream_makes():
    names = "count quality_mean cost_usd_mean cost_usd_sum latency_mean_s"
    names += " latency_p50_s latency_p95_s error_rate"
    expected = [f"{name}_{w}m" for w in (1, 5, 15, 60) for name in names.split()]
    assert list(WINDOW_COLUMNS) == expected


def test_facts_of_a_request():
    facts = one_row(request_facts_columns, **REQUEST)
    assert facts["input_token_count"] == 1000 and facts["output_token_count"] == 500
    assert facts["priority_weight"] == 1.0
    assert LANGUAGES[facts["language_index"]] == "de"
    assert facts["prompt_words"] == 6 and facts["prompt_characters"] == 29
    assert facts["is_weekend"] == 1 and facts["is_business_hours"] == 0
    assert facts["time_of_day_cos"] == pytest.approx(-1.0)
    assert facts["range_violations"] == 0
    monday = one_row(request_facts_columns, **{**REQUEST, "at_s": SUNDAY_NOON_S + 86400})
    assert monday["is_weekend"] == 0 and monday["is_business_hours"] == 1


def test_a_request_that_tells_nothing_has_the_defaults():
    nothing = one_row(request_facts_columns, **dict.fromkeys(REQUEST))
    assert nothing == {one.name: one.default for one in of_view("request_facts")}


def test_values_out_of_range_are_clipped_and_counted():
    facts = one_row(
        request_facts_columns,
        **{**REQUEST, "input_tokens": 10**12, "expected_output_tokens": -5},
    )
    assert facts["input_token_count"] == feature("input_token_count").high
    assert facts["output_token_count"] == 0 and facts["range_violations"] == 2


def test_time_is_what_policies_see_times_its_scale():
    encoder = FeatureEncoder((), 0)
    for at_s in (0.0, SUNDAY_NOON_S, 1_700_000_123.4):
        seen = dict(zip(encoder.names, encoder.encode(Context(), None, at_s), strict=True))
        facts = one_row(request_facts_columns, **{**REQUEST, "at_s": at_s})
        for ours, theirs in (("time_of_day", "hour"), ("day_of_week", "weekday")):
            for part in ("sin", "cos"):
                assert 0.3 * facts[f"{ours}_{part}"] == pytest.approx(
                    seen[f"{theirs}_{part}"], abs=2e-4
                )


def test_what_a_request_is_to_an_arm():
    meeting = one_row(request_and_arm_columns, **REQUEST, **IN_ARM, cost_usd=0.01, latency_s=2.0)
    assert meeting == pytest.approx(
        {
            "list_cost_usd": 0.006,
            "context_fill": 0.5,
            "cost_tokens": 15.0,
            "latency_priority": 2.0,
            "arm_range_violations": 0,
        }
    )
    empty = dict.fromkeys((*IN_ARM, "cost_usd", "latency_s"))
    assert set(one_row(request_and_arm_columns, **REQUEST, **empty).values()) == {0.0}


def test_what_is_out_of_range_of_an_arm_is_clipped_and_counted():
    out = {**IN_ARM, "cost_usd": -1.0, "latency_s": math.inf}
    meeting = one_row(request_and_arm_columns, **{**REQUEST, "input_tokens": -3}, **out)
    assert meeting["latency_priority"] == feature("latency_s").high
    assert meeting["cost_tokens"] == 0.0 and meeting["arm_range_violations"] == 3


def test_a_fact_out_of_range_is_said_so(caplog):
    dear = {"dear": ArmTraits(price_in_usd=1e9, price_out_usd=1.0)}
    rows = model_facts.frame("chat", dear, 0.0)
    assert rows["price_in_usd"].tolist() == [feature("price_in_usd").high]
    assert "price_in_usd of dear" in caplog.text


def test_tiers_rise_with_the_price():
    tiers = [
        model_facts.tier(ArmTraits(price_in_usd=price, price_out_usd=price))
        for price in (0.01, 0.5, 3.0, 10.0, 5000.0)
    ]
    assert tiers == [1, 2, 3, 4, 4]
    assert model_facts.tier(models.traits("gpt-4o")) == 3


def test_a_table_gains_the_columns_that_it_lacks(settings):
    with psycopg.connect(settings().postgres_dsn()) as connection:
        connection.execute("CREATE SCHEMA feast")
        connection.execute(
            "CREATE TABLE feast.model_facts (arm_key text NOT NULL, event_timestamp timestamptz"
            " NOT NULL, created_at timestamptz NOT NULL, tier double precision)"
        )
        for _ in range(2):
            connection.execute(table_sql("feast", "model_facts"))
        found = connection.execute("SELECT * FROM feast.model_facts").description
    assert found is not None
    assert {one.name for one in of_view("model_facts")} < {column.name for column in found}


def test_the_registry_tells_what_every_feature_means(applied):
    _, store, _ = applied
    told = {
        field.name: f"{field.description} {field.tags}"
        for view in store.list_batch_feature_views()
        for field in view.features
    }
    for view in store.list_on_demand_feature_views():
        told |= {field.name: view.tags[field.name] for field in view.features}
    assert set(told) == {one.name for one in FEATURES}
    for one in FEATURES:
        assert all(part in told[one.name] for part in (one.description, *one.tags().values()))
    assert {service.name for service in store.list_feature_services()} == {
        "decision_v1",
        "catalogue_v2",
        "catalogue_v3",
    }
    assert store.get_feature_service("catalogue_v2").tags == catalogue_v2.tags


def test_the_whole_catalogue_is_the_same_online_and_offline(applied):
    client, store, dsn = applied
    now = time.time()
    arm = ArmFeatures(quality=0.5, cost_usd=0.01, latency_s=2.0, error_rate=0.1, count=3.0)
    client.push("chat", {"small": arm}, now)
    client.log("chat", {"small": arm}, now)
    model_facts.write(store, dsn, model_facts.frame("chat", FACTS, now - 7200))
    past = RequestHistory(Embedder().size)
    past.update(Embedder().embed(REQUEST["prompt"]), "u-7", Outcome(), Outcome(quality=1.0))
    request = {**REQUEST, "history": b64encode(past.to_bytes()).decode()}
    rows = [{"arm_key": "chat/small", **request}, {"arm_key": "chat/new", **request}]
    service = store.get_feature_service("catalogue_v3")
    online = store.get_online_features(features=service, entity_rows=rows).to_df()
    frame = pd.DataFrame(rows).assign(event_timestamp=datetime.fromtimestamp(now + 1, UTC))
    offline = store.get_historical_features(entity_df=frame, features=service).to_df()
    names = [one.name for one in FEATURES]
    for key in ("chat/small", "chat/new"):
        live = online[online["arm_key"] == key][names].astype(float).iloc[0]
        past = offline[offline["arm_key"] == key][names].astype(float).iloc[0]
        pd.testing.assert_series_equal(live, past, check_names=False, rtol=0, atol=1e-6)
        known = key == "chat/small"
        assert live["list_cost_usd"] == pytest.approx(0.006 if known else 0.0)
        assert live["latency_priority"] == (2.0 if known else 0.0)
        assert math.isnan(live["count_5m"]) and math.isnan(live["quality"]) is not known
    assert online["tier"].iloc[0] == 3.0
    assert online["similarity_to_past"].iloc[0] == pytest.approx(1.0)
    assert online["user_segment"].iloc[0] == 2 and online["user_requests"].iloc[0] == 1
    assert online["language_de"].iloc[0] == pytest.approx(0.3, abs=2e-4)


def test_all_objects_are_registered_once():
    assert {decision_v1.name, catalogue_v2.name, catalogue_v3.name} < {one.name for one in OBJECTS}
