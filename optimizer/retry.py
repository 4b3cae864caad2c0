"""Whether to ask a better model once more, after a response that is predicted to be poor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from optimizer.reward import Objective

__all__ = ["Candidate", "Retry", "advise_retry"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """An arm that could be asked.

    Attributes
    ----------
    index
        Of the arm.
    quality
        Predicted, in [0, 1].
    cost_usd
        Expected of one request, None where it is not known.
    """

    index: int
    quality: float
    cost_usd: float | None


@dataclass(frozen=True, slots=True)
class Retry:
    """The advice.

    Attributes
    ----------
    arm
        Which to ask, None if none is worth it.
    reason
        One sentence for people.
    """

    arm: Candidate | None
    reason: str


def advise_retry(
    quality: float,
    others: Sequence[Candidate],
    objective: Objective,
    *,
    below: float,
    gain: float,
) -> Retry | None:
    """Whether another arm is predicted better by enough for its price.

    A retry pays the other arm's whole cost, since the first response is paid for already. With a
    price on quality the gain must be worth that cost; with weights and a cost cap, the part of the
    reward that it adds must be more than the part that the cost takes. Where neither is set, or a
    cost is not known, the gain alone counts.

    Parameters
    ----------
    quality
        Predicted of the response at hand.
    others
        The other arms.
    objective
        Of the decision point.
    below
        Nothing is advised at this quality or above, in [0, 1].
    gain
        Least gain of quality, in [0, 1].

    Returns
    -------
    None if the response is good enough.

    Examples
    --------
    >>> from optimizer.reward import Weights
    >>> worth = Objective(Weights(), cost_cap_usd=0.01, quality_price_usd=0.03)
    >>> others = [Candidate(1, 0.9, 0.002), Candidate(2, 0.95, 0.02)]
    >>> found = advise_retry(0.3, others, worth, below=0.5, gain=0.1)
    >>> found.arm.index
    1
    """
    if quality >= below:
        return None
    better = [one for one in others if one.quality - quality >= gain]
    if not better:
        return Retry(None, f"no other arm is predicted better by {gain:g} or more")
    worth = [(_worth(one.quality - quality, one.cost_usd, objective), one) for one in better]
    value, best = max(worth, key=lambda pair: (pair[0], -(pair[1].cost_usd or 0.0)))
    if value <= 0:
        return Retry(None, "better arms cost more than their gain is worth here")
    return Retry(
        best, f"predicted {best.quality:.2f} where this response is predicted {quality:.2f}"
    )


def _worth(gain: float, cost_usd: float | None, objective: Objective) -> float:
    """The gain minus what the cost is worth in quality."""
    if cost_usd is None:
        return gain
    if objective.quality_price_usd is not None:
        return gain - cost_usd / objective.quality_price_usd
    weights, cap = objective.weights, objective.cost_cap_usd
    if cap is None or objective.quality_floor is not None or not weights.quality:
        return gain
    return float(gain - weights.cost / weights.quality * np.clip(cost_usd / cap, 0.0, 1.0))
