"""``llmopt models``: policy versions, the catalogue of LLMs, prompt variants."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from infra.terminal import Json, errors_shown, on_stderr, print_json

if TYPE_CHECKING:
    from optimizer.settings import Settings

__all__ = ["models"]

models = typer.Typer(
    name="models",
    help="Policy versions, the catalogue of LLMs, prompt variants.",
    no_args_is_help=True,
)

Point = Annotated[
    str | None, typer.Option(help="Whose versions; may be left out where there is only one.")
]
Version = Annotated[
    str, typer.Argument(metavar="VERSION", help="1.0.3, a number in MLflow, or an alias.")
]


@models.command(name="list")
def list_versions(decision_point: Point = None, as_json: Json = False) -> None:
    """Show the policy versions, newest first; waits for the first while the platform starts."""
    with errors_shown(as_json):
        from infra.home import find_settings
        from infra.models import first_versions
        from infra.models_tables import versions_table

        settings = find_settings()[0]
        points = [
            settings.decision_point(name).name
            for name in (
                [decision_point]
                if decision_point is not None
                else [point.name for point in settings.decision_points]
            )
        ]
        console = on_stderr()
        found = first_versions(settings, points, lambda text: console.print(text, markup=False))
        console.print(versions_table(found))
        if as_json:
            print_json({"models": [version.as_json() for version in found]})


@models.command()
def show(version: Version, decision_point: Point = None, as_json: Json = False) -> None:
    """Show what a version is, what it learned from, and what became of it."""
    with errors_shown(as_json):
        from infra.home import find_settings
        from infra.models import registry_of
        from infra.models_tables import version_table

        settings = find_settings()[0]
        point = chosen_point(settings, decision_point)
        with registry_of(settings) as registry:
            found = registry.get(point, version)
        on_stderr().print(version_table(found))
        if as_json:
            print_json(found.as_json())


@models.command()
def diff(a: Version, b: Version, decision_point: Point = None, as_json: Json = False) -> None:
    """Show the settings and the metrics in which two versions differ."""
    with errors_shown(as_json):
        from infra.home import find_settings
        from infra.models import registry_of
        from infra.models_tables import diff_table

        settings = find_settings()[0]
        point = chosen_point(settings, decision_point)
        with registry_of(settings) as registry:
            found = registry.diff(point, a, b)
        on_stderr().print(diff_table(found))
        if as_json:
            print_json(found.as_json())


@models.command()
def catalogue(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A model, or a part of its name.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show prices and context lengths of models: those of your arms, or the named ones."""
    with errors_shown(as_json):
        from dataclasses import asdict

        from infra.home import find_settings
        from infra.models import catalogue_entries
        from infra.models_tables import catalogue_table

        entries = catalogue_entries(find_settings()[0], name)
        on_stderr().print(catalogue_table(entries))
        if as_json:
            print_json(
                {"models": [{"name": one, **asdict(entry)} for one, entry in entries.items()]}
            )


