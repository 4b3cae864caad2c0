"""What `llmopt rewards` shows: tables for people, and the same for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from serving.dead_letters import StoredLetter

__all__ = ["decision_table", "letter_json", "letters_table"]

_DECISION = ("model", "role", "propensity", "policy_version")


def letters_table(letters: list[StoredLetter]) -> Table:
    """One row a letter."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="Dead letters", title_justify="left")
    for column in ("id", "last", "times", "reason", "what was wrong", "outcome of a replay"):
        table.add_column(column, overflow="fold")
    for one in letters:
        cells = (
            str(one.id),
            f"{one.last_at:%Y-%m-%d %H:%M:%S}",
            str(one.times),
            one.reason,
            f"{one.field}={one.value}: {one.remedy}",
            one.outcome or "",
        )
        table.add_row(*(escape(cell) for cell in cells))
    return table


def letter_json(letter: StoredLetter) -> dict[str, Any]:
    """A letter for programs; the body as text."""
    replayed_at = letter.replayed_at
    return {
        "id": letter.id,
        "received_at": letter.received_at.isoformat(),
        "last_at": letter.last_at.isoformat(),
        "times": letter.times,
        "reason": letter.reason,
        "field": letter.field,
        "value": letter.value,
        "remedy": letter.remedy,
        "path": letter.path,
        "body": letter.body.decode(errors="replace"),
        "body_bytes": letter.body_bytes,
        "replayed_at": None if replayed_at is None else replayed_at.isoformat(),
        "outcome": letter.outcome,
    }


def decision_table(found: dict[str, Any]) -> Table:
    """One row an event, and a last one with what is known; the decision is the title."""
    from rich.markup import escape
    from rich.table import Table

    line = found["decision"]
    made = (
        "not in the decision log"
        if line is None
        else ", ".join(f"{name} {line[name]}" for name in _DECISION)
    )
    title = f"{found['decision_id']} at {found['decision_point']}, {found['decided_at']}\n{made}"
    if found["response"]:
        facts = ", ".join(f"{name} {value:.3g}" for name, value in found["response"].items())
        title += f"\nresponse: {facts}"
    table = Table(title=escape(title), title_justify="left")
    events = found["events"]
    told = (
        [name for name in events[0] if any(one[name] not in (None, "") for one in events)]
        if (events)
        else ["events"]
    )
    columns = [name for name in told if name != "decision_point"]  # in the title
    for column in columns:
        table.add_column(column, overflow="fold")
    for event in events:
        table.add_row(*(_cell(event[column]) for column in columns))
    if events:
        table.add_section()
        known = {**found["known"], columns[0]: "known"}
        table.add_row(*(_cell(known.get(column)) for column in columns), style="bold")
    else:
        table.add_row("no reward yet")
    return table


def _cell(value: Any) -> str:
    from rich.markup import escape

    return "" if value is None else escape(f"{value:g}" if isinstance(value, float) else str(value))
