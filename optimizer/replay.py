"""Replay: one pass of a policy over recorded outcomes, where every arm's outcome is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from time import perf_counter_ns

import numpy as np
import pandas as pd

from optimizer.errors import InvalidRecording
from optimizer.policies.base import Policy, draw
from optimizer.records import Indices, Matrix, Observation, Outcome, Vector
from optimizer.reward import Objective, Weights

__all__ = [
    "Baseline",
    "Mean",
    "RecordedOutcomes",
    "ReplayResult",
    "baselines",
    "equal_cost_mix",
    "replay",
]

_REQUIRED = ("request_id", "prompt", "task", "model", "quality", "cost_usd")


@dataclass(frozen=True)
class RecordedOutcomes:
    """What every model did on every request.

    Attributes
    ----------
    request_ids, prompts, tasks
        Length n, in the order of the recording.
    models
        Length k.
    quality, cost_usd
        Shape (n, k); quality in [0, 1], cost in US dollars.
    latency_s
        Shape (n, k) in seconds, or None where the recording has none.
    """

    request_ids: tuple[str, ...]
    prompts: tuple[str, ...]
    tasks: tuple[str, ...]
    models: tuple[str, ...]
    quality: Matrix
    cost_usd: Matrix
    latency_s: Matrix | None

    @classmethod
    def from_frame(cls, frame: pd.DataFrame) -> RecordedOutcomes:
        """Read the long table, one row for each (request, model).

        Raises
        ------
        InvalidRecording
            Naming the column, or the request and model, that is missing or out of range.
        """
        for column in _REQUIRED:
            if column not in frame:
                raise InvalidRecording(
                    column, None, f"a recording has the columns {', '.join(_REQUIRED)}"
                )
        if frame.empty:
            raise InvalidRecording("rows", 0, "a recording has at least one request")
        frame = frame.assign(request_id=frame.request_id.astype(str), model=frame.model.astype(str))
        twice = frame.duplicated(["request_id", "model"])
        if twice.any():
            row = frame[twice].iloc[0]
            raise InvalidRecording(
                f"{row.request_id}, {row.model}", "two rows", "one row for each (request, model)"
            )
        first = frame.drop_duplicates("request_id")
        models = tuple(sorted(frame.model.unique()))
        table = {
            name: _pivot(frame, name, first.request_id, models)
            for name in ("quality", "cost_usd", "latency_s")
        }
        quality, cost, latency = table["quality"], table["cost_usd"], table["latency_s"]
        assert quality is not None and cost is not None
        if ((quality < 0) | (quality > 1)).any():
            raise InvalidRecording("quality", float(quality.max()), "quality lies in [0, 1]")
        if (cost < 0).any():
            raise InvalidRecording("cost_usd", float(cost.min()), "a cost is 0 or more")
        return cls(
            tuple(first.request_id),
            tuple(first.prompt.fillna("").astype(str)),
            tuple(first.task.fillna("").astype(str)),
            models,
            quality,
            cost,
            latency,
        )

    def objective(self, weights: Weights) -> Objective:
        """Weights with the caps of a replay: the dearest and the slowest model's mean."""
        cost_cap = float(self.cost_usd.mean(axis=0).max())
        latency_cap = None if self.latency_s is None else float(self.latency_s.mean(axis=0).max())
        return Objective(weights, cost_cap or None, latency_cap or None)

    def outcome(self, request: int, model: int) -> Outcome:
        """What ``model`` did on ``request``, both by index."""
        latency = None if self.latency_s is None else float(self.latency_s[request, model])
        return Outcome(
            float(self.quality[request, model]), float(self.cost_usd[request, model]), latency
        )


def _pivot(
    frame: pd.DataFrame, column: str, requests: pd.Series[str], models: tuple[str, ...]
) -> Matrix | None:
    if column not in frame or frame[column].isna().all():
        if column == "latency_s":
            return None
        raise InvalidRecording(column, None, "the column has no values")
    wide = frame.pivot(index="request_id", columns="model", values=column)
    wide = wide.reindex(index=requests, columns=list(models)).astype(float)
    if wide.isna().to_numpy().any():
        row, col = np.argwhere(wide.isna().to_numpy())[0]
        raise InvalidRecording(
            column, None, f"missing for request {requests.iloc[row]} and model {models[col]}"
        )
    values: Matrix = wide.to_numpy()
    if not np.isfinite(values).all():
        raise InvalidRecording(column, "infinite", "values are finite")
    return values


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
