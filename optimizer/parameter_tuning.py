"""Better temperature, top_p and max_tokens of one model for one task type.

Two objectives, quality and cost. Trials are proposed by `SurfaceSampler`, begin with the setting in
use, and know beforehand what arms of the same model have shown, for other task types too. An
evaluator judges them, see `optimizer.parameter_evaluator`; one that raises fails its trial, and
three failures in a row end the search. Where there is none, `from_log` compares the settings that
were logged.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from threadpoolctl import threadpool_limits

from optimizer.errors import InvalidInput
from optimizer.parameter_evaluator import Evaluator, hopeless, parts_of
from optimizer.parameter_proposals import Evaluated, Proposer
from optimizer.parameter_space import ParameterSpace
from optimizer.records import Matrix
from optimizer.worth import Worth

if TYPE_CHECKING:
    import optuna

__all__ = ["LEAST_GAIN", "ParametersTuned", "Tried", "from_log", "tune_parameters"]

LEAST_GAIN = 0.005
"""Worth that a setting must be believed to gain before anybody is asked to try it."""

_LOG = logging.getLogger(__name__)
_FAILURES = 3
_KEPT_PARTS = 2000


@dataclass(frozen=True)
class Tried:
    """A setting that was evaluated.

    Attributes
    ----------
    quality, cost_usd
        Means as measured.
    worth
        As believed by the surfaces, so that a lucky trial is not taken at its word.
    """

    parameters: Mapping[str, Any]
    quality: float
    cost_usd: float
    worth: float


@dataclass(frozen=True)
class ParametersTuned:
    """What a search has found.

    Attributes
    ----------
    present, winner
        The setting in use and the best that was evaluated.
    front
        Those that no other one dominates in quality and cost as measured, cheapest first.
    trials, pruned, failed
        Of this and of earlier runs of the same study.
    better
        Whether the winner is believed to gain `LEAST_GAIN`. That is a reason for an experiment, not
        a proof.
    untried
        Of a search on logged traffic: the setting that would teach most, which nobody has tried.
    """

    model: str
    task: str
    present: Tried
    winner: Tried
    front: tuple[Tried, ...]
    trials: int
    pruned: int
    failed: int
    better: bool
    untried: Mapping[str, Any] | None = None


def tune_parameters(
    evaluate: Evaluator,
    model: str,
    task: str,
    present: Mapping[str, Any],
    space: ParameterSpace,
    worth: Worth,
    study_name: str,
    trials: int,
    storage: str | None = None,
    known: Sequence[Evaluated] = (),
    seed: int = 0,
) -> tuple[ParametersTuned, optuna.Study]:
    """Search, or go on with a search that was cut off. One process at a time.

    Parameters
    ----------
    evaluate
        Called with the model, its parameters and the task type, see above.
    task
        Empty where the decision point names none.
    present
        Parameters in use; what is not tuned is kept.
    study_name
        A study of that name in the storage is gone on with, until it has all its trials.
    trials
        Finished or pruned ones that the study is to have, 1 or more.
    storage
        URL of Optuna's storage; in memory if None.
    known
        See `Proposer`.

    Raises
    ------
    InvalidInput
        If the evaluator gives anything but what is asked of it, or fails three times in a row.
    """
    import optuna
    from optuna.trial import TrialState

    from optimizer.surface_sampler import distributions

    proposer = Proposer(space, worth, known, seed)
    study = _opened(study_name, storage, proposer)
    for stale in study.get_trials(states=(TrialState.RUNNING,)):
        # Its process was killed. What it was about to find is still wanted.
        study.tell(stale.number, state=TrialState.FAIL)
        study.enqueue_trial(stale.params, user_attrs=stale.user_attrs)

    def judge(trial: optuna.Trial) -> tuple[float, float]:
        setting = {name: trial.params[name] for name in space.ranges}
        parameters = trial.user_attrs.get("parameters", {**present, **setting})
        trial.set_user_attr("parameters", parameters)
        # The setting in use is needed to the end: all others are compared with it.
        others = [] if parameters == dict(present) else _parts_of_finished(study)
        parts: list[tuple[float, float]] = []
        for part in parts_of(evaluate(model, dict(parameters), task)):
            parts.append(part)
            if hopeless(parts, others, worth):
                _remember(trial, parts)
                raise optuna.TrialPruned(f"after {len(parts)} parts")
        if not parts:
            raise InvalidInput("tuning.evaluator", "nothing", "it must give a pair or more")
        _remember(trial, parts)
        quality, cost = np.mean(parts, axis=0).tolist()
        return quality, cost

    failures = 0
    with threadpool_limits(1):
        while True:
            if not _has(study, present, TrialState.COMPLETE, TrialState.WAITING):
                study.enqueue_trial(
                    _fitting(space, present), user_attrs={"parameters": dict(present)}
                )
            enough = _count(study, TrialState.COMPLETE, TrialState.PRUNED) >= trials
            if enough and _has(study, present, TrialState.COMPLETE):
                break
            trial = study.ask(distributions(space))
            try:
                study.tell(trial, judge(trial))
                failures = 0
            except optuna.TrialPruned:
                study.tell(trial, state=TrialState.PRUNED)
                failures = 0
            except InvalidInput:
                study.tell(trial, state=TrialState.FAIL)
                raise
            except Exception as error:
                study.tell(trial, state=TrialState.FAIL)
                failures += 1
                _LOG.warning("the evaluator failed: %r", error)
                if failures == _FAILURES:
                    raise InvalidInput(
                        "tuning.evaluator",
                        repr(error),
                        f"it failed {_FAILURES} times in a row; the study goes on where it stopped "
                        "once it works",
                    ) from error
    return _summary(model, task, present, study, proposer), study


def from_log(
    arms: Sequence[Evaluated],
    model: str,
    task: str,
    present: Mapping[str, Any],
    space: ParameterSpace,
    worth: Worth,
    study_name: str,
    storage: str | None = None,
    known: Sequence[Evaluated] = (),
    seed: int = 0,
) -> tuple[ParametersTuned, optuna.Study]:
    """Compare the settings that were logged, and say which one to try next.

    A log answers for what it drew and for nothing between, so no setting is made up and scored:
    each arm of the model is a trial, and the winner is one of them.

    Parameters
    ----------
    arms
        Off-policy estimates for this task type, see `optimizer.parameter_log`, two or more with
        the present setting among them.

    Raises
    ------
    InvalidInput
        If there are fewer than two arms, or none has the present parameters.
    """
    import optuna
    from optuna.trial import TrialState

    from optimizer.surface_sampler import distributions

    if len(arms) < 2 or not any(one.parameters == present for one in arms):
        raise InvalidInput(
            "log",
            f"{len(arms)} settings",
            "two arms of the model or more with different parameters and outcomes, one of them the "
            "first of the settings",
        )
    proposer = Proposer(space, worth, known, seed)
    study = _opened(study_name, storage, proposer)
    done = [trial.user_attrs.get("parameters") for trial in study.trials]
    for arm in arms:
        if dict(arm.parameters) not in done:
            study.add_trial(
                optuna.trial.create_trial(
                    state=TrialState.COMPLETE,
                    params=_fitting(space, arm.parameters),
                    distributions=distributions(space),
                    values=[arm.quality, arm.cost_usd],
                    user_attrs={
                        "parameters": dict(arm.parameters),
                        "errors": [arm.quality_error, arm.cost_error],
                    },
                )
            )
    with threadpool_limits(1):
        found = _summary(model, task, present, study, proposer)
        untried = proposer.propose(list(arms), len(arms))
    merged = {**present, **untried}
    known_already = any(dict(one.parameters) == merged for one in arms)
    return replace(found, untried=None if known_already else merged), study


def _opened(name: str, storage: str | None, proposer: Proposer) -> optuna.Study:
    import optuna

    from optimizer.policy_tuning import opened
    from optimizer.surface_sampler import SurfaceSampler

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    return optuna.create_study(
        study_name=name,
        storage=None if storage is None else opened(storage),
        directions=["maximize", "minimize"],
        load_if_exists=True,
        sampler=SurfaceSampler(proposer),
    )


def _fitting(space: ParameterSpace, parameters: Mapping[str, Any]) -> dict[str, float | int]:
    """As a trial, at the nearest end of a range where they lie outside."""
    return space.setting(space.place(parameters))


def _parts_of_finished(study: optuna.Study) -> list[Matrix]:
    from optuna.trial import TrialState

    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return [np.array(one.user_attrs["parts"]) for one in finished if "parts" in one.user_attrs]


def _remember(trial: optuna.Trial, parts: list[tuple[float, float]]) -> None:
    values = np.array(parts)
    trial.set_user_attr("so_far", values.mean(axis=0).tolist())
    if len(parts) > 1:
        errors = values.std(axis=0, ddof=1) / math.sqrt(len(parts))
        trial.set_user_attr("errors", errors.tolist())
        trial.set_user_attr("parts", parts[:_KEPT_PARTS])


def _has(
    study: optuna.Study, parameters: Mapping[str, Any], *states: optuna.trial.TrialState
) -> bool:
    trials = study.get_trials(deepcopy=False, states=states)
    return any(one.user_attrs.get("parameters") == dict(parameters) for one in trials)


def _count(study: optuna.Study, *states: optuna.trial.TrialState) -> int:
    return len(study.get_trials(deepcopy=False, states=states))


def _summary(
    model: str, task: str, present: Mapping[str, Any], study: optuna.Study, proposer: Proposer
) -> ParametersTuned:
    from optuna.trial import TrialState

    from optimizer.surface_sampler import evaluated

    done = evaluated(study.get_trials(deepcopy=False), complete=True)
    quality, cost, believed = proposer.believed(done, [one.parameters for one in done])
    tried = [
        Tried(one.parameters, one.quality, one.cost_usd, value)
        for one, value in zip(done, believed.tolist(), strict=True)
    ]
    mine = next(one for one in tried if one.parameters == present)
    floor = proposer.worth.quality_floor
    if floor is None:
        winner = max(tried, key=lambda one: one.worth)
        better = winner.worth >= mine.worth + LEAST_GAIN
    else:
        enough = np.flatnonzero(quality >= floor * quality.max())
        cheapest = int(enough[cost[enough].argmin()])
        winner, place = tried[cheapest], tried.index(mine)
        better = place not in enough or cost[cheapest] < (1.0 - LEAST_GAIN) * cost[place]
    return ParametersTuned(
        model,
        task,
        mine,
        winner,
        _front(tried),
        _count(study, TrialState.COMPLETE),
        _count(study, TrialState.PRUNED),
        _count(study, TrialState.FAIL),
        bool(better) and winner is not mine,
    )


def _front(tried: Sequence[Tried]) -> tuple[Tried, ...]:
    front: list[Tried] = []
    for one in sorted(tried, key=lambda one: (one.cost_usd, -one.quality)):
        if not front or one.quality > front[-1].quality:
            front.append(one)
    return tuple(front)
