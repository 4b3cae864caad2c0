"""`llmopt experiments`: compare arms or prompts on live traffic."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from infra.terminal import Json, errors_shown, on_stderr, print_json

__all__ = ["experiments"]

experiments = typer.Typer(
    help="Compare arms or prompts on live traffic: create, start, pause, stop, report.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Id = Annotated[str, typer.Argument(metavar="ID", help="As `create` and `list` show it.")]
Reason = Annotated[str | None, typer.Option(help="Why, for the audit trail.", show_default=False)]


@experiments.command()
def create(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="The design as YAML.")
    ] = None,
    decision_point: Annotated[str | None, typer.Option(help="Where it runs.")] = None,
    name: Annotated[str | None, typer.Option(help="What people call it.")] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=ARMS",
            help="Repeated, baseline first. ARMS is MODEL, MODEL#PROMPT or #PROMPT (every model "
            "with this prompt), several joined by commas.",
        ),
    ] = None,
    prompts: Annotated[
        bool, typer.Option("--prompts", help="Compare the prompt variants that arms differ in.")
    ] = False,
    weights: Annotated[
        str | None, typer.Option(help="One a variant, for instance 0.9,0.1: weighted.")
    ] = None,
    allocation: Annotated[
        str | None, typer.Option(help="fixed, weighted, thompson or contextual.  [default: fixed]")
    ] = None,
    share: Annotated[
        float | None, typer.Option(help="Of the units that are not control.  [default: 1]")
    ] = None,
    measure: Annotated[
        str | None,
        typer.Option(help="reward, quality, cost_usd, latency_s, feedback.  [default: reward]"),
    ] = None,
    analysis: Annotated[
        str | None, typer.Option(help="sequential or fixed_horizon.  [default: sequential]")
    ] = None,
    minimum_samples: Annotated[
        int | None, typer.Option(help="In each variant, before a verdict.  [default: 100]")
    ] = None,
    longest_s: Annotated[
        float | None, typer.Option(help="Seconds until it stops anyway.  [default: 14 days]")
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help="Probability of a false difference.  [default: 0.05]")
    ] = None,
    smallest_effect: Annotated[
        float | None, typer.Option(help="Smallest improvement worth having.")
    ] = None,
    planned_samples: Annotated[
        int | None, typer.Option(help="In each variant, of a fixed horizon.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Store a draft, from a file or from options (which win over the file)."""
    with errors_shown(as_json):
        from infra.experiment_design import read_design, read_prompts, read_variants

        given: dict[str, Any] = {
            "decision_point": decision_point,
            "name": name,
            "variants": read_variants(variant or [], weights),
            "allocation": allocation or ("weighted" if weights else None),
            "share": share,
            "measure": measure,
            "analysis": analysis,
            "minimum_samples": minimum_samples,
            "longest_s": longest_s,
            "alpha": alpha,
            "smallest_effect": smallest_effect,
            "planned_samples": planned_samples,
        }
        design = read_design(file) | (read_prompts(decision_point) if prompts else {})
        design |= {key: value for key, value in given.items() if value is not None and value != []}
        with _calls() as calls:
            made = calls.create(design)
        on_stderr().print(
            f"created {made['id']}; `llmopt experiments start {made['id']}` gives it units",
            markup=False,
        )
        if as_json:
            print_json(made)


@experiments.command()
def start(experiment_id: Id, reason: Reason = None, as_json: Json = False) -> None:
    """Give it units; one that was paused gets the same ones again."""
    _act(experiment_id, "start", as_json, reason=reason)


@experiments.command()
def pause(experiment_id: Id, reason: Reason = None, as_json: Json = False) -> None:
    """Serve its units as all others for now."""
    _act(experiment_id, "pause", as_json, reason=reason)


@experiments.command()
def archive(experiment_id: Id, reason: Reason = None, as_json: Json = False) -> None:
    """Put it away; a promoted winner gives its units back."""
    _act(experiment_id, "archive", as_json, reason=reason)


@experiments.command()
def stop(
    experiment_id: Id,
    promote: Annotated[
        bool,
        typer.Option(
            "--promote", help="The winner keeps the experiment's units until it is archived."
        ),
    ] = False,
    reason: Reason = None,
    as_json: Json = False,
) -> None:
    """End it, and show what it found."""
    with errors_shown(as_json):
        from infra.experiment_view import report_table

        with _calls() as calls:
            found = calls.act(experiment_id, "stop", promote=promote, reason=reason)
        console = on_stderr()
        console.print(report_table(found))
        console.print(found["report"]["sentence"], markup=False)
        if promote:
            console.print(
                f"{found['experiment']['winner']} keeps the experiment's units; for all units "
                f"change the arms in the settings, then `llmopt experiments archive "
                f"{experiment_id}`",
                markup=False,
            )
        if as_json:
            print_json(found)


@experiments.command(name="list")
def list_(
    decision_point: Annotated[str | None, typer.Option(help="Only of this one.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Also archived ones.")] = False,
    as_json: Json = False,
) -> None:
    """Show the experiments there are."""
    with errors_shown(as_json):
        from infra.experiment_view import list_table

        with _calls() as calls:
            found = [
                one
                for one in calls.list()
                if decision_point in (None, one["design"]["decision_point"])
                and (everything or one["state"] != "archived")
            ]
        if found:
            on_stderr().print(list_table(found))
        else:
            on_stderr().print("no experiments; `llmopt experiments create` makes one")
        if as_json:
            print_json({"experiments": found})


@experiments.command()
def report(
    experiment_id: Id,
    folder: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Also write page and plot there.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what it has found, and store page and plot in MLflow."""
    with errors_shown(as_json):
        from infra.experiment_view import log_experiment, report_table
        from infra.home import find_settings

        settings = find_settings()[0]
        with _calls() as calls:
            found = calls.report(experiment_id)
        stored = log_experiment(found, settings.mlflow_address, folder)
        console = on_stderr()
        console.print(report_table(found))
        console.print(found["report"]["sentence"], markup=False)
        for place in (*stored["files"], stored["mlflow"] or "MLflow is away: stored nowhere else"):
            console.print(f"report: {place}", markup=False)
        if as_json:
            print_json({**found, **stored})


def _act(experiment_id: str, action: str, as_json: bool, **body: str | None) -> None:
    with errors_shown(as_json):
        with _calls() as calls:
            moved = calls.act(experiment_id, action, **body)
        on_stderr().print(
            f"{moved['id']} ({moved['design']['name']}) is {moved['state']}", markup=False
        )
        if as_json:
            print_json(moved)


def _calls() -> Any:
    from infra.experiment_calls import ExperimentCalls
    from infra.home import find_settings

    return ExperimentCalls(find_settings()[0])
