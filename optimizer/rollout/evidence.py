"""What a canary has seen of champion and challenger: sums and histograms, no rows.

Outcomes arrive in parts, late, and are corrected, so everything here can take back what was added.
A histogram keeps costs and latencies to 2 %, which is what a p95 needs (the idea of DDSketch:
Masson, Rim, Lee, VLDB 2019; its library cannot take back).
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct, field

from optimizer.experiments.moments import Moments
from optimizer.records import Outcome
from optimizer.rollout.quantiles import bin_of

__all__ = ["Evidence", "GroupEvidence", "Role"]

Role = Literal["champion", "challenger"]


class GroupEvidence(Struct):
    """Of one role.

    All requests of a unit go the same way, so a unit counts once, with the mean over its decisions.
    Bins count decisions: of a unit's p95 there is no mean.

    Attributes
    ----------
    quality, cost_usd, latency_s
        Moments of the units where that part is known.
    units
        For each named unit and part, how many decisions tell it, and their sum.
    cost_usd_bins, latency_s_bins
        Decisions in each bin of `optimizer.rollout.quantiles`.
    """

    quality: Moments = Moments()
    cost_usd: Moments = Moments()
    latency_s: Moments = Moments()
    cost_usd_bins: dict[int, int] = field(default_factory=dict)
    latency_s_bins: dict[int, int] = field(default_factory=dict)
    units: dict[tuple[bytes, str], tuple[int, float]] = field(default_factory=dict)

    def update(self, before: Outcome, after: Outcome, unit: bytes | None = None) -> None:
        """Take in a change of what is known about one decision of a unit, None if of its own."""
        for part in ("quality", "cost_usd", "latency_s"):
            old, new = getattr(before, part), getattr(after, part)
            if unit is not None:
                old, new = self._means(unit, part, old, new)
            setattr(self, part, _moved(getattr(self, part), old, new))
        _rebin(self.cost_usd_bins, before.cost_usd, after.cost_usd)
        _rebin(self.latency_s_bins, before.latency_s, after.latency_s)

    def _means(
        self, unit: bytes, part: str, before: float | None, after: float | None
    ) -> tuple[float | None, float | None]:
        """The unit's mean before and after the change."""
        count, total = self.units.pop((unit, part), (0, 0.0))
        old = total / count if count else None
        if before is not None:
            count, total = count - 1, total - before
        if after is not None:
            count, total = count + 1, total + after
        if not count:
            return old, None
        self.units[unit, part] = count, total
        return old, total / count


class Evidence(Struct):
    """Of one stage; a new stage begins with a new one.

    The shares differ between stages, so that pooled rows would weigh hours differently for the two
    roles, and what changed with the hour would look like a difference between policies.

    Examples
    --------
    >>> evidence = Evidence()
    >>> evidence.update("challenger", Outcome(), Outcome(quality=0.5, latency_s=1.2))
    >>> evidence.update("challenger", Outcome(quality=0.5, latency_s=1.2), Outcome(quality=0.8))
    >>> evidence.challenger.quality.mean, evidence.challenger.latency_s.count
    (0.8, 0)
    """

    champion: GroupEvidence = field(default_factory=GroupEvidence)
    challenger: GroupEvidence = field(default_factory=GroupEvidence)

    def update(
        self, role: Role, before: Outcome, after: Outcome, unit: bytes | None = None
    ) -> None:
        """Take in a change of what is known about one decision of the stage.

        Parameters
        ----------
        role
            Who decided.
        before, after
            As in `optimizer.records.Observation`: a first signal has an empty ``before``, a
            correction both, a retraction an empty ``after``.
        unit
            A hash of the unit; None where the decision is a unit of its own.
        """
        group = self.champion if role == "champion" else self.challenger
        group.update(before, after, unit)


def _moved(moments: Moments, before: float | None, after: float | None) -> Moments:
    if before == after:
        return moments
    if after is not None:
        moments = moments.add(after)
    if before is not None:
        moments = moments.remove(before)
    return moments if moments.count else Moments()  # no rounding error outlives the last value


def _rebin(bins: dict[int, int], before: float | None, after: float | None) -> None:
    if before == after:
        return
    if after is not None:
        index = bin_of(after)
        bins[index] = bins.get(index, 0) + 1
    if before is not None:
        index = bin_of(before)
        left = bins.get(index, 0) - 1
        if left:
            bins[index] = left
        else:
            del bins[index]