@models.command()
def prompts(
    decision_point: Point = None,
    register: Annotated[
        bool, typer.Option("--register", help="Store the texts in MLflow's prompt registry.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show the prompt variants of the folder `prompts` of the settings, with their versions."""
    with errors_shown(as_json):
        from infra.home import find_settings
        from infra.models import listed_prompts
        from infra.models_tables import prompts_table

        settings = find_settings()[0]
        points = settings.decision_points
        if decision_point is not None:
            points = (settings.decision_point(decision_point),)
        found = listed_prompts(settings, points, register)
        on_stderr().print(prompts_table(found))
        if as_json:
            print_json({"prompts": found})


@models.command()
def create(
    policy: Annotated[str, typer.Option(help="A name (linucb, ...) or MODEL+EXPLORATION.")],
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A hyper-parameter; may be repeated."),
    ] = None,
    shadow: Annotated[
        bool, typer.Option("--shadow", help="Let it decide and be logged without serving.")
    ] = False,
    decision_point: Point = None,
    as_json: Json = False,
) -> None:
    """Name a policy as a variant; it learns from the whole ledger once the plan has it."""
    with errors_shown(as_json):
        from infra.home import find_settings
        from infra.rollouts import create_variant, show_plan

        settings = find_settings()[0]
        point = chosen_point(settings, decision_point)
        variant, plan = create_variant(settings, point, policy, setting or [], shadow)
        on_stderr().print(f"variant {variant} of {point}")
        show_plan(on_stderr(), plan)
        if as_json:
            print_json({"variant": variant, "plan": plan})


@models.command()
def promote(
    version: Annotated[
        str, typer.Argument(metavar="VERSION", help="A variant (2.0), or a version of it (2.0.3).")
    ],
    now: Annotated[bool, typer.Option("--now", help="Champion at once, without a canary.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Start the canary although the log speaks against it.")
    ] = False,
    decision_point: Point = None,
    as_json: Json = False,
) -> None:
    """Lead a variant to all traffic: 5, 25, 50 %, then all, while its guardrails hold."""
    with errors_shown(as_json):
        from infra.home import find_settings
        from infra.progress import steps
        from infra.rollouts import promote_variant, show_plan

        settings = find_settings()[0]
        point = chosen_point(settings, decision_point)
        with steps("off-policy check") as on_step:
            plan, reason = promote_variant(settings, point, version, now, force, on_step)
        on_stderr().print(reason, markup=False)
        show_plan(on_stderr(), plan)
        if as_json:
            print_json({"reason": reason, "plan": plan})


@models.command()
def rollback(
    version: Annotated[
        str | None,
        typer.Argument(
            metavar="[VERSION]", help="Go back to it and stay there; the newest step if left out."
        ),
    ] = None,
    decision_point: Point = None,
    as_json: Json = False,
) -> None:
    """Take back the newest step: the running canary, or the last champion."""
    with errors_shown(as_json):
        from infra.home import find_settings
        from infra.rollouts import roll_back, show_plan

        settings = find_settings()[0]
        point = chosen_point(settings, decision_point)
        plan = roll_back(settings, point, version)
        show_plan(on_stderr(), plan)
        if as_json:
            print_json({"plan": plan})


@models.command()
def archive(
    version: Annotated[
        str, typer.Argument(metavar="VERSION", help="A variant (2.0), or a version of it (2.0.3).")
    ],
    decision_point: Point = None,
    as_json: Json = False,
) -> None:
    """Say that a variant is not to serve any more: its features may be taken away then."""
    with errors_shown(as_json):
        from infra.home import find_settings
        from infra.rollouts import archive_variant

        settings = find_settings()[0]
        point = chosen_point(settings, decision_point)
        variant = archive_variant(settings, point, version)
        on_stderr().print(f"variant {variant} of {point} is archived")
        if as_json:
            print_json({"archived": variant})


@models.command()
def audit(
    limit: Annotated[int, typer.Option(min=1, help="How many, the newest.")] = 20,
    decision_point: Point = None,
    as_json: Json = False,
) -> None:
    """Show who changed the plan, when and why."""
    with errors_shown(as_json):
        from infra.home import find_settings
        from infra.rollouts import read_trail, trail_table

        settings = find_settings()[0]
        entries = read_trail(settings, chosen_point(settings, decision_point), limit)
        on_stderr().print(trail_table(entries))
        if as_json:
            print_json({"audit": entries})


def chosen_point(settings: Settings, name: str | None) -> str:
    """The decision point that was named, else the only one.

    Raises
    ------
    InvalidInput
        If there are several and none was named, or there is none of that name.
    """
    from optimizer.errors import InvalidInput

    if name is not None:
        return settings.decision_point(name).name
    names = [point.name for point in settings.decision_points]
    if len(names) > 1:
        raise InvalidInput(
            "decision_point", None, f"name one by --decision-point: {', '.join(names)}"
        )
    return names[0]
