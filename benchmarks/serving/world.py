"""The made-up world that policies are taught before they are timed: what each arm earns."""

from __future__ import annotations

import random

__all__ = ["ARMS", "outcome"]

ARMS = 8


def outcome(rng: random.Random, arm: int, task: str) -> tuple[float, float, float]:
    """Quality, cost in USD and latency in seconds; dearer arms are better, each has its task."""
    good = 0.4 + 0.05 * arm + (0.2 if len(task) % ARMS == arm else 0.0)
    quality = min(max(rng.gauss(good, 0.15), 0.0), 1.0)
    return quality, 0.001 * (1 + arm) * rng.uniform(0.7, 1.3), 0.2 + 0.1 * arm * rng.random()
