"""What a pass comes down to: the object of ``llmopt replay --json`` for one policy and seed."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from optimizer.baselines import baselines, equal_cost_mix, equal_quality_mix, reward_table
from optimizer.policies.base import Policy
from optimizer.recorded import RecordedOutcomes
from optimizer.records import Matrix, Vector
from optimizer.replay import ReplayResult
from optimizer.reward import Objective

__all__ = ["FLOOR_WINDOW", "SETTLED", "TOLERANCE", "floor_violations", "recovery", "summary"]

FLOOR_WINDOW = 500
"""Requests of a window in which a quality floor is looked at."""

SETTLED = 500
"""Requests after a change within which a policy has to be back."""
_COMPARED = 1000
"""Requests before the change, and after `SETTLED`, that are compared."""
TOLERANCE = 0.05
"""What a policy may lose, relative to its regret before the change."""


@dataclass(frozen=True)
class _Seen:
    """The requests of a pass, in its order.

    Attributes
    ----------
    recorded, reward
        n requests, and shape (n, k).
    always
        Names of the models that were there all the time.
    """

    recorded: RecordedOutcomes
    reward: Matrix
    always: tuple[str, ...]

    @classmethod
    def of(cls, recorded: RecordedOutcomes, objective: Objective, result: ReplayResult) -> _Seen:
        seen = recorded.take(result.order)
        always = tuple(seen.models[model] for model in np.flatnonzero(result.there.all(axis=0)))
        return cls(seen, reward_table(seen, objective), always)


def summary(
    data: str, recorded: RecordedOutcomes, policy: Policy, seed: int, result: ReplayResult
) -> dict[str, object]:
    """The object that ``llmopt replay --json`` prints; every mean is a request's.

    Beside what is always there: ``rewards`` where some are late or lost, ``change`` where the world
    changes, ``budget_usd`` and ``spent_usd``, and what `_floor` or `_priced` tells where there is
    a floor or a price.
    """
    seen = _Seen.of(recorded, policy.objective, result)
    base = baselines(seen.recorded, policy.objective, result.there)
    reward = float(result.rewards.mean())
    regret = base["oracle"].reward - reward
    last = slice(-(len(result.rewards) // 3 or 1), None)
    p50, p99 = np.percentile(result.decide_us, [50, 99])
    cost = float(result.cost_usd.mean())
    fixed = seen.recorded.only(seen.always)
    told: dict[str, object] = {
        "data": data,
        "requests": len(result.rewards),
        "policy": policy.name,
        "seed": seed,
        "quality": float(result.quality.mean()),
        "cost_usd": cost,
        "latency_s": None if result.latency_s is None else float(result.latency_s.mean()),
        "reward": reward,
        "regret": regret,
        "regret_share": regret / base["oracle"].reward if base["oracle"].reward else 0.0,
        "last_third": {
            "quality": float(result.quality[last].mean()),
            "cost_usd": float(result.cost_usd[last].mean()),
            "reward": float(result.rewards[last].mean()),
        },
        "decision_us": {"p50": float(p50), "p99": float(p99)},
        "baselines": {
            **{
                name: {key: value for key, value in asdict(rule).items() if value is not None}
                for name, rule in base.items()
            },
            "equal_cost_mix": {"quality": equal_cost_mix(fixed, cost)},
        },
    }
    conditions = result.conditions
    if conditions.delay.mean or conditions.missing:
        told["rewards"] = {
            "learned": result.learned,
            "lost": result.lost,
            "not_learned_yet": len(result.rewards) - result.learned - result.lost,
        }
    if result.change is not None:
        told["change"] = recovery(result, seen.reward)
    if conditions.budget_usd is not None:
        told["budget_usd"] = conditions.budget_usd
        told["spent_usd"] = float(result.cost_usd.sum())
    floor = policy.objective.quality_floor
    if floor is not None:
        told |= _floor(result, fixed, floor)
    price = policy.objective.quality_price_usd
    if price is not None:
        told |= _priced(result, seen.recorded, price)
    return told


def recovery(result: ReplayResult, reward: Matrix) -> dict[str, float | None]:
    r"""How a policy fares after the world changed, beside before.

    Regret is counted against an oracle that sees every outcome, so that even the best model has
    some, and in another world another amount. With regret :math:`r` and that of the best single
    model of the same requests :math:`u`, both a request, over 1,000 requests before the change and
    over the requests from 500 to 1,500 after it,

    .. math:: e = r_{after} - (1.05\, r_{before} + u_{after} - u_{before})

    is 0 or less where the policy is back within 5 % of its regret before, after 500 requests. A
    difference of so few requests is noisy: judge it over several seeds.

    Parameters
    ----------
    reward
        Shape (n, k): of every model, in the order of the pass.

    Returns
    -------
    ``at`` (the first request of the new world), ``regret_before``, ``regret_after``,
    ``best_single_regret_before``, ``best_single_regret_after``, and e as ``excess_regret``; None
    where the pass is too short.
    """
    assert result.change is not None
    at, end = result.change, len(result.rewards)
    told: dict[str, float | None] = {"at": at}
    spans = {
        "before": slice(max(at - _COMPARED, 0), at),
        "after": slice(at + SETTLED, min(at + SETTLED + _COMPARED, end)),
    }
    for name, span in spans.items():
        best = result.best[span]
        single = np.where(result.there[span].all(axis=0), reward[span].sum(axis=0), -np.inf).max()
        told[f"regret_{name}"] = told[f"best_single_regret_{name}"] = None
        if best.size:
            told[f"regret_{name}"] = float((best - result.rewards[span]).mean())
            told[f"best_single_regret_{name}"] = float(best.mean() - single / best.size)
    before, after = told["regret_before"], told["regret_after"]
    easy, hard = told["best_single_regret_before"], told["best_single_regret_after"]
    told["excess_regret"] = None
    if before is not None and after is not None and easy is not None and hard is not None:
        told["excess_regret"] = after - ((1 + TOLERANCE) * before + hard - easy)
    return told


def floor_violations(quality: Vector, wanted: Vector) -> float:
    """Share of windows of 500 requests whose mean quality is below what was wanted.

    Windows don't overlap; the requests left at the end make one only if there is no other.

    Parameters
    ----------
    quality, wanted
        Shape (n,), in the order of the pass.
    """
    windows = len(quality) // FLOOR_WINDOW
    if not windows:
        return float(quality.mean() < wanted.mean())
    whole = windows * FLOOR_WINDOW
    got = quality[:whole].reshape(windows, -1).mean(axis=1)
    return float((got < wanted[:whole].reshape(windows, -1).mean(axis=1)).mean())


def _floor(result: ReplayResult, fixed: RecordedOutcomes, floor: float) -> dict[str, float]:
    """Quality and cost beside always using the model of the highest mean quality.

    ``quality_share`` of its mean quality, ``saving`` of its mean cost, ``floor_violation_rate``
    (see `floor_violations`), and ``mix_saving``, what the cheapest random mix of two models saves
    whose mean quality is ours; 0 if none reaches it.
    """
    best = int(fixed.quality.mean(axis=0).argmax())
    quality, cost = fixed.quality[:, best], float(fixed.cost_usd[:, best].mean())
    ours, highest = float(result.quality.mean()), float(quality.mean())
    mix = equal_quality_mix(fixed, ours)
    return {
        "quality_share": ours / highest if highest else 1.0,
        "saving": 1.0 - float(result.cost_usd.mean()) / cost if cost else 0.0,
        "floor_violation_rate": floor_violations(result.quality, floor * quality),
        "mix_saving": 1.0 - mix / cost if cost else 0.0,
    }


def _priced(result: ReplayResult, seen: RecordedOutcomes, price_usd: float) -> dict[str, float]:
    """Quality at its price minus cost, a request: ours, the best single model's, the oracle's."""
    worth = price_usd * seen.quality - seen.cost_usd
    ours = price_usd * result.quality - result.cost_usd
    always = result.there.all(axis=0)
    return {
        "net_value_usd": float(ours.mean()),
        "best_single_net_value_usd": float(worth.mean(axis=0)[always].max()),
        "oracle_net_value_usd": float(np.where(result.there, worth, -np.inf).max(axis=1).mean()),
    }
