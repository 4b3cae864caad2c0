"""The one client of the feature store: the arms' recent statistics and windows.

They are online in Valkey and logged in PostgreSQL. Feast keeps its registry and the logged rows in
the schema ``feast`` of the platform's database. Once a client has read the registry it needs
PostgreSQL only to log and to look back: `push` and `read` go to Valkey alone.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from threading import Lock

import pandas as pd
import psycopg
from feast import FeatureService, FeatureStore, RepoConfig
from feast.errors import FeastObjectNotFoundException
from redis.exceptions import ConnectionError as ValkeyConnectionError
from redis.exceptions import TimeoutError as ValkeyTimeoutError
from sqlalchemy.exc import InterfaceError, OperationalError

from feature_repo import (
    model_facts,
    quick_feast,  # noqa: F401  (first, see there)
)
from feature_repo.aggregates import ArmFeatures
from feature_repo.arm_rows import (
    KEY_COLUMNS,
    STATISTICS_COLUMNS,
    WINDOWS_COLUMNS,
    Dated,
    Row,
    arm_key,
    keyed,
    statistics_of,
    statistics_rows,
    windows_of,
    windows_rows,
)
from feature_repo.connections import SCHEMA, repo_config
from feature_repo.definitions import (
    OBJECTS,
    STATISTICS_TTL_S,
    arm_statistics,
    arm_statistics_push,
    arm_windows,
    arm_windows_push,
    decision_v1,
    request,
)
from feature_repo.definitions import model_facts as model_facts_view
from feature_repo.push_log import PushedRows, write_pushed
from feature_repo.ranges import clipped
from feature_repo.report import FeatureReport
from feature_repo.service_guard import check_promises
from feature_repo.tables import create_tables, ensure_days
from feature_repo.windows import WindowFeatures
from optimizer.arm_traits import ArmTraits
from optimizer.errors import Unavailable
from optimizer.settings import Settings

__all__ = ["FeatureStoreClient"]

_REFERENCES = [f"{arm_statistics.name}:{name}" for name in STATISTICS_COLUMNS]

_CONNECT_TIMEOUT_S = 5
FACTS_SPAN_S = 7 * 86_400
"""How far back facts of models are looked for; they are written each half hour."""
_REGISTRY = "the feature store's registry"

_SERVICES = [one for one in OBJECTS if isinstance(one, FeatureService)]

_APPLY_LOCK = 0x6C6C6D6F66737430
"""Any number that no other user of PostgreSQL's advisory locks in this database takes."""

_PREPARE_EVERY_S = 3600.0


