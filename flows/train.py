"""The quality model of each decision point, trained on what has feedback and served if no worse."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from pydantic import Field

from flows.artifacts import artifact_key
from optimizer.errors import IncompatibleState
from optimizer.settings import DecisionPoint, Settings, load_settings

if TYPE_CHECKING:
    from registry.quality_models import StoredQuality
    from serving.quality_training import Trained

__all__ = ["train"]

Days = Annotated[
    int,
    Field(ge=1, le=3650, json_schema_extra={"description": "length of the span, in days"}),
]


@flow(name="train", timeout_seconds=3000)
def train(days: Days = 30) -> dict[str, str]:
    """Train the quality model of every decision point.

    Parameters
    ----------
    days
        Length of the span that is learned from, from 1 to 3650.

    Returns
    -------
    For each decision point, what came of it in one sentence. Too little data is no failure.
    """
    settings = load_settings()
    end = flow_run.scheduled_start_time or datetime.now(UTC)
    said = {}
    for point in settings.decision_points:
        champion = load(settings.mlflow_address, point.name)
        trained = fit(settings, point, end - timedelta(days=days), end, champion)
        serving, message = champion, trained.message
        if trained.trial is not None and _is_new(trained, champion):
            stored = store(settings.mlflow_address, point.name, trained, end)
            serving = stored if trained.trial.better else champion
        elif trained.trial is not None:
            message = "nothing new was learned since the champion"
        if serving is not None:
            publish(settings.valkey_address, point.name, serving)
        show(point.name, end, trained, message, None if serving is None else serving.version)
        said[point.name] = message
    return said


@task(retries=3, retry_delay_seconds=[2, 10, 30], cache_policy=NO_CACHE)
def load(address: str, decision_point: str) -> StoredQuality | None:
    """The model that serves now; none where it can't be read any more, so that a new one does."""
    from registry.quality_models import QualityRegistry  # MLflow takes seconds to import

    try:
        return QualityRegistry(address).champion(decision_point)
    except IncompatibleState as error:
        print(f"{decision_point}: the champion is left alone: {error}")
        return None


@task(retries=3, retry_delay_seconds=[2, 10, 30], cache_policy=NO_CACHE)
def fit(
    settings: Settings,
    point: DecisionPoint,
    start: datetime,
    end: datetime,
    champion: StoredQuality | None,
) -> Trained:
    """Train on the older decisions and judge on the newest."""
    from feature_repo.store import FeatureStoreClient  # Feast takes seconds to import
    from optimizer.quality_model import QualityModel
    from serving.quality_training import train_quality

    old = None
    try:
        old = None if champion is None else QualityModel.from_bytes(champion.state)
    except IncompatibleState as error:
        print(f"{point.name}: the champion is of another version: {error}")
    with closing(FeatureStoreClient(settings)) as features:
        return train_quality(settings, features, point, start, end, old)


@task(retries=3, retry_delay_seconds=[2, 10, 30], cache_policy=NO_CACHE)
def store(address: str, decision_point: str, trained: Trained, end: datetime) -> StoredQuality:
    """Store the model in MLflow with its figures and its calibration plot."""
    from flows.train_page import draw
    from registry.quality_models import QualityRegistry

    trial = trained.trial
    assert trial is not None
    metrics = {
        f"{name.replace(' ', '_')}/{figure}": value
        for name, scores in trial.scores.items()
        for figure, value in scores.figures().items()
    }
    if trial.compared is not None:
        metrics |= {
            "difference": trial.compared.difference,
            "difference_low": trial.compared.low,
            "difference_high": trial.compared.high,
        }
    with TemporaryDirectory() as folder:
        plot = Path(folder, "calibration.png")
        draw(trial.bins, plot)
        return QualityRegistry(address).publish(
            decision_point,
            trial.model.to_bytes(),
            trained_at=end.timestamp(),
            metrics=metrics,
            parameters={"trained": trial.trained, "judged": trial.judged, "serves": trial.better},
            files=[plot],
            champion=trial.better,
        )


@task(retries=3, retry_delay_seconds=[2, 10, 30], cache_policy=NO_CACHE)
def publish(address: str, decision_point: str, serving: StoredQuality) -> None:
    """Give replicas the champion; also an old one, so that what Valkey lost is back in an hour."""
    from serving.quality_board import PublishedQuality, QualityBoard

    with closing(QualityBoard(address)) as board:
        board.publish(
            decision_point, PublishedQuality(serving.version, serving.trained_at, serving.state)
        )


@task(retries=3, retry_delay_seconds=[2, 10, 30], cache_policy=NO_CACHE)
def show(name: str, end: datetime, trained: Trained, message: str, version: int | None) -> None:
    """Put the page and its table where people see them in Prefect."""
    from flows.train_page import page, table

    key = artifact_key("train", name)
    create_markdown_artifact(page(name, end, trained, message, version), key=key)
    if trained.trial is not None:
        create_table_artifact(table(trained.trial), key=f"{key}-figures")


def _is_new(trained: Trained, champion: StoredQuality | None) -> bool:
    """Without new decisions the same rows give the same bytes."""
    assert trained.trial is not None
    return champion is None or trained.trial.model.to_bytes() != champion.state
