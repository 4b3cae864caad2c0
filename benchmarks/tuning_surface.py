"""SIMULATED response surfaces of temperature, top_p and max_tokens, on recorded levels and noise.

No recording here has the same model at several parameters. So the mean quality, the mean cost and
the spread of single requests are taken from a recording, by model and task type, and the effect of
the parameters is simulated: smooth, with interactions, another one for every model and task type.

- Randomness is temperature, damped by top_p; each task has its best, and quality falls off around
  it as a bell, as it does around a best top_p.
- An answer needs a number of tokens that is lognormal by task. One that is cut off keeps a tenth of
  its quality. Hotter answers are longer.
- Cost goes with the tokens that are written.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr
from scipy.stats import qmc

from optimizer.parameter_space import ParameterSpace
from optimizer.recorded import RecordedOutcomes
from optimizer.records import Matrix, Vector
from optimizer.worth import Worth

__all__ = ["SPACE", "Surface", "surfaces"]

SPACE = ParameterSpace({"temperature": (0.0, 1.5), "top_p": (0.2, 1.0), "max_tokens": (64, 2048)})
_LEAST_QUALITY = 0.3
_LEAST_REQUESTS = 90
_CUT_OFF = 0.1
_BOTH_WEIGHTS = (0.7, 0.3)


@dataclass(frozen=True)
class Surface:
    """One model at one task type.

    Attributes
    ----------
    level, spread, cost_usd
        Recorded: mean quality, its standard deviation over requests, mean cost.
    randomness, width, top_p, top_p_width
        Where quality is best, and how fast it falls.
    tokens, tokens_spread
        Median of the length of answers, and the standard deviation of its logarithm.
    """

    model: str
    task: str
    level: float
    spread: float
    cost_usd: float
    randomness: float
    width: float
    top_p: float
    top_p_width: float
    tokens: float
    tokens_spread: float

    @property
    def worth(self) -> Worth:
        """0.7 for quality, 0.3 for cost; twice the recorded cost earns nothing."""
        return Worth(*_BOTH_WEIGHTS, 2.0 * self.cost_usd)

    def means(self, places: Matrix) -> tuple[Vector, Vector]:
        """Expected quality and cost, without noise, at places of shape (n, 3)."""
        temperature, top_p = 1.5 * places[:, 0], 0.2 + 0.8 * places[:, 1]
        tokens = 64.0 * 32.0 ** places[:, 2]
        randomness = temperature * top_p**1.5
        bell = np.exp(-0.5 * ((randomness - self.randomness) / self.width) ** 2)
        bell *= np.exp(-0.5 * ((top_p - self.top_p) / self.top_p_width) ** 2)
        middle = np.log(self.tokens * (1.0 + 0.4 * randomness))
        finished = ndtr((np.log(tokens) - middle) / self.tokens_spread)
        quality = self.level * bell * (_CUT_OFF + (1.0 - _CUT_OFF) * finished)
        s = self.tokens_spread
        longer = ndtr((middle + s**2 - np.log(tokens)) / s)
        written = np.exp(middle + s**2 / 2) * (1.0 - longer) + tokens * (1.0 - finished)
        usual = self.tokens * (1.0 + 0.4 * self.randomness) * np.exp(s**2 / 2)
        return quality, self.cost_usd * written / usual

    def value(self, places: Matrix) -> Vector:
        """Expected worth."""
        return self.worth(*self.means(places))

    def best(self) -> float:
        """The highest expected worth, by a dense search."""
        grid = qmc.Sobol(3, rng=np.random.default_rng(0)).random(2**15)
        return float(self.value(grid).max())

    def measure(
        self, place: Vector, requests: int, random: np.random.Generator
    ) -> tuple[Vector, Vector]:
        """Quality and cost of single requests, each of shape (requests,)."""
        quality, cost = (float(one[0]) for one in self.means(place[None]))
        quality = min(max(quality, 0.005), 0.995)
        most = quality * (1.0 - quality)
        variance = min(self.spread**2, 0.98 * most)
        strength = most / variance - 1.0
        outcomes = random.beta(quality * strength, (1.0 - quality) * strength, requests)
        costs = cost * random.lognormal(-0.045, 0.3, requests)
        return outcomes, costs


def surfaces(recorded: RecordedOutcomes, seed: int) -> list[Surface]:
    """One for each model and task type that is recorded well enough.

    A model's best randomness and top_p are alike for its task types, and a task's lengths for the
    models.
    """
    random = np.random.default_rng((7, seed))
    tasks = np.array(recorded.tasks)
    found = []
    names = sorted(set(recorded.tasks))
    tokens = dict(
        zip(names, np.exp(random.uniform(np.log(80), np.log(500), len(names))), strict=True)
    )
    for index, model in enumerate(recorded.models):
        randomness, top_p = random.uniform(0.15, 0.8), random.uniform(0.6, 1.0)
        for task in names:
            rows = tasks == task
            quality, cost = recorded.quality[rows, index], recorded.cost_usd[rows, index]
            drawn = Surface(
                model,
                task,
                float(quality.mean()),
                max(float(quality.std()), 0.05),
                float(cost.mean()),
                float(np.clip(randomness + random.normal(0.0, 0.12), 0.0, 1.0)),
                float(random.uniform(0.3, 0.5)),
                float(np.clip(top_p + random.normal(0.0, 0.1), 0.4, 1.0)),
                float(random.uniform(0.35, 0.6)),
                float(tokens[task]),
                float(random.uniform(0.3, 0.6)),
            )
            if rows.sum() >= _LEAST_REQUESTS and drawn.level >= _LEAST_QUALITY:
                found.append(drawn)
    return found
