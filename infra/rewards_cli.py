"""`llmopt rewards`: look into the reward ledger, and send refused events again."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from infra.terminal import Json, errors_shown, on_stderr, print_json

__all__ = ["rewards"]

rewards = typer.Typer(
    help="The reward ledger: refused events, one decision, export.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@rewards.command(name="dead-letters")
def dead_letters(
    ids: Annotated[
        list[int] | None,
        typer.Argument(metavar="[ID]...", help="Only these.", show_default=False),
    ] = None,
    reason: Annotated[
        str | None,
        typer.Option(
            help="Only of one: malformed, too_large, invalid_token, unknown_name, too_late, "
            "invalid_value."
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="The newest.")] = 50,
    send: Annotated[
        bool,
        typer.Option(
            "--replay",
            help="Send them again, the oldest first, after what refused them was put right (a key "
            "or a decision point added). An event that was corrected meanwhile is set back.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Show reward events that were refused, and why; with --replay send them again."""
    with errors_shown(as_json):
        from infra.home import find_settings
        from infra.rewards import ledger_connection, replay
        from infra.rewards_view import letter_json, letters_table
        from optimizer.errors import UnknownName
        from serving.dead_letters import find_letters

        settings = find_settings()[0]
        console = on_stderr()
        with ledger_connection(settings) as connection:
            found = find_letters(
                connection, ids=ids or None, reason=reason, open_only=send and not ids, limit=limit
            )
            missing = sorted(set(ids or ()) - {letter.id for letter in found})
            if missing:
                shown = ", ".join(map(str, missing))
                raise UnknownName("id", shown, "one that `llmopt rewards dead-letters` shows")
            if not send:
                if found:
                    console.print(letters_table(found))
                else:
                    console.print("no dead letters: nothing was refused, or not of that kind")
                if as_json:
                    print_json({"dead_letters": [letter_json(letter) for letter in found]})
                return
            sent = []
            for one in replay(connection, settings, found):
                console.print(f"{one.letter.id}: {one.outcome}", markup=False)
                sent.append({"id": one.letter.id, "outcome": one.outcome})
            if not sent:
                console.print("no dead letters are left to send again")
            if as_json:
                print_json({"replayed": sent})


@rewards.command()
def show(
    decision_id: Annotated[
        str, typer.Argument(metavar="DECISION_ID", help="As a decision has it, or its UUID.")
    ],
    as_json: Json = False,
) -> None:
    """Show everything the ledger has about a decision."""
    with errors_shown(as_json):
        from infra.home import find_settings
        from infra.rewards import ledger_connection, show_decision
        from infra.rewards_view import decision_table

        with ledger_connection(find_settings()[0]) as connection:
            found = show_decision(connection, decision_id)
        on_stderr().print(decision_table(found))
        if as_json:
            print_json(found)


@rewards.command()
def export(
    out: Annotated[Path, typer.Option(metavar="FILE.parquet", help="Overwritten.")],
    since: Annotated[
        str, typer.Option(help="The decisions' time: 90m, 24h, 7d, 2w, or ISO 8601.")
    ] = "7d",
    until: Annotated[str | None, typer.Option(help="The same; now if left out.")] = None,
    as_json: Json = False,
) -> None:
    """Write the rewards of decisions of a span of time to a parquet file."""
    with errors_shown(as_json):
        from infra.home import find_settings
        from infra.logged_sources import parse_since
        from infra.rewards import export_rewards, ledger_connection

        now = datetime.now(UTC)
        start, end = parse_since(since, now), now
        if until is not None:
            end = parse_since(until, now)
        with ledger_connection(find_settings()[0]) as connection:
            rows = export_rewards(connection, start, end, out)
        on_stderr().print(f"{rows} rewards in {out}", markup=False)
        if as_json:
            span = {"since": start.isoformat(), "until": end.isoformat()}
            print_json({"file": str(out), "rewards": rows, **span})
