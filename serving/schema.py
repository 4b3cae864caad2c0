"""The bodies of requests and responses as types: they validate, and the OpenAPI page shows them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw, Struct

from optimizer.records import Context

__all__ = [
    "BatchBody",
    "ContextBody",
    "DecisionBody",
    "DecisionResponse",
    "RewardBody",
    "RewardResponse",
    "Scalar",
]

Scalar = str | int | float | bool | None
ShortText = Annotated[str, Meta(min_length=1, max_length=200)]
Count = Annotated[int, Meta(ge=0, le=10_000_000)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Meta(ge=0.0, le=1e9)]


class ContextBody(Struct, frozen=True):
    """What the caller tells about the request; all optional, further scalar fields are hashed."""

    prompt: str | None = None
    task: ShortText | None = None
    input_tokens: Count | None = None
    expected_output_tokens: Count | None = None
    priority: Literal["low", "standard", "high"] | None = None


class DecisionBody(Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /v1/decisions`."""

    decision_point: ShortText
    context: dict[str, Scalar]
    unit_id: ShortText | None = None
    candidates: Annotated[list[ShortText], Meta(min_length=1, max_length=200)] | None = None


class DecisionResponse(Struct, frozen=True):
    """The arm that was drawn; hand `decision_id` back with the reward."""

    decision_id: str
    decision_point: str
    model: str
    parameters: dict[str, Any]
    prompt_variant: str
    propensity: float
    policy_version: int
    fallback: bool


class RewardBody(Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /v1/rewards`: at least one value, or `retract`."""

    decision_id: Annotated[str, Meta(min_length=1, max_length=8192)]
    event_id: ShortText | None = None
    quality: Share | None = None
    cost_usd: NonNegative | None = None
    latency_s: NonNegative | None = None
    feedback: Share | None = None
    retract: bool = False


class RewardResponse(Struct, frozen=True):
    """Whether the event is stored; `duplicate` if it changed nothing."""

    accepted: bool
    duplicate: bool


class BatchBody(Struct, frozen=True, forbid_unknown_fields=True):
    """Up to 1,000 items, each answered on its own, in order."""

    items: Annotated[list[Raw], Meta(min_length=1, max_length=1000)]


_KNOWN = frozenset(ContextBody.__struct_fields__)
_TOO_MANY = 50


def read_context(fields: dict[str, Scalar]) -> Context:
    """The context of a decision body.

    Raises
    ------
    msgspec.ValidationError
        With the path of the field that is wrong, below ``$.context``.
    """
    body = msgspec.convert(fields, ContextBody)
    extra: tuple[tuple[str, str | float], ...] = ()
    if len(fields) > len(_KNOWN) + _TOO_MANY:
        raise msgspec.ValidationError(f"Expected at most {_TOO_MANY} further fields - at `$`")
    if not fields.keys() <= _KNOWN:
        extra = tuple(
            (name, float(value) if isinstance(value, int | float) else value)
            for name, value in sorted(fields.items())
            if name not in _KNOWN and value is not None
        )
    return Context(
        body.prompt,
        body.task,
        body.input_tokens,
        body.expected_output_tokens,
        body.priority,
        extra,
    )
