"""Better hyper-parameters for a policy, searched for on logged traffic.

Each trial is a policy that is taught along the older part of the log, and scored there by the
doubly robust estimate of the reward it would have had. Optuna's TPE proposes trials. The best of
many looks better than it is, so it is judged once more, with the present one, on the newer part,
which no trial has seen.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from threadpoolctl import threadpool_limits

from optimizer.errors import InvalidInput, InvalidRecording
from optimizer.offpolicy import CHOSEN, LoggedDecisions, evaluate, targets
from optimizer.policies import Policy
from optimizer.policies.names import PolicySettings
from optimizer.reward import Objective

if TYPE_CHECKING:
    import optuna

__all__ = ["ENOUGH", "Tuned", "opened", "search"]

ENOUGH = 400
"""Decisions with a known reward, of which a log needs so many."""

_NAMES = ("randucb", "linucb", "linthompson", "squarecb")
_UPDATES = 1000
_SEARCHED = 0.6
"""Share of the log, the older, that trials see."""

MakePolicy = Callable[[PolicySettings], Policy]


@dataclass(frozen=True)
class Tuned:
    """What a search has found.

    Attributes
    ----------
    present, best
        Settings in use, and those of the best trial.
    present_reward, best_reward
        Doubly robust estimates on the newer part of the log.
    trials
        Finished, of this and of earlier runs of the same study.
    better
        Whether the best is estimated above the present one there. That is a reason to try it, not
        a proof: a canary decides.
    """

    present: PolicySettings
    best: PolicySettings
    present_reward: float
    best_reward: float
    trials: int
    better: bool


def search(
    log: LoggedDecisions,
    objective: Objective,
    present: PolicySettings,
    make: MakePolicy,
    study_name: str,
    trials: int,
    storage: str | None = None,
    seed: int = 0,
) -> tuple[Tuned, optuna.Study]:
    """Search, or go on with a search that was cut off.

    Parameters
    ----------
    log
        In time order.
    objective
        Makes the reward.
    present
        Settings in use; the first trial, so that the search never ends below them on its own part.
    make
        A policy without knowledge, of these settings, for the log's arms and features.
    study_name
        A study of that name in the storage is gone on with, until it has all its trials.
    trials
        How many the study is to have, 1 or more.
    storage
        URL of Optuna's storage; in memory if None.
    seed
        Of the proposals.

    Raises
    ------
    InvalidInput
        If the log has fewer than `ENOUGH` decisions with a reward.
    """
    import optuna  # takes most of a second to import

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    cut = int(len(log) * _SEARCHED)
    if _known(log, objective) < ENOUGH:
        raise InvalidInput(
            "log", _known(log, objective), f"{ENOUGH} decisions with a known reward or more"
        )
    study = optuna.create_study(
        study_name=study_name,
        storage=None if storage is None else opened(storage),
        direction="maximize",
        load_if_exists=True,
        sampler=_sampler(seed),
    )
    done = _finished(study)
    if done == 0:  # again, if the first was cut off
        study.enqueue_trial(_parameters(present))
    older = log.rows(slice(0, cut))

    def score(trial: optuna.Trial) -> float:
        return _reward(older, objective, make(_suggest(trial, present)), 0)

    with threadpool_limits(1):
        for number in range(done, trials):
            # Seeded anew, so that a search that was cut off proposes what it would have proposed.
            study.sampler = _sampler(seed + number)
            study.optimize(score, n_trials=1)
    best = _settings(study.best_trial.params, present)
    with threadpool_limits(1):
        rewards = [_reward(log, objective, make(one), cut) for one in (present, best)]
    better = best != present and rewards[1] > rewards[0]
    return Tuned(present, best, rewards[0], rewards[1], _finished(study), better), study


def _finished(study: optuna.Study) -> int:
    import optuna

    return len(study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)))


def opened(url: str) -> optuna.storages.BaseStorage:
    """Optuna's storage at a URL."""
    import optuna
    from sqlalchemy.pool import NullPool

    # No connection outlives its use: a study has no end at which somebody would close one.
    return optuna.storages.RDBStorage(url, engine_kwargs={"poolclass": NullPool})


def _sampler(seed: int) -> optuna.samplers.BaseSampler:
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls the joint proposal experimental
        return optuna.samplers.TPESampler(seed=seed, multivariate=True)


def _known(log: LoggedDecisions, objective: Objective) -> int:
    return int((~np.isnan(log.rewards(objective))).sum())


def _reward(log: LoggedDecisions, objective: Objective, policy: Policy, since: int) -> float:
    """The estimate over the rows from ``since`` on, of a policy that is taught all of them."""
    chances = targets.learning(log, policy, max(math.ceil(len(log) / _UPDATES), 1))
    judged = log.rows(slice(since, None))
    try:
        found = evaluate(judged, chances[since:], objective)
    except InvalidRecording:
        return -math.inf
    value = found.results[CHOSEN].measures["reward"].value
    return -math.inf if value is None else value


def _suggest(trial: optuna.Trial, present: PolicySettings) -> PolicySettings:
    names = _NAMES if present.name in _NAMES else (present.name, *_NAMES)
    chosen: dict[str, Any] = {
        "name": trial.suggest_categorical("name", names),
        "alpha": trial.suggest_float("alpha", 0.1, 4.0, log=True),
        "gap_scale": trial.suggest_float("gap_scale", 1.0, 100.0, log=True),
        "uniform_share": trial.suggest_float("uniform_share", 0.0005, 0.05, log=True),
        "forgetting": trial.suggest_categorical("forgetting", ("drift", "never", "discounted")),
    }
    return _settings(chosen, present)


def _settings(chosen: Mapping[str, Any], present: PolicySettings) -> PolicySettings:
    return present.model_copy(update=dict(chosen))


def _parameters(settings: PolicySettings) -> dict[str, Any]:
    """The present settings as a trial, at the nearest end of a range where they lie outside."""
    return {
        "name": settings.name,
        "alpha": min(max(settings.alpha, 0.1), 4.0),
        "gap_scale": min(max(settings.gap_scale, 1.0), 100.0),
        "uniform_share": min(max(settings.uniform_share, 0.0005), 0.05),
        "forgetting": settings.forgetting if settings.forgetting != "window" else "discounted",
    }
