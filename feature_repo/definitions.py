"""The Feast objects, all of them, and the only file of this room that Feast itself imports.

``cd feature_repo && feast apply`` registers what stands here, and so does
`feature_repo.store.FeatureStoreClient.apply`.
"""

from __future__ import annotations

import hashlib
from datetime import timedelta
from typing import Any

from feast import Entity, FeatureService, FeatureView, Field, PushSource, RequestSource, ValueType
from feast.infra.offline_stores.contrib.postgres_offline_store.postgres_source import (
    PostgreSQLSource,
)
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, Int64, String

from feature_repo.catalogue import of_view
from feature_repo.embedding import PROJECTION_FILE
from optimizer.transformations import Bins, versions

__all__ = [
    "OBJECTS",
    "PRICE_TIERS",
    "STATISTICS_TTL_S",
    "arm",
    "arm_statistics",
    "arm_windows",
    "catalogue_v2",
    "catalogue_v3",
    "decision_v1",
    "model_facts",
    "model_facts_push",
    "policy_facts",
    "request",
    "request_and_arm",
    "request_facts",
    "request_features",
    "request_history",
]

STATISTICS_TTL_S = 3600

_FOREVER = timedelta(0)

PRICE_TIERS = Bins((0.5, 3.0, 10.0))
"""US dollars of a million tokens. Set by hand, where small, middle, large and largest part."""


_TYPES = {"Float64": Float64, "Int64": Int64}


def _fields(view: str) -> list[Field]:
    return [
        Field(name=one.name, dtype=_TYPES[one.type], description=one.description, tags=one.tags())
        for one in of_view(view)
    ]


def _computed(view: str) -> dict[str, Any]:
    """Schema and tags of an on-demand view.

    Feast 0.67 refuses a described field there and drops what describes it on reading. So the view
    itself has a tag for each field.
    """
    return {
        "schema": [Field(name=one.name, dtype=_TYPES[one.type]) for one in of_view(view)],
        "tags": {one.name: one.summary for one in of_view(view)},
    }


def _table(view: str, description: str) -> PostgreSQLSource:
    return PostgreSQLSource(
        name=f"{view}_table",
        table=view,
        timestamp_field="event_timestamp",
        created_timestamp_column="created_at",
        description=description,
    )


arm = Entity(
    name="arm",
    join_keys=["arm_key"],
    value_type=ValueType.STRING,
    description="A model at a decision point: <decision point>/<model>",
)

arm_statistics_table = _table(
    "arm_statistics", "What was pushed, row by row, for point-in-time joins"
)

arm_statistics_push = PushSource(
    name="arm_statistics_push",
    batch_source=arm_statistics_table,
    description="The stream aggregates, as they are made",
)

arm_statistics = FeatureView(
    name="arm_statistics",
    entities=[arm],
    ttl=timedelta(seconds=STATISTICS_TTL_S),
    schema=_fields("arm_statistics"),
    source=arm_statistics_push,
    online=True,
    description="Recent statistics of an arm, half-life 5 minutes",
)

arm_windows_table = _table("arm_windows", "The windows as they were, row by row")

arm_windows_push = PushSource(
    name="arm_windows_push",
    batch_source=arm_windows_table,
    description="The windows of the stream, as they are made",
)

arm_windows = FeatureView(
    name="arm_windows",
    entities=[arm],
    ttl=timedelta(seconds=STATISTICS_TTL_S),
    schema=_fields("arm_windows"),
    source=arm_windows_push,
    online=True,
    description="Outcomes of an arm in the last 1, 5, 15 and 60 minutes",
)

model_facts_table = _table("model_facts", "The facts, a row for each start of the platform")

model_facts_push = PushSource(
    name="model_facts_push",
    batch_source=model_facts_table,
    description="The facts of the configured arms, written at start",
)

model_facts = FeatureView(
    name="model_facts",
    entities=[arm],
    ttl=_FOREVER,
    schema=_fields("model_facts"),
    source=model_facts_push,
    online=True,
    description="What is known of an arm's model beforehand: tier, prices, context length",
)

request = RequestSource(
    name="request",
    schema=[
        Field(name="prompt", dtype=String),
        Field(name="input_tokens", dtype=Int64),
        Field(name="expected_output_tokens", dtype=Int64),
        Field(name="priority_level", dtype=String),
        Field(name="at_s", dtype=Float64),
    ],
    description="What the caller tells about a request, and when it came (Unix time in seconds)",
)


