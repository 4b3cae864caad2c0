"""The command ``llmopt``; heavy imports stand inside the commands, so that help is instant."""

from __future__ import annotations

from typing import Annotated

import typer

from infra.terminal import errors_shown, on_stderr, print_json

__all__ = ["main"]

main = typer.Typer(
    name="llmopt",
    help="LLM Auto-Optimizer: picks the model for every LLM request, and learns online.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]


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
    policy: Annotated[str, typer.Option(help="linucb, thompson, static or random.")] = "linucb",
    seed: Annotated[int, typer.Option(min=0, help="Of the order and of the draws.")] = 0,
    weights: Annotated[
        str | None, typer.Option(help="For instance quality=1,cost=0,latency=0.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Replay recorded outcomes once, and set the result beside fixed rules."""
    with errors_shown(as_json):
        from infra.progress import steps
        from infra.replays import comparison_table, dearest_model, run_replay

        with steps(f"replay {policy}") as on_step:
            result, recorded = run_replay(data, policy, seed, weights, on_step)
        console = on_stderr()
        timing = result["decision_us"]
        console.print(comparison_table(policy, result, f"{data}: {result['requests']} requests"))
        if policy == "static":
            console.print(f"static always takes the dearest model, {dearest_model(recorded)}")
        console.print(
            f"regret {100 * result['regret_share']:.2f} % of the oracle's reward; a decision took "
            f"{timing['p50']:.0f} µs (p50), {timing['p99']:.0f} µs (p99); seed {seed}"
        )
        if as_json:
            print_json(result)


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
