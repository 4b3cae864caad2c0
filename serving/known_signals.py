"""What is known of a decision: its signals, which of them holds, and what they come to.

A signal is one of a kind (`optimizer.signals`) and has an event id, so that a decision may be told
the same kind several times; each of the four parts that a plain reward brings is a kind too. Told
again, a signal replaces what it said: the one with the later ``occurred_at`` holds, whichever came
first, and of two with the same time the retraction, then the larger value. So where signals carry
times, what is known in the end does not depend on the order, the repeats and the delays in which
they came. Where one of the two has no time, the order in which they came is what is meant: the
later arrival corrects. A part is the weighted mean of the signals that inform it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from optimizer.signals import PLAIN_KINDS

__all__ = [
    "NOTHING",
    "PROXY",
    "WINDOW_CLOSED",
    "Cell",
    "Key",
    "Known",
    "combine",
    "is_whole",
    "real_values",
    "tell",
]

WINDOW_CLOSED = "(window closed)"
"""Event id of the default reward of a decision whose attribution window closed without any."""

PROXY = "(window closed: quality model "
"""Start of the event id where a quality model predicted the quality instead."""

NOTHING: tuple[float | None, ...] = (None, None, None, None)
"""No part is known."""


class Cell(NamedTuple):
    """What one signal says: of which part, which value (None if it was taken back), from when."""

    part: int
    value: float | None
    weight: float
    occurred_at: datetime | None


Key = tuple[str, str]
"""Event id and kind."""


@dataclass(slots=True)
class Known:
    """What is known of one decision: its signals, and the parts as the last row has them."""

    cells: dict[Key, Cell]
    parts: Sequence[float | None]


def real_values(known: Sequence[float | None]) -> Sequence[float | None]:
    """The four parts of what is known about a decision, without a quality that was predicted.

    Where the quality is a proxy, ``known_before`` and ``known_after`` have a fifth number, the
    version of the quality model that predicted it.
    """
    return known if len(known) == len(NOTHING) else (None, *known[1 : len(NOTHING)])


def tell(
    cells: dict[Key, Cell],
    event_id: str,
    kind: str,
    values: Sequence[float | None],
    weight: float,
    occurred_at: datetime | None,
) -> bool:
    """Apply one event to the signals of its decision; whether that changed any."""
    changed = False
    silent = True
    for part, value in enumerate(values):
        if value is not None:
            silent = False
            key = (event_id, kind or PLAIN_KINDS[part])
            new = Cell(part, value, weight, occurred_at)
            if _replaces(new, cells.get(key)):
                cells[key] = new
                changed = True
    if silent:
        for name in (kind,) if kind else PLAIN_KINDS:
            nothing = Cell(0, None, 1.0, occurred_at)
            if _replaces(nothing, cells.get((event_id, name))):
                cells[event_id, name] = nothing
                changed = True
    return changed


def _replaces(new: Cell, old: Cell | None) -> bool:
    """Whether a signal takes the place of what it said before."""
    if old is None:  # a retraction with a time may come before what it takes back
        return new.value is not None or new.occurred_at is not None
    if new.occurred_at is None:
        return new[:3] != old[:3]
    if old.occurred_at is None:
        return True
    if new.occurred_at != old.occurred_at:
        return new.occurred_at > old.occurred_at
    return _rank(new) > _rank(old)


def _rank(cell: Cell) -> tuple[bool, float, int, float]:
    """Which of two signals of the same time holds: any order does, if it is always the same."""
    return (cell.value is None, cell.value or 0.0, cell.part, cell.weight)


def combine(cells: dict[Key, Cell]) -> list[float | None]:
    """Weighted mean of each part; the default of a closed window only where nothing else is known.

    A fifth number follows where that default is a proxy, see `real_values`.

    The sums are exact before they are rounded once, so the order of signals changes no bit.
    """
    heard = [
        cell
        for (event_id, _), cell in cells.items()
        if cell.value is not None and not _closes(event_id)
    ]
    parts: list[float | None] = [None, None, None, None]
    for cell in heard or cells.values():
        part = cell.part
        if cell.value is None or parts[part] is not None:
            continue
        same = [other for other in heard if other.part == part]
        parts[part] = cell.value if len(same) < 2 else _mean(same)
    proxies = () if heard else (name for (name, _), cell in cells.items() if cell.value is not None)
    version = next((name for name in proxies if name.startswith(PROXY)), None)
    if version is not None:
        parts.append(float(version.removeprefix(PROXY).rstrip(")")))
    return parts


def is_whole(event_id: str, values: Sequence[float | None]) -> bool:
    """Whether one event, the only one of its decision, brings just what is then known."""
    return values != NOTHING and not _closes(event_id)


def _mean(cells: Sequence[Cell]) -> float:
    total = math.fsum(cell.weight for cell in cells)
    return math.fsum(cell.weight * cell.value for cell in cells if cell.value is not None) / total


def _closes(event_id: str) -> bool:
    return event_id == WINDOW_CLOSED or event_id.startswith(PROXY)
