"""`make bench-serving`, or ``python -m benchmarks.serving --seconds 8 --rounds 3``.

Parts: fast, ingress, bare, vw, litellm (loads, interleaved), swaps, kill, ray.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.serving.checks import FAST, INGRESS
from benchmarks.serving.faults import kill_one_replica, swap_snapshots
from benchmarks.serving.load import missing_tools
from benchmarks.serving.machine import hardware, versions
from benchmarks.serving.ours import TAUGHT, Platform
from benchmarks.serving.payloads import KINDS, describe, recorded_prompts, write_bodies
from benchmarks.serving.peers import BARE, LITELLM, PEERS, RAY_PROXY, VW, bare, ray_default_proxy
from benchmarks.serving.report import Results, write_report
from benchmarks.serving.steps import Step, beside_bare, interleave
from benchmarks.serving.targets import Door, Unavailable
from benchmarks.serving.world import ARMS

_PARTS = ("fast", "ingress", "bare", "vw", "litellm", "swaps", "kill", "ray")
_DOORS = {FAST: "fast", INGRESS: "ingress", BARE: "bare", VW: "vw", LITELLM: "litellm"}
_CONNECTIONS = 16
_BATCH_CONNECTIONS = 4
_OPEN_CONNECTIONS = 64
_KILL_RATE = 3000.0
_HALF = 0.5
"""A door that can't take the rate asked for is loaded with this share of its most."""

_CLOSED = (
    *((door, "single") for door in (FAST, BARE, INGRESS, VW)),
    (LITELLM, "chat"),
    *((door, "prompt") for door in (FAST, BARE, INGRESS)),
    *((door, "batch") for door in (FAST, BARE, INGRESS)),
    (FAST, "batch, prompt"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; exit status 1 where something that must hold does not."""
    asked = _parser().parse_args(arguments)
    missing = missing_tools()
    if missing:
        print(f"bench-serving needs {', '.join(missing)}: apt-get install {' '.join(missing)}")
        return 2
    parts = [part for part in _PARTS if not asked.only or part in asked.only]
    with tempfile.TemporaryDirectory(prefix="bench-serving-") as folder:
        _say("writing payloads")
        files = write_bodies(Path(folder), recorded_prompts())
        results = Results(_head(asked, files))
        _loads(asked, parts, files, results)
        if "kill" in parts:
            with Platform(replicas=2) as platform:
                step = Step(FAST, "single", _OPEN_CONNECTIONS, _KILL_RATE)
                results.killed = kill_one_replica(platform, step, files["single"], _say)
            write_report(asked.out, results)
        if "ray" in parts:
            _ray(asked, files, results)
    write_report(asked.out, results)
    lines = results.checks()
    for line in lines:
        verdict = {True: "pass", False: "FAIL", None: "not run"}[line.ok]
        _say(f"{verdict:7} {line.name}: {line.measured} (wanted {line.wanted})")
    _say(f"report: {asked.out}.md")
    return int(any(line.ok is False for line in lines))


def _loads(
    asked: argparse.Namespace, parts: Sequence[str], files: dict[str, Path], results: Results
) -> None:
    """All doors but Ray's default proxy, open beside each other, loaded one after the other."""
    wanted = {door for door, part in _DOORS.items() if part in parts}
    if not wanted and "swaps" not in parts:
        return
    with ExitStack() as stack:
        doors: dict[str, Door] = {}
        platform = None
        if {FAST, INGRESS} & wanted or "swaps" in parts:
            _say("starting the platform")
            platform = stack.enter_context(Platform())
            doors |= {FAST: platform.fast_lane(), INGRESS: platform.ingress()}
            results.head["features"] = platform.features()
        for name, start in PEERS.items():
            if name in wanted:
                try:
                    doors[name] = stack.enter_context(start())
                except Unavailable as error:
                    results.not_run[name] = str(error)
                    _say(f"{name}: not run: {error}")
        closed = [
            Step(door, kind, _BATCH_CONNECTIONS if kind.startswith("batch") else _CONNECTIONS)
            for door, kind in _CLOSED
            if door in wanted and door in doors
        ]
        rows = interleave(closed, doors, files, asked.rounds, asked.seconds, _say)
        results.rows |= beside_bare(rows, BARE)
        write_report(asked.out, results)
        steady = [
            Step(step.door, step.kind, _OPEN_CONNECTIONS, rate)
            for step in closed
            if (rate := _open_rate(step, rows[step.name].rate, asked.rate))
        ]
        results.rows |= interleave(steady, doors, files, asked.rounds, asked.seconds, _say)
        if platform is not None:
            results.dropped = platform.log_dropped()
        if platform is not None and "swaps" in parts:
            step = Step(FAST, "single", _CONNECTIONS)
            results.swaps = swap_snapshots(
                platform, step, files["single"], asked.rounds, asked.seconds, _say
            )
        write_report(asked.out, results)


def _open_rate(step: Step, most: float, asked: float) -> float:
    """The rate asked for on the fast lane and on the limit; elsewhere at most half of the most."""
    if step.door in (FAST, BARE) and step.kind == "single":
        return asked
    return float(int(min(asked, _HALF * most)))


def _ray(asked: argparse.Namespace, files: dict[str, Path], results: Results) -> None:
    """Ray's own proxy, when no other Ray runs."""
    try:
        with bare() as limit, ray_default_proxy() as door:
            doors = {BARE: limit, RAY_PROXY: door}
            steps = [Step(name, "single", _CONNECTIONS) for name in doors]
            rows = interleave(steps, doors, files, asked.rounds, asked.seconds, _say)
    except Unavailable as error:
        results.not_run[RAY_PROXY] = str(error)
        _say(f"{RAY_PROXY}: not run: {error}")
        return
    # The limit stands in the table already, from beside the doors that it is the limit of.
    told = {name: row for name, row in beside_bare(rows, BARE).items() if row.step.door != BARE}
    results.rows |= told


def _head(asked: argparse.Namespace, files: dict[str, Path]) -> dict[str, object]:
    only = f' ONLY="{" ".join(asked.only)}"' if asked.only else ""
    return {
        "command": f"make bench-serving SECONDS={asked.seconds:g} ROUNDS={asked.rounds} "
        f"RATE={asked.rate:g}{only}",
        "rounds": asked.rounds,
        "seconds": asked.seconds,
        "hardware": hardware(),
        "versions": versions(),
        "arms": ARMS,
        "taught": f"{TAUGHT:,} rewards",
        "features": None,
        "payloads": describe(files),
        "kinds": KINDS,
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks.serving",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="*", default=[], choices=_PARTS, help="parts to run")
    parser.add_argument("--seconds", type=float, default=8.0, help="of a load, default %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default %(default)s")
    parser.add_argument(
        "--rate", type=float, default=8000.0, help="of the open loop, a second, default %(default)s"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/serving"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
