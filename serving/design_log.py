"""Reads what a new experiment is planned from: the decisions of a span, in today's features."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import psycopg

from optimizer.errors import Unavailable
from optimizer.feature_schema import Translations
from optimizer.offpolicy.logged import LoggedDecisions
from optimizer.settings import DecisionPoint, Settings
from serving.feature_schemas import known_schemas
from serving.ledger import create_tables
from serving.live_point import make_encoder
from serving.logged import read_log
from serving.reward_writer import connect

if TYPE_CHECKING:
    from feature_repo.embedding import Embedder

__all__ = ["read_decisions"]


def read_decisions(
    settings: Settings,
    point: DecisionPoint,
    arm_names: tuple[str, ...],
    embedder: Embedder,
    start: datetime,
    end: datetime,
) -> LoggedDecisions | None:
    """The decisions of a decision point that were drawn at random; None where there is none.

    Parameters
    ----------
    arm_names
        Of its arms, in their order.
    start, end
        With time zone; the end is not included.

    Raises
    ------
    Unavailable
        If PostgreSQL is away.
    """
    schema = make_encoder(point, embedder).schema
    try:
        with connect(settings.postgres_dsn()) as connection:
            create_tables(connection)
            layouts = Translations(schema, known_schemas(connection, point.name).values())
            return read_log(
                connection, point.name, point.records(), arm_names, layouts, start, end
            ).decisions
    except psycopg.OperationalError as error:
        raise Unavailable("PostgreSQL") from error
