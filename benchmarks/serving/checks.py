"""What must hold, each as a line that passes, fails, or was not run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.serving.faults import Killed, Swaps
from benchmarks.serving.peers import LITELLM, RAY_PROXY, VW
from benchmarks.serving.steps import Row

__all__ = ["FAST", "INGRESS", "Check", "checks"]

FAST, INGRESS = "fast lane", "Ray ingress"
_RATE = 8000.0


@dataclass(frozen=True)
class Check:
    """A figure that must hold; ``ok`` is None where something it needs was not run."""

    name: str
    wanted: str
    measured: str
    ok: bool | None


def checks(
    rows: Mapping[str, Row], swaps: Swaps | None, killed: Killed | None, dropped: float | None
) -> list[Check]:
    """All of them, from the rows by their names."""
    fast = rows.get(f"{FAST}, single, closed")
    steady = rows.get(f"{FAST}, single, open")
    batch = rows.get(f"{FAST}, batch, closed")
    return [
        _least("fast lane, closed loop", fast, 12_000),
        _check(
            "its share of bare uvicorn's rate",
            "at least 0.50",
            None if fast is None or fast.share_of_bare is None else f"{fast.share_of_bare:.2f}",
            fast is not None and (fast.share_of_bare or 0) >= 0.5,
        ),
        _check(
            "fast lane, closed loop: errors",
            "none",
            None if fast is None else str(_errors(fast)),
            fast is not None and not _errors(fast),
        ),
        _check(
            "the decision log meanwhile",
            "no decision lost",
            None if dropped is None else f"{dropped:.0f} lost",
            dropped == 0,
        ),
        *_steady(steady),
        _least("fast lane, 200-token prompts", rows.get(f"{FAST}, prompt, closed"), 5_000),
        _least("fast lane, batches of 100", batch, 100_000),
        _check(
            "p99 of a batch",
            "below 10 ms",
            None if batch is None else f"{batch.latency_ms['p99']:.2f} ms",
            batch is not None and batch.latency_ms["p99"] < 10 and not _errors(batch),
        ),
        _times("Ray ingress over Ray Serve's default proxy", rows, INGRESS, RAY_PROXY, 10),
        _times("fast lane over LiteLLM's proxy", rows, FAST, LITELLM, 10, "chat"),
        _times("fast lane over Vowpal Wabbit behind uvicorn", rows, FAST, VW, 1),
        *_swaps(swaps),
        *_killed(killed),
    ]


def _check(name: str, wanted: str, measured: str | None, ok: bool) -> Check:
    return Check(name, wanted, measured or "not run", None if measured is None else ok)


def _least(name: str, row: Row | None, wanted: float) -> Check:
    """Decisions a second."""
    text = f"at least {wanted:,.0f} decisions/s"
    measured = None if row is None else f"{row.decisions:,.0f}"
    return _check(name, text, measured, row is not None and row.decisions >= wanted)


def _steady(row: Row | None) -> list[Check]:
    """The open loop; another rate than 8,000/s says nothing about these."""
    if row is None or row.step.rate != _RATE:
        row = None
    name = f"fast lane, open loop at {_RATE:,.0f}/s"
    p50, p99 = (row.latency_ms.get(which) if row else None for which in ("p50", "p99"))
    return [
        _check(
            f"{name}: p50", "below 2 ms", None if p50 is None else f"{p50:.2f} ms", (p50 or 0) < 2
        ),
        _check(
            f"{name}: p99", "below 10 ms", None if p99 is None else f"{p99:.2f} ms", (p99 or 0) < 10
        ),
        _check(
            f"{name}: errors",
            "none",
            None if row is None else str(_errors(row)),
            row is not None and not _errors(row),
        ),
    ]


def _times(
    name: str, rows: Mapping[str, Row], one: str, other: str, wanted: float, kind: str = "single"
) -> Check:
    ours, peer = rows.get(f"{one}, single, closed"), rows.get(f"{other}, {kind}, closed")
    text = f"at least {wanted:g} times" if wanted > 1 else "more than 1 time"
    if ours is None or peer is None:
        return Check(name, text, "not run", None)
    if not peer.decisions:
        return Check(name, text, "the peer answered nothing", None)
    ratio = ours.decisions / peer.decisions
    return Check(name, text, f"{ratio:.1f}", ratio >= wanted if wanted > 1 else ratio > 1)


def _swaps(swaps: Swaps | None) -> list[Check]:
    return [
        _check(
            "snapshots swapped every 200 ms: cost",
            "below 10 % of throughput",
            None if swaps is None else f"{100 * swaps.cost:.1f} % ({swaps.taken} swaps)",
            swaps is not None and swaps.cost < 0.1 and swaps.taken > 0,
        ),
        _check(
            "snapshots swapped every 200 ms: errors",
            "none",
            None if swaps is None else str(sum(swaps.errors.values())),
            swaps is not None and not sum(swaps.errors.values()),
        ),
    ]


def _killed(killed: Killed | None) -> list[Check]:
    dead = killed is not None and killed.connections_of_the_dead > 0
    recovered = None if killed is None else killed.recovered_s
    return [
        _check(
            "one of two replicas killed: errors on connections of the other",
            "none",
            None
            if killed is None
            else f"{killed.errors_elsewhere} ({killed.errors_of_the_dead} on the dead one's)",
            dead and killed is not None and not killed.errors_elsewhere,
        ),
        _check(
            "one of two replicas killed: full rate again",
            "in less than 10 s",
            None if killed is None else "never" if recovered is None else f"{recovered:.1f} s",
            dead and recovered is not None and recovered < 10,
        ),
    ]


def _errors(row: Row) -> int:
    return sum(row.errors.values())
