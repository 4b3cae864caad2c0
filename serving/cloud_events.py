"""Rewards as CloudEvents 1.0 in structured mode, and the JSON Schema of that form.

Source: https://github.com/cloudevents/spec, the core specification, its JSON format and its HTTP
binding.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from optimizer.errors import InvalidInput
from optimizer.signals import PLAIN_KINDS
from serving.schema import (
    DecisionId,
    NonNegative,
    RewardBody,
    Share,
    ShortText,
    SignalValue,
    Time,
)

__all__ = [
    "BATCHED",
    "STRUCTURED",
    "CloudEvent",
    "RewardData",
    "refine",
    "reward_of",
    "reward_schema",
]

STRUCTURED, BATCHED = b"application/cloudevents+json", b"application/cloudevents-batch+json"

_Text = Annotated[str, Meta(min_length=1, max_length=2048)]


class RewardData(Struct, frozen=True, forbid_unknown_fields=True):
    """The data of a CloudEvent: as `RewardBody`, but for what the event itself says.

    `event_id` is that of the event which is corrected or retracted, since each CloudEvent has an
    `id` of its own; `decision_id` may stand in `subject`.
    """

    decision_id: DecisionId | None = None
    event_id: ShortText | None = None
    kind: ShortText | None = None
    value: SignalValue | None = None
    quality: Share | None = None
    cost_usd: NonNegative | None = None
    latency_s: NonNegative | None = None
    feedback: Share | None = None
    retract: bool = False


class CloudEvent(Struct, frozen=True):
    """A reward as a CloudEvent 1.0; extension attributes are allowed and not looked at."""

    specversion: Literal["1.0"]
    id: ShortText
    source: _Text
    type: Literal["ai.llmopt.reward.v1"]
    data: RewardData
    subject: DecisionId | None = None
    time: Time | None = None
    datacontenttype: Literal["application/json"] | None = None
    dataschema: _Text | None = None


def reward_of(event: CloudEvent) -> RewardBody:
    """The plain form of an event.

    Raises
    ------
    InvalidInput
        If it names no decision, or two.
    """
    data = event.data
    decision_id = data.decision_id or event.subject
    if decision_id is None:
        raise InvalidInput("subject", None, "the decision_id, here or in data.decision_id")
    if event.subject is not None and event.subject != decision_id:
        raise InvalidInput("subject", event.subject, "data.decision_id says another; give one")
    return RewardBody(
        decision_id,
        data.event_id or event.id,
        data.quality,
        data.cost_usd,
        data.latency_s,
        data.feedback,
        data.retract,
        data.kind,
        data.value,
        event.time,
    )


@cache
def reward_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a reward as a CloudEvent.

    Examples
    --------
    >>> sorted(reward_schema()["$defs"]["CloudEvent"]["required"])
    ['data', 'id', 'source', 'specversion', 'type']
    """
    schema = msgspec.json.schema(CloudEvent)
    refine(schema["$defs"])
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def refine(definitions: dict[str, Any]) -> None:
    """Say of the event, and of its data, what the types alone do not."""
    definitions["CloudEvent"]["anyOf"] = [
        _said("subject"),
        {"properties": {"data": _said("decision_id")}},
    ]
    definitions["RewardData"] |= {
        "anyOf": [
            *map(_said, (*PLAIN_KINDS, "kind")),
            {"required": ["retract"], "properties": {"retract": {"const": True}}},
        ],
        "dependentRequired": {"value": ["kind"]},
    }


def _said(name: str) -> dict[str, Any]:
    return {"required": [name], "properties": {name: {"not": {"type": "null"}}}}
