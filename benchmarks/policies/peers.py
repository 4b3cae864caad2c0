"""Policies of other libraries, each behind `Contestant`, each with one setting for every recording.

They learn the reward as one number; ours learns the parts of the outcome it is made of. A library
is imported when its first policy starts, so that one that is not installed stops no other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.policies.race import Contestant, Entry, Problem
from optimizer.policies.base import draw

__all__ = ["PEERS"]


class _VowpalWabbit:
    """Features in the namespace of the request, the arm's name in that of the action.

    Text is VW's own input. The lines are written beforehand, its parsing of them is timed. What VW
    minimises is ``cost - reward``: with a cost of 1 arms that were not tried look as good as can
    be, with 0 they look as bad.
    """

    def __init__(self, problem: Problem, seed: int, options: str, cost: float) -> None:
        from vowpalwabbit import Workspace

        self._cost = cost
        self._workspace = Workspace(f"{options} --quiet --random_seed {seed}")
        self._arms = [f"|a m{arm}" for arm in range(problem.arms)]
        self._shared = [
            "shared |s " + " ".join(f"f{i}:{row[i]:.6g}" for i in np.flatnonzero(row))
            for row in problem.features
        ]

    def decide(self, request: int, uniform: float) -> tuple[int, float]:
        scores = np.array(self._workspace.predict([self._shared[request], *self._arms]))
        arm = draw(scores / scores.sum(), uniform)
        return arm, float(scores[arm])

    def learn(self, request: int, arm: int, propensity: float, reward: float) -> None:
        lines = [self._shared[request], *self._arms]
        lines[1 + arm] = f"0:{self._cost - reward:.6f}:{propensity:.6g} {self._arms[arm]}"
        self._workspace.learn(lines)


class _MabWiser:
    """It must be fitted before it predicts, so until the first reward the draw is uniform."""

    def __init__(self, problem: Problem, seed: int, algorithm: str) -> None:
        from mabwiser.mab import MAB, LearningPolicy

        self._features = problem.features
        self._arms = problem.arms
        policy = getattr(LearningPolicy, algorithm)()
        self._bandit = MAB(list(range(problem.arms)), policy, seed=seed)
        self._fitted = False

    def decide(self, request: int, uniform: float) -> tuple[int, float]:
        if not self._fitted:
            return int(uniform * self._arms), 1.0
        return int(self._bandit.predict(self._features[request : request + 1])), 1.0

    def learn(self, request: int, arm: int, propensity: float, reward: float) -> None:
        fit = self._bandit.partial_fit if self._fitted else self._bandit.fit
        fit([arm], [reward], self._features[request : request + 1])
        self._fitted = True


class _River:
    """Features as a dictionary of what is not zero, River's own form, made beforehand."""

    def __init__(self, problem: Problem, seed: int) -> None:
        from river.bandit import LinUCBDisjoint

        self._bandit = LinUCBDisjoint(seed=seed)
        self._arms = list(range(problem.arms))
        self._contexts = [
            {int(i): float(row[i]) for i in np.flatnonzero(row)} for row in problem.features
        ]

    def decide(self, request: int, uniform: float) -> tuple[int, float]:
        return int(self._bandit.pull(self._arms, context=self._contexts[request])), 1.0

    def learn(self, request: int, arm: int, propensity: float, reward: float) -> None:
        self._bandit.update(arm, self._contexts[request], reward)


class _ParetoBandit:
    """The policy inside its router, with the router's own defaults and no prior."""

    def __init__(self, problem: Problem, seed: int) -> None:
        from pareto_bandit import DisjointLinUCBPolicy
        from pareto_bandit.config import BEST_K3_HPARAMS

        self._features = problem.features
        self._bandit = DisjointLinUCBPolicy(
            [str(arm) for arm in range(problem.arms)],
            dim=problem.features.shape[1],
            alpha=BEST_K3_HPARAMS["alpha"],
            forgetting_factor=BEST_K3_HPARAMS["forgetting_factor"],
            seed=seed,
        )

    def decide(self, request: int, uniform: float) -> tuple[int, float]:
        name, _ = self._bandit.select_arm(self._features[request])
        self._bandit.mark_selected(name)
        return int(name), 1.0

    def learn(self, request: int, arm: int, propensity: float, reward: float) -> None:
        self._bandit.update(str(arm), self._features[request], reward, advance_time=False)


class _ContextualBandits:
    """Without its intercept, since the features have a constant; its seeds start at 1."""

    def __init__(
        self, problem: Problem, seed: int, algorithm: str, options: dict[str, Any]
    ) -> None:
        from contextualbandits import online

        self._features = problem.features
        self._bandit = getattr(online, algorithm)(
            problem.arms, fit_intercept=False, random_state=seed + 1, **options
        )

    def decide(self, request: int, uniform: float) -> tuple[int, float]:
        return int(self._bandit.predict(self._features[request : request + 1])[0]), 1.0

    def learn(self, request: int, arm: int, propensity: float, reward: float) -> None:
        row = self._features[request : request + 1]
        self._bandit.partial_fit(row, np.array([arm]), np.array([reward]))


def _vw(name: str, exploration: str, cost: int) -> Entry:
    options = f"--cb_explore_adf {exploration} --cb_type mtr -q sa"
    setting = f"`{options}`, cost = {cost or ''}-reward"
    return Entry(f"VW {name}", "vowpalwabbit", setting, _with(_VowpalWabbit, options, cost))


def _with(kind: Callable[..., Contestant], *more: Any) -> Callable[[Problem, int], Contestant]:
    return lambda problem, seed: kind(problem, seed, *more)


_RECOMMENDED = {"alpha": 0.1, "ucb_from_empty": False, "beta_prior": "auto"}

PEERS: tuple[Entry, ...] = (
    # Of the two usual costs each has the one that served it better on both recordings together.
    _vw("SquareCB", "--squarecb", 0),
    _vw("RegCB", "--regcb", 1),
    _vw("RegCB optimistic", "--regcbopt --cb_min_cost -1 --cb_max_cost 0", 0),
    _vw("epsilon", "--epsilon 0.05", 1),
    _vw("bagging", "--bag 5", 1),
    Entry("MABWiser LinUCB", "mabwiser", "its defaults: alpha 1", _with(_MabWiser, "LinUCB")),
    Entry("MABWiser LinTS", "mabwiser", "its defaults: alpha 1", _with(_MabWiser, "LinTS")),
    Entry("River LinUCBDisjoint", "river", "its defaults", _River),
    Entry(
        "ParetoBandit LinUCB",
        "paretobandit",
        "its router's defaults (alpha .01, forgetting .997), without a prior learned offline",
        _ParetoBandit,
    ),
    Entry(
        "contextualbandits LinUCB",
        "contextualbandits",
        "its defaults: alpha 1",
        _with(_ContextualBandits, "LinUCB", {}),
    ),
    Entry(
        "contextualbandits LinUCB, as advised",
        "contextualbandits",
        "alpha .1 and a beta prior, as its documentation advises (made for rewards of 0 and 1)",
        _with(_ContextualBandits, "LinUCB", _RECOMMENDED),
    ),
    Entry(
        "contextualbandits LinTS",
        "contextualbandits",
        "its defaults",
        _with(_ContextualBandits, "LinTS", {}),
    ),
)
"""Everybody else, with the setting that each ships or documents."""
