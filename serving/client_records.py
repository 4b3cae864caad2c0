"""What the clients of `serving.client` take and give back, and the errors they raise.

LlmoptError
├── Refused               the service refused what it was sent; names field, value and detail
└── Unavailable
    └── ServiceUnavailable    no usable answer within tries and time
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Self

import msgspec
from msgspec import Raw, Struct

from optimizer.errors import LlmoptError, Unavailable

__all__ = [
    "Decision",
    "Receipt",
    "Refused",
    "Request",
    "Reward",
    "ServiceUnavailable",
    "StaticChoice",
]

_SHOWN_CHARACTERS = 200


class StaticChoice(Struct, frozen=True):
    """What a decision point uses while the service is away."""

    model: str
    parameters: dict[str, Any] = {}
    prompt_variant: str = "default"


class Decision(Struct, frozen=True):
    """Which model to use.

    Attributes
    ----------
    decision_id
        Goes back with the reward. Empty if the client's own static rule decided, because the
        service was away: the service knows nothing of such a decision and learns nothing from it.
    model, parameters, prompt_variant
        The arm that was drawn.
    propensity
        The probability with which it was drawn, in (0, 1]; 1 from a static rule.
    policy_version
        The version that decided; 0 if none did.
    fallback
        Whether a static rule decided, the service's or the client's.
    """

    decision_id: str
    decision_point: str
    model: str
    parameters: dict[str, Any]
    prompt_variant: str
    propensity: float
    policy_version: int
    fallback: bool


class Request(Struct, frozen=True):
    """One item of `decide_many`; the fields are the arguments of `Optimizer.decide`."""

    decision_point: str
    context: Mapping[str, str | float | bool | None]
    unit_id: str | None = None
    candidates: Sequence[str] | None = None


class Reward(Struct, frozen=True):
    """One item of `reward_many`; the fields are the arguments of `Optimizer.reward`."""

    decision_id: str
    quality: float | None = None
    cost_usd: float | None = None
    latency_s: float | None = None
    feedback: float | None = None
    event_id: str | None = None
    retract: bool = False
    kind: str | None = None
    value: float | bool | str | None = None
    occurred_at: datetime | None = None


class Receipt(Struct, frozen=True):
    """What became of a reward.

    Attributes
    ----------
    accepted
        Whether it is stored; False only for a decision that the client's static rule made.
    duplicate
        Whether the service had it before, for instance from a try whose answer was lost.
    """

    accepted: bool
    duplicate: bool


class _Problem(Struct, frozen=True):
    status: int = 0
    detail: str = ""
    field: str = ""
    value: Any = None


class Refused(LlmoptError):
    """The service refused what it was sent; sending it again would change nothing.

    Attributes
    ----------
    status
        HTTP status.
    field, value
        What was refused: the path of the field in the body that was sent, and the value that was
        there, shortened. Empty and None if another server than ours refused.
    detail
        What would be accepted.
    """

    def __init__(self, status: int, detail: str, field: str = "", value: Any = None) -> None:
        self.status = status
        self.detail = detail
        self.field = field
        self.value = value
        super().__init__(status, detail, field, value)  # all of them, so that it can be pickled

    @classmethod
    def read(cls, content: bytes | Raw, status: int = 0) -> Self:
        """From a problem document (RFC 9457), or from whatever came in its place."""
        try:
            said = msgspec.json.decode(content, type=_Problem)
        except msgspec.MsgspecError:
            shown = bytes(content)[:_SHOWN_CHARACTERS].decode(errors="replace")
            said = _Problem(detail=shown)
        return cls(status or said.status, said.detail, said.field, said.value)

    def __str__(self) -> str:
        return f"refused with status {self.status}: {self.detail} (got {self.value!r})"


class ServiceUnavailable(Unavailable):
    """The service gave no usable answer.

    Attributes
    ----------
    url
        What was called.
    tried
        What was tried and how it ended, in words.
    retry_after_s
        Seconds after which another call makes sense.
    """

    def __init__(self, url: str, tried: str, retry_after_s: int = 1) -> None:
        super().__init__(url, retry_after_s)
        self.url = url
        self.tried = tried
        self.args = (url, tried, retry_after_s)

    def __str__(self) -> str:
        return (
            f"{self.url}: {self.tried}; see that the platform runs (`llmopt status`), and give the "
            "client a static rule that decides while it doesn't"
        )
