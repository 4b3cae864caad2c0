"""What the arms have done lately: decayed averages, kept as outcomes arrive.

For each model and part it keeps ``sum_i w_i x_i`` and ``sum_i w_i`` with ``w_i = 2 ** -(age_i /
half_life)``, both as of the latest event of that model. A dozen numbers a model, no window of
past outcomes. A model without any decision in the last `MEMORY_S` seconds is not known: so what is
known depends on the last hours of the ledger alone, and never on when the learner was started.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from optimizer.errors import InvalidInput
from optimizer.records import Outcome

__all__ = ["HALF_LIFE_S", "MEMORY_S", "ArmFeatures", "ArmStatistics"]

HALF_LIFE_S = 300.0
MEMORY_S = 3600.0
"""As long as the feature store keeps a value."""

_FORGOTTEN_SHARE = 1e-9
"""When a retraction takes away all but this share of an average's weight, the rest, of rounding
errors and of outcomes 30 half-lives older, is dropped too."""


@dataclass(frozen=True, slots=True)
class ArmFeatures:
    """The recent statistics of one model at one decision point; None for what was never seen.

    Attributes
    ----------
    quality
        Mean quality, in [0, 1].
    cost_usd
        Mean cost of a request in US dollars.
    latency_s
        Mean latency in seconds.
    error_rate
        Share in [0, 1] of errors among the outcomes whose quality is known. An error is an outcome
        whose quality is exactly 0.
    count
        Outcomes, each counting ``2 ** -(age / half-life)``.
    """

    quality: float | None = None
    cost_usd: float | None = None
    latency_s: float | None = None
    error_rate: float | None = None
    count: float = 0.0


class ArmStatistics:
    """Recent statistics of each model of one decision point.

    Parameters
    ----------
    half_life_s
        Age in seconds at which an outcome counts half, above 0.

    Raises
    ------
    InvalidInput
        If the half-life is not a finite number above 0.

    Examples
    --------
    >>> statistics = ArmStatistics()
    >>> statistics.update("small", 0.0, Outcome(), Outcome(quality=1.0))
    >>> statistics.update("small", 300.0, Outcome(), Outcome(quality=0.0))
    >>> features = statistics.values(300.0)["small"]
    >>> round(features.quality, 3), round(features.error_rate, 3), features.count
    (0.333, 0.667, 1.5)
    """

    def __init__(self, half_life_s: float = HALF_LIFE_S) -> None:
        if not (math.isfinite(half_life_s) and half_life_s > 0):
            raise InvalidInput("half_life_s", half_life_s, "a finite number of seconds above 0")
        self.half_life_s = half_life_s
        self._models: dict[str, _Model] = {}

    def update(self, model: str, at_s: float, before: Outcome, after: Outcome) -> None:
        """Take in a change of what is known about one decision.

        Parameters
        ----------
        model
            The decision's model.
        at_s
            When the decision was made, Unix time in seconds: the same for every change of one
            decision, so that a correction or retraction takes away exactly what was added. A late
            event counts by its age.
        before, after
            As in `optimizer.records.Observation`: a first signal has an empty ``before``, a
            retraction an empty ``after``.
        """
        state = self._models.setdefault(model, _Model(at_s))
        if at_s > state.at_s:
            state.decay(self._weight(at_s - state.at_s))
            state.at_s = at_s
        weight = self._weight(state.at_s - at_s)
        changes = zip(state.averages(), _values(before), _values(after), strict=True)
        for average, old, new in changes:
            if old == new:
                continue
            if new is not None:
                average.add(new, weight)
            if old is not None:
                average.remove(old, weight)

    def values(self, now_s: float) -> dict[str, ArmFeatures]:
        """The statistics of every model that had an outcome, at ``now_s`` (Unix time, seconds)."""
        found = {}
        for model, state in self._models.items():
            if now_s - state.at_s > MEMORY_S:
                found[model] = ArmFeatures()
                continue
            decay = self._weight(max(now_s - state.at_s, 0.0))
            found[model] = ArmFeatures(
                quality=_at_most_one(state.quality.mean()),
                cost_usd=state.cost_usd.mean(),
                latency_s=state.latency_s.mean(),
                error_rate=_at_most_one(state.error.mean()),
                count=state.outcomes.weight * decay,
            )
        return found

    def _weight(self, age_s: float) -> float:
        return float(2.0 ** -(age_s / self.half_life_s))


@dataclass(slots=True)
class _Average:
    total: float = 0.0
    weight: float = 0.0

    def add(self, value: float, weight: float) -> None:
        self.total += weight * value
        self.weight += weight

    def remove(self, value: float, weight: float) -> None:
        left = self.weight - weight
        if left <= _FORGOTTEN_SHARE * self.weight:
            self.total = self.weight = 0.0
        else:
            self.total = max(self.total - weight * value, 0.0)
            self.weight = left

    def mean(self) -> float | None:
        return self.total / self.weight if self.weight > 0.0 else None


@dataclass(slots=True)
class _Model:
    """Sums as of ``at_s``, the latest event."""

    at_s: float
    quality: _Average = field(default_factory=_Average)
    cost_usd: _Average = field(default_factory=_Average)
    latency_s: _Average = field(default_factory=_Average)
    error: _Average = field(default_factory=_Average)
    outcomes: _Average = field(default_factory=_Average)

    def averages(self) -> tuple[_Average, ...]:
        return (self.quality, self.cost_usd, self.latency_s, self.error, self.outcomes)

    def decay(self, factor: float) -> None:
        for average in self.averages():
            average.total *= factor
            average.weight *= factor


def _values(outcome: Outcome) -> tuple[float | None, ...]:
    """What an outcome adds to each average, in the order of `_Model.averages`."""
    quality = outcome.quality
    known = any(value is not None for value in outcome.values())
    return (
        quality,
        outcome.cost_usd,
        outcome.latency_s,
        None if quality is None else float(quality == 0.0),
        1.0 if known else None,
    )


def _at_most_one(mean: float | None) -> float | None:
    return None if mean is None else min(mean, 1.0)
