"""Results of rewards as JSON and Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["write_run"]

_WANTED = {
    "throughput": "2,000 rewards/s for 5 minutes beside 2,000 decisions/s; each reward at every "
    "replica, p99 under 1 s",
    "batches": "50,000 rewards/s in batches of 1,000, and p99 of decisions beside them",
    "kills": "100 random `kill -9` in a run of 200,000 rewards: nothing lost, nothing twice, and "
    "the policy's bytes are those of a rebuild",
    "outage": "PostgreSQL away for 30 s: decisions without an error, rewards 503 with Retry-After, "
    "none lost",
}


def write_run(out: Path, what: str, told: dict[str, Any]) -> None:
    """Put a run's figures in the place of those of the same run before.

    Parameters
    ----------
    out
        Of the report, without suffix.
    """
    data = out.with_suffix(".json")
    runs = json.loads(data.read_text()) if data.exists() else {}
    runs[what] = told
    out.parent.mkdir(parents=True, exist_ok=True)
    data.write_text(json.dumps(runs, indent=1) + "\n")
    out.with_suffix(".md").write_text("\n".join(_lines(runs)) + "\n")


def _lines(runs: dict[str, Any]) -> Iterator[str]:
    yield "# Rewards under load and under faults"
    yield ""
    yield (
        "Written by `python -m benchmarks.rewards`. Load generators, replicas, learner and "
        "PostgreSQL share the machine; PostgreSQL with `fsync` and `synchronous_commit` on. "
        "A run holds if the ledger's rows, its last position and what the learner has learned are "
        "all the number of acknowledged rewards, no (decision, event) has two rows, and the "
        "learner's checkpoint has the bytes of a policy that folded the whole ledger at once."
    )
    for what, wanted in _WANTED.items():
        if what in runs:
            yield from ("", f"## {what.capitalize()}", "", f"Wanted: {wanted}.", "")
            yield from _run(runs[what])


def _run(told: dict[str, Any]) -> Iterator[str]:
    head = told["head"]
    machine = head["hardware"]
    yield (
        f"{head['at']}, `{head['command']}`, {head['replicas']} replicas, {machine['cpu']}, "
        f"{machine['cores']} cores, {machine['memory_gib']} GiB, {machine['kernel']}; load average "
        f"before: {', '.join(map(str, machine['load_average_before']))}."
    )
    yield ""
    yield "| | |"
    yield "|---|---|"
    for name, value in told.items():
        if name != "head":
            yield from _rows(name, value)


def _rows(name: str, value: Any) -> Iterator[str]:
    """One line for each thing that has no things in it that have things in them."""
    if isinstance(value, dict) and any(isinstance(each, dict) for each in value.values()):
        for inner, content in value.items():
            yield from _rows(f"{name}: {inner}", content)
    elif isinstance(value, list):
        for number, content in enumerate(value, start=1):
            yield from _rows(f"{name} {number}", content)
    elif isinstance(value, dict):
        shown = ", ".join(f"{inner} {_shown(content)}" for inner, content in value.items())
        yield f"| {name.replace('_', ' ')} | {shown.replace('_', ' ') or 'none'} |"
    else:
        yield f"| {name.replace('_', ' ')} | {_shown(value)} |"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
