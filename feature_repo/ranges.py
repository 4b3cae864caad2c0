"""The catalogue's ranges, held where values enter the feature store and where they leave it.

A value out of its range is clipped to it. One that is no finite number tells nothing and becomes
missing. Who calls counts both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from feature_repo.catalogue import feature
from optimizer.records import Outcome

__all__ = ["clipped", "clipped_outcome"]

_OUTCOME_PARTS = ("quality", "cost_usd", "latency_s")
_OUTCOME_RANGES = tuple((feature(name).low, feature(name).high) for name in _OUTCOME_PARTS)


def clipped(
    columns: Sequence[str], rows: Mapping[str, tuple[Any, ...]]
) -> tuple[dict[str, tuple[float | None, ...]], dict[str, tuple[str, ...]]]:
    """Rows that may be used, and which of their values were not.

    Parameters
    ----------
    columns
        Names of the catalogue.
    rows
        By model, in the order of ``columns``; None is missing, and no violation.

    Returns
    -------
    The rows with every value in its range or None; and, of the models that have any, the names of
    the features that were out of range or not finite.

    Raises
    ------
    UnknownName
        If the catalogue has no such feature.

    Examples
    --------
    >>> clipped(["quality", "cost_usd"], {"small": (1.5, math.nan), "large": (0.5, None)})
    ({'small': (1.0, None), 'large': (0.5, None)}, {'small': ('quality', 'cost_usd')})
    """
    kept: dict[str, tuple[float | None, ...]] = {}
    violations: dict[str, tuple[str, ...]] = {}
    for model, row in rows.items():
        values = [_in_range(name, value) for name, value in zip(columns, row, strict=True)]
        kept[model] = tuple(values)
        # NaN differs from everything, so it is counted too.
        names = tuple(
            name
            for name, given, value in zip(columns, row, values, strict=True)
            if given is not None and given != value
        )
        if names:
            violations[model] = names
    return kept, violations


def clipped_outcome(outcome: Outcome) -> tuple[Outcome, tuple[str, ...]]:
    """An outcome as statistics may count it, and the names of its parts that were out of range.

    The ranges are those of an arm's means: the mean of outcomes within them is within them. The
    same outcome always gives the same, so that a correction takes away what was added.

    Examples
    --------
    >>> clipped_outcome(Outcome(quality=0.5, cost_usd=1e9))
    (Outcome(quality=0.5, cost_usd=1000.0, latency_s=None, feedback=None), ('cost_usd',))
    """
    row = (outcome.quality, outcome.cost_usd, outcome.latency_s)
    for (low, high), value in zip(_OUTCOME_RANGES, row, strict=True):
        if value is not None and not low <= value <= high:
            break
    else:
        return outcome, ()
    kept, violations = clipped(_OUTCOME_PARTS, {"": row})
    return replace(outcome, **dict(zip(_OUTCOME_PARTS, kept[""], strict=True))), violations[""]


def _in_range(name: str, value: float | None) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    one = feature(name)
    return min(max(value, one.low), one.high)
