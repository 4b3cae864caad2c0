"""A policy's state made anew from the ledger, and compared with what the learner has kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
import psycopg

from feature_repo.embedding import Embedder
from optimizer.errors import IncompatibleState, InvalidInput, PartFailed
from optimizer.feature_schema import Translations
from optimizer.settings import Settings
from serving import audit, ledger, plans, variants, watch_store
from serving.feature_schemas import known_schemas, policy_schema
from serving.live_point import make_encoder
from serving.policy_line import PolicyLine, lock_name

__all__ = ["Rebuilt", "rebuild"]

_WAIT_S = 30.0
_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What came of it.

    Attributes
    ----------
    position
        How far into the ledger the checkpoint has learned, and the state made anew, too.
    same
        Whether both are the same bytes.
    watch_same
        The same of the watch; None where it did not begin at the ledger's start.
    differs
        What differs, for people; empty if nothing does.
    replaced
        Whether the state made anew is in place now.
    """

    decision_point: str
    variant: str
    position: int
    same: bool
    watch_same: bool | None
    differs: tuple[str, ...]
    seconds: float
    replaced: bool = False


def rebuild(
    connection: psycopg.Connection[Any],
    settings: Settings,
    decision_point: str,
    variant: str | None = None,
    replace: bool = False,
    on_rows: Callable[[int, int], None] = lambda done, total: None,
) -> Rebuilt:
    """Fold the ledger anew up to the checkpoint's position, and compare.

    Parameters
    ----------
    connection
        In autocommit mode.
    variant
        The champion's if None.
    replace
        Put the state made anew in place, under the learner's lock: a learner that runs is made to
        reconnect, waits meanwhile, and goes on from what was put there.
    on_rows
        Called with the position that is reached and the last one.

    Raises
    ------
    InvalidInput
        If there is no checkpoint, or the ledger no longer begins at its first position.
    UnknownName
        If there is no such decision point or variant.
    """
    begun = time.monotonic()
    point = settings.decision_point(decision_point)
    name = point.name
    ledger.create_tables(connection)
    encoder = make_encoder(point, Embedder())
    chosen = variant or plans.current(connection, name).champion.variant
    known = known_schemas(connection, name).values()
    wanted = policy_schema(point, encoder.schema)
    schema = variants.variant_schemas(connection, name).get(chosen, wanted)
    layouts = Translations(schema, known)
    made = PolicyLine(variants.variant_point(connection, point, chosen), chosen, layouts)
    position, state = _checkpoint(connection, made)
    _fold(connection, settings, made, position, on_rows)
    differs = _differences(state, made.policy.to_bytes())
    kept_watch = watch_store.load(connection, name, chosen, position)
    watch_same = None
    if kept_watch is not None and _begins_at_start(made, kept_watch):
        watch_same = kept_watch == made.watch.to_bytes()
        if not watch_same:
            differs += ("the watch",)
    replaced = False
    if replace and differs:
        with _learners_turn(connection, name):
            moved, _ = _checkpoint(connection, made)
            if moved >= made.position:
                _fold(connection, settings, made, moved, on_rows)
                with connection.transaction():
                    made.alarms_are_told()
                    made.save(connection, 0.0, final=True)
                    audit.record(
                        connection,
                        name,
                        "command",
                        "learner.rebuild",
                        f"the state of variant {chosen} is the ledger's again",
                        {"variant": chosen, "position": moved, "differed": list(differs)},
                    )
                replaced = True
    seconds = time.monotonic() - begun
    same = not any(one != "the watch" for one in differs)
    return Rebuilt(name, chosen, position, same, watch_same, differs, seconds, replaced)


def _checkpoint(connection: psycopg.Connection[Any], line: PolicyLine) -> tuple[int, bytes]:
    row = connection.execute(
        "SELECT position, state, lineage FROM policy_checkpoints "
        "WHERE decision_point = %s AND variant = %s",
        (line.point.name, line.variant),
    ).fetchone()
    if row is None:
        remedy = "there is no checkpoint yet; it comes a few seconds after the first reward"
        raise InvalidInput("variant", line.variant, remedy)
    if row[2] != line.policy.lineage:
        remedy = (
            "its checkpoint is of other settings than those in force; start the learner with these "
            "settings first, it begins anew by itself"
        )
        raise InvalidInput("variant", line.variant, remedy)
    return int(row[0]), bytes(row[1])


def _fold(
    connection: psycopg.Connection[Any],
    settings: Settings,
    line: PolicyLine,
    until: int,
    on_rows: Callable[[int, int], None],
) -> None:
    batch = settings.learner.batch_rewards
    while line.position < until:
        limit = min(batch, until - line.position)
        rows = ledger.read(connection, line.point.name, line.position, limit)
        if not rows or rows[0].position != line.position + 1:
            remedy = (
                f"the ledger has no row {line.position + 1} any more (retention.rewards_days), so "
                "the state cannot be made from it"
            )
            raise InvalidInput("decision_point", line.point.name, remedy)
        line.learn(rows)
        on_rows(line.position, until)


def _differences(kept: bytes, made: bytes) -> tuple[str, ...]:
    """The parts of two policy states that are not the same."""
    if kept == made:
        return ()
    try:
        first, second = msgspec.msgpack.decode(kept), msgspec.msgpack.decode(made)
        found = [name for name in second if name != "arrays" and first.get(name) != second[name]]
        arrays = first["arrays"]
        found += [name for name, held in second["arrays"].items() if arrays.get(name) != held]
    except (msgspec.MsgspecError, KeyError, AttributeError, TypeError):
        return ("the checkpoint cannot be read",)
    if "arm_ids" in found or "retired_ids" in found:
        found.append("(arms were changed since the ledger's start: that alone explains it)")
    return tuple(found) or ("the order of its parts",)


def _begins_at_start(line: PolicyLine, watch: bytes) -> bool:
    held = line.watch.to_bytes()
    try:
        line.watch.from_bytes(watch)
        return line.watch.since == 0
    except IncompatibleState:
        return False
    finally:
        line.watch.from_bytes(held)


@contextmanager
def _learners_turn(connection: psycopg.Connection[Any], name: str) -> Iterator[None]:
    """Hold the learner's lock; a learner that has it loses its connection, and comes back after."""
    key = (lock_name(name),)
    end = time.monotonic() + _WAIT_S
    while time.monotonic() < end:
        row = connection.execute(
            "SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", key
        ).fetchone()
        if row is not None and row[0]:
            break
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' "
            "AND granted AND (classid::bigint << 32) | objid::bigint = hashtextextended(%s, 0) "
            "AND objsubid = 1",
            key,
        )
        time.sleep(_POLL_S)
    else:
        raise PartFailed(f"{name}: the learner keeps its lock; stop the platform and try again")
    try:
        yield
    finally:
        connection.execute("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", key)
