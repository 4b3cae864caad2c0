"""Feast's PostgreSQL offline store with a point-in-time join whose work grows with its answer.

Feast's own statement pairs each moment that is asked for with every row of the time to live before
it and then looks for the newest. Where arms are pushed several times a second that is ten thousand
rows a moment. This one asks the index for the newest row of each moment and reads nothing else.
What the answer is, is not changed; a test compares both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import pandas as pd
from feast import FeatureView, OnDemandFeatureView, RepoConfig
from feast.infra.offline_stores import offline_utils
from feast.infra.offline_stores.contrib.postgres_offline_store.postgres import (
    PostgreSQLOfflineStore,
    PostgreSQLOfflineStoreConfig,
    PostgreSQLRetrievalJob,
)
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
from feast.infra.registry.base_registry import BaseRegistry
from feast.infra.utils.postgres.connection_utils import _df_to_create_table_sql, _get_conn
from psycopg import sql

__all__ = ["AsOfPostgreSQLOfflineStore", "AsOfPostgreSQLOfflineStoreConfig"]


class AsOfPostgreSQLOfflineStoreConfig(PostgreSQLOfflineStoreConfig):  # type: ignore[misc]
    """As of Feast's own."""

    type: Literal["feature_repo.offline_store.AsOfPostgreSQLOfflineStore"] = (
        "feature_repo.offline_store.AsOfPostgreSQLOfflineStore"
    )


class AsOfPostgreSQLOfflineStore(PostgreSQLOfflineStore):  # type: ignore[misc]
    """Looks back by index; everything else is Feast's own."""

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | str | None,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        **more: Any,
    ) -> RetrievalJob:
        """As Feast says; a frame of entities is joined here, what else may be given by Feast."""
        if not isinstance(entity_df, pd.DataFrame) or any(more.values()):
            return PostgreSQLOfflineStore.get_historical_features(
                config, feature_views, feature_refs, entity_df, registry, project,
                full_feature_names, **more,
            )  # fmt: skip
        schema = dict(zip(entity_df.columns, entity_df.dtypes, strict=True))
        moment = offline_utils.infer_event_timestamp_from_entity_df(schema)
        keys = offline_utils.get_expected_join_keys(project, feature_views, registry)
        offline_utils.assert_expected_columns_in_entity_df(schema, keys, moment)
        span = (entity_df[moment].min(), entity_df[moment].max())
        views = offline_utils.get_feature_view_query_context(
            feature_refs, feature_views, registry, project, span
        )

        @contextmanager
        def statement() -> Iterator[str]:
            table = offline_utils.get_temp_entity_table_name()
            _upload(config, entity_df, table)
            try:
                yield _as_of(table, list(schema), moment, views, full_feature_names)
            finally:
                with _get_conn(config.offline_store) as connection:
                    connection.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(table)))

        return PostgreSQLRetrievalJob(
            query=statement,
            config=config,
            full_feature_names=full_feature_names,
            on_demand_feature_views=OnDemandFeatureView.get_requested_odfvs(
                feature_refs, project, registry
            ),
            metadata=RetrievalMetadata(
                features=feature_refs,
                keys=[name for name in schema if name != moment],
                min_event_timestamp=span[0],
                max_event_timestamp=span[1],
            ),
        )


def _upload(config: RepoConfig, frame: pd.DataFrame, table: str) -> None:
    columns = sql.SQL(", ").join(map(sql.Identifier, frame.columns))
    copy = sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(table), columns)
    values = frame.astype(object).where(frame.notna(), None)
    with _get_conn(config.offline_store) as connection, connection.cursor() as cursor:
        cursor.execute(_df_to_create_table_sql(frame.reset_index(drop=True), table))
        with cursor.copy(copy) as lines:
            for row in values.itertuples(index=False, name=None):
                lines.write_row(row)
        cursor.execute(sql.SQL("ANALYZE {}").format(sql.Identifier(table)))


def _as_of(
    table: str,
    columns: Sequence[str],
    moment: str,
    views: Sequence[offline_utils.FeatureViewQueryContext],
    full_names: bool,
) -> str:
    """The statement: for each row of the table, the newest row of each view no later than it."""
    selected = [f'asked."{name}"' for name in columns]
    joins = []
    for number, view in enumerate(views):
        found, at = f"view_{number}", f'log."{view.timestamp_field}"'
        selected += [f'{found}."{name}"' for name in _names(view, full_names).values()]
        inner = ", ".join(
            f'log."{column}" AS "{name}"' for column, name in _names(view, full_names).items()
        )
        conditions = [f'{at} <= asked."{moment}"']
        if view.ttl:
            conditions.append(f"{at} >= asked.\"{moment}\" - interval '{view.ttl} seconds'")
        for selection in view.entity_selections:
            column, _, key = selection.partition(" AS ")
            conditions.append(f'log."{column}" = asked."{key}"')
        order = [f"{at} DESC"]
        if view.created_timestamp_column:
            order.append(f'log."{view.created_timestamp_column}" DESC')
        joins.append(
            f"LEFT JOIN LATERAL (SELECT {inner} FROM {view.table_subquery} AS log WHERE "  # noqa: S608
            f"{' AND '.join(conditions)} ORDER BY {', '.join(order)} LIMIT 1) AS {found} ON true"
        )
    return f'SELECT {", ".join(selected)} FROM "{table}" AS asked {" ".join(joins)}'  # noqa: S608


def _names(view: offline_utils.FeatureViewQueryContext, full_names: bool) -> Mapping[str, str]:
    """What each column of a view is called in the answer."""
    prefix = f"{view.name}__" if full_names else ""
    return {column: prefix + view.field_mapping.get(column, column) for column in view.features}
