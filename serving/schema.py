"""The bodies of requests and responses as types: they validate, and the OpenAPI page shows them.

Most contexts have known fields only and are read in one go; a body that cannot be is read again,
more slowly, by the rules for further fields, which also say what is wrong.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta, Raw, Struct

from optimizer.errors import InvalidInput
from optimizer.records import Context
from serving.problems import invalid_body

__all__ = [
    "BatchBody",
    "ContextBody",
    "DecisionBody",
    "DecisionId",
    "DecisionRequest",
    "DecisionResponse",
    "EventId",
    "NonNegative",
    "QualityBody",
    "QualityResponse",
    "RetryAdvice",
    "RewardBody",
    "RewardResponse",
    "Scalar",
    "Share",
    "ShortText",
    "SignalValue",
    "Time",
    "read_context",
    "read_decision",
    "read_decisions",
    "read_events",
    "read_items",
    "read_reward",
    "read_rewards",
]

Scalar = str | int | float | bool | None
ShortText = Annotated[str, Meta(min_length=1, max_length=200)]
EventId = Annotated[str, Meta(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]
"""PostgreSQL has no text with NUL."""
Count = Annotated[int, Meta(ge=0, le=10_000_000)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Candidates = Annotated[list[ShortText], Meta(min_length=1, max_length=200)]
NonNegative = Annotated[float, Meta(ge=0.0, le=1e9)]
DecisionId = Annotated[str, Meta(min_length=1, max_length=8192)]
SignalValue = float | bool | ShortText
Time = Annotated[datetime, Meta(tz=True)]


class ContextBody(Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """What the caller tells about the request; all optional, further scalar fields are hashed."""

    prompt: str | None = None
    task: ShortText | None = None
    input_tokens: Count | None = None
    expected_output_tokens: Count | None = None
    priority: Literal["low", "standard", "high"] | None = None
    extra: ClassVar[tuple[tuple[str, str | float], ...]] = ()


class DecisionBody(Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """`POST /v1/decisions`."""

    decision_point: ShortText
    context: ContextBody
    unit_id: ShortText | None = None
    candidates: Candidates | None = None


class DecisionRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """A decision body whose context has further fields."""

    decision_point: ShortText
    context: Context
    unit_id: ShortText | None = None
    candidates: Candidates | None = None


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


class RewardBody(Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """`POST /v1/rewards`: parts of the outcome, or one signal (`kind`, `value`), or `retract`.

    Events with an `occurred_at` may come in any order: of those with the same `event_id` and kind
    the latest holds.
    """

    decision_id: DecisionId
    event_id: EventId | None = None
    quality: Share | None = None
    cost_usd: NonNegative | None = None
    latency_s: NonNegative | None = None
    feedback: Share | None = None
    retract: bool = False
    kind: ShortText | None = None
    value: SignalValue | None = None
    occurred_at: Time | None = None


class RewardResponse(Struct, frozen=True):
    """Whether the event is stored; `duplicate` if it changed nothing."""

    accepted: bool
    duplicate: bool


class QualityBody(Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /v1/quality`: a decision that was made, or a decision point, a model and a context.

    Of a `response` only figures are read (length, refusal, code and the like). With a `decision_id`
    the figures are kept for the quality model to learn from, those told last; the text never is.
    """

    decision_id: Annotated[str, Meta(min_length=1, max_length=8192)] | None = None
    decision_point: ShortText | None = None
    model: ShortText | None = None
    context: dict[str, Scalar] | None = None
    response: Annotated[str, Meta(max_length=1_000_000)] | None = None


class RetryAdvice(Struct, frozen=True):
    """Whether to ask a better model; `model` and what is expected of it are empty if not."""

    advised: bool
    model: str | None
    parameters: dict[str, Any] | None
    prompt_variant: str | None
    expected_quality: float | None
    expected_cost_usd: float | None
    reason: str


class QualityResponse(Struct, frozen=True):
    """The predicted quality of one response, in [0, 1].

    `response_used` is false if none was told, or if the model has not learned from any. `retry` is
    null if the quality is not under the decision point's `retry_below`.
    """

    quality: float
    calibrated: bool
    model_version: int
    response_used: bool
    retry: RetryAdvice | None


class BatchBody(Struct, frozen=True, forbid_unknown_fields=True):
    """Up to 1,000 items, each answered on its own, in order."""

    items: Annotated[list[Raw], Meta(min_length=1, max_length=1000)]


