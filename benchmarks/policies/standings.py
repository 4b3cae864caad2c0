"""From the laps of all seeds to means, intervals and differences that can be believed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import kendalltau, t

from benchmarks.policies.race import Lap
from optimizer.records import Vector

__all__ = ["Estimate", "Standing", "estimate", "order_agreement", "standings"]

_LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and its 95 % interval; with a single seed the interval is unknown."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Standing:
    """How one policy did, every figure over seeds.

    Attributes
    ----------
    name
        Of the policy.
    reward, regret, last_third
        Mean reward a request, the oracle's minus it, and the mean over the last third of the pass.
    ahead
        Reward minus that of the best peer, seed by seed; None where no peer ran.
    decide_us, learn_us
        Median microseconds of a decision and of an update.
    decide_ratio, learn_ratio
        Those medians over those of our default policy on the same seed; None where it did not run.
    """

    name: str
    reward: Estimate
    regret: Estimate
    last_third: Estimate
    ahead: Estimate | None
    decide_us: Estimate
    learn_us: Estimate
    decide_ratio: Estimate | None
    learn_ratio: Estimate | None


def estimate(values: Sequence[float] | Vector) -> Estimate:
    """Mean and Student's interval of independent values.

    Examples
    --------
    >>> estimate([1.0, 1.0, 1.0])
    Estimate(mean=1.0, low=1.0, high=1.0)
    >>> estimate([2.0])
    Estimate(mean=2.0, low=None, high=None)
    """
    array = np.asarray(values, dtype=float)
    mean = float(array.mean())
    if array.size < 2:
        return Estimate(mean, None, None)
    error = float(array.std(ddof=1)) / array.size**0.5
    half = float(t.ppf(0.5 + _LEVEL / 2, array.size - 1)) * error
    return Estimate(mean, mean - half, mean + half)


def standings(
    laps: Mapping[str, Sequence[Lap]], oracle: float, peers: Sequence[str], ours: str
) -> list[Standing]:
    """One standing for each policy, the highest reward first.

    Parameters
    ----------
    laps
        For each policy its laps, one a seed, the same seeds in the same order for all.
    oracle
        Mean reward of the best arm of every request.
    peers
        Names that are not ours.
    ours
        Our policy that times are compared with.
    """
    reward = {name: _means(each) for name, each in laps.items()}
    decide = {
        name: np.array([np.median(lap.decide_us) for lap in each]) for name, each in laps.items()
    }
    learn = {name: np.array([_median(lap.learn_us) for lap in each]) for name, each in laps.items()}
    present = [name for name in peers if name in laps]
    best = max(present, key=lambda name: reward[name].mean(), default=None)
    return sorted(
        (
            Standing(
                name,
                estimate(reward[name]),
                estimate(oracle - reward[name]),
                estimate([_last_third(lap.rewards) for lap in each]),
                None if best is None else estimate(reward[name] - reward[best]),
                estimate(decide[name]),
                estimate(learn[name]),
                estimate(decide[name] / decide[ours]) if ours in laps else None,
                estimate(learn[name] / learn[ours]) if ours in laps else None,
            )
            for name, each in laps.items()
        ),
        key=lambda standing: -standing.reward.mean,
    )


def order_agreement(one: Sequence[Standing], other: Sequence[Standing]) -> float:
    """Kendall's tau of two standings of the same policies: 1 for the same order, -1 reversed."""
    mean = {standing.name: standing.reward.mean for standing in other}
    both = [standing for standing in one if standing.name in mean]
    result = kendalltau([each.reward.mean for each in both], [mean[each.name] for each in both])
    return float(result.statistic)


def _means(laps: Sequence[Lap]) -> Vector:
    return np.array([lap.rewards.mean() for lap in laps])


def _median(values: Vector) -> float:
    """NaN where no reward ever came, without a warning."""
    return float(np.median(values)) if values.size else float("nan")


def _last_third(rewards: Vector) -> float:
    return float(rewards[-(len(rewards) // 3 or 1) :].mean())
