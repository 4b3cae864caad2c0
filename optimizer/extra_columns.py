"""Columns that a policy may see beside those of `optimizer.features`, in groups to choose from.

``small`` is none of them. ``facts`` are those that a request tells by itself. ``full`` has also
those of past requests, which need a `optimizer.request_history.RequestHistory`: a replay carries
one through the pass, live replicas have none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from optimizer.errors import InvalidInput, UnknownName
from optimizer.prompt_text import complexity, language, words
from optimizer.request_history import Past
from optimizer.transformations import hashed

__all__ = [
    "EXTRA_COLUMNS",
    "FEATURE_SETS",
    "LIVE_FEATURE_SETS",
    "PAST_GROUPS",
    "calendar",
    "checked_groups",
    "fact_values",
    "past_values",
]

_USER_COLUMNS = 8
_NAMED_LANGUAGES = ("unknown", "de", "fr", "es", "it", "pt", "nl")
"""English is the reference and has no column: where most prompts are English it would be the
constant a second time."""

EXTRA_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "length": ("prompt_characters_log", "prompt_words_log"),
    "complexity": ("prompt_lix",),
    "language": (*(f"language_{name}" for name in _NAMED_LANGUAGES), "language_other"),
    "calendar": ("weekend", "business_hours"),
    "user": tuple(f"user_{index}" for index in range(_USER_COLUMNS)),
    "past_requests": ("past_similarity", "past_quality"),
    "past_user": ("past_user_requests_log", "past_user_quality"),
}
"""By group, in the order of the vector."""

PAST_GROUPS = ("past_requests", "past_user")
_FACT_GROUPS = tuple(name for name in EXTRA_COLUMNS if name not in PAST_GROUPS)

FEATURE_SETS: Mapping[str, tuple[str, ...]] = {
    "small": (),
    "facts": _FACT_GROUPS,
    "full": tuple(EXTRA_COLUMNS),
}

LIVE_FEATURE_SETS = ("small", "facts")
"""Those that a decision point may have: they need nothing but the request."""

_SCALE = 0.3
"""As for the other side columns, see `optimizer.features`."""

_TYPICAL_LOG_CHARACTERS = 6.0
_TYPICAL_LOG_WORDS = 4.5
_TYPICAL_LIX = 40.0
_TYPICAL_LOG_REQUESTS = 5.0
_DAY_S = 86400.0
_MONDAY_AT_0 = 3.0
"""Unix time starts on a Thursday."""

_WEEKEND = 5.0
_BUSINESS_DAY = (9.0 / 24.0, 17.0 / 24.0)


def checked_groups(groups: Sequence[str]) -> tuple[str, ...]:
    """The groups, in the order of `EXTRA_COLUMNS`.

    Raises
    ------
    UnknownName, InvalidInput
        If one does not exist, or is named twice.
    """
    for name in groups:
        if name not in EXTRA_COLUMNS:
            raise UnknownName("groups", name, f"one of {', '.join(EXTRA_COLUMNS)}")
    if len(set(groups)) != len(groups):
        raise InvalidInput("groups", list(groups), "each group may be named once")
    return tuple(name for name in EXTRA_COLUMNS if name in groups)


def calendar(at_s: float) -> tuple[bool, bool]:
    """Whether a time (Unix, seconds) is on a weekend, and in business hours: UTC, Monday to Friday.

    Examples
    --------
    >>> calendar(12 * 3600.0), calendar(2 * 86400.0)
    ((False, True), (True, False))
    """
    days = at_s / _DAY_S
    weekend = (days + _MONDAY_AT_0) % 7.0 >= _WEEKEND
    opening, closing = _BUSINESS_DAY
    return weekend, not weekend and opening <= days % 1.0 < closing


def fact_values(
    groups: Sequence[str], prompt: str | None, user: str | None, at_s: float
) -> list[float]:
    """The columns of a request itself, those of past requests 0: in the order of the groups.

    Parameters
    ----------
    groups
        As `checked_groups` gives them.
    prompt, user
        None if not told; their columns are 0 then.
    at_s
        Unix time in seconds.
    """
    values: list[float] = []
    for group in groups:
        columns = [0.0] * len(EXTRA_COLUMNS[group])
        if group == "calendar":
            columns = [_SCALE * flag for flag in calendar(at_s)]
        elif group == "user" and user is not None:
            column, amount = hashed("user_id", user, _USER_COLUMNS)
            columns[column] = _SCALE * amount
        elif prompt:
            if group == "length":
                columns = [
                    _SCALE * (math.log1p(len(prompt)) / _TYPICAL_LOG_CHARACTERS - 1.0),
                    _SCALE * (math.log1p(len(words(prompt))) / _TYPICAL_LOG_WORDS - 1.0),
                ]
            elif group == "complexity":
                columns = [_SCALE * (min(complexity(prompt) / _TYPICAL_LIX, 5.0) - 1.0)]
            elif group == "language":
                guess = language(prompt)
                if guess in _NAMED_LANGUAGES:
                    columns[_NAMED_LANGUAGES.index(guess)] = _SCALE
                elif guess != "en":
                    columns[-1] = _SCALE
        values += columns
    return values


def past_values(groups: Sequence[str], past: Past) -> list[float]:
    """The columns of those `PAST_GROUPS` that are among the groups, in their order.

    Qualities count from the mean of all past requests.
    """
    values: list[float] = []
    if "past_requests" in groups:
        values += [_SCALE * past.similarity, _SCALE * (past.quality - past.overall)]
    if "past_user" in groups:
        requests = math.log1p(past.user_requests) / _TYPICAL_LOG_REQUESTS
        values += [_SCALE * requests, _SCALE * (past.user_quality - past.overall)]
    return values
