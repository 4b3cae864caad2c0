"""Percentiles of latencies, without numpy: the load generator is to start and stay small."""

from __future__ import annotations

import math
from collections.abc import Iterable

__all__ = ["SHARES", "percentiles_ms"]

SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}


def percentiles_ms(values_s: Iterable[float]) -> dict[str, float]:
    """The smallest value that at least that share of all does not exceed, in ms.

    Examples
    --------
    >>> percentiles_ms([0.001, 0.002, 0.003, 0.004])["p50"]
    2.0
    """
    ordered = sorted(values_s)
    if not ordered:
        return {}
    shares = SHARES | {"max": 1.0}
    return {
        name: 1000 * ordered[max(math.ceil(share * len(ordered)), 1) - 1]
        for name, share in shares.items()
    }
