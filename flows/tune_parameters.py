"""Part of the flow `tune`: temperature, top_p and max_tokens of every model, by task type."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from prefect import task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from flows.artifacts import artifact_key
from flows.tune_page import front_rows, page
from optimizer.settings import DecisionPoint, Settings

if TYPE_CHECKING:
    from optimizer.offpolicy.logged import LoggedDecisions
    from optimizer.parameter_proposals import Evaluated
    from optimizer.parameter_tuning import ParametersTuned
    from optimizer.worth import Worth

__all__ = ["tune_models"]

EXPERIMENT = "parameter-tuning"
ACTOR = "tune"


@dataclass
class Found:
    """What the searches at a decision point have found.

    Attributes
    ----------
    tuned
        One for each model and task type that could be searched.
    refused
        Why the others could not, by model and task type.
    """

    tuned: list[ParametersTuned] = field(default_factory=list)
    refused: dict[tuple[str, str], str] = field(default_factory=dict)


def tune_models(settings: Settings, point: DecisionPoint, start: datetime, end: datetime) -> str:
    """Search, draft an experiment for each model that has a winner, and show all of it.

    Returns
    -------
    What came of it in one sentence.
    """
    if not settings.tuning.ranges:
        return "no parameter has a range in `tuning`"
    found = search_models(settings, point, start, end)
    drafts = draft_experiments(settings, point, found)
    show_parameters(settings, point, end, found, drafts)
    better = [one for one in found.tuned if one.better]
    if better:
        names = ", ".join(sorted({one.model for one in better}))
        return (
            f"parameters of {names} are worth an experiment (drafts {', '.join(drafts.values())})"
        )
    if found.tuned:
        return f"no better parameters were found for {len(found.tuned)} pairs of model and task"
    return f"parameters were not tuned: {next(iter(found.refused.values()))}"


@task(retries=2, retry_delay_seconds=[10, 60], cache_policy=NO_CACHE)
def search_models(
    settings: Settings, point: DecisionPoint, start: datetime, end: datetime
) -> Found:
    """Search for every model and task type; a repeat goes on with the trials that are there."""
    from feature_repo.embedding import Embedder
    from flows.evaluator import load_evaluator
    from optimizer.errors import InvalidInput
    from optimizer.experiment_plan import arm_label
    from optimizer.parameter_log import logged_settings, task_rows
    from optimizer.parameter_space import ParameterSpace
    from optimizer.parameter_tuning import from_log, tune_parameters
    from optimizer.surface_sampler import evaluated
    from optimizer.worth import Worth
    from serving.design_log import read_decisions
    from serving.live_point import make_encoder
    from serving.tuning_store import searching

    found, tuning = Found(), settings.tuning
    embedder, arms = Embedder(), point.records()
    names = tuple(arm_label(arm) for arm in arms)
    log = read_decisions(settings, point, names, embedder, start, end)
    columns = make_encoder(point, embedder).schema.names
    space, worth = ParameterSpace(tuning.ranges), Worth.of(point.objective())
    dsn = settings.postgres_dsn()
    try:
        evaluate = None if tuning.evaluator is None else load_evaluator(tuning.evaluator)
    except InvalidInput as error:
        found.refused["", ""] = str(error)
        return found
    tasks = point.tasks or ("",)
    parts: dict[str, LoggedDecisions | None] = {
        name: None if log is None else task_rows(log, columns, name) for name in tasks
    }
    for model in dict.fromkeys(arm.model for arm in arms):
        own = [index for index, arm in enumerate(arms) if arm.model == model]
        first = arms[own[0]]
        alike = [index for index in own if arms[index].prompt_variant == first.prompt_variant]
        if evaluate is None and len(alike) < 2:
            found.refused[model, ""] = (
                f"{model} has one setting, so the log knows no other one; add arms with other "
                "parameters, or name an evaluator in `tuning.evaluator`"
            )
            continue
        known: list[Evaluated] = []
        for name in tasks:
            # The level of an evaluator is another one than that of live traffic.
            known += logged_settings(parts[name], arms, alike, f"{name} in the log")
        for name in tasks:
            present, told = dict(first.parameters), f"{name} in the log"
            study_name = _study_name(settings, point, model, name)
            try:
                if evaluate is not None:
                    with searching(dsn, study_name) as storage:
                        tuned, study = tune_parameters(
                            evaluate, model, name, present, space, worth,
                            study_name, tuning.trials, storage, known,
                        )  # fmt: skip
                    known += evaluated(study.get_trials(deepcopy=False), elsewhere=name or "all")
                else:
                    study_name += f" {end:%Y-%m-%dT%H:%M}"
                    with searching(dsn, study_name) as storage:
                        tuned, study = from_log(
                            logged_settings(parts[name], arms, alike), model, name, present,
                            space, worth, study_name, storage,
                            [one for one in known if one.elsewhere != told],
                        )  # fmt: skip
            except InvalidInput as error:
                found.refused[model, name] = str(error)
                continue
            found.tuned.append(tuned)
            _report(settings, point, end, tuned, study, worth)
    return found


@task(retries=3, retry_delay_seconds=[2, 10, 30], cache_policy=NO_CACHE)
def draft_experiments(settings: Settings, point: DecisionPoint, found: Found) -> dict[str, str]:
    """One draft for each model with a winner, by model; nothing is served before a person starts.

    A draft may name an arm that is not configured yet: starting it says so until it is.
    """
    from optimizer.parameter_challenge import challengers, experiment, with_arms
    from serving.experiments import keep_draft
    from serving.reward_writer import connect

    drafts = {}
    for model in dict.fromkeys(one.model for one in found.tuned):
        better = [one for one in found.tuned if one.model == model and one.better]
        arms = challengers(point, better)
        if not arms:
            continue
        gain = max(one.winner.worth - one.present.worth for one in better)
        design = experiment(point, model, arms, settings.tuning.share, gain)
        with connect(settings.postgres_dsn()) as connection:
            drafts[model] = keep_draft(
                connection,
                with_arms(settings, point, arms),
                design,
                actor=f"{ACTOR} {model}",
                now=datetime.now(UTC).timestamp(),
                why=f"tuned parameters promise {gain:+.3f}",
            ).id
    return drafts


@task(retries=3, retry_delay_seconds=[2, 10, 30], cache_policy=NO_CACHE)
def show_parameters(
    settings: Settings,
    point: DecisionPoint,
    end: datetime,
    found: Found,
    drafts: dict[str, str],
) -> None:
    """Put fronts, winners and the lines to add to the settings where people see them."""
    key = artifact_key("tune", point.name, "parameters")
    create_markdown_artifact(page(point, end, found.tuned, found.refused, drafts), key=key)
    if found.tuned:
        create_table_artifact(front_rows(found.tuned), key=f"{key}-front")


def _study_name(settings: Settings, point: DecisionPoint, model: str, name: str) -> str:
    """Another judge, other ranges or another prompt make another study."""
    first = next(arm for arm in point.arms if arm.model == model)
    asked = repr((settings.tuning.evaluator, settings.tuning.ranges, first.prompt_variant))
    digest = hashlib.blake2b(asked.encode(), digest_size=4).hexdigest()
    return f"{point.name} parameters of {model} for {name or 'all'} {digest}"


def _report(
    settings: Settings,
    point: DecisionPoint,
    end: datetime,
    tuned: ParametersTuned,
    study: object,
    worth: Worth,
) -> None:
    """Plots and figures in MLflow."""
    from optimizer.study_plots import draw_study
    from registry.reports import log_report

    with TemporaryDirectory() as folder:
        files = draw_study(
            study,
            Path(folder),
            value=lambda trial: float(worth(*trial.values)),
            value_name="worth",
            objectives=("quality", "cost_usd"),
        )
        url = log_report(
            settings.mlflow_address,
            EXPERIMENT,
            files,
            {
                "present_worth": tuned.present.worth,
                "winner_worth": tuned.winner.worth,
                "winner_quality": tuned.winner.quality,
                "winner_cost_usd": tuned.winner.cost_usd,
                "trials": tuned.trials,
                "pruned": tuned.pruned,
            },
            {"decision_point": point.name, "model": tuned.model, "task": tuned.task or "all"},
            run_name=f"{point.name} {tuned.model} {tuned.task} {end:%Y-%m-%d %H:%M}",
        )
    key = artifact_key("tune", point.name, artifact_key(tuned.model, tuned.task, "mlflow"))
    create_link_artifact(url, f"{tuned.model} in MLflow", key=key)
