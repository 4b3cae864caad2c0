"""Columns of what callers tell to columns of features: the bodies of Feast's on-demand views.

A missing value may come as None or, in a column of numbers from pandas, as NaN. Every value that
goes out is in its range of the catalogue; how many were not is itself a feature.
"""

from __future__ import annotations

import math
from base64 import b64decode
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import Any

from feature_repo.catalogue import clip, of_view
from feature_repo.embedding import Embedder
from optimizer.errors import IncompatibleState
from optimizer.extra_columns import FEATURE_SETS, PAST_GROUPS, calendar
from optimizer.features import CHARACTERS_PER_TOKEN, PRIORITY_VALUE, FeatureEncoder
from optimizer.prompt_text import LANGUAGES, complexity, language, words
from optimizer.records import Context
from optimizer.request_history import RequestHistory
from optimizer.transformations import (
    HASH_COLUMNS_LIMIT,
    cyclical,
    hashed,
    interaction,
    request_cost_usd,
)

__all__ = [
    "policy_facts_columns",
    "request_and_arm_columns",
    "request_facts_columns",
    "request_history_columns",
]

_DAY_S = 86400.0
_DAYS_A_WEEK = 7.0
_MONDAY_AT_0 = 3.0
"""Unix time starts on a Thursday."""

_ARM_FIELDS = ("price_in_usd", "price_out_usd", "context_tokens", "cost_usd", "latency_s")
_VIOLATIONS = ("range_violations", "arm_range_violations")

Columns = Mapping[str, Sequence[Any]]


def request_facts_columns(inputs: Columns) -> dict[str, list[float]]:
    """The view ``request_facts``: of the request and its time, no arm.

    Parameters
    ----------
    inputs
        Columns of one length: ``prompt``, ``input_tokens``, ``expected_output_tokens``,
        ``priority_level``, ``at_s`` (Unix time, seconds), ``service_type``, ``task``, ``user_id``.
    """
    return _columns("request_facts", [_facts(row) for row in _rows(inputs)])


def request_and_arm_columns(inputs: Columns) -> dict[str, list[float]]:
    """The view ``request_and_arm``: what a request is to an arm.

    Parameters
    ----------
    inputs
        Columns of one length: ``prompt``, ``input_tokens``, ``expected_output_tokens``,
        ``priority_level``, and of the arm ``price_in_usd``, ``price_out_usd``, ``context_tokens``,
        ``cost_usd``, ``latency_s``.
    """
    return _columns("request_and_arm", [_meeting(row) for row in _rows(inputs)])


def policy_facts_columns(inputs: Columns) -> dict[str, list[float]]:
    """The view ``policy_facts``: what policies of the feature set ``facts`` see besides.

    Parameters
    ----------
    inputs
        Columns of one length: ``prompt``, ``at_s`` (Unix time, seconds), ``user_id``.
    """
    encoder = FeatureEncoder((), 0, FEATURE_SETS["facts"])
    rows = []
    for row in _rows(inputs):
        context, user = Context(row["prompt"]), row["user_id"] or None
        (vector,) = encoder.encode_many([context], [None], row["at_s"] or 0.0, [user])
        rows.append(dict(zip(encoder.names, vector.tolist(), strict=True)))
    return _columns("policy_facts", rows)


def request_history_columns(inputs: Columns) -> dict[str, list[float]]:
    """The view ``request_history``: similar past requests and the user's own, told and scaled.

    Parameters
    ----------
    inputs
        Columns of one length: ``prompt``, ``user_id``, and ``history``: the base64 text of what
        `optimizer.request_history.RequestHistory.to_bytes` gave; empty for no past. One that cannot
        be read counts as none, and ``history_unreadable`` is 1.
    """
    return _columns("request_history", [_past(row) for row in _rows(inputs)])


def _past(row: Mapping[str, Any]) -> dict[str, float | None]:
    embedder, encoder = _embedder(), _past_encoder()
    given = row["history"]
    known = _history(given) if given else None
    history = known or RequestHistory(embedder.size)
    prompt, user = row["prompt"], row["user_id"] or None
    embedding = embedder.embed(prompt) if prompt else None
    vector = encoder.encode(Context(prompt), embedding, 0.0)
    past = history.read(encoder.embedding_of(vector), user)
    scaled = encoder.fill_past(vector, user, history).tolist()
    return {
        **dict(zip(encoder.names, scaled, strict=True)),
        "similarity_to_past": past.similarity,
        "quality_of_similar": past.quality,
        "user_segment": past.segment,
        "user_requests": past.user_requests,
        "user_quality": past.user_quality,
        "history_unreadable": bool(given) and known is None,
    }


