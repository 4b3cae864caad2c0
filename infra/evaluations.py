"""`llmopt evaluate`: what a policy would have scored and cost on logged traffic."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from infra.logged_sources import OnStep, Source, find_source
from infra.tables import write_table
from optimizer.errors import IncompatibleState, InvalidInput, Unavailable, UnknownName
from optimizer.feature_schema import FeatureSchema, Translation
from optimizer.offpolicy import (
    CHOSEN,
    ENOUGH_EFFECTIVE,
    Evaluation,
    LoggedDecisions,
    evaluate,
    targets,
)
from optimizer.policies import POLICY_NAMES, Policy, PolicySettings, make_policy
from optimizer.records import Arm, Matrix
from optimizer.settings import Settings

__all__ = ["EvaluationRequest", "judge", "run_evaluation"]

_CHAMPION = "champion"
_STATIC = "static"
_UPDATES = 5_000
"""A policy learns after every row of a log this long; from a longer one, that many times in all."""


@dataclass(frozen=True)
class EvaluationRequest:
    """What the command was asked.

    Attributes
    ----------
    policy
        A name of `optimizer.policies.POLICY_NAMES`, ``static:MODEL`` or ``champion``.
    log
        A file of logged decisions; the live ledger if None.
    decision_point
        Whose ledger, arms and objective; may be left out if there is one, or with a file.
    since
        Start of the span of time that is read from the ledger; a week if None.
    weights
        ``quality=1,cost=0``, instead of those of the decision point.
    export
        File to write the logged decisions to, as a later ``log``.
    clip
        See `optimizer.offpolicy.evaluate`.
    """

    policy: str
    log: Path | None = None
    decision_point: str | None = None
    since: str | None = None
    weights: str | None = None
    export: Path | None = None
    clip: float | None = None


@dataclass(frozen=True)
class _Target:
    """The rows that a policy is judged on, and its probabilities there, shape (n, k)."""

    name: str
    decisions: LoggedDecisions
    probabilities: Matrix
    notes: tuple[str, ...] = ()


def run_evaluation(
    request: EvaluationRequest,
    settings: Callable[[], Settings],
    now: datetime,
    on_step: OnStep = lambda done, total, label: None,
) -> dict[str, Any]:
    """Evaluate one policy on one log.

    Parameters
    ----------
    request
        What is asked.
    settings
        Gives the settings, where a decision point or a server is needed.
    now
        End of the span of time that is read from the ledger.
    on_step
        Called with the steps done, of all, and what is being done.

    Returns
    -------
    The object of ``--json``: policy, source, what was logged, how far the log supports the
    question, what each estimator says, and the verdict.

    Raises
    ------
    InvalidInput
        Naming the option, the file, the column or the row that is refused.
    IncompatibleState
        If the champion was made with other settings than those in use.
    Unavailable
        If PostgreSQL or MLflow is needed and away.
    """
    with threadpool_limits(1):
        source = find_source(
            settings,
            now,
            log=request.log,
            decision_point=request.decision_point,
            since=request.since,
            weights=request.weights,
            on_step=on_step,
        )
        if request.export is not None:
            write_table(source.decisions.to_frame(), request.export)
        target = _target(request.policy, source, settings, on_step)
        found = evaluate(
            target.decisions,
            target.probabilities,
            source.objective,
            policy=target.name,
            clip=request.clip,
        )
    return _described(source, target, found)


def _target(
    policy: str, source: Source, settings: Callable[[], Settings], on_step: OnStep
) -> _Target:
    log = source.decisions
    kind, _, model = policy.partition(":")
    if kind == _STATIC and (model or source.point is not None):
        return _Target(policy, log, targets.always(log, _arms_of(policy, model, source)))
    if policy == "random":
        return _Target(policy, log, targets.uniform(log))
    if policy == _CHAMPION:
        return _champion(source, settings, on_step)
    if policy not in POLICY_NAMES or kind == _STATIC:
        known = [*(name for name in POLICY_NAMES if name != _STATIC), "static:MODEL", _CHAMPION]
        raise UnknownName("policy", policy, f"one of {', '.join(known)}")
    source = _seen(source, _wanted(source))
    chances = _taught(_fresh(policy, source), source, policy, on_step)
    note = (
        f"{policy} starts without knowledge and learns from earlier rows of the log: this is what "
        "it would have scored if taught, without delay, by what the log chose."
    )
    return _Target(policy, source.decisions, chances, (note,))


def judge(
    policy: PolicySettings,
    source: Source,
    name: str,
    on_step: OnStep,
    schema: FeatureSchema | None = None,
) -> Evaluation:
    """What a policy would have done on a log, taught by earlier rows of it.

    Parameters
    ----------
    schema
        The features that it looks at; those of new policies if None.
    """
    with threadpool_limits(1):
        source = _seen(source, schema or _wanted(source))
        chances = _taught(_made(policy, source), source, name, on_step)
        return evaluate(source.decisions, chances, source.objective, policy=name)


def _taught(policy: Policy, source: Source, name: str, on_step: OnStep) -> Matrix:
    log = source.decisions
    batch = math.ceil(len(log) / _UPDATES)
    return targets.learning(log, policy, batch, lambda done, total: on_step(done, total, name))


def _arms_of(policy: str, model: str, source: Source) -> tuple[str, ...]:
    """Names of the arms of a model; of the decision point's static rule if none is named."""
    names, point = source.decisions.arm_names, source.point
    if point is None:
        found = tuple(name for name in names if name == model)
    elif not model:
        found = (names[point.static_index],)
    else:
        arms = zip(names, point.records(), strict=True)
        found = tuple(name for name, arm in arms if model in (name, arm.model))
    if not found:
        raise UnknownName("policy", policy, f"static: and one of {', '.join(names)}")
    return found


