"""The Feast objects, all of them, and the only file of this room that Feast itself imports.

``cd feature_repo && feast apply`` registers what stands here, and so does
`feature_repo.store.FeatureStoreClient.apply`.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from feast import Entity, FeatureService, FeatureView, Field, PushSource, RequestSource, ValueType
from feast.infra.offline_stores.contrib.postgres_offline_store.postgres_source import (
    PostgreSQLSource,
)
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, Int64, String

from feature_repo.windows import COLUMNS
from optimizer.features import SIDE_COLUMNS

__all__ = [
    "OBJECTS",
    "STATISTICS_TTL_S",
    "arm",
    "arm_statistics",
    "decision_v1",
    "request",
    "request_features",
]

STATISTICS_TTL_S = 3600

arm = Entity(
    name="arm",
    join_keys=["arm_key"],
    value_type=ValueType.STRING,
    description="A model at a decision point: <decision point>/<model>",
)

arm_statistics_table = PostgreSQLSource(
    name="arm_statistics_table",
    table="arm_statistics",
    timestamp_field="event_timestamp",
    created_timestamp_column="created_at",
    description="What was pushed, row by row, for point-in-time joins",
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
    schema=[
        Field(name="quality", dtype=Float64, description="recent mean, in [0, 1]"),
        Field(name="cost_usd", dtype=Float64, description="recent mean of a request, US dollars"),
        Field(name="latency_s", dtype=Float64, description="recent mean, seconds"),
        Field(name="error_rate", dtype=Float64, description="recent share with quality 0"),
        Field(name="count", dtype=Float64, description="recent outcomes, decayed by age"),
    ],
    source=arm_statistics_push,
    online=True,
    description="Recent statistics of an arm, half-life 5 minutes",
)

arm_windows_table = PostgreSQLSource(
    name="arm_windows_table",
    table="arm_windows",
    timestamp_field="event_timestamp",
    created_timestamp_column="created_at",
    description="The windows as they were, row by row",
)

arm_windows_push = PushSource(
    name="arm_windows_push",
    batch_source=arm_windows_table,
    description="The windows of the stream, as they are made",
)

arm_windows = FeatureView(
    name="arm_windows",
    entities=[arm],
    ttl=timedelta(seconds=STATISTICS_TTL_S),
    schema=[Field(name=name, dtype=Float64) for name in COLUMNS],
    source=arm_windows_push,
    online=True,
    description="Outcomes of an arm in the last 1, 5, 15 and 60 minutes",
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
    schema=[Field(name=name, dtype=Float64) for name in SIDE_COLUMNS],
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


decision_v1 = FeatureService(
    name="decision_v1",
    features=[arm_statistics, request_features],
    description="What a decision looks at, besides the task and the prompt's embedding",
)

OBJECTS = [
    arm,
    arm_statistics_table,
    arm_statistics_push,
    arm_statistics,
    arm_windows_table,
    arm_windows_push,
    arm_windows,
    request,
    request_features,
    decision_v1,
]
