"""Forgetting after long histories, in a made world: fixed shares keep more, the more there was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks.forgetting_variants import VARIANTS
from optimizer.policies import PolicySettings, make_policy
from optimizer.policies.base import draw
from optimizer.records import Arm, Observation, Outcome
from optimizer.reward import Objective, Weights

__all__ = ["MADE", "histories"]

MADE = "made"
_LENGTHS = (1000, 10_000, 100_000)
_STEPS = 1000
_BEFORE, _AFTER = np.array([0.9, 0.6, 0.5]), np.array([0.3, 0.6, 0.5])
_NOTHING = Outcome()


def histories(seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Passes as those of `benchmarks.forgetting`: quality 0 or 1, the best of three arms falls."""
    arms = [Arm(name) for name in ("a", "b", "c")]
    objective = Objective(Weights(quality=1, cost=0, latency=0, feedback=0))
    vector = np.ones(1)
    for seed in seeds:
        for length in _LENGTHS:
            random = np.random.default_rng([seed, length])
            taken = np.where(random.random(length) < 0.9, 0, random.integers(1, 3, size=length))
            good = (random.random(length) < _BEFORE[taken]) * 1.0
            past = [
                Observation(arm, vector, _NOTHING, Outcome(quality), step, step + 1)
                for step, (arm, quality) in enumerate(
                    zip(taken.tolist(), good.tolist(), strict=True)
                )
            ]
            uniform, luck = random.random((2, _STEPS)).tolist()
            for name, forgetting in VARIANTS.items():
                policy = make_policy(PolicySettings(), arms, 1, objective)
                policy.forgetting = forgetting(len(arms))
                policy.learn(past)
                forgot: list[int] = []
                regret = 0.0
                for step in range(_STEPS):
                    arm = draw(policy.probabilities(vector), uniform[step])
                    regret += float(_AFTER.max() - _AFTER[arm])
                    outcome = Outcome(float(luck[step] < _AFTER[arm]))
                    at = length + step
                    policy.learn(
                        [Observation(arm, vector, _NOTHING, outcome, at, at + 1)],
                        on_forget=lambda at, arm_id, kept, forgot=forgot: forgot.append(at),
                    )
                yield {
                    "data": MADE,
                    "seed": seed,
                    "forgetting": name,
                    "world": f"after {length:,} rewards",
                    "regret": regret,
                    "forgot": [at - length for at in forgot if at > length],
                    "false": len([at for at in forgot if at <= length]),
                }
