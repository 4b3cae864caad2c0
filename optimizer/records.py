"""The records that travel through the loop: arm, context, outcome, observation."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "ARM_ID_BYTES",
    "Arm",
    "Context",
    "Indices",
    "Matrix",
    "Observation",
    "Outcome",
    "Vector",
]

Vector = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

ARM_ID_BYTES = 8


@dataclass(frozen=True)
class Arm:
    """One choice: a model with parameters and a prompt variant.

    Attributes
    ----------
    traits
        What is known of it beforehand, see `optimizer.arm_traits`; no part of its identity.

    Examples
    --------
    >>> Arm("small-model").id == Arm("small-model", {}, "default").id
    True
    >>> Arm("small-model").id == Arm("small-model", {"temperature": 0.2}).id
    False
    """

    model: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    prompt_variant: str = "default"
    traits: tuple[float, ...] = ()

    @cached_property
    def id(self) -> bytes:
        """Eight bytes that name this arm wherever it is configured the same way."""
        text = json.dumps([self.model, dict(self.parameters), self.prompt_variant], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=ARM_ID_BYTES).digest()

    def __hash__(self) -> int:
        return hash(self.id)


@dataclass(frozen=True, slots=True)
class Context:
    """What the caller tells about a request; every field may be missing.

    Attributes
    ----------
    prompt
        The text that goes to the model.
    task
        The kind of work, ideally one of the decision point's ``tasks``.
    input_tokens, expected_output_tokens
        Token counts, 0 or more.
    priority
        "low", "standard" or "high".
    extra
        Further fields, name and text or finite number; they are hashed into a few columns.
    """

    prompt: str | None = None
    task: str | None = None
    input_tokens: int | None = None
    expected_output_tokens: int | None = None
    priority: str | None = None
    extra: tuple[tuple[str, str | float], ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What happened after a decision; a part that is not known (yet) is None.

    Attributes
    ----------
    quality, feedback
        In [0, 1].
    cost_usd
        US dollars, 0 or more.
    latency_s
        Seconds, 0 or more.
    """

    quality: float | None = None
    cost_usd: float | None = None
    latency_s: float | None = None
    feedback: float | None = None

    def values(self) -> tuple[float | None, ...]:
        """The four parts in the order of `optimizer.reward.PARTS`."""
        return (self.quality, self.cost_usd, self.latency_s, self.feedback)

    def check(self) -> None:
        """Raise ValueError, naming the part, where a value is out of its range."""
        for part in fields(self):
            value = getattr(self, part.name)
            if value is None:
                continue
            bounded = part.name in ("quality", "feedback")
            if not math.isfinite(value) or value < 0 or (bounded and value > 1):
                limit = "in [0, 1]" if bounded else "finite and 0 or more"
                raise ValueError(f"{part.name}={value!r} must be {limit}")


@dataclass(frozen=True, slots=True)
class Observation:
    """One change of what is known about one decision: what a policy learns from.

    A first signal has an empty ``before``; a correction has both; a retraction has an
    empty ``after``. Learning applies the difference, so that any order of signals ends
    in the same state.

    Attributes
    ----------
    arm
        Index of the arm that was chosen, in the policy's order.
    features
        Shape (d,), as the decision saw them.
    version
        The policy version that decided, which is a ledger position.
    position
        Where this change stands in the ledger. Policies that forget need both; without them all
        observations count as of one time.
    """

    arm: int
    features: Vector
    before: Outcome
    after: Outcome
    version: int = 0
    position: int = 0
