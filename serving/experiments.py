"""Experiments in PostgreSQL: made, started, paused, stopped and read, each in one transaction.

A change locks all experiments of its decision point, so that two at once cannot take the same
units, and the routing plan and the audit trail change in the same transaction. The plan is always
made anew from all experiments, so nothing has to be taken back from it.

After a stop with promotion the winner keeps the units of the experiment, until it is archived;
everybody else is served as before. The settings stay what people wrote: to give the winner all
units, change the arms there (or let the policy find out, which learns from these decisions, too).
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import msgspec
import pandas as pd
import psycopg
from msgspec import structs

from optimizer.errors import InvalidInput, UnknownName
from optimizer.experiments.allocation import first_weights, thompson_weights
from optimizer.experiments.analysis import Report, analyse, goodness
from optimizer.experiments.comparisons import planned_samples
from optimizer.experiments.experiment import Design, Experiment, free_stretch, resolve
from optimizer.rollout.plan import RoutingPlan, RunningExperiment
from optimizer.settings import Settings
from serving import audit, plans
from serving.experiment_log import experiment_frame

__all__ = [
    "archive",
    "create",
    "find",
    "keep_draft",
    "list_experiments",
    "pause",
    "report",
    "start",
    "stop",
    "tend",
]

_TABLE = """
CREATE TABLE IF NOT EXISTS experiments (
    id text PRIMARY KEY,
    decision_point text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    content jsonb NOT NULL
);
CREATE INDEX IF NOT EXISTS experiments_point ON experiments (decision_point, created_at);
"""
_LOCK = 0x6C6C6D657870
_DRAFT_LOCK = 0x64726166
_ID_BYTES = 4
_SMALLEST_MOVE = 0.02
"""Change of a weight below which Thompson sampling leaves the plan as it is."""

Connection = psycopg.Connection[Any]


def create(
    connection: Connection, settings: Settings, design: Design, *, actor: str, now: float
) -> Experiment:
    """Store a draft; it gets no units before it is started.

    Parameters
    ----------
    connection
        In autocommit mode, as everywhere here.
    settings
        Its arms must be among those of the decision point.
    actor
        See `serving.audit.AuditEntry`.
    now
        Unix seconds.

    Raises
    ------
    InvalidInput
        Naming the field of the design.
    """
    made = _drafted(settings, design, secrets.token_hex(_ID_BYTES), actor, now, "created")
    _create_tables(connection)
    with connection.transaction():
        _insert(connection, made, actor)
    return made


def keep_draft(
    connection: Connection, settings: Settings, design: Design, *, actor: str, now: float, why: str
) -> Experiment:
    """Have one open draft of this actor at the design's decision point, with this design.

    A draft of its own that was not started yet is changed, else one is made; whoever calls twice,
    or two at once, leaves one. What people made or started is never touched.

    Parameters
    ----------
    why
        Reason of the draft, for people.

    Raises
    ------
    InvalidInput
        Naming the field of the design.
    """
    _create_tables(connection)
    with connection.transaction():
        # Nothing to lock is there yet where no draft is.
        connection.execute(
            "SELECT pg_advisory_xact_lock(%s, hashtext(%s))",
            (_DRAFT_LOCK, design.decision_point),
        )
        rows = connection.execute(
            "SELECT content FROM experiments WHERE decision_point = %s AND content->>'state' = "
            "'draft' AND content->>'made_by' = %s ORDER BY created_at DESC, id LIMIT 1 FOR UPDATE",
            (design.decision_point, actor),
        ).fetchall()
        if not rows:
            made = _drafted(settings, design, secrets.token_hex(_ID_BYTES), actor, now, why)
            _insert(connection, made, actor)
            return made
        old = _experiment(rows[0][0])
        made = _drafted(settings, design, old.id, actor, old.created_at, why)
        if made != old:
            _store(connection, made)
            evidence = {"design": _plain(design)}
            _record(connection, made, actor, "experiment.redraft", evidence)
    return made


def _drafted(
    settings: Settings, design: Design, name: str, actor: str, now: float, why: str
) -> Experiment:
    return Experiment(
        id=name,
        design=design,
        arms=resolve(design, settings.decision_point(design.decision_point).records()),
        weights=first_weights(design),
        planned=planned_samples(design),
        created_at=now,
        reason=why,
        made_by=actor,
    )


def _insert(connection: Connection, made: Experiment, actor: str) -> None:
    connection.execute(
        "INSERT INTO experiments (id, decision_point, content) VALUES (%s, %s, %s)",
        (made.id, made.design.decision_point, _text(made)),
    )
    _record(connection, made, actor, "experiment.create", {"design": _plain(made.design)})


def start(
    connection: Connection,
    settings: Settings,
    experiment_id: str,
    *,
    actor: str,
    now: float,
    reason: str = "started",
) -> Experiment:
    """Give it units; one that was paused gets the same ones again.

    Raises
    ------
    UnknownName
        If there is no such experiment.
    InvalidInput
        If its state, its arms or the units that are left do not allow it.
    """
    with _locked(connection, experiment_id) as (experiment, others):
        moved = experiment.moved("start", now, reason)
        design = experiment.design
        arms = resolve(design, settings.decision_point(design.decision_point).records())
        holding = [other for other in others if other.holds_units]
        if experiment.begin is None:
            taken = [(other.begin or 0.0, other.design.share) for other in holding]
            moved = structs.replace(moved, arms=arms, begin=free_stretch(taken, design.share))
        elif arms != experiment.arms:
            raise InvalidInput(
                "state",
                experiment.state,
                "the arms it began with are not configured any more; stop it and create another",
            )
        _refuse_shared_arms(moved, holding)
        evidence = {"arms": moved.arms, "weights": moved.weights, "begin": moved.begin}
        _save(connection, moved, others, actor, "experiment.start", evidence)
    return moved


def pause(
    connection: Connection,
    experiment_id: str,
    *,
    actor: str,
    now: float,
    reason: str = "paused",
) -> Experiment:
    """Serve its units as all others for now; they are kept for it. Raises as `start` does."""
    with _locked(connection, experiment_id) as (experiment, others):
        moved = experiment.moved("pause", now, reason)
        _save(connection, moved, others, actor, "experiment.pause", {})
    return moved


def stop(
    connection: Connection,
    settings: Settings,
    experiment_id: str,
    *,
    actor: str,
    now: float,
    promote: bool = False,
    reason: str | None = None,
) -> tuple[Experiment, Report]:
    """End it for good, and say what it found.

    Parameters
    ----------
    promote
        Keep sending the experiment's units to the winner, until it is archived.
    reason
        What the report concludes, if None.

    Raises
    ------
    UnknownName
        If there is no such experiment.
    InvalidInput
        If its state does not allow it, or nothing has won that could be promoted; it then runs on.
    """
    with _locked(connection, experiment_id) as (experiment, others):
        moved = experiment.moved("stop", now, "")
        found = _analysed(connection, settings, experiment, now)
        if promote and found.winner is None:
            raise InvalidInput(
                "promote", True, f"no variant has won ({found.sentence}); stop without it, or wait"
            )
        moved = structs.replace(
            moved, winner=found.winner, promoted=promote, reason=reason or found.sentence
        )
        action = "experiment.promote" if promote else "experiment.stop"
        _save(connection, moved, others, actor, action, _evidence(found))
    return moved, found


def archive(
    connection: Connection,
    experiment_id: str,
    *,
    actor: str,
    now: float,
    reason: str = "archived",
) -> Experiment:
    """Put it away; a promoted winner gives its units back. Raises as `start` does."""
    with _locked(connection, experiment_id) as (experiment, others):
        moved = experiment.moved("archive", now, reason)
        evidence = {"promoted": experiment.promoted, "winner": experiment.winner}
        if experiment.promoted:
            _save(connection, moved, others, actor, "experiment.archive", evidence)
        else:
            _store(connection, moved)
            _record(connection, moved, actor, "experiment.archive", evidence)
    return moved


def find(connection: Connection, experiment_id: str) -> Experiment:
    """The experiment of that id.

    Raises
    ------
    UnknownName
        If there is none.
    """
    _create_tables(connection)
    row = connection.execute(
        "SELECT content FROM experiments WHERE id = %s", (experiment_id,)
    ).fetchone()
    if row is None:
        raise _unknown(experiment_id)
    return _experiment(row[0])


def list_experiments(
    connection: Connection, decision_point: str | None = None, limit: int = 200
) -> list[Experiment]:
    """The newest, newest first; of one decision point or of all."""
    _create_tables(connection)
    rows = connection.execute(
        "SELECT content FROM experiments WHERE %(point)s::text IS NULL OR decision_point = "
        "%(point)s ORDER BY created_at DESC, id LIMIT %(limit)s",
        {"point": decision_point, "limit": limit},
    ).fetchall()
    return [_experiment(content) for (content,) in rows]


def report(
    connection: Connection, settings: Settings, experiment_id: str, now: float
) -> tuple[Experiment, Report]:
    """What it has found until now (or until it was stopped).

    Raises
    ------
    UnknownName
        If there is no such experiment.
    """
    experiment = find(connection, experiment_id)
    return experiment, _analysed(connection, settings, experiment, now)


def tend(
    connection: Connection, settings: Settings, decision_point: str, *, actor: str, now: float
) -> list[Experiment]:
    """Stop the running experiments that are done, and move the weights of the adaptive ones.

    To be called every few seconds: it reads all decisions of the running experiments, and writes
    only where something changes.

    Returns
    -------
    The experiments that it has stopped.
    """
    stopped = []
    for experiment in list_experiments(connection, decision_point):
        if experiment.state != "running":
            continue
        frame = experiment_frame(connection, experiment, now)
        objective = settings.decision_point(decision_point).objective()
        found = analyse(experiment, frame, objective, now, looks=0)
        try:
            if found.stop is not None:
                stopped.append(
                    stop(
                        connection,
                        settings,
                        experiment.id,
                        actor=actor,
                        now=now,
                        reason=f"{found.stop}: {found.sentence}",
                    )[0]
                )
            elif experiment.design.allocation == "thompson":
                moments, span = goodness(experiment, frame, objective)
                _reweigh(
                    connection, experiment.id, thompson_weights(moments, span=span), actor=actor
                )
        except InvalidInput:
            continue  # somebody else has stopped or paused it meanwhile
    return stopped


def _reweigh(
    connection: Connection, experiment_id: str, weights: tuple[float, ...], *, actor: str
) -> None:
    with _locked(connection, experiment_id) as (experiment, others):
        moves = [abs(new - old) for new, old in zip(weights, experiment.weights, strict=True)]
        if experiment.state != "running" or max(moves) < _SMALLEST_MOVE:
            return
        moved = structs.replace(experiment, weights=weights)
        evidence = {"before": experiment.weights, "weights": weights}
        _save(connection, moved, others, actor, "experiment.allocate", evidence)


@contextmanager
def _locked(
    connection: Connection, experiment_id: str
) -> Iterator[tuple[Experiment, list[Experiment]]]:
    """An experiment and the others of its decision point, locked until the block ends."""
    _create_tables(connection)
    with connection.transaction():
        rows = connection.execute(
            "SELECT content FROM experiments WHERE decision_point = "
            "(SELECT decision_point FROM experiments WHERE id = %s) ORDER BY id FOR UPDATE",
            (experiment_id,),
        ).fetchall()
        found = {one.id: one for one in (_experiment(content) for (content,) in rows)}
        if experiment_id not in found:
            raise _unknown(experiment_id)
        yield found.pop(experiment_id), list(found.values())


def _save(
    connection: Connection,
    experiment: Experiment,
    others: list[Experiment],
    actor: str,
    action: str,
    evidence: dict[str, Any],
) -> None:
    """Store it, and let the plan follow."""
    _store(connection, experiment)
    served = sorted(
        (one for one in (experiment, *others) if one.state == "running" or one.promoted),
        key=lambda one: one.begin or 0.0,
    )
    running = tuple(_running(one) for one in served)

    def update(plan: RoutingPlan) -> RoutingPlan:
        return structs.replace(plan, experiments=running)

    plans.change(
        connection,
        experiment.design.decision_point,
        update,
        actor=actor,
        action=action,
        reason=experiment.reason,
        evidence=_named(experiment, evidence),
    )


def _store(connection: Connection, experiment: Experiment) -> None:
    connection.execute(
        "UPDATE experiments SET content = %s WHERE id = %s", (_text(experiment), experiment.id)
    )


def _record(
    connection: Connection,
    experiment: Experiment,
    actor: str,
    action: str,
    evidence: dict[str, Any],
) -> None:
    audit.record(
        connection,
        experiment.design.decision_point,
        actor,
        action,
        experiment.reason,
        _named(experiment, evidence),
    )


def _running(experiment: Experiment) -> RunningExperiment:
    """What replicas need to know; a promoted winner is an experiment with one variant."""
    design = experiment.design
    arms, weights = experiment.arms, experiment.weights
    if experiment.promoted:
        names = [variant.name for variant in design.variants]
        arms, weights = (arms[names.index(cast(str, experiment.winner))],), (1.0,)
    return RunningExperiment(
        experiment.id,
        design.share,
        arms,
        weights,
        sticky=not design.adaptive if design.sticky is None else design.sticky,
        contextual=design.allocation == "contextual" and not experiment.promoted,
        begin=experiment.begin or 0.0,
    )


def _refuse_shared_arms(experiment: Experiment, holding: list[Experiment]) -> None:
    mine = {arm for arms in experiment.arms for arm in arms}
    for other in holding:
        if mine & {arm for arms in other.arms for arm in arms}:
            raise InvalidInput(
                "variants",
                experiment.design.name,
                f"the experiment {other.id} ({other.design.name}, {other.state}) has an arm of "
                "this one; their outcomes could not be told apart. Stop or archive it first",
            )


def _analysed(
    connection: Connection, settings: Settings, experiment: Experiment, now: float
) -> Report:
    frame: pd.DataFrame = experiment_frame(connection, experiment, now)
    objective = settings.decision_point(experiment.design.decision_point).objective()
    return analyse(experiment, frame, objective, now)


def _evidence(found: Report) -> dict[str, Any]:
    return {
        "sentence": found.sentence,
        "winner": found.winner,
        "variants": _plain(found.variants),
        "sample_ratio": _plain(found.sample_ratio),
    }


def _named(experiment: Experiment, evidence: dict[str, Any]) -> dict[str, Any]:
    return {"experiment": experiment.id, "name": experiment.design.name, **evidence}


def _plain(value: object) -> Any:
    return msgspec.to_builtins(value)


def _text(experiment: Experiment) -> str:
    return msgspec.json.encode(experiment).decode()


def _experiment(content: Any) -> Experiment:
    return msgspec.convert(content, Experiment)


def _unknown(experiment_id: str) -> UnknownName:
    return UnknownName(
        "experiment", experiment_id, "no experiment has this id; `llmopt experiments list` has them"
    )


def _create_tables(connection: Connection) -> None:
    row = connection.execute("SELECT to_regclass('experiments')").fetchone()
    if row is not None and row[0] is not None:
        return
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        connection.execute(_TABLE)
