"""The windows of a stream that is killed again and again: ``python -m benchmarks.windows``.

A made ledger of outcomes in the order in which they were stored: most within minutes of their
decisions, some corrected or retracted later, some after the allowed lateness. It is folded without
a disturbance; then with a checkpoint now and then, where each kill drops the state and goes on from
the last checkpoint; then as the learner starts again, without any checkpoint, from the rows that
were received in its last span. All must end in the same windows.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from benchmarks.processor import processor
from feature_repo.windows import ArmWindows, WindowFeatures
from optimizer.records import Outcome
from serving.arm_fold import STATISTICS_SPAN_S

__all__ = [
    "MODELS",
    "Row",
    "fold",
    "fold_killed",
    "fold_without_checkpoints",
    "made_delay_s",
    "made_ledger",
    "made_outcome",
]

MODELS = tuple(f"model-{number}" for number in range(8))
_RESULT = Path(__file__).parent / "results" / "windows.md"
_START_S = 1.7e9
_NOTHING = Outcome()


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the ledger, as far as windows look at it."""

    model: str
    decided_s: float
    received_s: float
    before: Outcome
    after: Outcome


def made_ledger(outcomes: int, span_s: float, seed: int) -> list[Row]:
    """Rows in the order of the ledger.

    Parameters
    ----------
    outcomes
        Decisions that get one; 12 % of them are corrected, a quarter of these then retracted.
    span_s
        Over which the decisions are spread, evenly.
    seed
        Of all draws.
    """
    draw = random.Random(seed)
    rows = []
    for _ in range(outcomes):
        model, decided_s = draw.choice(MODELS), _START_S + draw.uniform(0.0, span_s)
        received_s, before = decided_s + made_delay_s(draw), _NOTHING
        for after in _story(draw):
            rows.append(Row(model, decided_s, received_s, before, after))
            received_s, before = received_s + made_delay_s(draw), after
    return sorted(rows, key=lambda row: row.received_s)


def made_delay_s(draw: random.Random) -> float:
    """Seconds from a decision to its outcome: mostly minutes, some after the allowed lateness."""
    return draw.expovariate(1 / 30) if draw.random() < 0.97 else draw.uniform(0.0, 7200.0)


def _story(draw: random.Random) -> list[Outcome]:
    outcomes = [made_outcome(draw)]
    if draw.random() < 0.12:
        outcomes.append(made_outcome(draw))
        if draw.random() < 0.25:
            outcomes.append(_NOTHING)
    return outcomes


def made_outcome(draw: random.Random) -> Outcome:
    """Any outcome; its quality may be unknown."""
    return Outcome(
        quality=draw.choice((0.0, 1.0, draw.random(), None)),
        cost_usd=draw.expovariate(1000.0),
        latency_s=draw.lognormvariate(0.0, 0.7),
    )


def fold(windows: ArmWindows, rows: Sequence[Row]) -> ArmWindows:
    """Take in rows, in order."""
    for row in rows:
        windows.update(row.model, row.decided_s, row.before, row.after, row.received_s)
    return windows


def fold_killed(rows: Sequence[Row], kills: Sequence[int], every: int) -> ArmWindows:
    """With a checkpoint each ``every`` rows, and the state lost after each of ``kills`` rows."""
    saved, at = ArmWindows().to_bytes(), 0
    for kill in (*sorted(kills), len(rows)):
        windows = ArmWindows.from_bytes(saved)
        while at < kill:
            end = min(at + every, kill)
            fold(windows, rows[at:end])
            if end - at < every:  # killed before the next checkpoint
                break
            saved, at = windows.to_bytes(), end
    return windows


def fold_without_checkpoints(rows: Sequence[Row], kills: Sequence[int]) -> ArmWindows:
    """As the learner starts again after each of ``kills`` rows: from the rows of its last span."""
    windows, at = ArmWindows(), 0
    for kill in sorted(kills):
        fold(windows, rows[at:kill])
        earliest, at = rows[kill - 1].received_s - STATISTICS_SPAN_S, kill
        windows = fold(ArmWindows(), [row for row in rows[:kill] if row.received_s > earliest])
    return fold(windows, rows[at:])


def _figures(windows: ArmWindows, now_s: float) -> dict[str, dict[int, WindowFeatures]]:
    return windows.values(MODELS, now_s)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, compare, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--outcomes", type=int, default=200_000)
    parser.add_argument("--span-s", type=float, default=7200.0)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--every", type=int, default=1000, help="rows between checkpoints")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args(arguments)
    rows = made_ledger(given.outcomes, given.span_s, given.seed)
    # The last outcomes trickle in for hours; the comparison is made where the stream is thick.
    end_s = _START_S + given.span_s
    rows = [row for row in rows if row.received_s <= end_s]
    kills = random.Random(given.seed).sample(range(1, len(rows)), given.kills)

    started = perf_counter()
    windows = fold(ArmWindows(), rows)
    folded_s = perf_counter() - started
    state = windows.to_bytes()
    expected = _figures(windows, end_s)

    live, asked_s = ArmWindows(), []
    for at in range(0, len(rows), 250):
        fold(live, rows[at : at + 250])
        started = perf_counter()
        _figures(live, rows[min(at + 249, len(rows) - 1)].received_s)
        asked_s.append(perf_counter() - started)
    asked_s.sort()

    started = perf_counter()
    saved = windows.to_bytes()
    saved_s = perf_counter() - started
    started = perf_counter()
    ArmWindows.from_bytes(saved)
    loaded_s = perf_counter() - started

    killed = fold_killed(rows, kills, given.every)
    same_bytes = killed.to_bytes() == state
    same_killed = _figures(killed, end_s) == expected
    refolded = fold_without_checkpoints(rows, kills)
    same_refolded = _figures(refolded, end_s) == expected
    lines = [
        "# Windows of the stream under kills",
        "",
        f"`python -m benchmarks.windows --outcomes {given.outcomes} --kills {given.kills} "
        f"--seed {given.seed}` on {processor()}, one core.",
        "",
        f"{given.outcomes:,} outcomes over {given.span_s:.0f} s of event time, {len(MODELS)} "
        f"models: {len(rows):,} rows, of which {windows.late:,} came after the allowed lateness.",
        "",
        "| what | figure |",
        "|---|---|",
        f"| rows folded | {len(rows) / folded_s:,.0f} a second |",
        "| all windows of all models, asked after each 250 rows | "
        f"median {asked_s[len(asked_s) // 2] * 1e3:.2f} ms, "
        f"p99 {asked_s[int(len(asked_s) * 0.99)] * 1e3:.2f} ms |",
        f"| state | {len(state):,} bytes, written in {saved_s * 1e3:.0f} ms, read in "
        f"{loaded_s * 1e3:.0f} ms |",
        f"| {given.kills} kills, a checkpoint each {given.every:,} rows: same bytes of state | "
        f"{'yes' if same_bytes else 'NO'} |",
        f"| the same: same windows | {'yes' if same_killed else 'NO'} |",
        f"| {given.kills} kills, no checkpoint, the last {STATISTICS_SPAN_S:.0f} s folded again: "
        f"same windows | {'yes' if same_refolded else 'NO'} |",
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if not (same_bytes and same_killed and same_refolded):
        sys.exit("the windows differ")
    _RESULT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