def _champion(source: Source, settings: Callable[[], Settings], on_step: OnStep) -> _Target:
    """The registered champion, frozen, on what was decided after it had stopped learning."""
    import psycopg

    from registry.versions import PolicyRegistry
    from serving.logged import learned_until
    from serving.reward_writer import connect

    point = source.point
    if point is None or source.schema is None:
        raise InvalidInput("policy", _CHAMPION, "it needs the live ledger: leave out --log")
    registry = PolicyRegistry(settings().mlflow_address)
    found = registry.champion(point.name)
    if found is None:
        raise UnknownName("policy", _CHAMPION, f"no version of {point.name} is registered yet")
    described = registry.description(point.name, found.version)
    groups = described.feature_groups
    if groups is not None and not source.schema.missing(described.feature_names):
        source = _seen(source, FeatureSchema(described.feature_names, groups))
    policy = _made(point.policy, source)
    if found.lineage != policy.lineage:
        raise IncompatibleState(
            f"champion version {found.version} of {point.name} was made with other arms, features "
            "or policy settings than those in use"
        )
    policy.from_bytes(found.state)
    try:
        with connect(settings().postgres_dsn()) as connection:
            until = learned_until(connection, point.name, found.position)
    except psycopg.OperationalError as error:
        raise Unavailable("PostgreSQL") from error
    log = source.decisions
    judged = log if until is None else log.after(until.timestamp())
    if judged is None:
        raise InvalidInput(
            "policy",
            _CHAMPION,
            f"version {found.version} may have learned from every decision in the log, and would "
            "be judged by its own lessons; try again after new traffic",
        )
    note = (
        f"Version {found.version} has learned from {found.position} rewards; it is judged on the "
        f"{len(judged)} of {len(log)} decisions made after that."
    )
    chances = targets.frozen(judged, policy, lambda done, total: on_step(done, total, _CHAMPION))
    return _Target(f"{_CHAMPION} (version {found.version})", judged, chances, (note,))


def _fresh(name: str, source: Source) -> Policy:
    """A policy without knowledge; with the decision point's own settings where it uses that one."""
    point = source.point
    if point is not None and point.policy.name == name:
        return _made(point.policy, source)
    return _made(PolicySettings.model_validate({"name": name}), source)


def _wanted(source: Source) -> FeatureSchema | None:
    """The features that new policies look at; None where the log is a file."""
    from serving.feature_schemas import policy_schema

    if source.point is None or source.schema is None:
        return None
    return policy_schema(source.point, source.schema)


def _seen(source: Source, schema: FeatureSchema | None) -> Source:
    """The log as a policy sees it that looks at those features."""
    if schema is None or source.schema is None or schema == source.schema:
        return source
    log = source.decisions
    features = Translation(source.schema, schema)(log.features)
    return replace(source, decisions=replace(log, features=features), schema=schema)


def _made(settings: PolicySettings, source: Source) -> Policy:
    from serving.routes import make_point_policy

    log, point = source.decisions, source.point
    if point is None or source.schema is None:
        arms = tuple(map(Arm, log.arm_names)) if point is None else point.records()
        return make_policy(settings, arms, log.features.shape[1], source.objective)
    policy = make_point_policy(point.model_copy(update={"policy": settings}), source.schema)
    policy.objective = source.objective
    return policy


def _described(source: Source, target: _Target, found: Evaluation) -> dict[str, Any]:
    decided_at = target.decisions.decided_at
    notes = [*source.notes, *target.notes]
    if found.evaluated < found.decided:
        notes.append(
            f"{found.decided - found.evaluated} of {found.decided} decisions lack a part of their "
            "reward and are left out; this is right if that happens whatever the arm and however "
            "good the answer."
        )
    return {
        "policy": target.name,
        "source": source.name,
        "decision_point": None if source.point is None else source.point.name,
        "from": _time(decided_at[0]),
        "to": _time(decided_at[-1]),
        "decisions": found.decided,
        "evaluated": found.evaluated,
        "logged": {name: asdict(mean) for name, mean in found.logged.items()},
        "support": {**asdict(found.support), "needed": ENOUGH_EFFECTIVE},
        "estimators": {
            name: {
                **{measure: asdict(value) for measure, value in result.measures.items()},
                "difference": asdict(result.difference),
                "effective_sample_size": result.effective_sample_size,
                "clipped_share": result.clipped_share,
                "verdict": asdict(result.verdict),
            }
            for name, result in found.results.items()
        },
        "verdict": {"estimator": CHOSEN, **asdict(found.verdict)},
        "notes": notes,
    }


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(float(seconds), UTC).isoformat(timespec="seconds")
