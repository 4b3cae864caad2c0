"""Whether what was online, what Feast finds looking back, and what the ledger says are the same.

Three routes to the features of an arm at a moment:

- pushed: the newest row that was logged with its push, straight from the table;
- history: Feast's point-in-time join, which training sets are made with;
- rebuilt: the ledger folded once more, up to the position that the pushed row stands for.
"""

from __future__ import annotations

import math
import random
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pandas as pd
import psycopg

from feature_repo.aggregates import ArmFeatures, ArmStatistics
from feature_repo.arm_rows import (
    STATISTICS_COLUMNS,
    WINDOWS_COLUMNS,
    Row,
    arm_key,
    statistics_rows,
    windows_rows,
)
from feature_repo.push_log import pushed_as_of
from feature_repo.windows import ArmWindows
from optimizer.errors import InvalidInput
from optimizer.settings import DecisionPoint, Settings
from serving import ledger
from serving.arm_fold import STATISTICS_SPAN_S, first_position, fold_arms

if TYPE_CHECKING:
    from feature_repo.store import FeatureStoreClient

__all__ = ["TOLERANCE", "Disagreement", "FeatureParity", "check_now", "check_span"]

TOLERANCE = 1e-6
_VIEWS = {"arm_statistics": STATISTICS_COLUMNS, "arm_windows": WINDOWS_COLUMNS}
_TTL_S = 3600.0
_SETTLE_S = 2.0
"""By then a push is in the log too, while PostgreSQL is there."""
_SHOWN = 100
_BATCH = 2000


@dataclass(frozen=True, slots=True)
class Disagreement:
    """One feature of one arm that two routes give different values for.

    Attributes
    ----------
    values
        By route (``online``, ``pushed``, ``history``, ``rebuilt``); None where it knows none.
    """

    arm_key: str
    at: datetime
    feature: str
    values: Mapping[str, float | None]


@dataclass(slots=True)
class FeatureParity:
    """What was compared, and what of it is not the same.

    Attributes
    ----------
    pairs
        Arms and moments that were compared.
    known
        Those of which anything was online.
    rebuilt
        Rows that were found in the ledger once more: up to two a pair, statistics and windows. Rows
        without a position, and those whose outcomes the ledger no longer has, are not.
    largest
        Largest absolute difference by feature; infinite where one route has a value and another
        none.
    disagreeing
        Pairs with a difference above the tolerance.
    disagreements
        The first of them, feature by feature.
    """

    pairs: int = 0
    known: int = 0
    rebuilt: int = 0
    largest: dict[str, float] = field(default_factory=dict)
    disagreeing: int = 0
    disagreements: list[Disagreement] = field(default_factory=list)

    @property
    def agrees(self) -> bool:
        """Whether nothing differs."""
        return self.disagreeing == 0

    def merge(self, other: FeatureParity) -> None:
        """Add what another check found."""
        self.pairs += other.pairs
        self.known += other.known
        self.rebuilt += other.rebuilt
        self.disagreeing += other.disagreeing
        for name, difference in other.largest.items():
            self.largest[name] = max(difference, self.largest.get(name, 0.0))
        self.disagreements += other.disagreements[: _SHOWN - len(self.disagreements)]

    def compare(
        self,
        key: str,
        at: datetime,
        columns: Sequence[str],
        routes: Mapping[str, Row],
        tolerance: float,
    ) -> bool:
        """Take in what the routes say of one arm at one moment; whether they agree."""
        agrees = True
        for place, name in enumerate(columns):
            values = {route: _known(row[place]) for route, row in routes.items()}
            difference = _spread(list(values.values()))
            self.largest[name] = max(difference, self.largest.get(name, 0.0))
            if difference > tolerance:
                agrees = False
                if len(self.disagreements) < _SHOWN:
                    self.disagreements.append(Disagreement(key, at, name, values))
        return agrees


def check_span(
    settings: Settings,
    store: FeatureStoreClient,
    start: datetime,
    end: datetime,
    pairs: int,
    seed: int,
    tolerance: float = TOLERANCE,
) -> FeatureParity:
    """Compare the three routes at random arms and moments.

    An arm whose parameters were changed in the settings without another model is another arm: the
    span should not reach back before such a change.

    Parameters
    ----------
    start, end
        With time zone.
    pairs
        How many to draw, evenly over the configured arms and the span; 1 or more.
    seed
        Of the draw.
    tolerance
        Largest absolute difference that counts as the same.

    Raises
    ------
    InvalidInput
        If the span is empty or no pair is asked for.
    Unavailable
        If the feature store can't be read.
    psycopg.OperationalError
        If the ledger can't be read.
    """
    if start >= end:
        raise InvalidInput("start", start.isoformat(), f"must be before the end, {end.isoformat()}")
    if pairs < 1:
        raise InvalidInput("pairs", pairs, "1 or more")
    draw = random.Random(seed)
    arms = [(point, model) for point in settings.decision_points for model in _models(point)]
    drawn: dict[str, list[tuple[str, datetime]]] = defaultdict(list)
    for _ in range(pairs):
        point, model = draw.choice(arms)
        drawn[point.name].append((model, start + draw.random() * (end - start)))
    found = FeatureParity()
    with psycopg.connect(settings.postgres_dsn(), connect_timeout=5) as connection:
        for point in settings.decision_points:
            if asked := drawn.get(point.name):
                found.merge(_check_point(connection, store, point, asked, tolerance))
    return found


