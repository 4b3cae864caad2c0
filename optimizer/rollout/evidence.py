"""What a canary has seen of champion and challenger: sums and histograms, no rows.

Outcomes arrive in parts, late, and are corrected, so everything here can take back what was added.
A histogram keeps costs and latencies to 2 %, which is what a p95 needs (the idea of DDSketch:
Masson, Rim, Lee, VLDB 2019; its library cannot take back).
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import Struct, field

from optimizer.experiments.moments import Moments
from optimizer.records import Outcome
from optimizer.rollout.quantiles import bin_of

__all__ = ["Evidence", "GroupEvidence", "Role"]

Role = Literal["champion", "challenger"]


class GroupEvidence(Struct):
    """Of one role.

    Attributes
    ----------
    quality, cost_usd, latency_s
        Moments of the decisions where that part is known.
    cost_usd_bins, latency_s_bins
        Decisions in each bin of `optimizer.rollout.quantiles`.
    """

    quality: Moments = Moments()
    cost_usd: Moments = Moments()
    latency_s: Moments = Moments()
    cost_usd_bins: dict[int, int] = field(default_factory=dict)
    latency_s_bins: dict[int, int] = field(default_factory=dict)

    def update(self, before: Outcome, after: Outcome) -> None:
        """Take in a change of what is known about one decision."""
        self.quality = _moved(self.quality, before.quality, after.quality)
        self.cost_usd = _moved(self.cost_usd, before.cost_usd, after.cost_usd)
        self.latency_s = _moved(self.latency_s, before.latency_s, after.latency_s)
        _rebin(self.cost_usd_bins, before.cost_usd, after.cost_usd)
        _rebin(self.latency_s_bins, before.latency_s, after.latency_s)


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
    >>> Evidence.from_bytes(evidence.to_bytes()) == evidence
    True
    """

    champion: GroupEvidence = field(default_factory=GroupEvidence)
    challenger: GroupEvidence = field(default_factory=GroupEvidence)

    def update(self, role: Role, before: Outcome, after: Outcome) -> None:
        """Take in a change of what is known about one decision of the stage.

        Parameters
        ----------
        role
            Who decided.
        before, after
            As in `optimizer.records.Observation`: a first signal has an empty ``before``, a
            correction both, a retraction an empty ``after``.
        """
        (self.champion if role == "champion" else self.challenger).update(before, after)

    def to_bytes(self) -> bytes:
        """MessagePack; `from_bytes` reads it."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def from_bytes(cls, content: bytes) -> Evidence:
        """What `to_bytes` wrote."""
        return msgspec.msgpack.decode(content, type=cls)


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