class FeatureStoreClient:
    """Writes and reads the arms' recent statistics.

    Nothing is connected until it is needed. Every method raises `optimizer.errors.Unavailable`,
    naming "PostgreSQL" or "Valkey", when that server can't be reached, or the registry, when no
    process has called `apply` yet.

    Parameters
    ----------
    settings
        Say where the servers are.

    Attributes
    ----------
    report
        Of what this client has pushed and logged, and of the values that were out of range then:
        they are clipped on the way in, and once more on the way out, since others write too.
    """

    def __init__(self, settings: Settings) -> None:
        self._dsn = settings.postgres_dsn()
        self._config: RepoConfig = repo_config(self._dsn, settings.valkey_address)
        self._store: FeatureStore | None = None
        self._opening = Lock()
        self._prepared_s = -math.inf
        self.report = FeatureReport()

    def apply(self) -> None:
        """Create tables and register the definitions; safe to repeat, and from two processes.

        Raises
        ------
        InvalidInput
            If a registered feature service would lose a feature; nothing is changed then.
        """
        with (
            _naming_who_is_away(),
            psycopg.connect(
                self._dsn, autocommit=True, connect_timeout=_CONNECT_TIMEOUT_S
            ) as connection,
        ):
            connection.execute("SELECT pg_advisory_lock(%s)", [_APPLY_LOCK])
            create_tables(connection, SCHEMA, datetime.now(UTC))
            self.close()
            self._store = FeatureStore(config=self._config)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "On demand feature view is an experimental")
                check_promises(self._store, _SERVICES)
                self._store.apply(OBJECTS)
            self._store.refresh_registry()

    def prepare(self, now_s: float) -> None:
        """Make the offline tables' partitions ahead of time; at most once an hour, else nothing.

        Parameters
        ----------
        now_s
            Unix time in seconds.
        """
        if now_s - self._prepared_s < _PREPARE_EVERY_S:
            return
        with (
            _naming_who_is_away(),
            psycopg.connect(
                self._dsn, autocommit=True, connect_timeout=_CONNECT_TIMEOUT_S
            ) as connection,
        ):
            ensure_days(connection, SCHEMA, datetime.fromtimestamp(now_s, UTC))
        self._prepared_s = now_s

    def push(self, decision_point: str, values: Mapping[str, ArmFeatures], at_s: float) -> None:
        """Make statistics the current ones of a decision point.

        Parameters
        ----------
        decision_point
            Its name.
        values
            Statistics by model.
        at_s
            When they were true, Unix time in seconds. Values not newer than those that are there
            change nothing.
        """
        rows = statistics_rows(values)
        self._push(arm_statistics_push.name, STATISTICS_COLUMNS, decision_point, rows, at_s)

    def push_windows(
        self, decision_point: str, values: Mapping[str, Mapping[int, WindowFeatures]], at_s: float
    ) -> None:
        """Make windows, by model and minutes, the current ones; arguments as in `push`."""
        rows = windows_rows(values)
        self._push(arm_windows_push.name, WINDOWS_COLUMNS, decision_point, rows, at_s)

    def read(self, decision_point: str, models: Sequence[str]) -> dict[str, ArmFeatures]:
        """The current statistics of those models that have any no older than an hour."""
        found = self.read_dated(decision_point, models)
        return {model: dated.features for model, dated in found.items()}

    def read_dated(
        self, decision_point: str, models: Sequence[str]
    ) -> dict[str, Dated[ArmFeatures]]:
        """As `read`, with the times of the values."""
        found = self._read(arm_statistics.name, STATISTICS_COLUMNS, decision_point, models)
        return {
            model: Dated(statistics_of(row), at_s, violations)
            for model, (row, at_s, violations) in found.items()
        }

    def read_windows(
        self, decision_point: str, models: Sequence[str]
    ) -> dict[str, Dated[dict[int, WindowFeatures]]]:
        """The current windows, by minutes, of models that have any no older than an hour."""
        found = self._read(arm_windows.name, WINDOWS_COLUMNS, decision_point, models)
        return {
            model: Dated(windows_of(row), at_s, violations)
            for model, (row, at_s, violations) in found.items()
        }

    def log(self, decision_point: str, values: Mapping[str, ArmFeatures], at_s: float) -> None:
        """Append statistics to the table that `history` looks back into; arguments as in `push`."""
        self._log([PushedRows.of_statistics(decision_point, values, at_s)])
        self.report.log("arm_statistics", decision_point, at_s)

    def log_windows(
        self, decision_point: str, values: Mapping[str, Mapping[int, WindowFeatures]], at_s: float
    ) -> None:
        """Append windows to their table; arguments as in `push_windows`."""
        self._log([PushedRows.of_windows(decision_point, values, at_s)])
        self.report.log("arm_windows", decision_point, at_s)

    def history(self, entity_frame: pd.DataFrame) -> pd.DataFrame:
        """What was known at given moments: a point-in-time join, an hour back at most.

        Parameters
        ----------
        entity_frame
            Columns ``arm_key`` ("<decision point>/<model>") and ``event_timestamp`` (with time
            zone); with the columns of the request source too, request features are added.

        Returns
        -------
        The frame with the statistics' columns, NaN where nothing was known; in any order of rows.
        """
        # PostgreSQL keeps microseconds, pandas more.
        moments = pd.to_datetime(entity_frame["event_timestamp"], utc=True).dt.floor("us")
        whole = {field.name for field in request.schema} <= set(entity_frame.columns)
        with self._opened() as store:
            features = store.get_feature_service(decision_v1.name) if whole else _REFERENCES
            joined: pd.DataFrame = store.get_historical_features(
                entity_df=entity_frame.assign(event_timestamp=moments), features=features
            ).to_df()
        return joined

    def arm_history(self, moments: pd.DataFrame) -> pd.DataFrame:
        """Statistics and windows of arms as they were online at given moments.

        Parameters
        ----------
        moments
            Columns ``arm_key`` and ``event_timestamp`` as in `history`, and others that stay.

        Returns
        -------
        The rows, in their order, with a column ``<view>__<feature>`` for each feature of
        ``arm_statistics`` and ``arm_windows``; NaN where nothing was known.
        """
        names = [f"{arm_statistics.name}:{name}" for name in STATISTICS_COLUMNS]
        names += [f"{arm_windows.name}:{name}" for name in WINDOWS_COLUMNS]
        columns = [name.replace(":", "__") for name in names]
        if moments.empty:  # Feast reads the types of keys from their values
            nothing = pd.DataFrame(columns=columns, index=moments.index, dtype=float)
            return pd.concat([moments, nothing], axis=1)
        at = pd.to_datetime(moments["event_timestamp"], utc=True).dt.floor("us")
        asked = pd.DataFrame(
            {
                "arm_key": moments["arm_key"].to_numpy(),
                "event_timestamp": at.array,
                "place": range(len(moments)),
            }
        )
        with self._opened() as store:
            found: pd.DataFrame = store.get_historical_features(
                entity_df=asked, features=names, full_feature_names=True
            ).to_df()
        found = found.sort_values("place")[columns].astype(float).set_index(moments.index)
        joined: pd.DataFrame = pd.concat([moments, found], axis=1)
        return joined

    def restore(self, decision_point: str, models: Sequence[str], now: datetime) -> list[str]:
        """Bring back online what Valkey has lost, out of the offline tables.

        A view of which each model has something online is left alone. Of the others Feast writes
        the newest row of every arm, and no row over a newer one.

        Parameters
        ----------
        decision_point
            Its name.
        models
            Those that are configured.
        now
            With time zone. Statistics and windows older than an hour stay away.

        Returns
        -------
        Names of the views that were written.
        """
        columns = {
            arm_statistics.name: STATISTICS_COLUMNS,
            arm_windows.name: WINDOWS_COLUMNS,
            model_facts_view.name: model_facts.MODEL_FACTS_COLUMNS,
        }
        lost = [
            view
            for view, names in columns.items()
            if len(self._read(view, names, decision_point, models)) < len(models)
        ]
        for view in lost:
            span_s = FACTS_SPAN_S if view == model_facts_view.name else STATISTICS_TTL_S
            with self._opened() as store:
                store.materialize(now - timedelta(seconds=span_s), now, feature_views=[view])
        return lost

    def _push(
        self,
        source: str,
        columns: Sequence[str],
        decision_point: str,
        rows: Mapping[str, Row],
        at_s: float,
    ) -> None:
        view = source.removesuffix("_push")
        rows, violations = clipped(columns, rows)
        names = (name for all_ in violations.values() for name in all_)
        self.report.violate(view, decision_point, names, time.time())
        if rows:
            frame = pd.DataFrame(
                keyed(decision_point, rows, at_s), columns=[*KEY_COLUMNS, *columns]
            ).astype(dict.fromkeys(columns, "float64"))
            with self._opened() as store:
                # `push` would read every feature service anew, for most of its time, to see
                # whether one of them is computed beforehand; none is.
                store.write_to_online_store(view, frame)
        self.report.push(view, decision_point, at_s, len(rows))

    def _read(
        self, view: str, columns: Sequence[str], decision_point: str, models: Sequence[str]
    ) -> dict[str, tuple[Row, float, tuple[str, ...]]]:
        """Values, their time and what was out of range, of the models that have any."""
        if not models:
            return {}
        keys = [{"arm_key": arm_key(decision_point, model)} for model in models]
        references = [f"{view}:{name}" for name in columns]
        with self._opened() as store:
            answer = store.get_online_features(features=references, entity_rows=keys)
        found = answer.to_dict()
        # In its protobuf, since the answer's own dictionary has whole seconds.
        names = list(answer.proto.metadata.feature_names.val)
        times = answer.proto.results[names.index(columns[0])].event_timestamps
        read = dict(zip(models, zip(*(found[name] for name in columns), strict=True), strict=True))
        rows, violations = clipped(columns, read)
        return {
            model: (rows[model], at.ToMicroseconds() / 1e6, violations.get(model, ()))
            for model, at in zip(models, times, strict=True)
            if any(value is not None for value in read[model])
        }

    def _log(self, pushed: Sequence[PushedRows]) -> None:
        with (
            _naming_who_is_away(),
            psycopg.connect(self._dsn, connect_timeout=_CONNECT_TIMEOUT_S) as connection,
        ):
            write_pushed(connection, pushed)

    def push_model_facts(
        self,
        decision_point: str,
        models: Mapping[str, ArmTraits],
        at_s: float,
        log: bool = True,
    ) -> None:
        """Write what is known of models beforehand; again within the hour, or Valkey drops it.

        Without ``log`` they go to Valkey alone.
        """
        rows = model_facts.frame(decision_point, models, at_s)
        self.report.violate("model_facts", decision_point, rows.attrs["violations"], time.time())
        with self._opened() as store:
            model_facts.write(store, self._dsn if log else None, rows)
        self.report.push("model_facts", decision_point, at_s, len(rows))
        if log:
            self.report.log("model_facts", decision_point, at_s)

    def close(self) -> None:
        """Drop the registry that was read, and its connections; the next use reads it anew."""
        store, self._store = self._store, None
        if store is not None:
            store.registry.write_engine.dispose()
            client = store.provider.online_store._client  # Feast itself never closes it
            if client is not None:
                client.close()

    @contextmanager
    def _opened(self) -> Iterator[FeatureStore]:
        with _naming_who_is_away(), self._opening:
            store = self._store or self._connect()
            self._store = store
        with _naming_who_is_away():
            try:
                yield store
            except FeastObjectNotFoundException:
                # The registry was read while another process was still applying.
                self.close()
                raise Unavailable(_REGISTRY) from None

    def _connect(self) -> FeatureStore:
        with psycopg.connect(
            self._dsn, autocommit=True, connect_timeout=_CONNECT_TIMEOUT_S
        ) as connection:
            # Feast makes its tables when it is opened, which fails if `apply` makes them meanwhile.
            connection.execute("SELECT pg_advisory_lock_shared(%s)", [_APPLY_LOCK])
            table = connection.execute("SELECT to_regclass(%s)", [f"{SCHEMA}.arm_statistics"])
            if table.fetchone() == (None,):
                raise Unavailable(_REGISTRY)
            return FeatureStore(config=self._config)


@contextmanager
def _naming_who_is_away() -> Iterator[None]:
    try:
        yield
    except (ValkeyConnectionError, ValkeyTimeoutError) as error:
        raise Unavailable("Valkey") from error
    except (
        psycopg.OperationalError,
        psycopg.InterfaceError,
        OperationalError,
        InterfaceError,
    ) as error:
        raise Unavailable("PostgreSQL") from error
