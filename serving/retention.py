"""Old weeks of the decision log, the ledger and facts about responses: to parquet files, then away.

A decision's line goes before its rewards, or a decision whose rewards are gone would look like one
that never got any, and be given the default. Rewards that a policy in force has not learned stay:
a learner that starts again ends in the same state, with or without the weeks that are gone. A
policy that is new starts at the beginning of what is kept.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
from psycopg import sql

from feature_repo.archive import Retired, retire
from feature_repo.partitions import Partition, partitions
from optimizer.errors import UnknownName
from optimizer.settings import Settings
from serving import plans
from serving.dead_letters import drop_letters
from serving.ledger import create_tables

__all__ = ["Held", "RetentionReport", "learned", "retire_ledger"]

_LOG = logging.getLogger(__name__)
_SLACK = timedelta(hours=1)
"""For rewards that replicas have just taken, and for clocks that differ."""


class Held(NamedTuple):
    """A week of rewards that must stay, and the policy that has not learned all of it.

    Attributes
    ----------
    learned
        Up to this position, by its checkpoint.
    holds
        The last position of the decision point in that week.
    """

    partition: str
    decision_point: str
    variant: str
    learned: int
    holds: int


class RetentionReport(NamedTuple):
    """What `retire_ledger` did.

    Attributes
    ----------
    decisions, rewards, responses
        Weeks that were dropped, each with its file.
    held
        Weeks of rewards that are over and stayed.
    letters
        How many dead letters were dropped.
    """

    decisions: tuple[Retired, ...]
    rewards: tuple[Retired, ...]
    responses: tuple[Retired, ...]
    held: tuple[Held, ...]
    letters: int


def retire_ledger(settings: Settings, now_s: float, folder: Path | None) -> RetentionReport:
    """Drop what is older than the settings' retention, each week after its export was checked.

    Idempotent; of two at once one waits; killed at any moment, the next ends in the same.

    Parameters
    ----------
    settings
        `retention` says how long what is kept: rewards never shorter than decisions.
    now_s
        Unix time in seconds.
    folder
        Where the parquet files go; None drops without a copy.

    Raises
    ------
    Unavailable
        If somebody holds a table locked; what was retired until then stays so.
    psycopg.Error
        If PostgreSQL is away.
    """
    days = settings.retention
    now = datetime.fromtimestamp(now_s, UTC) - _SLACK
    decisions_end = now - timedelta(days=days.decisions_days)
    rewards_end = now - timedelta(days=days.ledger_days)
    # Without the time limits of a replica's connection: an export takes minutes.
    with psycopg.connect(settings.postgres_dsn(), autocommit=True) as connection:
        create_tables(connection)
        decisions = retire(connection, "decisions", decisions_end, folder)
        # Nobody reads the facts about a response without its decision.
        responses = retire(connection, "response_facts", decisions_end, folder)
        rewards_end = min([rewards_end, *_first_logged(connection)])
        held: dict[str, Held] = {}

        def needed(partition: Partition) -> bool:
            found = _unlearned(connection, settings, partition)
            if found is not None:
                held[partition.name] = found
            return found is not None

        rewards = retire(connection, "rewards", rewards_end, folder, needed)
        letters = drop_letters(connection, now - timedelta(days=days.rewards_days))
    for one in held.values():
        _LOG.warning(
            "%s stays: variant %s of %s has learned up to %d of %d",
            *(one.partition, one.variant, one.decision_point, one.learned, one.holds),
        )
    return RetentionReport(
        tuple(decisions), tuple(rewards), tuple(responses), tuple(held.values()), letters
    )


def learned(connection: psycopg.Connection[Any], decision_point: str) -> dict[str, int]:
    """The checkpoints of the policies that the plan in force names, by variant; 0 without one."""
    try:
        plan = plans.current(connection, decision_point)
    except UnknownName:
        return {"(none)": 0}  # it has rewards, and whoever is to learn them has not started yet
    rows = connection.execute(
        "SELECT variant, position FROM policy_checkpoints WHERE decision_point = %s",
        (decision_point,),
    ).fetchall()
    found: dict[str, int] = dict(rows)
    return {ref.variant: found.get(ref.variant, 0) for ref in plan.refs()}


def _first_logged(connection: psycopg.Connection[Any]) -> list[datetime]:
    """Where the kept decision log begins, if it has an end on that side."""
    kept = [one for one in partitions(connection, "decisions") if not one.default]
    if not kept:
        return []
    first = kept[0].low
    return [datetime.min.replace(tzinfo=UTC) if first is None else first]


def _unlearned(
    connection: psycopg.Connection[Any], settings: Settings, partition: Partition
) -> Held | None:
    """The first policy in force that has not learned all of a week, if there is one."""
    # Of decision points that are no longer configured, nobody learns.
    names = [point.name for point in settings.decision_points]
    query = sql.SQL(
        "SELECT decision_point, max(position) FROM {} WHERE decision_point = ANY({}) "
        "GROUP BY 1 ORDER BY 1"
    ).format(partition.identifier, names)
    for name, last in connection.execute(query).fetchall():
        for variant, position in learned(connection, name).items():
            if position < last:
                return Held(partition.name, name, variant, position, last)
    return None