class _OpenBody(Struct, frozen=True, forbid_unknown_fields=True):
    decision_point: ShortText
    context: dict[str, Scalar]
    unit_id: ShortText | None = None
    candidates: Candidates | None = None


class _Bodies(Struct, frozen=True, forbid_unknown_fields=True):
    items: Annotated[list[DecisionBody], Meta(min_length=1, max_length=1000)]


class _Rewards(Struct, frozen=True, forbid_unknown_fields=True):
    items: Annotated[list[RewardBody], Meta(min_length=1, max_length=1000)]


_KNOWN = frozenset(ContextBody.__struct_fields__)
_TOO_MANY = 50
_CLOSED = msgspec.json.Decoder(DecisionBody).decode
_CLOSED_MANY = msgspec.json.Decoder(_Bodies).decode
_OPEN = msgspec.json.Decoder(_OpenBody).decode
_REWARD = msgspec.json.Decoder(RewardBody).decode
_REWARDS = msgspec.json.Decoder(_Rewards).decode
_RAW = msgspec.json.Decoder(BatchBody).decode
_RAW_LIST = msgspec.json.Decoder(Annotated[list[Raw], Meta(min_length=1, max_length=1000)]).decode


def read_decision(body: bytes) -> DecisionBody | DecisionRequest:
    """The request in a body.

    Raises
    ------
    InvalidInput
        Naming the field that is wrong.
    """
    try:
        return _CLOSED(body)
    except msgspec.MsgspecError:
        return _read_open(body)  # further fields, or something wrong


def read_items(body: bytes) -> list[bytes]:
    """The items of a batch, each as JSON.

    Raises
    ------
    InvalidInput
        Naming the field that is wrong.
    """
    try:
        return [bytes(item) for item in _RAW(body).items]
    except msgspec.MsgspecError as error:
        raise invalid_body(error, body) from None


def read_events(body: bytes) -> list[bytes]:
    """The events of a batch of CloudEvents, each as JSON; raises as `read_items` does."""
    try:
        return [bytes(item) for item in _RAW_LIST(body)]
    except msgspec.MsgspecError as error:
        raise invalid_body(error, body) from None


def read_decisions(body: bytes) -> list[DecisionBody | DecisionRequest | InvalidInput]:
    """The requests in a batch, or what is wrong with each.

    Raises
    ------
    InvalidInput
        If the batch itself is wrong.
    """
    try:
        return list(_CLOSED_MANY(body).items)
    except msgspec.MsgspecError:
        return [_read_or_refuse(item) for item in read_items(body)]


def read_rewards(body: bytes) -> list[RewardBody | InvalidInput]:
    """The rewards in a batch, or what is wrong with each.

    Raises
    ------
    InvalidInput
        If the batch itself is wrong.
    """
    try:
        return list(_REWARDS(body).items)
    except msgspec.MsgspecError:
        return [_read_reward_or_refuse(item) for item in read_items(body)]


def read_reward(body: bytes) -> RewardBody:
    """The reward in a body; raises `InvalidInput`, naming the field that is wrong."""
    try:
        return _REWARD(body)
    except msgspec.MsgspecError as error:
        raise invalid_body(error, body) from None


def _read_reward_or_refuse(body: bytes) -> RewardBody | InvalidInput:
    try:
        return read_reward(body)
    except InvalidInput as error:
        return error


def _read_or_refuse(body: bytes) -> DecisionBody | DecisionRequest | InvalidInput:
    try:
        return read_decision(body)
    except InvalidInput as error:
        return error


def _read_open(body: bytes) -> DecisionRequest:
    try:
        request = _OPEN(body)
    except msgspec.MsgspecError as error:
        raise invalid_body(error, body) from None
    try:
        context = read_context(request.context)
    except msgspec.ValidationError as error:
        raise invalid_body(error, body, "context") from None
    return DecisionRequest(request.decision_point, context, request.unit_id, request.candidates)


def read_context(fields: dict[str, Scalar]) -> Context:
    """The context of a decision body; an error has the path below ``$.context``."""
    known = {name: value for name, value in fields.items() if name in _KNOWN}
    body = msgspec.convert(known, ContextBody)
    if len(fields) > len(_KNOWN) + _TOO_MANY:
        raise msgspec.ValidationError(f"Expected at most {_TOO_MANY} further fields - at `$`")
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