@on_demand_feature_view(  # type: ignore[untyped-decorator]
    sources=[request],
    **_computed("request_features"),
    mode="python",
    description="Request and cyclical time features, by the function that live decisions use",
)
def request_features(inputs: dict[str, list[Any]]) -> dict[str, list[float]]:
    """Columns of request fields to columns of features, a row for each request."""
    # Feast keeps this function's text alone: what it needs, it imports itself.
    from optimizer.features import SIDE_COLUMNS, FeatureEncoder
    from optimizer.records import Context

    encoder = FeatureEncoder((), 0)
    fields = ("prompt", "input_tokens", "expected_output_tokens", "priority_level", "at_s")
    vectors = [
        encoder.encode(
            Context(prompt, None, input_tokens, output_tokens, priority), None, at_s
        ).tolist()
        for prompt, input_tokens, output_tokens, priority, at_s in zip(
            *(inputs[name] for name in fields), strict=True
        )
    ]
    return {
        name: list(column)
        for name, column in zip(encoder.names, zip(*vectors, strict=True), strict=True)
        if name in SIDE_COLUMNS
    }


request_caller = RequestSource(
    name="request_caller",
    schema=[
        Field(name="service_type", dtype=String),
        Field(name="task", dtype=String),
        Field(name="user_id", dtype=String),
    ],
    description="Who asks for what; an empty text is not told",
)


@on_demand_feature_view(  # type: ignore[untyped-decorator]
    sources=[request, request_caller],
    **_computed("request_facts"),
    mode="python",
    description="Plain facts of a request and its time, within the catalogue's ranges",
)
def request_facts(inputs: dict[str, list[Any]]) -> dict[str, list[float]]:
    """As `feature_repo.on_demand.request_facts_columns` says."""
    from feature_repo.on_demand import request_facts_columns

    return request_facts_columns(inputs)


@on_demand_feature_view(  # type: ignore[untyped-decorator]
    sources=[request, request_caller],
    **_computed("policy_facts"),
    mode="python",
    description="What policies of the feature set `facts` see besides, by the live function",
)
def policy_facts(inputs: dict[str, list[Any]]) -> dict[str, list[float]]:
    """As `feature_repo.on_demand.policy_facts_columns` says."""
    from feature_repo.on_demand import policy_facts_columns

    return policy_facts_columns({name: inputs[name] for name in ("prompt", "at_s", "user_id")})


request_past = RequestSource(
    name="request_past",
    schema=[Field(name="history", dtype=String)],
    description="State of `optimizer.request_history` before the request, base64; empty for none",
)


@on_demand_feature_view(  # type: ignore[untyped-decorator]
    sources=[request, request_caller, request_past],
    **_computed("request_history"),
    mode="python",
    description="How well past requests like this went, and this user's",
)
def request_history(inputs: dict[str, list[Any]]) -> dict[str, list[float]]:
    """As `feature_repo.on_demand.request_history_columns` says."""
    from feature_repo.on_demand import request_history_columns

    return request_history_columns(
        {name: inputs[name] for name in ("prompt", "user_id", "history")}
    )


@on_demand_feature_view(  # type: ignore[untyped-decorator]
    sources=[model_facts, arm_statistics, request],
    **_computed("request_and_arm"),
    mode="python",
    description="What a request is to an arm: its cost there, its share of the context",
)
def request_and_arm(inputs: dict[str, list[Any]]) -> dict[str, list[float]]:
    """As `feature_repo.on_demand.request_and_arm_columns` says."""
    from feature_repo.on_demand import request_and_arm_columns

    return request_and_arm_columns(inputs)


decision_v1 = FeatureService(
    name="decision_v1",
    features=[arm_statistics, request_features],
    description="What a decision looks at, besides the task and the prompt's embedding",
)

_FITTED = {
    **versions({"tier": PRICE_TIERS}),
    "transform.embedding": hashlib.blake2b(PROJECTION_FILE.read_bytes(), digest_size=4).hexdigest(),
}

_WITHOUT_HISTORY = [
    arm_statistics,
    arm_windows,
    model_facts,
    request_features,
    request_facts,
    request_and_arm,
]

catalogue_v2 = FeatureService(
    name="catalogue_v2",
    features=_WITHOUT_HISTORY,
    tags=_FITTED,
    description="Features of request, time and arm; the tags name the fitted state behind them",
)

catalogue_v3 = FeatureService(
    name="catalogue_v3",
    features=[*_WITHOUT_HISTORY, policy_facts, request_history],
    tags=_FITTED,
    description="Every feature of the catalogue: also those of past requests, from their history",
)

OBJECTS = [
    arm,
    arm_statistics_table,
    arm_statistics_push,
    arm_statistics,
    arm_windows_table,
    arm_windows_push,
    arm_windows,
    model_facts_table,
    model_facts_push,
    model_facts,
    request,
    request_features,
    request_caller,
    request_facts,
    policy_facts,
    request_past,
    request_history,
    request_and_arm,
    decision_v1,
    catalogue_v2,
    catalogue_v3,
]
