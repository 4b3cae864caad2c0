"""The command ``llmopt``; heavy imports stand inside the commands, so that help is instant."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from infra.budget_cli import budget
from infra.drift_cli import alerts, drift
from infra.experiments_cli import experiments
from infra.features_cli import features
from infra.forecast_cli import forecast
from infra.learner_cli import learner
from infra.models_cli import models
from infra.pareto_cli import pareto
from infra.retention_cli import retention
from infra.rewards_cli import rewards
from infra.terminal import Json, errors_shown, on_stderr, print_json

__all__ = ["main"]

main = typer.Typer(
    name="llmopt",
    help="LLM Auto-Optimizer: picks the model for every LLM request, and learns online.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
main.add_typer(models)

main.add_typer(experiments, name="experiments")

main.add_typer(learner, name="learner")
main.add_typer(features, name="features")
main.add_typer(rewards, name="rewards")
main.add_typer(alerts, name="alerts")
main.command()(drift)
main.command()(forecast)


@main.command()
def up(
    detach: Annotated[
        bool, typer.Option("--detach", help="Return when decisions can be made.")
    ] = False,
    demo: Annotated[
        bool, typer.Option("--demo", help="Then send the recorded prompts through it.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Start the platform; Ctrl-C (or `llmopt down`) stops it. Done already is fine, too."""
    with errors_shown(as_json):
        from infra import stack
        from infra.home import find_settings
        from infra.status import status, status_table

        settings, settings_file = find_settings()
        console = on_stderr()

        def say(message: str) -> None:
            console.print(message, markup=False)

        def show() -> None:
            answer = status(settings)
            console.print(status_table(answer))
            if as_json:
                print_json(answer)

        def show_and_wait() -> None:
            show()
            say("Ctrl-C stops everything.")

        if stack.running(settings) is not None:
            say("already running")
            show()
        elif detach:
            stack.up_detached(settings, say, demo=demo)
            show()
        else:
            stack.up(settings, settings_file, say, demo=demo, on_complete=show_and_wait)


@main.command()
def down(as_json: Json = False) -> None:
    """Stop the platform, and whatever is left of one that was killed."""
    with errors_shown(as_json):
        from infra import stack
        from infra.home import find_settings

        stopped = stack.down(find_settings()[0])
        on_stderr().print("stopped" if stopped else "nothing was running")
        if as_json:
            print_json({"stopped": stopped})


@main.command()
def status(as_json: Json = False) -> None:
    """Show each part with its address, process and health."""
    with errors_shown(as_json):
        from infra.home import find_settings
        from infra.status import status as ask
        from infra.status import status_table

        answer = ask(find_settings()[0])
        if answer["running"]:
            on_stderr().print(status_table(answer))
        else:
            on_stderr().print(f"nothing runs in {answer['home']}; `llmopt up` starts it")
        if as_json:
            print_json(answer)


