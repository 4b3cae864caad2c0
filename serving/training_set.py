"""Rows to learn from: what was known when a decision was made, and what came of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pandas as pd
import psycopg

from feature_repo.arm_rows import arm_key
from feature_repo.embedding import Embedder
from optimizer.errors import InvalidInput, InvalidToken
from optimizer.feature_schema import Translations
from optimizer.features import pack, unpack
from optimizer.settings import DecisionPoint, Settings
from serving.feature_schemas import known_schemas
from serving.known_signals import real_values
from serving.live_point import make_encoder
from serving.logged import reason_of_no_use
from serving.tokens import ROLES, parse

if TYPE_CHECKING:
    from feature_repo.store import FeatureStoreClient

__all__ = ["OUTCOMES", "TrainingSet", "training_set"]

OUTCOMES = ("quality", "cost_usd", "latency_s", "feedback")
_CHUNK = 5000
_QUERY = """
SELECT d.decision_id, d.decided_at, d.token, r.known_after
FROM (
    SELECT decision_id, decided_at, token FROM decisions
    WHERE decision_point = %s AND decided_at >= %s AND decided_at < %s AND role <> 'shadow'
    ORDER BY decided_at DESC, decision_id DESC LIMIT %s
) d
JOIN LATERAL (
    SELECT known_after FROM rewards
    WHERE decision_id = d.decision_id AND decided_at = d.decided_at AND received_at <= %s
    ORDER BY position DESC LIMIT 1
) r ON true
ORDER BY d.decided_at, d.decision_id
"""


@dataclass(frozen=True)
class TrainingSet:
    """What was read.

    Attributes
    ----------
    rows
        One row a decision of which anything is known, in time order. Columns:

        - ``decision_id`` (text), ``decided_at`` (UTC), ``role``, ``model``, ``arm`` (hexadecimal
          id), ``propensity`` in (0, 1], ``policy_version``;
        - ``quality``, ``cost_usd``, ``latency_s``, ``feedback``: the outcome, NaN where unknown;
        - ``request__<name>``: the features the decision was made with, out of its token, named as
          `optimizer.features.FeatureEncoder` does;
        - ``arm_statistics__<name>``, ``arm_windows__<name>``: of the arm, as they were online at
          ``decided_at``, NaN where nothing was known (see docs/features.md).
    skipped
        Decisions with an outcome that are of no use, by reason, as in `serving.logged.LiveLog`.
    """

    rows: pd.DataFrame
    skipped: Counter[str]


def training_set(
    settings: Settings,
    store: FeatureStoreClient,
    point: DecisionPoint,
    start: datetime,
    end: datetime,
    *,
    as_of: datetime | None = None,
    limit: int = 100_000,
) -> TrainingSet:
    """The decisions of a span with their features as of then and their outcomes as of now.

    Features never hold anything from after the decision. So a set built today for last week has the
    features of one that was built last week; outcomes that came or were corrected since differ,
    unless ``as_of`` leaves them out.

    Parameters
    ----------
    point
        The decision point.
    start, end
        With time zone; the end is not included.
    as_of
        Outcomes that were stored later are left out; by default none is.
    limit
        Most decisions to read, the newest, 1 or more.

    Raises
    ------
    InvalidInput
        If the span is empty.
    Unavailable
        If the feature store can't be read.
    psycopg.OperationalError
        If the log of decisions can't be read.
    """
    if start >= end:
        raise InvalidInput("start", start.isoformat(), f"must be before the end, {end.isoformat()}")
    encoder = make_encoder(point, Embedder())
    arms = {arm.id: arm for arm in point.records()}
    places = {arm_id: place for place, arm_id in enumerate(arms)}
    told: list[tuple[object, ...]] = []
    packed: list[bytes] = []
    skipped: Counter[str] = Counter()
    parameters = (point.name, start, end, limit, as_of or datetime.now(UTC))
    with (
        psycopg.connect(settings.postgres_dsn(), connect_timeout=5) as connection,
        connection.cursor("training", binary=True) as cursor,
    ):
        layouts = Translations(encoder.schema, known_schemas(connection, point.name).values())
        cursor.itersize = _CHUNK
        cursor.execute(_QUERY, parameters)
        for decision_id, decided_at, token, known in cursor:
            known = real_values(known)
            if all(value is None for value in known):
                continue  # retracted, or a prediction, which teaches nothing about the truth
            try:
                decision = parse(bytes(token))
            except InvalidToken:
                skipped["token"] += 1
                continue
            reason = reason_of_no_use(decision, places, layouts)
            if reason is not None:
                skipped[reason] += 1
                continue
            packed.append(
                decision.features
                if decision.schema_id == encoder.schema_id
                else pack(layouts.read(decision.schema_id, unpack(decision.features)))
            )
            told.append(
                (
                    str(decision_id),
                    decided_at,
                    ROLES[decision.role],
                    arms[decision.arm_id].model,
                    decision.arm_id.hex(),
                    decision.propensity,
                    decision.policy_version,
                    *known,
                )
            )
    names = ["decision_id", "decided_at", "role", "model", "arm", "propensity", "policy_version"]
    rows = pd.DataFrame(told, columns=[*names, *OUTCOMES])
    rows["decided_at"] = pd.to_datetime(rows["decided_at"], utc=True)
    rows = rows.astype(dict.fromkeys(("propensity", *OUTCOMES), float) | {"policy_version": int})
    requests = pd.DataFrame(
        unpack(b"".join(packed)).reshape(len(packed), encoder.size),
        columns=[f"request__{name}" for name in encoder.names],
    )
    return TrainingSet(pd.concat([rows, requests, _of_arms(store, point, rows)], axis=1), skipped)


def _of_arms(store: FeatureStoreClient, point: DecisionPoint, rows: pd.DataFrame) -> pd.DataFrame:
    asked = pd.DataFrame(
        {
            "arm_key": [arm_key(point.name, model) for model in rows["model"]],
            "event_timestamp": rows["decided_at"],
        }
    )
    return store.arm_history(asked).drop(columns=["arm_key", "event_timestamp"])
