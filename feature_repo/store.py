"""The one client of the feature store: the arms' recent statistics and windows.

They are online in Valkey and logged in PostgreSQL. Feast keeps its registry and the logged rows in
the schema ``feast`` of the platform's database. Once a client has read the registry it needs
PostgreSQL only to log and to look back: `push` and `read` go to Valkey alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock

import pandas as pd
import psycopg
from feast import FeatureStore, RepoConfig
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
    arm_statistics,
    arm_statistics_push,
    arm_windows,
    arm_windows_push,
    decision_v1,
    request,
)
from feature_repo.tables import table_sql
from feature_repo.windows import WindowFeatures
from optimizer.arm_traits import ArmTraits
from optimizer.errors import Unavailable
from optimizer.settings import Settings

__all__ = ["FeatureStoreClient"]

_REFERENCES = [f"{arm_statistics.name}:{name}" for name in STATISTICS_COLUMNS]

_CONNECT_TIMEOUT_S = 5
_REGISTRY = "the feature store's registry"

_APPLY_LOCK = 0x6C6C6D6F66737430
"""Any number that no other user of PostgreSQL's advisory locks in this database takes."""

_TABLE = f"""
CREATE SCHEMA IF NOT EXISTS {SCHEMA};
CREATE TABLE IF NOT EXISTS {SCHEMA}.arm_statistics (
    arm_key text NOT NULL,
    event_timestamp timestamptz NOT NULL,
    created_at timestamptz NOT NULL,
    quality double precision,
    cost_usd double precision,
    latency_s double precision,
    error_rate double precision,
    count double precision NOT NULL
);
CREATE INDEX IF NOT EXISTS arm_statistics_arm_time
    ON {SCHEMA}.arm_statistics (arm_key, event_timestamp);
{table_sql(SCHEMA, "arm_windows")}
{table_sql(SCHEMA, "model_facts")}
"""


class FeatureStoreClient:
    """Writes and reads the arms' recent statistics.

    Nothing is connected until it is needed. Every method raises `optimizer.errors.Unavailable`,
    naming "PostgreSQL" or "Valkey", when that server can't be reached, or the registry, when no
    process has called `apply` yet.

    Parameters
    ----------
    settings
        Say where the servers are.
    """

    def __init__(self, settings: Settings) -> None:
        self._dsn = settings.postgres_dsn()
        self._config: RepoConfig = repo_config(self._dsn, settings.valkey_address)
        self._store: FeatureStore | None = None
        self._opening = Lock()

    def apply(self) -> None:
        """Create the table and register the definitions; safe to repeat, and from two processes."""
        with (
            _naming_who_is_away(),
            psycopg.connect(
                self._dsn, autocommit=True, connect_timeout=_CONNECT_TIMEOUT_S
            ) as connection,
        ):
            connection.execute("SELECT pg_advisory_lock(%s)", [_APPLY_LOCK])
            connection.execute(_TABLE)
            self.close()
            self._store = FeatureStore(config=self._config)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "On demand feature view is an experimental")
                self._store.apply(OBJECTS)
            self._store.refresh_registry()

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
        if not values:
            return
        rows = statistics_rows(values)
        self._push(arm_statistics_push.name, STATISTICS_COLUMNS, decision_point, rows, at_s)

    def push_windows(
        self, decision_point: str, values: Mapping[str, Mapping[int, WindowFeatures]], at_s: float
    ) -> None:
        """Make windows, by model and minutes, the current ones; arguments as in `push`."""
        if values:
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
        return {model: Dated(statistics_of(row), at_s) for model, (row, at_s) in found.items()}

    def read_windows(
        self, decision_point: str, models: Sequence[str]
    ) -> dict[str, Dated[dict[int, WindowFeatures]]]:
        """The current windows, by minutes, of models that have any no older than an hour."""
        found = self._read(arm_windows.name, WINDOWS_COLUMNS, decision_point, models)
        return {model: Dated(windows_of(row), at_s) for model, (row, at_s) in found.items()}

    def log(self, decision_point: str, values: Mapping[str, ArmFeatures], at_s: float) -> None:
        """Append statistics to the table that `history` looks back into; arguments as in `push`."""
        rows = statistics_rows(values)
        self._log("arm_statistics", STATISTICS_COLUMNS, decision_point, rows, at_s)

    def log_windows(
        self, decision_point: str, values: Mapping[str, Mapping[int, WindowFeatures]], at_s: float
    ) -> None:
        """Append windows to their table; arguments as in `push_windows`."""
        rows = windows_rows(values)
        self._log("arm_windows", WINDOWS_COLUMNS, decision_point, rows, at_s)

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

    def _push(
        self,
        source: str,
        columns: Sequence[str],
        decision_point: str,
        rows: Mapping[str, Row],
        at_s: float,
    ) -> None:
        frame = pd.DataFrame(
            keyed(decision_point, rows, at_s), columns=[*KEY_COLUMNS, *columns]
        ).astype(dict.fromkeys(columns, "float64"))
        with self._opened() as store:
            store.push(source, frame)

    def _read(
        self, view: str, columns: Sequence[str], decision_point: str, models: Sequence[str]
    ) -> dict[str, tuple[Row, float]]:
        """Values and their time, of the models that have any."""
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
        rows = zip(*(found[name] for name in columns), strict=True)
        return {
            model: (row, at.ToMicroseconds() / 1e6)
            for model, row, at in zip(models, rows, times, strict=True)
            if any(value is not None for value in row)
        }

    def _log(
        self,
        table: str,
        columns: Sequence[str],
        decision_point: str,
        rows: Mapping[str, Row],
        at_s: float,
    ) -> None:
        if not rows:
            return
        copy = f"COPY {SCHEMA}.{table} ({', '.join([*KEY_COLUMNS, *columns])}) FROM STDIN"
        with (
            _naming_who_is_away(),
            psycopg.connect(self._dsn, connect_timeout=_CONNECT_TIMEOUT_S) as connection,
            connection.cursor().copy(copy) as lines,
        ):
            for row in keyed(decision_point, rows, at_s):
                lines.write_row(row)

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
        frame = model_facts.frame(decision_point, models, at_s)
        with self._opened() as store:
            model_facts.write(store, self._dsn if log else None, frame)

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
