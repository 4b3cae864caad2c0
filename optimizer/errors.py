"""Every error this project raises on purpose.

LlmoptError
├── InvalidInput              the caller sent something wrong; names field, value and remedy
│   ├── UnknownName           a decision point, model or policy that does not exist
│   ├── InvalidToken          a decision_id that is forged, truncated or foreign
│   ├── TooLarge              a body or batch over its limit
│   ├── TooLate               a reward for a decision that the ledger no longer keeps
│   └── InvalidRecording      a file of recorded outcomes that cannot be replayed
├── InvalidSettings           llmopt.yaml or an LLMOPT_* variable is wrong
├── IncompatibleState         learned state that belongs to other arms, features or policy
├── Unavailable               a part is away for now; carries when to try again
└── PartFailed                a part of the local stack did not start; says what to do next
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "IncompatibleState",
    "InvalidInput",
    "InvalidRecording",
    "InvalidSettings",
    "InvalidToken",
    "LlmoptError",
    "PartFailed",
    "TooLarge",
    "TooLate",
    "Unavailable",
    "UnknownName",
]


class LlmoptError(Exception):
    """Base of every error raised on purpose."""


class InvalidInput(LlmoptError):
    """The caller's input is refused.

    Parameters
    ----------
    field
        Path of the field, as the caller wrote it (``context.task``, ``items[3].quality``).
    value
        The refused value, or None where the field is missing.
    remedy
        One sentence that says what would be accepted.
    """

    def __init__(self, field: str, value: Any, remedy: str) -> None:
        self.field = field
        self.value = value
        self.remedy = remedy
        super().__init__(f"{field}={value!r}: {remedy}")


class UnknownName(InvalidInput):
    """A decision point, model or policy that does not exist."""


class InvalidToken(InvalidInput):
    """A decision_id that this installation did not sign, or not in this form."""


class TooLarge(InvalidInput):
    """A body or batch over its limit."""


class TooLate(InvalidInput):
    """A reward for a decision that the ledger no longer keeps."""


class InvalidRecording(InvalidInput):
    """A file of recorded outcomes that cannot be replayed."""


class InvalidSettings(LlmoptError):
    """The settings file or an environment variable is wrong."""


class IncompatibleState(LlmoptError):
    """Learned state that belongs to other arms, features or another policy."""


class Unavailable(LlmoptError):
    """A part is away for now.

    Parameters
    ----------
    part
        Which part, in the words of the README ("PostgreSQL").
    retry_after_s
        Seconds after which another try makes sense.
    """

    def __init__(self, part: str, retry_after_s: int = 1) -> None:
        self.part = part
        self.retry_after_s = retry_after_s
        super().__init__(f"{part} is away; try again in {retry_after_s} s")


class PartFailed(LlmoptError):
    """A part of the local stack did not start; the message says what to do next."""
