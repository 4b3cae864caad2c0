"""One step is one kind of load on one door; it is repeated, and its rounds are summed up."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.serving.load import Load, closed_loop, open_loop
from benchmarks.serving.payloads import BATCH
from benchmarks.serving.resources import Sampler, Usage
from benchmarks.serving.targets import Door

__all__ = ["CLOSED", "OPEN", "Lap", "Row", "Step", "beside_bare", "interleave", "run", "summarise"]

CLOSED, OPEN = "closed", "open"
_NOTHING = Usage(0.0, 0.0)
_WARM_S = 1.0


@dataclass(frozen=True)
class Step:
    """What is sent where.

    Attributes
    ----------
    door
        Name of it.
    kind
        Of payload.
    connections
        Kept alive.
    rate
        Requests a second of an open loop; None for a closed loop.
    """

    door: str
    kind: str
    connections: int
    rate: float | None = None

    @property
    def loop(self) -> str:
        """``closed`` or ``open``."""
        return CLOSED if self.rate is None else OPEN

    @property
    def name(self) -> str:
        """By which checks find it: the rate is not part of it."""
        return f"{self.door}, {self.kind}, {self.loop}"


@dataclass(frozen=True)
class Lap:
    """One round of a step."""

    load: Load
    usage: dict[str, Usage]


@dataclass(frozen=True)
class Row:
    """A step over its rounds: medians, but all errors and the most memory.

    Attributes
    ----------
    decisions
        Good ones a second; what the generator measured, times the decisions of a request.
    share_of_bare
        Of bare uvicorn's requests a second with the same payload, round by round.
    cpu
        Cores taken by the ``server``, by what belongs to it (``beside``) and by the ``generator``.
    """

    step: Step
    rounds: int
    requests: int
    rate: float
    decisions: float
    latency_ms: dict[str, float]
    lag_ms: dict[str, float]
    errors: dict[str, int]
    cpu: dict[str, float]
    memory_mib: dict[str, float]
    rates: list[float] = field(default_factory=list)
    share_of_bare: float | None = None


def _lap(step: Step, door: Door, bodies: Path, seconds: float) -> Lap:
    """Load the door once and watch what it takes."""
    with Sampler(door.groups()) as sampler:
        load = run(step, door, bodies, seconds, lambda pid: sampler.add("generator", pid))
    return Lap(load, sampler.usage())


def run(step: Step, door: Door, bodies: Path, seconds: float, watch: Callable[[int], None]) -> Load:
    """Load the door once."""
    if step.rate is None:
        return closed_loop(door, step.kind, bodies, step.connections, seconds, watch)
    return open_loop(door, step.kind, bodies, step.connections, step.rate, seconds, watch)


def interleave(
    steps: Sequence[Step],
    doors: dict[str, Door],
    files: dict[str, Path],
    rounds: int,
    seconds: float,
    say: Callable[[str], None],
) -> dict[str, Row]:
    """Every step once a round, so that what else the machine does falls on all alike."""
    laps: dict[Step, list[Lap]] = {step: [] for step in steps}
    for step in steps:
        run(step, doors[step.door], files[step.kind], _WARM_S, lambda pid: None)
    for number in range(rounds):
        for step in steps:
            lap = _lap(step, doors[step.door], files[step.kind], seconds)
            laps[step].append(lap)
            say(
                f"round {number + 1}: {step.name}: {lap.load.rate:,.0f}/s, "
                f"p99 {lap.load.latency_ms.get('p99', float('nan')):.2f} ms, "
                f"{sum(lap.load.errors.values())} errors"
            )
    return {step.name: summarise(step, of) for step, of in laps.items()}


def summarise(step: Step, laps: Sequence[Lap]) -> Row:
    """Medians over rounds."""
    errors: Counter[str] = Counter()
    for lap in laps:
        errors.update(lap.load.errors)
    rate = statistics.median(lap.load.rate for lap in laps)
    groups = ("server", "beside", "generator")
    return Row(
        step,
        len(laps),
        sum(lap.load.requests for lap in laps),
        rate,
        rate * (BATCH if step.kind.startswith("batch") else 1),
        _medians(lap.load.latency_ms for lap in laps),
        _medians(lap.load.lag_ms for lap in laps),
        dict(errors),
        {
            group: statistics.median(lap.usage.get(group, _NOTHING).cores for lap in laps)
            for group in groups
        },
        {group: max(lap.usage.get(group, _NOTHING).memory_mib for lap in laps) for group in groups},
        [lap.load.rate for lap in laps],
    )


def beside_bare(rows: dict[str, Row], bare: str) -> dict[str, Row]:
    """Set the share of bare uvicorn's rate, the median of the rounds' ratios, in closed loops."""
    told = {}
    for name, row in rows.items():
        limit = rows.get(replace(row.step, door=bare).name)
        if limit is not None and row.step.loop == CLOSED and len(limit.rates) == len(row.rates):
            ratios = [one / of for one, of in zip(row.rates, limit.rates, strict=True) if of]
            row = replace(row, share_of_bare=statistics.median(ratios) if ratios else None)
        told[name] = row
    return told


def _medians(each: Iterable[dict[str, float]]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for one in each:
        for name, value in one.items():
            values.setdefault(name, []).append(value)
    return {name: statistics.median(of) for name, of in values.items()}
