"""The decisions of a window for the drift check: features, arm, outcome, foreseen quality."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from datetime import datetime
from typing import Any

import pandas as pd
import psycopg

from feature_repo.embedding import Embedder
from optimizer.errors import IncompatibleState, InvalidToken, Unavailable
from optimizer.feature_schema import Translations
from optimizer.features import pack, unpack
from optimizer.quality_model import QualityModel
from optimizer.settings import DecisionPoint, Settings
from serving import ledger
from serving.feature_schemas import known_schemas
from serving.known_signals import real_values
from serving.live_point import make_encoder
from serving.quality_board import QualityBoard
from serving.tokens import FALLBACK, parse

__all__ = ["read_windows"]

_CHUNK = 1000
_PARTS = 65536
_WHERE = "decision_point = %s AND decided_at >= %s AND decided_at < %s AND role <> 'shadow'"
_COUNT = f"SELECT count(*) FROM decisions WHERE {_WHERE}"  # noqa: S608 - a constant
# Ids are random, so their first two bytes draw the same sample whenever it is read.
_QUERY = f"""
SELECT d.token, d.model, r.known_after, EXISTS (
    SELECT FROM rewards e WHERE e.decision_id = d.decision_id AND e.decided_at = d.decided_at
        AND e.kind = 'error' AND e.value > 0)
FROM (
    SELECT decision_id, decided_at, token, model FROM decisions WHERE {_WHERE}
        AND get_byte(uuid_send(decision_id), 0) * 256 + get_byte(uuid_send(decision_id), 1) < %s
) d
LEFT JOIN LATERAL (
    SELECT known_after FROM rewards
    WHERE decision_id = d.decision_id AND decided_at = d.decided_at
    ORDER BY position DESC LIMIT 1
) r ON true
ORDER BY d.decided_at, d.decision_id
"""  # noqa: S608 - a constant


def read_windows(
    settings: Settings,
    point: DecisionPoint,
    spans: Sequence[tuple[datetime, datetime]],
    limit: int,
) -> list[pd.DataFrame]:
    """The decisions of several spans as `optimizer.drift_check.check` takes them.

    Parameters
    ----------
    spans
        Starts and ends, with time zone; an end is not included.
    limit
        About how many decisions of each are read; of more, a sample is taken by their ids, which
        is the same whenever it is read. 1 or more.

    Raises
    ------
    psycopg.OperationalError
        If the log of decisions can't be read.
    """
    encoder = make_encoder(point, Embedder())
    with psycopg.connect(settings.postgres_dsn(), autocommit=True, connect_timeout=5) as connection:
        ledger.create_tables(connection)
        layouts = Translations(encoder.schema, known_schemas(connection, point.name).values())
        frames = [
            _read(connection, point, layouts, list(encoder.names), start, end, limit)
            for start, end in spans
        ]
    _foresee(settings, point, frames, [f"feature__{name}" for name in encoder.names])
    return frames


def _read(
    connection: psycopg.Connection[Any],
    point: DecisionPoint,
    layouts: Translations,
    names: list[str],
    start: datetime,
    end: datetime,
    limit: int,
) -> pd.DataFrame:
    span = (point.name, start, end)
    counted = connection.execute(_COUNT, span).fetchone()
    logged = int(counted[0]) if counted else 0
    arms = _labels(point)
    parts = _PARTS if logged <= limit else max(1, _PARTS * limit // logged)
    told: list[tuple[object, ...]] = []
    packed: list[bytes] = []
    with connection.transaction(), connection.cursor("drift", binary=True) as cursor:
        cursor.itersize = _CHUNK
        cursor.execute(_QUERY, (*span, parts))
        for token, model, known, failed in cursor:
            try:
                decision = parse(bytes(token))
            except InvalidToken:
                continue
            if decision.schema_id not in layouts:
                continue
            packed.append(pack(layouts.read(decision.schema_id, unpack(decision.features))))
            quality, cost_usd, latency_s, _ = real_values(known or (None, None, None, None))
            error = float(failed or decision.role == FALLBACK)
            arm = arms.get(decision.arm_id, model)
            told.append((decision.decided_at, arm, error, quality, cost_usd, latency_s))
    numbers = ["error", "quality", "cost_usd", "latency_s"]
    rows = pd.DataFrame(told, columns=["decided_at", "arm", *numbers])
    rows["decided_at"] = pd.to_datetime(rows["decided_at"].astype(float), unit="s", utc=True)
    rows[numbers] = rows[numbers].astype(float)
    features = pd.DataFrame(
        unpack(b"".join(packed)).reshape(len(packed), len(names)),
        columns=[f"feature__{name}" for name in names],
    )
    return pd.concat([rows, features], axis=1)


def _foresee(
    settings: Settings, point: DecisionPoint, frames: list[pd.DataFrame], names: list[str]
) -> None:
    """Add ``prediction``: of both windows by the model of now, where there is one that fits."""
    try:
        with closing(QualityBoard(settings.valkey_address)) as board:
            published = board.newer(point.name, "")
        if published is None:
            return
        model = QualityModel.from_bytes(published.state)
        labels = _labels(point)
        arms = {labels[arm.id]: arm for arm in point.records()}
        predictions = []
        for frame in frames:
            known = frame["arm"].isin(list(arms))
            foreseen = pd.Series(float("nan"), index=frame.index)
            if known.any():
                foreseen[known] = model.predict(
                    frame.loc[known, names].to_numpy(float),
                    [arms[name] for name in frame.loc[known, "arm"]],
                )
            predictions.append(foreseen)
    except (Unavailable, IncompatibleState, ValueError):
        return  # the model learned from another layout, or Valkey is away: the rest is checked
    for frame, foreseen in zip(frames, predictions, strict=True):
        frame["prediction"] = foreseen


def _labels(point: DecisionPoint) -> dict[bytes, str]:
    """What people call an arm, by its id: the model, with a mark if others have that model too."""
    arms = point.records()
    models = [arm.model for arm in arms]
    return {
        arm.id: arm.model
        if models.count(arm.model) == 1
        else f"{arm.model} ({arm.prompt_variant}, {arm.id.hex()[:4]})"
        for arm in arms
    }
