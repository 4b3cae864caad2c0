"""`make bench-policies`, or ``python -m benchmarks.policies DATA... --seeds 10``.

``DATA`` is ``paretobandit`` or a file of recorded outcomes, with weights behind an @ where the
default ones don't fit: ``outcomes.parquet@quality=1,cost=0,latency=0``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.policies.ours import DEFAULT, our_entries
from benchmarks.policies.peers import PEERS
from benchmarks.policies.race import Entry, Lap, Problem, course, run
from benchmarks.policies.report import Heat, installed, write_report
from benchmarks.policies.standings import standings
from infra.recordings import PARETOBANDIT, load_recording
from infra.replays import encode
from optimizer.replay import baselines
from optimizer.reward import parse_weights

_OURS = f"ours: {DEFAULT}"


@dataclass(frozen=True)
class _Data:
    """A recording, named as on the command line."""

    source: str
    weights: str

    @classmethod
    def parse(cls, text: str) -> _Data:
        source, _, weights = text.rpartition("@")
        return cls(source, weights) if source and "=" in weights else cls(text, "")

    @property
    def name(self) -> str:
        return Path(self.source).name

    def __str__(self) -> str:
        return f"{self.name}@{self.weights}" if self.weights else self.name


def main(arguments: Sequence[str] | None = None) -> None:
    """Run everything that was asked for, and write the report after each part of it."""
    asked = _parser().parse_args(arguments)
    conditions = [(0, 0.0)]
    if asked.delay or asked.missing:
        conditions.append((asked.delay, asked.missing))
    data = [_Data.parse(text) for text in asked.data]
    heats: list[Heat] = []
    for one in data:
        problem, entries = _prepare(one, asked.only)
        for delay, missing in conditions:
            heats.append(_heat(one, problem, entries, asked.seeds, delay, missing))
            command = _command(data, asked)
            write_report(asked.out, heats, entries, _OURS, asked.seeds, command)


def _prepare(data: _Data, only: Sequence[str]) -> tuple[Problem, list[Entry]]:
    recorded = load_recording(data.source)
    encoder, features = encode(recorded)
    objective = recorded.objective(parse_weights(data.weights))
    entries = [*our_entries(encoder), *PEERS]
    if only:
        entries = [entry for entry in entries if any(part in entry.name for part in only)]
    return Problem.of(data.name, recorded, objective, features), entries


def _heat(
    data: _Data, problem: Problem, entries: Sequence[Entry], seeds: int, delay: int, missing: float
) -> Heat:
    laps: dict[str, list[Lap]] = {entry.name: [] for entry in entries}
    not_run: dict[str, str] = {}
    # Seed by seed, so that what else the machine does falls on every policy alike.
    for seed in range(seeds):
        over = course(len(problem.features), seed, delay, missing)
        for entry in entries:
            if entry.name in not_run:
                continue
            try:
                lap = run(entry.start(problem, seed), problem, over)
            except Exception as error:
                # A peer that fails is reported; a fault of our own is not to be hidden.
                if not entry.package:
                    raise
                absent = installed(entry.package) is None
                not_run[entry.name] = f"{entry.package} is not installed" if absent else repr(error)
                continue
            laps[entry.name].append(lap)
            print(
                f"{problem.name} delay {delay} seed {seed} {entry.name}: {lap.rewards.mean():.4f}",
                file=sys.stderr,
                flush=True,
            )
    rules = baselines(problem.recorded, problem.objective)
    best = rules["best_single"]
    return Heat(
        problem.name,
        data.weights,
        len(problem.features),
        problem.arms,
        rules["oracle"].reward,
        (best.model or "", best.reward),
        delay,
        missing,
        standings(
            {name: each for name, each in laps.items() if name not in not_run},
            rules["oracle"].reward,
            [entry.name for entry in entries if entry.package],
            _OURS,
        ),
        not_run,
    )


def _command(data: Sequence[_Data], asked: argparse.Namespace) -> str:
    """What to type to repeat it; folders are the reader's own."""
    parts = [f'make bench-policies DATA="{" ".join(map(str, data))}" SEEDS={asked.seeds}']
    if asked.delay or asked.missing:
        parts.append(f"DELAY={asked.delay} MISSING={asked.missing:g}")
    if asked.only:
        parts.append(f'ONLY="{" ".join(asked.only)}"')
    return " ".join(parts)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.policies", description=__doc__)
    parser.add_argument("data", nargs="*", default=[PARETOBANDIT], help="default: %(default)s")
    parser.add_argument("--seeds", type=int, default=10, help="default: %(default)s")
    parser.add_argument("--delay", type=int, default=0, help="also with rewards this late")
    parser.add_argument("--missing", type=float, default=0.0, help="also with this share missing")
    parser.add_argument("--only", nargs="*", default=[], help="policies with this in their name")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/policies"))
    return parser


if __name__ == "__main__":
    main()
