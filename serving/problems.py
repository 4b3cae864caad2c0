"""RFC 9457 problem documents: which field was refused, with which value, and what to do."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from optimizer.errors import (
    InvalidInput,
    InvalidToken,
    LlmoptError,
    TooLarge,
    Unavailable,
    UnknownName,
)

__all__ = ["invalid_body", "problem"]

_AT = re.compile(r" - at `(?P<path>[^`]*)`$")
_NAMED = re.compile(r"(?:unknown|required) field `(?P<name>[^`]*)`")
_SHOWN_CHARACTERS = 80


def problem(error: LlmoptError) -> tuple[int, dict[str, Any]]:
    """Status and problem document of an error."""
    if isinstance(error, Unavailable):
        return 503, {
            "type": "about:blank",
            "title": "Service Unavailable",
            "status": 503,
            "detail": str(error),
            "retry_after_s": error.retry_after_s,
        }
    if not isinstance(error, InvalidInput):
        return 500, {
            "type": "about:blank",
            "title": "Internal Server Error",
            "status": 500,
            "detail": str(error),
        }
    status, title = 422, "Invalid value"
    if isinstance(error, UnknownName):
        status, title = 404, "Unknown name"
    elif isinstance(error, InvalidToken):
        status, title = 400, "Invalid decision_id"
    elif isinstance(error, TooLarge):
        status, title = 413, "Too large"
    elif error.field == "body":
        status, title = 400, "Invalid JSON"
    return status, {
        "type": "about:blank",
        "title": title,
        "status": status,
        "detail": f"{error.field}: {error.remedy}",
        "field": error.field,
        "value": shorten(error.value),
    }


def invalid_body(error: msgspec.MsgspecError, body: bytes, root: str = "") -> InvalidInput:
    """Say which field of ``body`` is wrong, from what msgspec found.

    Parameters
    ----------
    error
        What msgspec raised.
    body
        The JSON text.
    root
        Path of the value that was refused, inside the body ("context").
    """
    message = str(error)
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return InvalidInput("body", body[:_SHOWN_CHARACTERS].decode(errors="replace"), message)
    for path, value in _leaves(content):
        if isinstance(value, float) and not math.isfinite(value):
            return InvalidInput(path, str(value), "a finite number; JSON has no NaN or infinity")
    at = _AT.search(message)
    path = at["path"].removeprefix("$").removeprefix(".") if at else ""
    said = _AT.sub("", message)
    named = _NAMED.search(said)
    parts = [part for part in (root, path, named["name"] if named else "") if part]
    field = ".".join(parts) or "body"
    if "[...]" in field:
        field = _first_compound(content, field.partition("[...]")[0]) or field
    return InvalidInput(field, _look_up(content, field), said)


def shorten(value: Any) -> Any:
    """A value as it is shown in a problem document: whole if short."""
    if isinstance(value, str) and len(value) > _SHOWN_CHARACTERS:
        return value[:_SHOWN_CHARACTERS] + "..."
    if isinstance(value, dict | list) and len(str(value)) > _SHOWN_CHARACTERS:
        return str(value)[:_SHOWN_CHARACTERS] + "..."
    return value


def _leaves(content: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    stack = [(path, content)]
    while stack:
        where, value = stack.pop()
        if isinstance(value, dict):
            stack.extend((f"{where}.{key}".lstrip("."), item) for key, item in value.items())
        elif isinstance(value, list):
            stack.extend((f"{where}[{index}]", item) for index, item in enumerate(value))
        else:
            yield where, value


def _first_compound(content: Any, path: str) -> str | None:
    """The first entry below ``path`` that is an object or an array: where only scalars may be."""
    value = _look_up(content, path)
    if isinstance(value, dict):
        for key, item in value.items():
            if isinstance(item, dict | list):
                return f"{path}.{key}"
    return None


def _look_up(content: Any, field: str) -> Any:
    for step in re.findall(r"[^.\[\]]+", field):
        if isinstance(content, dict):
            content = content.get(step)
        elif isinstance(content, list) and step.isdigit() and int(step) < len(content):
            content = content[int(step)]
        else:
            return None
    return content
