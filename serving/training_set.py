"""Rows to learn from: what was known when a decision was made, and what came of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pandas as pd
import psycopg

from feature_repo.arm_rows import arm_key
from feature_repo.embedding import Embedder
from optimizer.errors import InvalidInput, InvalidToken
from optimizer.feature_schema import Translations
from optimizer.features import pack, unpack
from optimizer.response_facts import FACTS_ID, RESPONSE_FACTS, unknown_facts
from optimizer.settings import DecisionPoint, Settings
from serving.feature_schemas import known_schemas
from serving.known_signals import real_values
from serving.ledger import create_tables
from serving.live_point import make_encoder
from serving.logged import reason_of_no_use
from serving.tokens import ROLES, parse

if TYPE_CHECKING:
    from feature_repo.store import FeatureStoreClient

__all__ = ["OUTCOMES", "TrainingSet", "training_set"]

OUTCOMES = ("quality", "cost_usd", "latency_s", "feedback")
_CHUNK = 5000
_QUERY = """
SELECT d.decision_id, d.decided_at, d.token, r.known_after, f.facts
FROM (
    SELECT decision_id, decided_at, token FROM decisions
    WHERE decision_point = %(point)s AND decided_at >= %(start)s AND decided_at < %(end)s
        AND role <> 'shadow'
    ORDER BY decided_at DESC, decision_id DESC LIMIT %(limit)s
) d
JOIN LATERAL (
    SELECT known_after FROM rewards
    WHERE decision_id = d.decision_id AND decided_at = d.decided_at AND received_at <= %(as_of)s
    ORDER BY position DESC LIMIT 1
) r ON true
LEFT JOIN response_facts f ON f.decision_id = d.decision_id AND f.decided_at = d.decided_at
    AND f.decided_at >= %(start)s AND f.decided_at < %(end)s
    AND f.told_at <= %(as_of)s AND f.facts_id = %(facts_id)s
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
          ``decided_at``, NaN where nothing was known (see docs/features.md);
        - ``response__<name>``: `optimizer.response_facts` of the response as it was told last, NaN
          where none was told, or one whose facts were others.
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
    features of one that was built last week; outcomes and responses that came or were corrected
    since differ, unless ``as_of`` leaves them out.

    Parameters
    ----------
    point
        The decision point.
    start, end
        With time zone; the end is not included.
    as_of
        Outcomes and responses that were stored later are left out; by default none is.
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
    responses: list[Sequence[float]] = []
    untold = unknown_facts(1)[0].tolist()
    skipped: Counter[str] = Counter()
    parameters = {
        "point": point.name,
        "start": start,
        "end": end,
        "limit": limit,
        "as_of": as_of or datetime.now(UTC),
        "facts_id": FACTS_ID,
    }
    with psycopg.connect(settings.postgres_dsn(), connect_timeout=5, autocommit=True) as connection:
        create_tables(connection)
        layouts = Translations(encoder.schema, known_schemas(connection, point.name).values())
        for decision_id, decided_at, token, known, facts in _rows(connection, parameters):
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
            responses.append(untold if facts is None else facts)
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
    facts_names = [f"response__{name}" for name in RESPONSE_FACTS]
    answers = pd.DataFrame(responses, columns=facts_names, dtype=float)
    parts = [rows, requests, answers, _of_arms(store, point, rows)]
    return TrainingSet(pd.concat(parts, axis=1), skipped)


def _rows(
    connection: psycopg.Connection[Any], parameters: Mapping[str, object]
) -> Iterator[tuple[Any, ...]]:
    """What `_QUERY` finds, without holding all of it at once."""
    with connection.transaction(), connection.cursor("training", binary=True) as cursor:
        cursor.itersize = _CHUNK
        cursor.execute(_QUERY, parameters)
        yield from cursor


def _of_arms(store: FeatureStoreClient, point: DecisionPoint, rows: pd.DataFrame) -> pd.DataFrame:
    asked = pd.DataFrame(
        {
            "arm_key": [arm_key(point.name, model) for model in rows["model"]],
            "event_timestamp": rows["decided_at"],
        }
    )
    return store.arm_history(asked).drop(columns=["arm_key", "event_timestamp"])
