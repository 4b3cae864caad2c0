"""The catalogue of features: what each means, its unit, range and default, and which code makes it.

The one source of Feast's descriptions and tags (`feature_repo.definitions`), of the range checks
and of `docs/features.md`, which ``python -m feature_repo.catalogue > docs/features.md`` writes.
Nothing here needs Feast.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from optimizer.errors import InvalidInput, UnknownName
from optimizer.extra_columns import EXTRA_COLUMNS
from optimizer.prompt_text import LANGUAGES
from optimizer.request_history import SEGMENTS
from optimizer.transformations import HASH_COLUMNS_LIMIT

__all__ = [
    "FAMILIES",
    "FEATURES",
    "WINDOW_COLUMNS",
    "WINDOW_MINUTES",
    "Feature",
    "clip",
    "defaults",
    "feature",
    "of_view",
    "table",
]

FAMILIES = ("request", "model", "time", "aggregate", "contextual")

WINDOW_MINUTES = (1, 5, 15, 60)


@dataclass(frozen=True, slots=True)
class Feature:
    """One feature.

    Attributes
    ----------
    name
        Unique over all views.
    family
        One of `FAMILIES`.
    view
        The Feast view that serves it.
    type
        As Feast calls it.
    unit
        "1" for what has none.
    low, high
        Both ends belong to the range.
    default
        In the range; what a consumer takes where nothing is known.
    owner
        The module that makes the values.
    """

    name: str
    family: str
    view: str
    description: str
    unit: str
    low: float
    high: float
    owner: str
    default: float = 0.0
    type: Literal["Float64", "Int64"] = "Float64"

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise InvalidInput(f"{self.name}.family", self.family, f"one of {', '.join(FAMILIES)}")
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise InvalidInput(f"{self.name}.high", self.high, f"finite and above {self.low}")
        if not self.low <= self.default <= self.high:
            remedy = f"from {self.low} to {self.high}"
            raise InvalidInput(f"{self.name}.default", self.default, remedy)

    @property
    def range(self) -> str:
        """Both ends, for people."""
        return f"{self.low:g} to {self.high:g}"

    @property
    def summary(self) -> str:
        """Description and tags in one text, where Feast has no place for them apart."""
        return "; ".join((self.description, *(f"{k} {v}" for k, v in self.tags().items())))

    def tags(self) -> dict[str, str]:
        """What Feast keeps beside the description."""
        return {
            "family": self.family,
            "unit": self.unit,
            "range": self.range,
            "default": f"{self.default:g}",
            "owner": self.owner,
        }


_TOKENS = 10_000_000
_CHARACTERS = 100_000_000
_CONTEXT = 100_000_000
_USD_A_MILLION = 10_000
_USD_A_REQUEST = 1000
_USD = 1e9
_LATENCY_S = 3600
_COUNT = 1e9
_SIDE = 0.3
"""By this policies see the columns of request and time, see `optimizer.features`."""

_BUCKET = ("bucket", 0, HASH_COLUMNS_LIMIT)
_INT = {"type": "Int64"}
_TIME = {"family": "time"}
_LANGUAGE_CODES = ", ".join(f"{index} {code}" for index, code in enumerate(LANGUAGES))

_Row = tuple[Any, ...]
"""Name, description, unit, low, high, and what else differs from the view's other features."""

_REQUEST_FACTS: tuple[_Row, ...] = (
    ("service_type_bucket", "Hash of the service type, from 1; 0 not told", *_BUCKET, _INT),
    ("task_bucket", "Hash of the task, from 1; 0 not told", *_BUCKET, _INT),
    ("user_bucket", "Hash of the user id, from 1; 0 not told", *_BUCKET, _INT),
    ("input_token_count", "Input tokens, else by the prompt's length", "token", 0, _TOKENS, _INT),
    ("output_token_count", "Expected output tokens; 0 not told", "token", 0, _TOKENS, _INT),
    ("priority_weight", "Low -1, standard 0, high 1", "1", -1, 1),
    ("language_index", f"Guess: {_LANGUAGE_CODES}", "index", 0, len(LANGUAGES) - 1, _INT),
    ("prompt_characters", "Length of the prompt", "character", 0, _CHARACTERS, _INT),
    ("prompt_words", "Words of the first 2,000 characters", "word", 0, 2000, _INT),
    ("prompt_complexity", "LIX: words a sentence + percentage of long words", "LIX", 0, 200),
    ("time_of_day_sin", "Sine of the time of day, UTC", "1", -1, 1, _TIME),
    ("time_of_day_cos", "Cosine of the time of day, UTC", "1", -1, 1, _TIME),
    ("day_of_week_sin", "Sine of the time of the week, UTC", "1", -1, 1, _TIME),
    ("day_of_week_cos", "Cosine of the time of the week, UTC", "1", -1, 1, _TIME),
    ("is_weekend", "1 on Saturday and Sunday, UTC", "1", 0, 1, _TIME | _INT),
    ("is_business_hours", "1 Monday to Friday, 9 to 17 h, UTC", "1", 0, 1, _TIME | _INT),
    ("range_violations", "Values of this row that were out of range", "value", 0, 20, _INT),
)

