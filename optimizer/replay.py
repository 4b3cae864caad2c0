"""Replay: one pass of a policy over recorded outcomes, where every arm's outcome is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from time import perf_counter_ns

import numpy as np

from optimizer.policies.base import Policy, draw
from optimizer.recorded import RecordedOutcomes
from optimizer.records import Indices, Matrix, Observation, Outcome, Vector
from optimizer.reward import Objective

__all__ = [
    "Baseline",
    "Mean",
    "ReplayResult",
    "baselines",
    "equal_cost_mix",
    "replay",
]


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


@dataclass(frozen=True)
class ReplayResult:
    """What one pass gave.

    Attributes
    ----------
    arms, propensities, rewards, quality, cost_usd
        Shape (n,), in the order of the pass.
    order
        Shape (n,): index of the request at each step.
    decide_us
        Shape (n,): time of each decision (features given) in microseconds.
    """

    order: Indices
    arms: Indices
    propensities: Vector
    rewards: Vector
    quality: Vector
    cost_usd: Vector
    latency_s: Vector | None
    decide_us: Vector


def replay(
    recorded: RecordedOutcomes,
    features: Matrix,
    policy: Policy,
    seed: int,
    on_step: Callable[[int], None] = lambda step: None,
) -> ReplayResult:
    """Run ``policy`` once over the requests in an order drawn from ``seed``.

    The outcome of the chosen model is revealed and learned before the next request.

    Parameters
    ----------
    recorded
        The truth, shape (n, k).
    features
        Shape (n, d).
    policy
        Arms in the order of ``recorded.models``; it is taught in place.
    seed
        Of the order and of the draws.
    on_step
        Called after each request with its step, for a progress bar.
    """
    random = np.random.default_rng(seed)
    requests = len(recorded.prompts)
    order = random.permutation(requests)
    uniform = random.random(requests)
    arms = np.zeros(requests, dtype=np.int64)
    propensities = np.zeros(requests)
    decide_us = np.zeros(requests)
    nothing = Outcome()
    for step, request in enumerate(order):
        vector = features[request]
        started = perf_counter_ns()
        probabilities = policy.probabilities(vector)
        arm = draw(probabilities, uniform[step])
        decide_us[step] = (perf_counter_ns() - started) / 1000
        arms[step], propensities[step] = arm, probabilities[arm]
        outcome = recorded.outcome(request, arm)
        policy.learn([Observation(arm, vector, nothing, outcome)])
        on_step(step)
    reward = reward_table(recorded, policy.objective)
    latency = recorded.latency_s
    return ReplayResult(
        order,
        arms,
        propensities,
        reward[order, arms],
        recorded.quality[order, arms],
        recorded.cost_usd[order, arms],
        None if latency is None else latency[order, arms],
        decide_us,
    )


def reward_table(recorded: RecordedOutcomes, objective: Objective) -> Matrix:
    """Shape (n, k): the reward of every model on every request."""
    return objective.rewards(recorded.quality, recorded.cost_usd, recorded.latency_s)


def baselines(recorded: RecordedOutcomes, objective: Objective) -> dict[str, Baseline]:
    """Best single model, cheapest model, uniform random and the oracle that sees every outcome.

    The oracle takes the highest reward of each request, the cheaper model where two are equal.
    """
    reward = reward_table(recorded, objective)
    best = int(reward.mean(axis=0).argmax())
    cheapest = int(recorded.cost_usd.mean(axis=0).argmin())
    by_request = np.lexsort((recorded.cost_usd, -reward), axis=1)[:, 0]
    rows = np.arange(len(reward))

    def single(model: int) -> Baseline:
        return Baseline(
            float(recorded.quality[:, model].mean()),
            float(recorded.cost_usd[:, model].mean()),
            float(reward[:, model].mean()),
            recorded.models[model],
        )

    return {
        "best_single": single(best),
        "cheapest": single(cheapest),
        "random": Baseline(
            float(recorded.quality.mean()),
            float(recorded.cost_usd.mean()),
            float(reward.mean()),
        ),
        "oracle": Baseline(
            float(recorded.quality[rows, by_request].mean()),
            float(recorded.cost_usd[rows, by_request].mean()),
            float(reward[rows, by_request].mean()),
        ),
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


def summary(
    data: str, recorded: RecordedOutcomes, policy: Policy, seed: int, result: ReplayResult
) -> dict[str, object]:
    """The object that ``llmopt replay --json`` prints; every mean is a request's."""
    base = baselines(recorded, policy.objective)
    reward = float(result.rewards.mean())
    regret = base["oracle"].reward - reward
    last = slice(-(len(result.rewards) // 3 or 1), None)
    p50, p99 = np.percentile(result.decide_us, [50, 99])
    cost = float(result.cost_usd.mean())
    return {
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
            "equal_cost_mix": {"quality": equal_cost_mix(recorded, cost)},
        },
    }
