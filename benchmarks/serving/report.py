"""The results as JSON for programs and Markdown for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.serving.checks import FAST, INGRESS, Check, checks
from benchmarks.serving.faults import Killed, Swaps
from benchmarks.serving.peers import VW
from benchmarks.serving.steps import Row

__all__ = ["Results", "write_report"]

_DECIDE = (FAST, INGRESS, VW)
_VERDICTS = {True: "pass", False: "**FAIL**", None: "not run"}
_NOTES = """\
Servers and generator share the cores. HTTP/1.1, keep-alive, 127.0.0.1. The fast lane and the Ray
ingress have one replica (but where two are named), a policy that was taught {taught} and the
decision log on. Rounds are interleaved; figures are medians over rounds, errors their sum, memory
the most.

Closed loop: wrk, each connection sends when its last request is answered. Open loop: requests are
due at a constant rate and latency counts from when a request was due, so that queues count. `lag`
is the part that the generator itself caused: a connection was free, and the request left late. CPU
is in cores: of the processes that answer (`server`; with the ingress HAProxy, too), of the rest
that belongs to them (`beside`: PostgreSQL, Valkey, learner, Ray, MLflow, Prefect), and of the
generator. Memory is resident memory of the server's processes.

LiteLLM's answers are its own mock (simulated: no LLM is called), one worker, no key asked for: what
is measured is what a request costs beside the LLM. Its router chooses among {arms} deployments at
random. Vowpal Wabbit (SquareCB) makes the same features and draws, behind the same uvicorn; it
signs and logs nothing. Ray Serve's default proxy answers `{{}}`, in a Ray of its own, after the
platform was stopped; so does the bare uvicorn that its share is of.
"""


@dataclass
class Results:
    """All that was found.

    Attributes
    ----------
    head
        Command, hardware, versions, payloads.
    rows
        By the name of their step.
    not_run
        Reasons by name.
    """

    head: dict[str, Any]
    rows: dict[str, Row] = field(default_factory=dict)
    swaps: Swaps | None = None
    killed: Killed | None = None
    dropped: float | None = None
    not_run: dict[str, str] = field(default_factory=dict)

    def checks(self) -> list[Check]:
        """What must hold."""
        return checks(self.rows, self.swaps, self.killed, self.dropped)


def write_report(out: Path, results: Results) -> None:
    """Write ``out`` with the suffixes ``.json`` and ``.md``; its folder is made."""
    out.parent.mkdir(parents=True, exist_ok=True)
    lines = results.checks()
    content = {
        "date": datetime.now(UTC).date().isoformat(),
        **results.head,
        "checks": [asdict(line) for line in lines],
        "steps": {name: asdict(row) for name, row in results.rows.items()},
        "swaps": None if results.swaps is None else asdict(results.swaps),
        "killed": None if results.killed is None else asdict(results.killed),
        "log_dropped": results.dropped,
        "not_run": results.not_run,
    }
    out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    text = _markdown(content, lines, results)
    out.with_suffix(".md").write_text(text, encoding="utf-8")


def _markdown(content: Mapping[str, Any], lines: Sequence[Check], results: Results) -> str:
    hardware = content["hardware"]
    versions = ", ".join(f"{name} {number or '-'}" for name, number in content["versions"].items())
    text = [
        "# Serving under load",
        "",
        f"{content['date']}, `{content['command']}`, {content['rounds']} rounds of "
        f"{content['seconds']:g} s. {hardware['cpu']}, {hardware['cores']} cores, "
        f"{hardware['memory_gib']} GiB, {hardware['kernel']}; load average before it "
        f"{hardware['load_average_before'][0]:.2f}.",
        f"{versions}.",
        "",
        _NOTES.format(taught=content["taught"], arms=content["arms"]),
        *_verdicts(lines),
        *_loops(results.rows),
    ]
    if results.swaps is not None:
        text += _swaps(results.swaps)
    if results.killed is not None:
        text += _killed(results.killed)
    if results.not_run:
        text += ["## Not run", ""]
        text += [f"- {name}: {reason}" for name, reason in results.not_run.items()] + [""]
    features = content["features"]
    text += ["## Payloads", ""]
    if features:
        text += [
            f"One decision point, {content['arms']} arms, {features['features']} features: "
            f"{features['features'] - features['of the embedding']} of the context, "
            f"{features['of the embedding']} of the prompt's embedding, 0 without a prompt.",
            "",
        ]
    text += [f"- {kind}: {told}" for kind, told in content["payloads"].items()]
    return "\n".join(text) + "\n"


def _verdicts(lines: Sequence[Check]) -> list[str]:
    text = ["## What must hold", "", "| what | wanted | measured | |", "|---|---|---:|---|"]
    text += [
        f"| {line.name} | {line.wanted} | {line.measured} | {_VERDICTS[line.ok]} |"
        for line in lines
    ]
    return [*text, ""]


def _loops(rows: Mapping[str, Row]) -> list[str]:
    text: list[str] = []
    for loop, title in (("closed", "Closed loop: the most there is"), ("open", "Open loop")):
        of = [row for row in rows.values() if row.step.loop == loop]
        if not of:
            continue
        last = "of bare" if loop == "closed" else "lag p99 ms"
        text += [
            f"## {title}",
            "",
            "| door | payload | connections | requests/s | decisions/s | p50 ms | p90 | p99 | p99.9"
            f" | errors | CPU server | beside | generator | MiB | {last} |",
            "|---|---|" + "---:|" * 13,
        ]
        text += [_line(row) for row in of] + [""]
    return text


def _line(row: Row) -> str:
    asked = "" if row.step.rate is None else f" of {row.step.rate:,.0f}"
    if row.step.loop == "closed":
        last = "-" if row.share_of_bare is None else f"{row.share_of_bare:.2f}"
    else:
        last = _number(row.lag_ms.get("p99"), 2)
    errors = ", ".join(f"{count} {kind}" for kind, count in row.errors.items()) or "0"
    cells = [
        row.step.door,
        row.step.kind,
        str(row.step.connections),
        f"{row.rate:,.0f}{asked}",
        f"{row.decisions:,.0f}" if row.step.door in _DECIDE else "-",
        *(_number(row.latency_ms.get(name), 2) for name in ("p50", "p90", "p99", "p99.9")),
        errors,
        *(_number(row.cpu[group], 2) for group in ("server", "beside", "generator")),
        f"{row.memory_mib['server']:,.0f}",
        last,
    ]
    return "| " + " | ".join(cells) + " |"


def _swaps(swaps: Swaps) -> list[str]:
    return [
        "## Snapshots swapped under load",
        "",
        "A closed loop on the fast lane, without and with a publisher that puts the newest snapshot"
        " into Valkey again every 200 ms with a position higher by one, by the learner's own call, "
        "so that each replica builds a policy of it and takes it. Requests/s, round by round:",
        "",
        f"- without: {_rates(swaps.without)}",
        f"- with: {_rates(swaps.with_swaps)}",
        f"- {swaps.published} published; the version in use rose by {swaps.taken}; "
        f"{sum(swaps.errors.values())} errors; cost {100 * swaps.cost:.1f} %",
        "",
    ]


def _killed(killed: Killed) -> list[str]:
    replaced = "never" if killed.replaced_s is None else f"after {killed.replaced_s:.1f} s"
    return [
        "## One of two replicas killed",
        "",
        f"Open loop at {killed.rate:,.0f}/s over {killed.connections} connections, "
        f"{killed.connections_of_the_dead} of them to the replica that was killed (`kill -9`) at "
        f"{killed.killed_at_s:.1f} s. {killed.errors_of_the_dead} errors on these, "
        f"{killed.errors_elsewhere} on others ({killed.kinds or 'none'}); a closed connection is "
        f"opened anew at once. A new replica listened {replaced}. p99 over all of it "
        f"{killed.p99_ms:.2f} ms.",
        "",
        "| second | good answers | errors |",
        "|---:|---:|---:|",
        *(f"| {at} | {good} | {bad} |" for at, (good, bad) in enumerate(killed.per_second)),
        "",
    ]


def _rates(rates: Sequence[float]) -> str:
    return ", ".join(f"{rate:,.0f}" for rate in rates)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