_POLICY_COLUMNS: tuple[_Row, ...] = (
    ("input_tokens_log", "0.3 x (log(1 + input tokens) / 5 - 1)", "1", -_SIDE, 1),
    ("output_tokens_log", "0.3 x (log(1 + expected output tokens) / 5 - 1)", "1", -_SIDE, 1),
    ("priority", "0.3 x priority: low -1, standard 0, high 1", "1", -_SIDE, _SIDE),
    ("digit_share", "0.3 x share of digits in the first 400 characters", "1", 0, _SIDE),
    ("hour_sin", "0.3 x sine of the time of day, UTC", "1", -_SIDE, _SIDE, _TIME),
    ("hour_cos", "0.3 x cosine of the time of day, UTC", "1", -_SIDE, _SIDE, _TIME),
    ("weekday_sin", "0.3 x sine of the time of the week, UTC", "1", -_SIDE, _SIDE, _TIME),
    ("weekday_cos", "0.3 x cosine of the time of the week, UTC", "1", -_SIDE, _SIDE, _TIME),
)

_POLICY_FACTS: tuple[_Row, ...] = (
    ("prompt_characters_log", "0.3 x (log(1 + characters) / 6 - 1)", "1", -_SIDE, 1),
    ("prompt_words_log", "0.3 x (log(1 + words) / 4.5 - 1)", "1", -_SIDE, 1),
    ("prompt_lix", "0.3 x (LIX / 40 - 1)", "1", -_SIDE, 4 * _SIDE),
    *(
        (name, f"0.3 if the prompt's language is {name[9:]}", "1", 0, _SIDE)
        for name in EXTRA_COLUMNS["language"]
    ),
    ("weekend", "0.3 on Saturday and Sunday, UTC", "1", 0, _SIDE, _TIME),
    ("business_hours", "0.3 Monday to Friday, 9 to 17 h, UTC", "1", 0, _SIDE, _TIME),
    *(
        (name, "0.3 or -0.3 if the user's hash is this column", "1", -_SIDE, _SIDE)
        for name in EXTRA_COLUMNS["user"]
    ),
)

_SEGMENT_CODES = ", ".join(f"{index} {name}" for index, name in enumerate(SEGMENTS))

_REQUEST_HISTORY: tuple[_Row, ...] = (
    ("similarity_to_past", "Cosine to the nearest cluster of past requests", "1", -1, 1),
    ("quality_of_similar", "Mean quality there, shrunk", "1", 0, 1, {"default": 0.5}),
    (
        *("user_segment", f"By rewarded requests seen: {_SEGMENT_CODES}", "index"),
        *(0, len(SEGMENTS) - 1, _INT),
    ),
    ("user_requests", "Rewarded requests of the user's bucket", "request", 0, _COUNT, _INT),
    ("user_quality", "Mean quality of the user's bucket, shrunk", "1", 0, 1, {"default": 0.5}),
    ("past_similarity", "0.3 x similarity to past requests", "1", -_SIDE, _SIDE),
    ("past_quality", "0.3 x (quality of similar ones - mean of all)", "1", -_SIDE, _SIDE),
    ("past_user_requests_log", "0.3 x log(1 + the user's requests) / 5", "1", 0, 2),
    ("past_user_quality", "0.3 x (the user's quality - mean of all)", "1", -_SIDE, _SIDE),
    ("history_unreadable", "1 if the history could not be read: as if none", "1", 0, 1, _INT),
)

_MODEL_FACTS: tuple[_Row, ...] = (
    ("tier", "Price tier, 1 cheapest to 4; 0 no price is known", "tier", 0, 4),
    ("price_in_usd", "List price of a million input tokens", "USD", 0, _USD_A_MILLION),
    ("price_out_usd", "List price of a million output tokens", "USD", 0, _USD_A_MILLION),
    ("context_tokens", "Longest context; 0 not known", "token", 0, _CONTEXT),
)

_ARM_STATISTICS: tuple[_Row, ...] = (
    ("quality", "Recent mean quality, half-life 5 minutes", "1", 0, 1, {"default": 0.5}),
    ("cost_usd", "Recent mean cost of a request, the same", "USD", 0, _USD_A_REQUEST),
    ("latency_s", "Recent mean latency, the same", "s", 0, _LATENCY_S, {"default": 1.0}),
    ("error_rate", "Recent share of outcomes with quality 0, the same", "1", 0, 1),
    ("count", "Recent outcomes decayed by age, the same: the load", "outcome", 0, _COUNT),
)

