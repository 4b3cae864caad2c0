"""What ``llmopt learner status`` shows to people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.table import Table

__all__ = ["alarm_lines", "status_table"]


def status_table(learners: Iterable[dict[str, Any]], now: float) -> Table:
    """One row a policy."""
    table = Table(title="learner")
    for column in (
        *("decision point", "variant", "role", "learned", "ledger", "backlog", "learned/s"),
        *("checkpoint", "published", "skill", "calibration error", "regret", "alarms"),
    ):
        table.add_column(column)
    for one in learners:
        watch = one["watch"] or {}
        head = watch.get("recent", {}).get("reward", {})
        saved = one["checkpoint"]
        table.add_row(
            one["decision_point"],
            one["variant"],
            one["role"],
            _text(one["position"]),
            str(one["head"]),
            _text(one["backlog"]),
            _text(one["learned_per_s"], ".1f"),
            f"{saved['position']}, {_ago(saved['at'], now)}" if saved else "",
            _ago(one["published_at"], now),
            _text(head.get("skill"), ".3f"),
            _text(head.get("calibration_error"), ".3f"),
            _regret(watch.get("regret", {})),
            _text(watch.get("alarms_raised")),
        )
    return table


def alarm_lines(learners: Sequence[dict[str, Any]]) -> list[str]:
    """A line for the newest alarms of each policy."""
    lines = []
    for one in learners:
        for alarm in (one["watch"] or {}).get("alarms", [])[-3:]:
            who = f"arm {alarm['arm']}" if alarm["arm"] else "all arms"
            lines.append(
                f"{one['decision_point']} {one['variant']}: at {alarm['position']} the "
                f"{alarm['stream']} of {who} went from {alarm['before']:.3f} to "
                f"{alarm['after']:.3f}"
                f"{', predictions are worse' if alarm['worse'] else ''}"
            )
    return lines


def _regret(regret: dict[str, Any]) -> str:
    if "cumulative" not in regret:
        return ""
    text = f"{regret['cumulative']:.1f}"
    if regret["interval"]:
        low, high = regret["interval"]
        text += f" ({low:.1f} to {high:.1f})"
    return text


def _text(value: float | None, form: str = "") -> str:
    return "" if value is None else format(value, form)


def _ago(at: float | None, now: float) -> str:
    return "" if at is None else f"{max(now - at, 0.0):.0f} s ago"
