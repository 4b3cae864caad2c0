"""`Proposer` as a sampler of Optuna, whose own Gaussian process needs torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from optimizer.parameter_proposals import Evaluated, Proposer
from optimizer.parameter_space import ParameterSpace

__all__ = ["SurfaceSampler", "distributions", "evaluated"]

_PARAMETERS, _ERRORS, _SO_FAR = "parameters", "errors", "so_far"


class SurfaceSampler(optuna.samplers.BaseSampler):
    """Proposes from the finished and the pruned trials of a study."""

    def __init__(self, proposer: Proposer) -> None:
        self._proposer = proposer

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return distributions(self._proposer.space)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        done = evaluated(study.get_trials(deepcopy=False))
        return dict(self._proposer.propose(done, trial.number))

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Of what was not proposed together, which happens to no trial of ours."""
        place = np.random.default_rng(trial.number).random(self._proposer.space.size)
        return self._proposer.space.setting(place)[param_name]


def distributions(space: ParameterSpace) -> dict[str, BaseDistribution]:
    """The ranges, as Optuna stores them."""
    return {
        name: IntDistribution(int(low), int(high), log=True)
        if name == "max_tokens"
        else FloatDistribution(low, high)
        for name, (low, high) in space.ranges.items()
    }


def evaluated(
    trials: list[FrozenTrial], *, complete: bool = False, elsewhere: str = ""
) -> list[Evaluated]:
    """What trials have shown; also those that were pruned, unless ``complete``.

    Parameters
    ----------
    elsewhere
        Their task type, where it is not the one that is tuned.
    """
    found = []
    for trial in trials:
        values = trial.values
        if trial.state == TrialState.PRUNED and not complete:
            values = trial.user_attrs.get(_SO_FAR)
        elif trial.state != TrialState.COMPLETE:
            continue
        if values is not None:
            quality, cost = values
            quality_error, cost_error = trial.user_attrs.get(_ERRORS, (0.0, 0.0))
            parameters: Mapping[str, Any] = trial.user_attrs.get(_PARAMETERS, trial.params)
            found.append(Evaluated(parameters, quality, cost, quality_error, cost_error, elsewhere))
    return found
