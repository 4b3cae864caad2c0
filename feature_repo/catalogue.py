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
from typing import Literal

from optimizer.errors import InvalidInput, UnknownName
from optimizer.features import SIDE_COLUMNS
from optimizer.prompt_text import LANGUAGES
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
_USD_A_REQUEST = 1000.0
_USD_A_WINDOW = 1e9
_LATENCY_S = 3600.0
_COUNT = 1e9
_USD_A_MILLION = 10_000.0
_CONTEXT = 100_000_000
_SIDE = 0.3
_SIDE_LOG = 1.0
"""The policy's token columns are 0.3 x (log(1 + tokens) / 5 - 1)."""


def _policy_column(name: str) -> Feature:
    is_time = name.startswith(("hour", "weekday"))
    what = {
        "input_tokens_log": "Input tokens, log(1 + tokens) / 5 - 1; estimated from the prompt",
        "output_tokens_log": "Expected output tokens, log(1 + tokens) / 5 - 1",
        "priority": "Low -1, standard 0, high 1",
        "digit_share": "Share of digits in the first 400 characters of the prompt",
        "hour_sin": "Sine of the time of day, UTC",
        "hour_cos": "Cosine of the time of day, UTC",
        "weekday_sin": "Sine of the time of the week, UTC",
        "weekday_cos": "Cosine of the time of the week, UTC",
    }[name]
    high = _SIDE_LOG if name.endswith("_log") else _SIDE
    return Feature(
        name,
        "time" if is_time else "request",
        "request_features",
        f"{what}; times 0.3, as policies see it",
        "1",
        0.0 if name == "digit_share" else -_SIDE,
        high,
        "optimizer.features",
    )


def _request(
    name: str,
    description: str,
    unit: str,
    low: float,
    high: float,
    type_: Literal["Float64", "Int64"] = "Int64",
    family: str = "request",
) -> Feature:
    owner = "feature_repo.on_demand"
    return Feature(name, family, "request_facts", description, unit, low, high, owner, 0.0, type_)


_BUCKETS = HASH_COLUMNS_LIMIT


def _bucket(name: str, what: str) -> Feature:
    return _request(
        name, f"Hash bucket of the {what}, from 1; 0 where not told", "bucket", 0, _BUCKETS
    )


def _of_request() -> Iterator[Feature]:
    yield _bucket("service_type_bucket", "service type (the decision point, or the caller's word)")
    yield _bucket("task_bucket", "task")
    yield _bucket("user_bucket", "user id; the id itself is not kept")
    yield _request(
        "input_token_count",
        "Input tokens; from the prompt's length if not told",
        "token",
        0,
        _TOKENS,
    )
    yield _request(
        "output_token_count", "Expected output tokens; 0 where not told", "token", 0, _TOKENS
    )
    yield _request("priority_weight", "Low -1, standard 0, high 1", "1", -1, 1, "Float64")
    yield _request(
        "language_index",
        f"Guess of the prompt's language: {', '.join(f'{i} {n}' for i, n in enumerate(LANGUAGES))}",
        "index",
        0,
        len(LANGUAGES) - 1,
    )
    yield _request("prompt_characters", "Length of the prompt", "character", 0, 100_000_000)
    yield _request("prompt_words", "Words in the first 2,000 characters", "word", 0, 2000)
    yield _request(
        "prompt_complexity",
        "LIX of the first 2,000 characters: words a sentence + percentage of long words",
        "LIX",
        0,
        200,
        "Float64",
    )
    yield _request("range_violations", "Values of this row that were out of range", "value", 0, 20)


def _of_time() -> Iterator[Feature]:
    for name, what in (("time_of_day", "time of day"), ("day_of_week", "time of the week")):
        for suffix, function in (("sin", "Sine"), ("cos", "Cosine")):
            yield _request(
                f"{name}_{suffix}", f"{function} of the {what}, UTC", "1", -1, 1, "Float64", "time"
            )
    yield _request("is_weekend", "1 on Saturday and Sunday, UTC", "1", 0, 1, family="time")
    yield _request(
        "is_business_hours", "1 from Monday to Friday, 9 to 17 h, UTC", "1", 0, 1, family="time"
    )


def _of_model() -> Iterator[Feature]:
    view, owner = "model_facts", "feature_repo.model_facts"
    yield Feature(
        "tier",
        "model",
        view,
        "Price tier, 1 cheapest to 4; 0 where no price is known",
        "tier",
        0,
        4,
        owner,
    )
    for side, what in (("in", "input"), ("out", "output")):
        yield Feature(
            f"price_{side}_usd",
            "model",
            view,
            f"List price of a million {what} tokens",
            "USD/1e6 token",
            0,
            _USD_A_MILLION,
            owner,
        )
    yield Feature(
        "context_tokens",
        "model",
        view,
        "Longest context; 0 where not known",
        "token",
        0,
        _CONTEXT,
        owner,
    )
    view, owner = "arm_statistics", "feature_repo.aggregates"
    recent = "half-life 5 minutes"
    for name, what, unit, high, default in (
        ("quality", f"Recent mean quality, {recent}", "1", 1.0, 0.5),
        ("cost_usd", f"Recent mean cost of a request, {recent}", "USD", _USD_A_REQUEST, 0.0),
        ("latency_s", f"Recent mean latency, {recent}", "s", _LATENCY_S, 1.0),
        ("error_rate", f"Recent share of outcomes with quality 0, {recent}", "1", 1.0, 0.0),
        ("count", f"Recent outcomes, decayed by age, {recent}: the load", "outcome", _COUNT, 0.0),
    ):
        yield Feature(name, "model", view, what, unit, 0.0, high, owner, default)


def _of_windows() -> Iterator[Feature]:
    for w in WINDOW_MINUTES:
        for name, what, unit, high, default in (
            (f"count_{w}m", "Outcomes", "outcome", _COUNT, 0.0),
            (f"quality_mean_{w}m", "Mean quality", "1", 1.0, 0.5),
            (f"cost_usd_mean_{w}m", "Mean cost of a request", "USD", _USD_A_REQUEST, 0.0),
            (f"cost_usd_sum_{w}m", "Total cost", "USD", _USD_A_WINDOW, 0.0),
            (f"latency_mean_s_{w}m", "Mean latency", "s", _LATENCY_S, 1.0),
            (f"latency_p95_s_{w}m", "95th percentile of latency", "s", _LATENCY_S, 1.0),
            (f"error_rate_{w}m", "Share of outcomes with quality 0", "1", 1.0, 0.0),
        ):
            span = f"{what} of the last {w} minute{'' if w == 1 else 's'}"
            yield Feature(
                name,
                "aggregate",
                "arm_windows",
                span,
                unit,
                0.0,
                high,
                "feature_repo.windows",
                default,
            )


def _of_request_and_arm() -> Iterator[Feature]:
    for name, what, unit, low, high in (
        ("list_cost_usd", "This request at the model's list prices", "USD", 0.0, 1e6),
        ("context_fill", "Tokens in and out over the longest context", "1", 0.0, 10.0),
        ("cost_tokens", "Recent cost x this request's tokens", "USD token", 0.0, 1e10),
        ("latency_priority", "Recent latency x priority weight", "s", -_LATENCY_S, _LATENCY_S),
    ):
        yield Feature(
            name, "contextual", "request_and_arm", what, unit, low, high, "feature_repo.on_demand"
        )


FEATURES: tuple[Feature, ...] = (
    *_of_request(),
    *_of_time(),
    *map(_policy_column, SIDE_COLUMNS),
    *_of_model(),
    *_of_windows(),
    *_of_request_and_arm(),
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
