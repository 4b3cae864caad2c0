"""``llmopt learner``: how far it is, how well it does, and whether its state is the ledger's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.terminal import Json, errors_shown, on_stderr, print_json

if TYPE_CHECKING:
    import psycopg

    from optimizer.settings import Settings

__all__ = ["learner"]

learner = typer.Typer(
    help="The learner: status, and its state made anew from the ledger.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@learner.command()
def status(as_json: Json = False) -> None:
    """Show position, backlog, rate, checkpoint and watch of every policy that learns."""
    with errors_shown(as_json):
        import time

        from infra.home import find_settings
        from infra.learner_tables import alarm_lines, status_table
        from serving.learner_status import learner_status

        settings = find_settings()[0]
        with _database(settings) as connection:
            found = learner_status(connection, settings)
        console = on_stderr()
        console.print(status_table(found, time.time()))
        for line in alarm_lines(found):
            console.print(line, markup=False)
        if as_json:
            print_json({"learners": found})


@learner.command()
def rebuild(
    point: Annotated[
        str | None,
        typer.Argument(metavar="[POINT]", help="May be left out where there is only one."),
    ] = None,
    variant: Annotated[
        str | None, typer.Option(help="The champion's if left out.", show_default=False)
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Where they differ, put the new state in place.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make the state anew from the ledger, and compare it with the learner's, byte by byte."""
    with errors_shown(as_json):
        from dataclasses import asdict

        from infra.home import find_settings
        from infra.models_cli import chosen_point
        from infra.progress import steps
        from serving.rebuild import rebuild as make_anew

        settings = find_settings()[0]
        name = chosen_point(settings, point)
        with _database(settings) as connection, steps(f"rebuild {name}") as on_step:
            found = make_anew(connection, settings, name, variant, replace, on_step)
        console = on_stderr()
        what = f"{found.decision_point}, variant {found.variant}, position {found.position}"
        if not found.differs:
            console.print(f"{what}: the same bytes ({found.seconds:.1f} s)", markup=False)
        else:
            console.print(f"{what}: DIFFERENT: {', '.join(found.differs)}", markup=False)
            told = (
                "the state made from the ledger is in place"
                if found.replaced
                else "`--replace` puts the state made from the ledger in place"
            )
            console.print(told, markup=False)
        if as_json:
            print_json(asdict(found))
        if found.differs and not found.replaced:
            raise typer.Exit(1)


@contextmanager
def _database(settings: Settings) -> Iterator[psycopg.Connection[Any]]:
    """A connection to the platform's PostgreSQL; `Unavailable` where there is none."""
    import psycopg

    from optimizer.errors import Unavailable
    from serving.reward_writer import connect

    try:
        with connect(settings.postgres_dsn()) as connection:
            yield connection
    except psycopg.OperationalError as error:
        raise Unavailable("PostgreSQL") from error
