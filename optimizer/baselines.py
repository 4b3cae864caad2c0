"""What fixed rules would have got on recorded outcomes: one model, a mix, chance, the oracle."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from optimizer.recorded import RecordedOutcomes
from optimizer.records import Matrix
from optimizer.reward import Objective

__all__ = [
    "Baseline",
    "Flags",
    "Mean",
    "baselines",
    "equal_cost_mix",
    "equal_quality_mix",
    "reward_table",
]

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Mean:
    """Means a request."""

    quality: float
    cost_usd: float
    reward: float


@dataclass(frozen=True)
class Baseline(Mean):
    """What a fixed rule would have got; ``model`` where the rule is one model."""

    model: str | None = None


def reward_table(recorded: RecordedOutcomes, objective: Objective) -> Matrix:
    """Shape (n, k): the reward of every model on every request."""
    return objective.rewards(recorded.quality, recorded.cost_usd, recorded.latency_s)


def baselines(
    recorded: RecordedOutcomes, objective: Objective, there: Flags | None = None
) -> dict[str, Baseline]:
    """Best single model, cheapest model, uniform random and the oracle that sees every outcome.

    The oracle takes the highest reward of each request, the cheaper model where two are equal.

    Parameters
    ----------
    there
        Shape (n, k): whether a model can be had for a request; all of them if None. Single models
        are those that are there all the time, at least one.
    """
    reward = reward_table(recorded, objective)
    there = np.ones(reward.shape, dtype=bool) if there is None else there
    always = there.all(axis=0)
    best = int(np.where(always, reward.mean(axis=0), -np.inf).argmax())
    cheapest = int(np.where(always, recorded.cost_usd.mean(axis=0), np.inf).argmin())
    had = np.where(there, reward, -np.inf)
    by_request = np.lexsort((recorded.cost_usd, -had), axis=1)[:, 0]

    def means(share: Matrix, model: str | None = None) -> Baseline:
        quality, cost, got = (
            float((part * share).sum(axis=1).mean())
            for part in (recorded.quality, recorded.cost_usd, reward)
        )
        return Baseline(quality, cost, got, model)

    def single(model: int) -> Baseline:
        return means(np.eye(there.shape[1])[model], recorded.models[model])

    return {
        "best_single": single(best),
        "cheapest": single(cheapest),
        "random": means(there / there.sum(axis=1, keepdims=True)),
        "oracle": means(np.eye(there.shape[1])[by_request]),
    }


def equal_cost_mix(recorded: RecordedOutcomes, cost_usd: float) -> float:
    """Highest mean quality of any random mix of two models that costs at most ``cost_usd``.

    Parameters
    ----------
    cost_usd
        Mean cost a request; below the cheapest model's, the cheapest alone is the answer.
    """
    quality = recorded.quality.mean(axis=0)
    cost = recorded.cost_usd.mean(axis=0)
    affordable = cost <= cost_usd
    if not affordable.any():
        return float(quality[cost.argmin()])
    best = float(quality[affordable].max())
    for cheap in np.flatnonzero(affordable):
        for dear in np.flatnonzero(~affordable):
            share = (cost_usd - cost[cheap]) / (cost[dear] - cost[cheap])
            best = max(best, float(quality[cheap] + share * (quality[dear] - quality[cheap])))
    return best


def equal_quality_mix(recorded: RecordedOutcomes, quality: float) -> float:
    """Lowest mean cost of any random mix of two models whose mean quality is at least ``quality``.

    Parameters
    ----------
    quality
        Mean quality a request; above the best model's, the best alone is the answer.
    """
    known = recorded.quality.mean(axis=0)
    cost = recorded.cost_usd.mean(axis=0)
    enough = known >= quality
    if not enough.any():
        return float(cost[known.argmax()])
    lowest = float(cost[enough].min())
    for good in np.flatnonzero(enough):
        for poor in np.flatnonzero(~enough):
            share = (quality - known[poor]) / (known[good] - known[poor])
            lowest = min(lowest, float(cost[poor] + share * (cost[good] - cost[poor])))
    return lowest
