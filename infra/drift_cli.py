"""``llmopt drift`` and ``llmopt alerts``: what has changed, and whether people are told."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from infra.terminal import Json, errors_shown, on_stderr, print_json

__all__ = ["alerts", "drift"]

alerts = typer.Typer(
    help="Alerts by webhook.", no_args_is_help=True, pretty_exceptions_enable=False
)


@alerts.callback()
def _group() -> None:
    """Alerts by webhook."""


@alerts.command(name="test")
def send_test(as_json: Json = False) -> None:
    """Send a test alert to `alerts.webhook_url`; fails if it is not delivered."""
    with errors_shown(as_json):
        from dataclasses import asdict

        from infra.home import find_settings
        from serving.alerts import message, send

        settings = find_settings()[0]
        sent = send(
            settings.alerts,
            message("LLM Auto-Optimizer", "This is a test: alerts will arrive here."),
        )
        console = on_stderr()
        told = "delivered" if sent.delivered else f"not delivered: {sent.error}"
        console.print(f"{told} ({sent.attempts} attempts)", markup=False)
        if as_json:
            print_json(asdict(sent))
        if not sent.delivered:
            raise typer.Exit(1)


def drift(
    point: Annotated[
        str | None,
        typer.Argument(metavar="[POINT]", help="May be left out where there is only one."),
    ] = None,
    last: Annotated[int, typer.Option(min=1, max=1000, help="Windows, newest first.")] = 20,
    as_json: Json = False,
) -> None:
    """Show what the drift checks found, and what was done about it."""
    with errors_shown(as_json):
        import psycopg

        from infra.home import find_settings
        from infra.models_cli import chosen_point
        from optimizer.errors import Unavailable
        from serving.drift_store import drift_history
        from serving.reward_writer import connect

        settings = find_settings()[0]
        name = chosen_point(settings, point)
        try:
            with connect(settings.postgres_dsn()) as connection:
                found = drift_history(connection, name, last)
        except psycopg.OperationalError as error:
            raise Unavailable("PostgreSQL") from error
        _show(name, found)
        if as_json:
            print_json({"decision_point": name, "windows": [_as_json(one) for one in found]})


def _show(name: str, found: list[dict[str, Any]]) -> None:
    from rich.table import Table

    console = on_stderr()
    if not found:
        told = f"{name}: no drift check yet; the deployment `drift` makes one every 15 minutes"
        console.print(told, markup=False)
        return
    table = Table(title=f"drift at {name}")
    for column in ("until (UTC)", "reference", "window", "drifted", "found", "action"):
        table.add_column(column)
    for one in found:
        drifted = sum(column["drifted"] for column in one["columns"])
        table.add_row(
            f"{one['window_end']:%Y-%m-%d %H:%M}",
            str(one["reference_rows"]),
            str(one["current_rows"]),
            one["message"] or f"{drifted} of {len(one['columns'])} columns",
            "\n".join(f"{each['what']}: {each['reason']}"[:120] for each in one["findings"]),
            "\n".join(each["action"] for each in one["findings"]),
        )
    console.print(table, markup=False)


def _as_json(one: dict[str, Any]) -> dict[str, Any]:
    findings = [
        {
            **each,
            **{name: each[name] and each[name].isoformat() for name in ("acted_at", "told_at")},
        }
        for each in one["findings"]
    ]
    return {**one, "window_end": one["window_end"].isoformat(), "findings": findings}
