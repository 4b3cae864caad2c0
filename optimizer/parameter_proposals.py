"""Which setting to try next: the one expected to improve most on the best that is believed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtr
from scipy.stats import qmc

from optimizer.parameter_space import ParameterSpace
from optimizer.records import Matrix, Vector
from optimizer.response_surface import ResponseSurface
from optimizer.worth import Worth

__all__ = ["Evaluated", "Proposer"]

_STARTUP = 5
"""Evaluated settings, spread evenly, before a surface is believed."""

_SMALLEST_USD = 1e-9
_CANDIDATES = 1024
_AROUND = 64
_BEST = 4
_FRONT_EVERY = 4
"""Of so many proposals one looks for another trade of quality for cost."""


@dataclass(frozen=True)
class Evaluated:
    """A setting and what came of it.

    Attributes
    ----------
    quality, cost_usd
        Means.
    quality_error, cost_error
        Their standard errors; 0 where unknown.
    elsewhere
        Another task type that it was for; empty where it is ours.
    """

    parameters: Mapping[str, Any]
    quality: float
    cost_usd: float
    quality_error: float = 0.0
    cost_error: float = 0.0
    elsewhere: str = ""


@dataclass(frozen=True)
class Surfaces:
    """What is believed of quality and of cost."""

    quality: ResponseSurface
    log_cost: ResponseSurface

    def __call__(self, places: Matrix) -> tuple[tuple[Vector, Vector], tuple[Vector, Vector]]:
        """Mean and standard deviation of quality, then of cost in US dollars."""
        mean, deviation = self.log_cost(places)
        cost = np.exp(mean + 0.5 * np.minimum(deviation, 1.0) ** 2)
        return self.quality(places), (cost, cost * deviation)


class Proposer:
    """Proposes by expected improvement of the worth on two surfaces, quality and cost.

    Expected improvement over the best believed mean, since the best value that was seen was lucky
    (Jones, Schonlau and Welch, J. Global Optimization 13 (1998); Picheny, Wagner and Ginsbourger,
    Structural and Multidisciplinary Optimization 48 (2013)). Now and then the weights are drawn at
    random, which fills the Pareto front (Knowles, ParEGO, IEEE Trans. Evol. Comp. 10 (2006)).

    Parameters
    ----------
    known
        What is known beforehand: of arms in use, or of other task types.
    seed
        The proposals are a function of it and of what was evaluated.
    """

    def __init__(
        self,
        space: ParameterSpace,
        worth: Worth,
        known: Sequence[Evaluated] = (),
        seed: int = 0,
    ) -> None:
        self.space, self.worth = space, worth
        self._known, self._seed = tuple(known), seed
        sobol = qmc.Sobol(space.size, rng=np.random.default_rng((seed, 0)))
        self._spread = sobol.random(8)

    def propose(self, evaluated: Sequence[Evaluated], number: int) -> dict[str, float | int]:
        """The setting to try next.

        Parameters
        ----------
        evaluated
            So far, of this task type.
        number
            Of the trial, from 0.
        """
        random = np.random.default_rng((self._seed, 1, number))
        if len(evaluated) + len(self._known) / 2 < _STARTUP or not evaluated:
            return self.space.setting(self._spread[number % len(self._spread)])
        worth = self.worth
        if worth.quality_floor is not None or number % _FRONT_EVERY == _FRONT_EVERY - 1:
            worth = self._other(evaluated, random)
        surfaces = self.surfaces(evaluated)
        tried = self.space.places([one.parameters for one in evaluated])
        best, _ = _worth(worth, surfaces, tried)
        candidates = self._candidates(tried[np.argsort(-best)[:_BEST]], random)
        mean, deviation = _worth(worth, surfaces, candidates)
        gain = _expected_improvement(mean, deviation, float(best.max()))
        return self.space.setting(candidates[int(gain.argmax())])

    def believed(
        self, evaluated: Sequence[Evaluated], settings: Sequence[Mapping[str, Any]]
    ) -> tuple[Vector, Vector, Vector]:
        """Quality, cost and worth that are believed of settings, each of shape (m,)."""
        places = self.space.places(list(settings))
        quality, cost = (means for means, _ in self.surfaces(evaluated)(places))
        return quality, cost, self.worth(quality, cost)

    def surfaces(self, evaluated: Sequence[Evaluated]) -> Surfaces:
        """Of quality, and of the logarithm of cost: what doubles it does so for every task."""
        rows = (*evaluated, *self._known)
        places = self.space.places([one.parameters for one in rows])
        tasks = np.array([one.elsewhere for one in rows])
        cost = np.maximum([one.cost_usd for one in rows], _SMALLEST_USD)
        return Surfaces(
            ResponseSurface.fit(
                places,
                np.array([one.quality for one in rows]),
                np.array([one.quality_error for one in rows]),
                tasks,
            ),
            ResponseSurface.fit(
                places, np.log(cost), np.array([one.cost_error for one in rows]) / cost, tasks
            ),
        )

    def _other(self, evaluated: Sequence[Evaluated], random: np.random.Generator) -> Worth:
        costs = [one.cost_usd for one in evaluated]
        weight = float(random.random())
        return Worth(weight, 1.0 - weight, max(*costs, 1e-12))

    def _candidates(self, best: Matrix, random: np.random.Generator) -> Matrix:
        everywhere = random.random((_CANDIDATES, self.space.size))
        around = np.repeat(best, _AROUND, axis=0)
        near = around + random.normal(0.0, 0.08, around.shape)
        return np.clip(np.vstack([everywhere, near]), 0.0, 1.0)


def _worth(worth: Worth, surfaces: Surfaces, places: Matrix) -> tuple[Vector, Vector]:
    (quality, quality_error), (cost, cost_error) = surfaces(places)
    return worth(quality, cost), worth.error(quality_error, cost_error)


def _expected_improvement(mean: Vector, deviation: Vector, best: float) -> Vector:
    ahead = (mean - best) / deviation
    density = np.exp(-0.5 * ahead**2) / np.sqrt(2 * np.pi)
    result: Vector = (mean - best) * ndtr(ahead) + deviation * density
    return result
