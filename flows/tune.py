"""Nightly: are there better settings, of policies and of models? What is found is only offered."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

from prefect import flow, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from pydantic import Field

from flows.artifacts import artifact_key
from flows.tune_parameters import tune_models
from optimizer.settings import DecisionPoint, Settings, load_settings

if TYPE_CHECKING:
    from optimizer.policy_tuning import Tuned

__all__ = ["tune"]

EXPERIMENT = "tuning"

Days = Annotated[
    int, Field(ge=1, le=366, json_schema_extra={"description": "days of traffic to search on"})
]
Trials = Annotated[
    int, Field(ge=1, le=1000, json_schema_extra={"description": "settings that are tried"})
]


@flow(name="tune", timeout_seconds=4 * 3600)
def tune(days: Days = 7, trials: Trials = 30) -> dict[str, str]:
    """Search for better settings at every decision point.

    Those of the policy on logged traffic; then the parameters of the models, by an evaluator if the
    settings name one (`tuning`), else between arms that were logged.

    Parameters
    ----------
    days
        Length of the span that is searched on, from 1 to 366 days.
    trials
        Settings of the policy that are tried at each decision point, from 1 to 1000.

    Returns
    -------
    For each decision point, what came of it in one sentence. Too little traffic is no failure.
    """
    settings = load_settings()
    end = flow_run.scheduled_start_time or datetime.now(UTC)
    said = {}
    for point in settings.decision_points:
        found, message = look(settings, point, end - timedelta(days=days), end, trials)
        if found is not None:
            variant = offer(settings, point, found) if found.better else None
            message = _sentence(found, variant)
        show(point.name, end, found, message)
        parameters = tune_models(settings, point, end - timedelta(days=days), end)
        said[point.name] = f"{message}; {parameters}"
    return said


@task(retries=2, retry_delay_seconds=[10, 60], cache_policy=NO_CACHE)
def look(
    settings: Settings, point: DecisionPoint, start: datetime, end: datetime, trials: int
) -> tuple[Tuned | None, str]:
    """Search; a repeat goes on with the trials that are there."""
    from feature_repo.embedding import Embedder
    from optimizer.errors import InvalidInput
    from optimizer.experiment_plan import arm_label
    from optimizer.feature_schema import Translation
    from optimizer.policies import Policy, PolicySettings
    from optimizer.policy_tuning import search
    from optimizer.study_plots import draw_study
    from registry.reports import log_report
    from serving.design_log import read_decisions
    from serving.feature_schemas import policy_schema
    from serving.live_point import make_encoder
    from serving.routes import make_point_policy
    from serving.tuning_store import searching

    embedder = Embedder()
    names = tuple(arm_label(arm) for arm in point.records())
    log = read_decisions(settings, point, names, embedder, start, end)
    if log is None:
        return None, "no decisions were logged"
    computed = make_encoder(point, embedder).schema
    schema = policy_schema(point, computed)
    log = replace(log, features=Translation(computed, schema)(log.features))

    def make(policy: PolicySettings) -> Policy:
        return make_point_policy(point.model_copy(update={"policy": policy}), schema)

    name = f"{point.name} policy {end:%Y-%m-%dT%H:%M}"
    try:
        with searching(settings.postgres_dsn(), name) as storage:
            found, study = search(log, point.objective(), point.policy, make, name, trials, storage)
    except InvalidInput as error:
        return None, str(error)
    with TemporaryDirectory() as folder:
        files = draw_study(study, Path(folder))
        url = log_report(
            settings.mlflow_address,
            EXPERIMENT,
            files,
            {"present_reward": found.present_reward, "best_reward": found.best_reward},
            {"decision_point": point.name, "trials": found.trials},
            run_name=f"{point.name} {end:%Y-%m-%d %H:%M}",
        )
    create_link_artifact(
        url, f"{point.name} in MLflow", key=artifact_key("tune", point.name, "mlflow")
    )
    return found, ""


@task(retries=3, retry_delay_seconds=[2, 10, 30], cache_policy=NO_CACHE)
def offer(settings: Settings, point: DecisionPoint, found: Tuned) -> str:
    """Make a variant of it, which serves nobody until a person promotes it."""
    from feature_repo.embedding import Embedder
    from serving.feature_schemas import policy_schema
    from serving.live_point import make_encoder
    from serving.promotion import Promotion

    schema = policy_schema(point, make_encoder(point, Embedder()).schema)
    return Promotion(settings, point).add_variant(found.best, schema)


@task(retries=3, retry_delay_seconds=[2, 10, 30], cache_policy=NO_CACHE)
def show(name: str, end: datetime, found: Tuned | None, message: str) -> None:
    """Put the result where people see it in Prefect."""
    key = artifact_key("tune", name)
    create_markdown_artifact(
        f"# Tuning of {name}\n\n{end:%Y-%m-%d %H:%M} UTC\n\n{message}\n", key=key
    )
    if found is not None:
        present, best = found.present.model_dump(), found.best.model_dump()
        rows = [
            {"setting": one, "present": str(present[one]), "best": str(best[one])}
            for one in present
        ]
        create_table_artifact(rows, key=f"{key}-settings")


def _sentence(found: Tuned, variant: str | None) -> str:
    told = (
        f"on the newer part of the log the best of {found.trials} trials is estimated at a reward "
        f"of {found.best_reward:.4f}, the present settings at {found.present_reward:.4f}"
    )
    if variant is None:
        return f"nothing better was found: {told}"
    return f"variant {variant} is worth a canary (`llmopt models promote {variant}`): {told}"