@main.command()
def replay(
    data: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="Recorded outcomes (parquet, CSV, JSONL), or `paretobandit`."
        ),
    ],
    policy: Annotated[
        list[str] | None,
        typer.Option(help="A name (linucb, random, ...) or MODEL+EXPLORATION; may be repeated."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the order and of the draws.")] = 0,
    seeds: Annotated[int, typer.Option(help="How many, from the first on.")] = 1,
    weights: Annotated[
        str | None, typer.Option(help="For instance quality=1,cost=0,latency=0.")
    ] = None,
    delay: Annotated[
        str | None, typer.Option(help="Requests by which rewards are late: 200, or exp:200.")
    ] = None,
    missing: Annotated[float, typer.Option(help="Share of rewards that never come.")] = 0.0,
    shift: Annotated[
        str | None, typer.Option(metavar="FILE", help="The world from half-way on.")
    ] = None,
    new_arm: Annotated[
        str | None, typer.Option(metavar="MODEL", help="It can be had from half-way on.")
    ] = None,
    budget: Annotated[
        float | None, typer.Option(metavar="USD", help="What a whole pass may cost.")
    ] = None,
    quality_floor: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Least cost at this share of the best quality."),
    ] = None,
    quality_price: Annotated[
        float | None,
        typer.Option(metavar="USD", help="What a point of quality (0 to 1) is worth a request."),
    ] = None,
    frozen_after: Annotated[
        int | None, typer.Option(metavar="N", help="Learn nothing more after N requests.")
    ] = None,
    traits: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Prices and the like of models (YAML).")
    ] = None,
    features: Annotated[
        str, typer.Option(help="What policies see: small, facts, or full (with past requests).")
    ] = "small",
    report: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write curves (PNG) and a page (HTML).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Replay recorded outcomes, and set the result beside fixed rules."""
    with errors_shown(as_json):
        from infra.comparison import comparison_table
        from infra.progress import steps
        from infra.replay_report import report_folder, sentences, title, write_report
        from infra.replays import ReplayRequest, run_replay

        request = ReplayRequest(
            data,
            tuple(policy or ()),
            seed,
            seeds,
            weights,
            delay,
            missing,
            shift,
            new_arm,
            budget,
            quality_floor,
            quality_price,
            frozen_after,
            traits,
            features,
        )
        folder = None if report is None else report_folder(report)
        with steps("replay") as on_step:
            run = run_replay(request, on_step)
        console = on_stderr()
        console.print(comparison_table(run.policies, title(request, run)))
        for line in sentences(request, run):
            console.print(line, markup=False)
        result = run.result
        if folder is not None:
            result = {**result, "report": write_report(request, run, folder)}
            console.print(f"curves and page: {' and '.join(result['report'].values())}")
        if as_json:
            print_json(result)


@main.command()
def evaluate(
    policy: Annotated[
        str, typer.Option(help="A policy's name, static:MODEL, random, or champion.")
    ],
    log: Annotated[
        Path | None,
        typer.Option(help="Logged decisions (parquet, CSV, JSONL); the live ledger if left out."),
    ] = None,
    decision_point: Annotated[
        str | None, typer.Option(help="Whose ledger; of a file, whose arms and reward.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="Start in the ledger: 24h, 7d, or a date.  [default: 7d]")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="For instance quality=1,cost=0,latency=0.")
    ] = None,
    clip: Annotated[
        float | None, typer.Option(help="Weight above which SWITCH trusts the model instead.")
    ] = None,
    export: Annotated[
        Path | None, typer.Option(help="Also write the logged decisions to this file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Estimate what a policy would have scored and cost on logged traffic."""
    with errors_shown(as_json):
        from infra.evaluation_table import evaluation_table, support_line
        from infra.evaluations import EvaluationRequest, run_evaluation
        from infra.home import find_settings
        from infra.progress import steps

        request = EvaluationRequest(policy, log, decision_point, since, weights, export, clip)
        with steps(f"evaluate {policy}") as on_step:
            result = run_evaluation(request, lambda: find_settings()[0], datetime.now(UTC), on_step)
        console = on_stderr()
        console.print(evaluation_table(result))
        for line in (support_line(result), *result["notes"], result["verdict"]["sentence"]):
            console.print(line, markup=False)
        if as_json:
            print_json(result)


main.command()(pareto)
main.command()(budget)
main.command()(retention)


@main.command()
def demo(
    requests: Annotated[
        int | None, typer.Option(min=1, help="How many; the whole recording if left out.")
    ] = None,
    rate: Annotated[
        float, typer.Option(min=1, help="Requests a second: slow enough to watch it learn.")
    ] = 120.0,
    as_json: Json = False,
) -> None:
    """Send recorded prompts through the running platform, and watch it learn."""
    with errors_shown(as_json):
        from infra.demo import run_demo, summarise
        from infra.demo_report import draw, show, watching
        from infra.home import Home, find_settings

        settings = find_settings()[0]
        with watching() as on_sent:
            run = run_demo(settings, requests, rate, on_sent)
        result = summarise(run)
        picture = Home(settings.home).picture
        draw(run, result, picture)
        result["picture"] = str(picture)
        show(on_stderr(), run, result)
        if as_json:
            print_json(result)


if __name__ == "__main__":
    main()
