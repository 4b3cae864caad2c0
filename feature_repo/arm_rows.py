"""What is known of arms as rows of numbers, which is how Feast and PostgreSQL take it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, fields
from datetime import UTC, datetime
from typing import Any, Generic, NamedTuple, TypeVar

from feature_repo.aggregates import ArmFeatures
from feature_repo.windows import COLUMNS, WINDOWS_MIN, WindowFeatures

__all__ = [
    "KEY_COLUMNS",
    "STATISTICS_COLUMNS",
    "WINDOWS_COLUMNS",
    "Dated",
    "Row",
    "arm_key",
    "keyed",
    "statistics_of",
    "statistics_rows",
    "windows_of",
    "windows_rows",
]

KEY_COLUMNS = ("arm_key", "event_timestamp", "created_at")
STATISTICS_COLUMNS = tuple(field.name for field in fields(ArmFeatures))
WINDOWS_COLUMNS = COLUMNS

Row = tuple[Any, ...]
"""Floats and None, in the order of its columns."""

_T = TypeVar("_T")


class Dated(NamedTuple, Generic[_T]):
    """What was read, when it was true (Unix time, seconds), and what of it was out of range."""

    features: _T
    at_s: float
    violations: tuple[str, ...] = ()


def arm_key(decision_point: str, model: str) -> str:
    """The entity that Feast knows an arm by."""
    return f"{decision_point}/{model}"


def keyed(decision_point: str, rows: Mapping[str, Row], at_s: float) -> list[Row]:
    """Rows by model with `KEY_COLUMNS` before them."""
    at, now = datetime.fromtimestamp(at_s, UTC), datetime.now(UTC)
    return [(arm_key(decision_point, model), at, now, *row) for model, row in rows.items()]


def statistics_rows(values: Mapping[str, ArmFeatures]) -> dict[str, Row]:
    """By model, in the order of `STATISTICS_COLUMNS`."""
    return {model: astuple(features) for model, features in values.items()}


def statistics_of(row: Row) -> ArmFeatures:
    """What `statistics_rows` made a row of."""
    return ArmFeatures(**_known(ArmFeatures, row))


def windows_rows(values: Mapping[str, Mapping[int, WindowFeatures]]) -> dict[str, Row]:
    """By model, in the order of `WINDOWS_COLUMNS`."""
    return {
        model: tuple(value for minutes in WINDOWS_MIN for value in astuple(windows[minutes]))
        for model, windows in values.items()
    }


def windows_of(row: Row) -> dict[int, WindowFeatures]:
    """What `windows_rows` made a row of.

    Examples
    --------
    >>> windows = {minutes: WindowFeatures(count=float(minutes)) for minutes in WINDOWS_MIN}
    >>> windows_of(windows_rows({"small": windows})["small"]) == windows
    True
    """
    width = len(fields(WindowFeatures))
    return {
        minutes: WindowFeatures(**_known(WindowFeatures, row[place * width : (place + 1) * width]))
        for place, minutes in enumerate(WINDOWS_MIN)
    }


def _known(kind: type[ArmFeatures] | type[WindowFeatures], row: Row) -> dict[str, float]:
    """Values by field; a missing one is left to its default, so that a count is a number."""
    pairs = zip(fields(kind), row, strict=True)
    return {field.name: value for field, value in pairs if value is not None}
