"""From the laps of all seeds to means, intervals and differences that can be believed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import kendalltau

from benchmarks.policies.race import Lap
from optimizer.records import Vector
from optimizer.replay_seeds import Interval, interval

__all__ = ["Standing", "order_agreement", "standings"]


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
    reward: Interval
    regret: Interval
    last_third: Interval
    ahead: Interval | None
    decide_us: Interval
    learn_us: Interval
    decide_ratio: Interval | None
    learn_ratio: Interval | None


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
                interval(reward[name]),
                interval(oracle - reward[name]),
                interval([_last_third(lap.rewards) for lap in each]),
                None if best is None else interval(reward[name] - reward[best]),
                interval(decide[name]),
                interval(learn[name]),
                interval(decide[name] / decide[ours]) if ours in laps else None,
                interval(learn[name] / learn[ours]) if ours in laps else None,
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
