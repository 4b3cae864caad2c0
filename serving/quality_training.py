"""Trains and judges a quality model on what the log and the ledger know; for the training flow."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from optimizer.errors import InvalidInput
from optimizer.quality_design import FEWEST_ROWS, QualityRows
from optimizer.quality_model import QualityModel
from optimizer.quality_trial import Trial, try_model
from optimizer.response_facts import RESPONSE_FACTS
from optimizer.settings import DecisionPoint, Settings
from serving.training_set import training_set

if TYPE_CHECKING:
    from feature_repo.store import FeatureStoreClient

__all__ = ["Trained", "train_quality"]

_PREFIX = "request__"
_RESPONSE = "response__"


@dataclass(frozen=True)
class Trained:
    """What came of a training.

    Attributes
    ----------
    rows
        Decisions with a known quality.
    trial
        None where they are too few.
    message
        One sentence for people.
    """

    rows: int
    trial: Trial | None
    message: str


def train_quality(
    settings: Settings,
    store: FeatureStoreClient,
    point: DecisionPoint,
    start: datetime,
    end: datetime,
    champion: QualityModel | None,
) -> Trained:
    """Train on the older decisions of a span and judge on the newest, against the champion.

    Parameters
    ----------
    start, end
        With time zone.
    champion
        The model that serves now.

    Raises
    ------
    Unavailable
        If the feature store is away.
    psycopg.OperationalError
        If PostgreSQL is away.
    """
    frame = training_set(settings, store, point, start, end).rows
    frame = frame[frame["quality"].notna() & (frame["role"] != "fallback")]
    number = len(frame)
    if number < 2 * FEWEST_ROWS:
        return Trained(
            number,
            None,
            f"{number} decisions with a known quality, {2 * FEWEST_ROWS} are needed: nothing is "
            "trained yet",
        )
    columns = [name for name in frame.columns if name.startswith(_PREFIX)]
    places = {arm.id.hex(): place for place, arm in enumerate(point.records())}
    arms: Any = frame["arm"].map(places).to_numpy("int64")
    rows = QualityRows(
        frame[columns].to_numpy(float),
        arms,
        frame["quality"].to_numpy(float),
        frame[[f"{_RESPONSE}{name}" for name in RESPONSE_FACTS]].to_numpy(float),
    )
    names = [name.removeprefix(_PREFIX) for name in columns]
    try:
        trial = try_model(rows, names, point.records(), champion, seed=0)
    except InvalidInput as error:
        return Trained(
            number,
            None,
            f"too few of {number} decisions have prompts that are not among the newest, too "
            f"({error}): nothing is trained yet",
        )
    return Trained(number, trial, trial.message)