def check_now(
    settings: Settings, store: FeatureStoreClient, tolerance: float = TOLERANCE
) -> FeatureParity:
    """Compare what is read online now with what Feast finds for the times of these values.

    It waits two seconds between both, since what is pushed is logged a little later.
    """
    online: list[tuple[str, str, datetime, Row]] = []
    for point in settings.decision_points:
        models = _models(point)
        for model, dated in store.read_dated(point.name, models).items():
            row = statistics_rows({model: dated.features})[model]
            at = datetime.fromtimestamp(dated.at_s, UTC)
            online.append(("arm_statistics", arm_key(point.name, model), at, row))
        for model, seen in store.read_windows(point.name, models).items():
            row = windows_rows({model: seen.features})[model]
            at = datetime.fromtimestamp(seen.at_s, UTC)
            online.append(("arm_windows", arm_key(point.name, model), at, row))
    found = FeatureParity(pairs=len(online), known=len(online))
    if not online:
        return found
    time.sleep(_SETTLE_S)
    looked = _history(store, [key for _, key, _, _ in online], [at for _, _, at, _ in online])
    for (view, key, at, row), history in zip(online, looked, strict=True):
        routes = {"online": row, "history": history[view]}
        found.disagreeing += not found.compare(key, at, _VIEWS[view], routes, tolerance)
    return found


def _check_point(
    connection: psycopg.Connection[tuple[object, ...]],
    store: FeatureStoreClient,
    point: DecisionPoint,
    asked: Sequence[tuple[str, datetime]],
    tolerance: float,
) -> FeatureParity:
    keys = [arm_key(point.name, model) for model, _ in asked]
    moments = [at for _, at in asked]
    pushed = {view: list(pushed_as_of(connection, view, keys, moments, _TTL_S)) for view in _VIEWS}
    wanted = {
        (one.position, one.at, model)
        for rows in pushed.values()
        for one, (model, _) in zip(rows, asked, strict=True)
        if one is not None and one.position is not None
    }
    rebuilt = dict(_rebuild(connection, point, wanted))
    found = FeatureParity(pairs=len(asked))
    for place, history in enumerate(_history(store, keys, moments)):
        agrees, known = True, False
        for view, columns in _VIEWS.items():
            row = pushed[view][place]
            routes = {
                "pushed": (None,) * len(columns) if row is None else row.values,
                "history": history[view],
            }
            if row is not None and row.position is not None:
                made = rebuilt.get((row.position, row.at, asked[place][0]))
                if made is not None:
                    routes["rebuilt"] = made[view]
                    found.rebuilt += 1
            known = known or row is not None
            agrees &= found.compare(keys[place], moments[place], columns, routes, tolerance)
        found.known += known
        found.disagreeing += not agrees
    return found


_Name = tuple[int, datetime, str]
"""Position, time and model."""


def _rebuild(
    connection: psycopg.Connection[tuple[object, ...]],
    point: DecisionPoint,
    wanted: Iterable[_Name],
) -> Iterator[tuple[_Name, dict[str, Row]]]:
    """Features by view, from the ledger alone."""
    ordered = sorted(wanted)
    if not ordered:
        return
    oldest = min(at for _, at, _ in ordered)
    since = oldest - timedelta(seconds=STATISTICS_SPAN_S)
    first = first_position(connection, point.name, since)
    complete_from = _complete_from(connection, point.name)
    models = {arm.id: arm.model for arm in point.records()}
    statistics, windows = ArmStatistics(), ArmWindows()
    rows: list[ledger.LedgerRow] = []
    at_row, read_to = 0, ordered[-1][0] if first is None else first - 1
    for name in ordered:
        position, at, model = name
        while True:
            start = at_row
            while at_row < len(rows) and rows[at_row].position <= position:
                at_row += 1
            fold_arms(models, rows[start:at_row], statistics, windows)
            if at_row < len(rows) or read_to >= position:
                break
            rows, at_row = ledger.read(connection, point.name, read_to, _BATCH), 0
            if not rows:
                break
            read_to = rows[-1].position
        if complete_from is not None and at < complete_from:
            continue
        at_s = at.timestamp()
        features = statistics.values(at_s).get(model, ArmFeatures())
        yield (
            name,
            {
                "arm_statistics": statistics_rows({model: features})[model],
                "arm_windows": windows_rows(windows.values([model], at_s))[model],
            },
        )


def _complete_from(
    connection: psycopg.Connection[tuple[object, ...]], decision_point: str
) -> datetime | None:
    """Since when all that matters is still in the ledger; None if nothing was ever removed."""
    row = connection.execute(
        "SELECT position, received_at FROM rewards WHERE decision_point = %s "
        "ORDER BY position LIMIT 1",
        (decision_point,),
    ).fetchone()
    if row is None or row[0] == 1:
        return None
    received_at = row[1]
    assert isinstance(received_at, datetime)
    return received_at + timedelta(seconds=STATISTICS_SPAN_S)


def _history(
    store: FeatureStoreClient, keys: Sequence[str], moments: Sequence[datetime]
) -> Iterator[dict[str, Row]]:
    frame = store.arm_history(
        pd.DataFrame({"arm_key": list(keys), "event_timestamp": list(moments)})
    )
    parts = [
        frame[[f"{view}__{name}" for name in columns]].itertuples(index=False, name=None)
        for view, columns in _VIEWS.items()
    ]
    for rows in zip(*parts, strict=True):
        yield dict(zip(_VIEWS, rows, strict=True))


def _models(point: DecisionPoint) -> list[str]:
    return list(dict.fromkeys(arm.model for arm in point.arms))


def _known(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


def _spread(values: Sequence[float | None]) -> float:
    there = [value for value in values if value is not None]
    if not there:
        return 0.0
    return max(there) - min(there) if len(there) == len(values) else math.inf
