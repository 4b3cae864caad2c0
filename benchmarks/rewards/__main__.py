"""``python -m benchmarks.rewards --what throughput batches kills outage``.

Each run has a platform of its own: PostgreSQL, Valkey, and the serving application on Ray with two
replicas. Results are kept by run, so that one can be repeated alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.rewards.report import write_run
from benchmarks.rewards.runs import RUNS, batches, kills, outage, throughput
from benchmarks.rewards.stack import Stack
from benchmarks.serving.machine import hardware, versions
from benchmarks.serving.payloads import POINT, TASKS
from benchmarks.serving.targets import free_ports
from benchmarks.serving.world import ARMS

_PORTS = 7


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; exit status 1 where something that must hold does not."""
    asked = _parser().parse_args(arguments)
    failed = False
    for what in asked.what:
        head = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": f"python -m benchmarks.rewards {' '.join(sys.argv[1:])}",
            "hardware": hardware(),
            "versions": versions(),
            "replicas": asked.replicas,
        }
        _say(f"{what}: starting the platform")
        with Stack(free_ports(_PORTS), _settings(asked)) as stack:
            _say(f"{what}: running")
            told = _run(what, stack, asked)
        failed |= not told["verdict"]["holds"]
        _say(f"{what}: {told['verdict']}")
        write_run(asked.out, what, {"head": head, **told})
    _say(f"report: {asked.out}.md")
    return int(failed)


def _run(what: str, stack: Stack, asked: argparse.Namespace) -> dict[str, Any]:
    if what == "throughput":
        return throughput(stack, asked.seconds, asked.rate, _say)
    if what == "batches":
        return batches(stack, asked.requests, asked.rate, _say)
    if what == "kills":
        return kills(stack, asked.rewards, asked.kills, asked.kill_every, _say)
    return outage(stack, asked.away, asked.outage_rate, _say)


def _settings(asked: argparse.Namespace) -> dict[str, Any]:
    point = {
        "name": POINT,
        "arms": [{"model": f"model-{arm}"} for arm in range(ARMS)],
        "tasks": list(TASKS),
        "cost_cap_usd": 0.01,
        "latency_cap_s": 2.0,
    }
    return {"decision_points": [point], "replicas": asked.replicas}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks.rewards",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--what", nargs="+", default=list(RUNS), choices=RUNS, help="runs, one after the other")
    add("--replicas", type=int, default=2, help="that decide and take rewards")
    add("--seconds", type=float, default=300.0, help="of throughput")
    add("--rate", type=float, default=2000.0, help="rewards a second, and decisions")
    add("--requests", type=int, default=300, help="of batches, each with 1,000 rewards")
    add("--rewards", type=int, default=200_000, help="of kills")
    add("--kills", type=int, default=100, help="of learner and replicas")
    add("--kill-every", type=float, default=6.0, help="seconds between kills, on average")
    add("--away", type=float, default=30.0, help="seconds without PostgreSQL")
    add("--outage-rate", type=float, default=500.0, help="rewards a second, and decisions")
    add("--out", type=Path, default=Path("benchmarks/results/rewards"), help="without suffix")
    return parser


if __name__ == "__main__":
    sys.exit(main())
