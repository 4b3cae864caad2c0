"""How fast policies decide and learn: ``python -m benchmarks.decision_speed``.

Each figure stands beside a limit that is measured in the same run: the bare arithmetic of LinUCB in
numpy, one matrix product for all arms, without propensities, floor or objective.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from time import perf_counter

import numpy as np

from optimizer.policies import Policy, PolicySettings, make_policy
from optimizer.records import Arm, Observation, Outcome
from optimizer.reward import Objective, Weights

NAMES = ("randucb", "linucb", "squarecb", "linthompson", "thompson")
_ARMS, _FEATURES, _BATCH = 8, 24, 100
_ROUNDS = 9


def _policy(name: str, arms: int, features: int) -> Policy:
    objective = Objective(Weights(), cost_cap_usd=0.01, latency_cap_s=2.0)
    models = [Arm(f"model-{index}") for index in range(arms)]
    return make_policy(PolicySettings(name=name), models, features, objective)


def _observations(number: int, arms: int, features: int) -> list[Observation]:
    """Random outcomes: their values do not matter here, only their number."""
    random = np.random.default_rng(0)
    rows = np.round(random.normal(size=(number, features)) * 1228) / 4096
    rows[:, 0] = 1.0
    return [
        Observation(
            int(random.integers(arms)),
            row,
            Outcome(),
            Outcome(float(random.random()), float(random.random() / 100), float(random.random())),
            step,
            step,
        )
        for step, row in enumerate(rows)
    ]


def _median_us(work: Callable[[], object], calls: int) -> float:
    """Microseconds a call: the median of some rounds, since neighbours take their share."""
    rounds = []
    for _ in range(_ROUNDS):
        started = perf_counter()
        for _ in range(calls):
            work()
        rounds.append((perf_counter() - started) / calls * 1e6)
    return statistics.median(rounds)


def _limit(rows: np.ndarray) -> tuple[float, float]:
    """The bare arithmetic: one decision, and a batch, in microseconds."""
    random = np.random.default_rng(1)
    stacked = random.random((_ARMS + _ARMS * _FEATURES, _FEATURES))
    columns = np.ascontiguousarray(stacked[_ARMS:].T)

    def one() -> int:
        product = stacked.dot(rows[0])
        spread = product[_ARMS:].reshape(_ARMS, _FEATURES).dot(rows[0])
        return int((product[:_ARMS] + np.sqrt(np.abs(spread))).argmax())

    def many() -> np.ndarray:
        product = (rows @ columns).reshape(-1, _ARMS, _FEATURES)
        spread = np.einsum("nki,ni->nk", product, rows)
        chosen: np.ndarray = (rows @ stacked[:_ARMS].T + np.sqrt(np.abs(spread))).argmax(axis=1)
        return chosen

    return _median_us(one, 500), _median_us(many, 50)


def measure() -> dict[str, object]:
    """Decisions, batches, updates and the size of a snapshot."""
    seen = _observations(6000, _ARMS, _FEATURES)
    rows = np.array([one.features for one in seen[:_BATCH]])
    limit_one, limit_batch = _limit(rows)
    policies: dict[str, dict[str, float]] = {}
    for name in NAMES:
        policy = _policy(name, _ARMS, _FEATURES)
        rounds = []
        for start in range(0, len(seen), 1000):
            started = perf_counter()
            policy.learn(seen[start : start + 1000])
            rounds.append(1000 / (perf_counter() - started))
        one = _median_us(lambda policy=policy: policy.probabilities(rows[0]), 200)
        batch = _median_us(lambda policy=policy: policy.probabilities_many(rows), 20)
        policies[name] = {
            "decision_us": one,
            "decision_over_limit": one / limit_one,
            "batch_of_100_us": batch,
            "batch_over_limit": batch / limit_batch,
            "updates_per_s": statistics.median(rounds),
        }
    large = _policy("randucb", 20, 64)
    large.learn(_observations(1000, 20, 64))
    return {
        "arms": _ARMS,
        "features": _FEATURES,
        "limit": {"decision_us": limit_one, "batch_of_100_us": limit_batch},
        "policies": policies,
        "snapshot_bytes_20_arms_64_features": len(large.snapshot()),
    }


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))