@cache
def _embedder() -> Embedder:
    return Embedder()


@cache
def _past_encoder() -> FeatureEncoder:
    return FeatureEncoder((), _embedder().size, PAST_GROUPS)


@lru_cache(maxsize=4)
def _history(text: str) -> RequestHistory | None:
    """None if it cannot be read, or is of another embedding."""
    try:
        history = RequestHistory.from_bytes(b64decode(text))
    except (ValueError, IncompatibleState):
        return None
    return history if history.embedding_size == _embedder().size else None


def _facts(row: Mapping[str, Any]) -> dict[str, float | None]:
    prompt, at_s = row["prompt"] or "", row["at_s"]
    values: dict[str, float | None] = {
        "service_type_bucket": _bucket("service_type", row["service_type"]),
        "task_bucket": _bucket("task", row["task"]),
        "user_bucket": _bucket("user_id", row["user_id"]),
        "input_token_count": _input_tokens(row),
        "output_token_count": row["expected_output_tokens"],
        "priority_weight": PRIORITY_VALUE.get(row["priority_level"]),
        "language_index": LANGUAGES.index(language(prompt)),
        "prompt_characters": len(prompt),
        "prompt_words": len(words(prompt)),
        "prompt_complexity": complexity(prompt),
    }
    return values if at_s is None else {**values, **_time(at_s)}


def _time(at_s: float) -> dict[str, float]:
    days = at_s / _DAY_S
    weekday = (days + _MONDAY_AT_0) % _DAYS_A_WEEK
    share_of_day = days % 1.0
    sin_day, cos_day = cyclical(share_of_day, 1.0)
    sin_week, cos_week = cyclical(weekday, _DAYS_A_WEEK)
    is_weekend, is_business_hours = calendar(at_s)
    return {
        "time_of_day_sin": sin_day,
        "time_of_day_cos": cos_day,
        "day_of_week_sin": sin_week,
        "day_of_week_cos": cos_week,
        "is_weekend": is_weekend,
        "is_business_hours": is_business_hours,
    }


def _meeting(row: Mapping[str, Any]) -> dict[str, float | None]:
    given = {name: row[name] for name in _ARM_FIELDS}
    given["input_token_count"] = _input_tokens(row)
    given["output_token_count"] = row["expected_output_tokens"]
    clipped = {name: clip(name, value) for name, value in given.items()}
    arm = {name: None if row[name] is None else clipped[name][0] for name in _ARM_FIELDS}
    tokens_in, tokens_out = clipped["input_token_count"][0], clipped["output_token_count"][0]
    price_in, price_out, context = arm["price_in_usd"], arm["price_out_usd"], arm["context_tokens"]
    cost, latency = arm["cost_usd"], arm["latency_s"]
    priority = PRIORITY_VALUE.get(row["priority_level"], 0.0)
    tokens = tokens_in + tokens_out
    return {
        "list_cost_usd": None
        if price_in is None or price_out is None
        else request_cost_usd(price_in, price_out, tokens_in, tokens_out),
        "context_fill": tokens / context if context else None,
        "cost_tokens": None if cost is None else interaction(cost, tokens),
        "latency_priority": None if latency is None else interaction(latency, priority),
        "arm_range_violations": sum(violated for _, violated in clipped.values()),
    }


def _bucket(field: str, value: str | None) -> int | None:
    return 1 + hashed(field, value, HASH_COLUMNS_LIMIT)[0] if value else None


def _input_tokens(row: Mapping[str, Any]) -> float | None:
    tokens, prompt = row["input_tokens"], row["prompt"]
    if tokens is None and prompt is not None:
        return math.ceil(len(prompt) / CHARACTERS_PER_TOKEN)
    return None if tokens is None else float(tokens)


def _rows(inputs: Columns) -> list[dict[str, Any]]:
    return [
        dict(zip(inputs, map(_known, row), strict=True))
        for row in zip(*inputs.values(), strict=True)
    ]


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def _columns(view: str, rows: Sequence[Mapping[str, float | None]]) -> dict[str, list[float]]:
    """Clipped to the catalogue's ranges and of its types, in the order of the view."""
    features = of_view(view)
    columns: dict[str, list[float]] = {one.name: [] for one in features}
    for row in rows:
        clipped = {one.name: clip(one.name, row.get(one.name)) for one in features}
        violations = sum(violated for _, violated in clipped.values())
        for one in features:
            value = clipped[one.name][0]
            if one.name in _VIOLATIONS:
                value += violations
            columns[one.name].append(int(value) if one.type == "Int64" else float(value))
    return columns