_ARM_WINDOWS: tuple[_Row, ...] = tuple(
    (f"{name}_{w}m", f"{what} of the last {w} min", *rest)
    for w in WINDOW_MINUTES
    for name, what, *rest in (
        ("count", "Outcomes", "outcome", 0, _COUNT),
        ("quality_mean", "Mean quality", "1", 0, 1, {"default": 0.5}),
        ("cost_usd_mean", "Mean cost of a request", "USD", 0, _USD_A_REQUEST),
        ("cost_usd_sum", "Total cost", "USD", 0, _USD),
        ("latency_mean_s", "Mean latency", "s", 0, _LATENCY_S, {"default": 1.0}),
        ("latency_p50_s", "Median latency", "s", 0, _LATENCY_S, {"default": 1.0}),
        ("latency_p95_s", "95th percentile of latency", "s", 0, _LATENCY_S, {"default": 1.0}),
        ("error_rate", "Share of outcomes with quality 0", "1", 0, 1),
    )
)

_REQUEST_AND_ARM: tuple[_Row, ...] = (
    ("list_cost_usd", "This request at the model's list prices", "USD", 0, _USD),
    ("context_fill", "Tokens in and out over the longest context", "1", 0, 10),
    ("cost_tokens", "Recent cost x this request's tokens", "USD token", 0, 1e11),
    ("latency_priority", "Recent latency x priority weight", "s", -_LATENCY_S, _LATENCY_S),
    ("arm_range_violations", "Values of this row that were out of range", "value", 0, 20, _INT),
)


def _features(view: str, family: str, owner: str, rows: tuple[_Row, ...]) -> Iterator[Feature]:
    for name, description, unit, low, high, *more in rows:
        differs: dict[str, Any] = {"family": family, **(more[0] if more else {})}
        yield Feature(
            name=name,
            view=view,
            description=description,
            unit=unit,
            low=float(low),
            high=float(high),
            owner=owner,
            **differs,
        )


FEATURES: tuple[Feature, ...] = (
    *_features("request_facts", "request", "feature_repo.on_demand", _REQUEST_FACTS),
    *_features("request_features", "request", "optimizer.features", _POLICY_COLUMNS),
    *_features("policy_facts", "request", "optimizer.extra_columns", _POLICY_FACTS),
    *_features("model_facts", "model", "feature_repo.model_facts", _MODEL_FACTS),
    *_features("arm_statistics", "model", "feature_repo.aggregates", _ARM_STATISTICS),
    *_features("arm_windows", "aggregate", "feature_repo.windows", _ARM_WINDOWS),
    *_features("request_and_arm", "contextual", "feature_repo.on_demand", _REQUEST_AND_ARM),
    *_features("request_history", "contextual", "optimizer.request_history", _REQUEST_HISTORY),
)

_BY_NAME = {one.name: one for one in FEATURES}

WINDOW_COLUMNS = tuple(one.name for one in FEATURES if one.view == "arm_windows")


def feature(name: str) -> Feature:
    """The feature of that name.

    Raises
    ------
    UnknownName
        If there is none.
    """
    found = _BY_NAME.get(name)
    if found is None:
        raise UnknownName("feature", name, "a name in docs/features.md")
    return found


def of_view(view: str) -> tuple[Feature, ...]:
    """The features that a Feast view serves, in the order of its columns."""
    return tuple(one for one in FEATURES if one.view == view)


def clip(name: str, value: float | None) -> tuple[float, bool]:
    """A value that may be used, and whether the one given was out of range.

    What is missing (None) is the default and no violation. NaN is the default and a violation.

    Raises
    ------
    UnknownName
        If no feature has that name.

    Examples
    --------
    >>> clip("quality", 0.25), clip("quality", 1.5), clip("quality", None)
    ((0.25, False), (1.0, True), (0.5, False))
    """
    one = feature(name)
    if value is None:
        return one.default, False
    if math.isnan(value):
        return one.default, True
    clipped = min(max(value, one.low), one.high)
    return clipped, clipped != value


def defaults() -> dict[str, float]:
    """What a consumer takes for each feature of which nothing is known."""
    return {one.name: one.default for one in FEATURES}


def table() -> str:
    """`docs/features.md`."""
    lines = [
        "# Features",
        "",
        "Made by `python -m feature_repo.catalogue > docs/features.md`; edit the catalogue, not"
        " this page.",
        "A value out of its range is clipped to it and counted. The owner is the module that makes"
        " the values.",
    ]
    for family in FAMILIES:
        lines += [
            "",
            f"## {family.capitalize()}",
            "",
            "| feature | view | meaning | type | unit | range | default | owner |",
            "|---|---|---|---|---|---|---|---|",
            *(
                f"| `{one.name}` | `{one.view}` | {one.description} | {one.type} | {one.unit} "
                f"| {one.range} | {one.default:g} | `{one.owner}` |"
                for one in FEATURES
                if one.family == family
            ),
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(table())
