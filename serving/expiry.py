"""What grows with time in PostgreSQL, table by table: what is over, and how it goes.

Each function can be repeated, run twice at once, or be killed: the next ends in the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg

from feature_repo.archive import retire
from feature_repo.partitions import Partition, partitions
from feature_repo.tables import BY_DAY, SCHEMA
from optimizer.settings import Settings
from serving import audit, variants
from serving.dead_letters import count_letters
from serving.ledger import create_tables
from serving.retention import retire_ledger

__all__ = ["Expired", "drop_expired", "export_folder"]


@dataclass(frozen=True, slots=True)
class Expired:
    """Something whose time is over.

    Attributes
    ----------
    kind
        ``features``, ``ledger``, ``audit``, ``letters``, ``pinned``, ``reports`` or ``runs``.
    name
        The partition, the table, or where it was.
    count
        How many rows or runs, for partitions as PostgreSQL last estimated; None if it never did.
    bytes
        On disk with indexes; None where nobody knows.
    file
        Where a copy is now.
    kept_because
        Why it is still there; empty if it is gone, or would be without ``dry_run``.
    """

    kind: str
    name: str
    count: int | None
    bytes: int | None = None
    file: str | None = None
    kept_because: str = ""


def export_folder(settings: Settings) -> Path | None:
    """Where copies go; a relative folder is in `home`, wherever a process was started."""
    folder = settings.retention.export_folder
    return None if folder is None else settings.home / folder


def drop_features(settings: Settings, now: datetime, dry_run: bool) -> list[Expired]:
    """Days of the arms' statistics and windows."""
    before = now - timedelta(days=settings.retention.features_days)
    found = []
    with _connected(settings) as connection:
        for view in BY_DAY:
            table = f"{SCHEMA}.{view}"
            if connection.execute("SELECT to_regclass(%s)", (table,)).fetchone() == (None,):
                continue  # no feature was ever pushed
            if dry_run:
                found += [_of("features", one) for one in _over(connection, table, before)]
            else:
                gone = retire(connection, table, before, export_folder(settings))
                found += [_of("features", one.partition, one.file) for one in gone]
    return found


def drop_ledger(settings: Settings, now: datetime, dry_run: bool) -> list[Expired]:
    """Weeks of the decision log, of facts about responses and of rewards, and dead letters."""
    days = settings.retention
    if dry_run:
        with _connected(settings) as connection:
            create_tables(connection)
            weeks = [
                _of("ledger", one)
                for table, kept in (
                    ("decisions", days.decisions_days),
                    ("response_facts", days.decisions_days),
                    ("rewards", days.ledger_days),
                )
                for one in _over(connection, table, now - timedelta(days=kept))
            ]
            letters = count_letters(connection, now - timedelta(days=days.rewards_days))
        return [*weeks, *_some("letters", "dead_letters", letters)]
    done = retire_ledger(settings, now.timestamp(), export_folder(settings))
    return [
        *(
            _of("ledger", one.partition, one.file)
            for one in (*done.decisions, *done.responses, *done.rewards)
        ),
        *(
            Expired(
                "ledger",
                one.partition,
                None,
                kept_because=f"variant {one.variant} of {one.decision_point} has learned up to "
                f"{one.learned} of {one.holds}",
            )
            for one in done.held
        ),
        *_some("letters", "dead_letters", done.letters),
    ]


def drop_trail(settings: Settings, now: datetime, dry_run: bool) -> list[Expired]:
    """Entries of the audit, and the states of variants that were archived as long ago."""
    before = now - timedelta(days=settings.retention.audit_days)
    file = None
    with _connected(settings) as connection:
        if dry_run:
            entries = audit.count_before(connection, before)
        else:
            entries, file = audit.drop_before(connection, before, export_folder(settings))
        states, size = variants.drop_pinned(connection, before, dry_run=dry_run)
    copied = None if file is None else str(file)
    return [
        *_some("audit", "audit", entries, file=copied),
        *_some("pinned", "pinned_states", states, size),
    ]


DROPS = {"features": drop_features, "ledger": drop_ledger, "audit": drop_trail}
"""What `drop_expired` knows by name."""


def drop_expired(
    settings: Settings, what: str, now: datetime | None = None, dry_run: bool = False
) -> list[Expired]:
    """Export and drop what is older than the settings' retention.

    Parameters
    ----------
    what
        ``features``, ``ledger`` or ``audit``.
    now
        With time zone; the clock's time if left out.
    dry_run
        Only say what would go. Weeks of rewards that a policy has not learned are among it; a real
        run keeps them and says so.

    Raises
    ------
    Unavailable
        If somebody holds a table locked; what was dropped until then stays so.
    psycopg.Error
        If PostgreSQL is away.
    """
    return DROPS[what](settings, now or datetime.now(UTC), dry_run)


def _over(connection: psycopg.Connection[Any], table: str, before: datetime) -> Sequence[Partition]:
    return [
        one
        for one in partitions(connection, table)
        if not one.default and one.high is not None and one.high <= before
    ]


def _of(kind: str, one: Partition, file: Path | None = None) -> Expired:
    return Expired(kind, one.name, one.rows, one.bytes, None if file is None else str(file))


def _some(
    kind: str, name: str, count: int, size: int | None = None, file: str | None = None
) -> list[Expired]:
    return [Expired(kind, name, count, size, file)] if count else []


@contextmanager
def _connected(settings: Settings) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(settings.postgres_dsn(), autocommit=True) as connection:
        yield connection
