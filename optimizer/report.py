"""What a span of time shows: traffic, outcomes, and what the policy saved against control."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
import numpy.typing as npt
import pandas as pd

from optimizer.confidence import Estimate, difference, mean, saving
from optimizer.readiness import ControlReadiness, control_readiness
from optimizer.records import Vector
from optimizer.reward import Objective

__all__ = [
    "MEASURES",
    "Comparison",
    "ReportSummary",
    "by_unit",
    "over_time",
    "rewards_of",
    "summarise",
]

MEASURES = ("reward", "quality", "cost_usd", "latency_s")

_SPAN = {"reward": 1.0, "quality": 1.0}
_SAVED = ("cost_usd", "latency_s")
_NONE = Estimate(None, None, None, 0)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One measure, treated against control.

    Attributes
    ----------
    treated, control
        Mean of each group's units; None where it has none.
    difference
        Treated minus control, anytime-valid.
    saving
        ``1 - treated / control`` for measures of which less is better, else without a value.
    """

    measure: str
    treated: float | None
    control: float | None
    difference: Estimate
    saving: Estimate

    @property
    def saved_per_1000(self) -> Estimate:
        """What 1,000 requests need less, in the measure's unit: for costs, US dollars."""
        value, low, high = self.difference.value, self.difference.low, self.difference.high
        return Estimate(
            None if value is None else -1000.0 * value,
            None if high is None else -1000.0 * high,
            None if low is None else -1000.0 * low,
            self.difference.count,
        )


@dataclass(frozen=True, slots=True)
class ReportSummary:
    """Figures of one decision point over a span of time.

    Attributes
    ----------
    decisions
        Of each role.
    complete
        Of each role, decisions whose outcome has every part that the reward needs; only these are
        compared.
    comparisons
        In the order of `MEASURES`; decisions of role champion are the treated.
    arm_shares
        Of each role, the share of its decisions that went to each model; sum 1.
    control_share
        Share of control among champion and control decisions.
    control_share_planned
        What the settings say.
    readiness
        Whether the comparisons can be believed.
    proxied
        Of each role, decisions without feedback whose quality a model predicted; they are in no
        comparison.
    """

    decisions: Mapping[str, int]
    complete: Mapping[str, int]
    comparisons: tuple[Comparison, ...]
    arm_shares: Mapping[str, Mapping[str, float]]
    control_share: Estimate
    control_share_planned: float
    readiness: ControlReadiness
    proxied: Mapping[str, int] = field(default_factory=dict)


def summarise(frame: pd.DataFrame, objective: Objective, control_share: float) -> ReportSummary:
    """Sum up the decisions of one decision point.

    Parameters
    ----------
    frame
        As `serving.outcomes.outcomes_frame` gives it: one row a decision, in time order.
    objective
        Makes the reward.
    control_share
        Probability of control, in [0, 1); 0 for none, then nothing is compared.
    """
    frame = frame.assign(reward=rewards_of(frame, objective))
    known = frame[frame["reward"].notna()]
    units = by_unit(known)
    compared = frame["role"].isin(("champion", "control"))
    flags = np.asarray(frame["role"][compared] == "control", dtype=np.float64)
    complete = _counts(known["role"])
    return ReportSummary(
        decisions=_counts(frame["role"]),
        complete=complete,
        comparisons=tuple(_compare(units, name, control_share) for name in MEASURES),
        arm_shares={
            str(role): {str(model): float(share) for model, share in shares.items()}
            for role, shares in (
                (role, models.value_counts(normalize=True))
                for role, models in frame.groupby("role")["model"]
            )
        },
        control_share=mean(flags, span=1.0),
        control_share_planned=control_share,
        readiness=control_readiness(frame, complete, control_share),
        proxied=_counts(frame["role"][frame["proxied"]]) if "proxied" in frame else {},
    )


def by_unit(known: pd.DataFrame) -> pd.DataFrame:
    """One row a unit and role, with the means of what is known, in the order they first came.

    All requests of a unit are decided by one draw of a hash, so the unit is what an interval may
    count. Each unit weighs the same, however many requests it sent.
    """
    if known["unit"].is_unique:
        return known
    return known.groupby(["unit", "role"], sort=False, as_index=False)[list(MEASURES)].mean()


def rewards_of(frame: pd.DataFrame, objective: Objective) -> Vector:
    """Shape (rows,): the reward of each decision; NaN while a part that counts is missing."""
    shares = objective.shares()
    columns = ("quality", "cost_usd", "latency_s", "feedback")
    quality, cost, latency, feedback = (
        frame[name].to_numpy(dtype=np.float64) if share else np.zeros(len(frame))
        for name, share in zip(columns, shares, strict=True)
    )
    rewards: Vector = objective.rewards(quality, cost, latency) + shares[3] * feedback
    return rewards


def over_time(
    frame: pd.DataFrame, start: datetime, end: datetime, buckets: int = 12
) -> pd.DataFrame:
    """Means of each role in equal pieces of time, for plots.

    Parameters
    ----------
    frame
        As for `summarise`.
    start, end
        With time zone.
    buckets
        Number of pieces, 1 or more.

    Returns
    -------
    Columns bucket (start of the piece, UTC), role, and quality, cost_usd, latency_s.
    """
    width = (end - start) / buckets
    begin = pd.Timestamp(start).tz_convert("UTC")
    bucket = begin + (frame["decided_at"] - begin) // width * width
    names = ["quality", "cost_usd", "latency_s"]
    return frame.assign(bucket=bucket).groupby(["bucket", "role"], as_index=False)[names].mean()


def _compare(known: pd.DataFrame, measure: str, control_share: float) -> Comparison:
    rows = known[known[measure].notna() & known["role"].isin(("champion", "control"))]
    outcome = rows[measure].to_numpy(dtype=np.float64)
    treated: npt.NDArray[np.bool_] = (rows["role"] == "champion").to_numpy(dtype=np.bool_)
    span = _SPAN.get(measure)
    comparable = 0 < control_share < 1
    return Comparison(
        measure,
        mean(outcome[treated]).value,
        mean(outcome[~treated]).value,
        difference(outcome, treated, control_share, span=span) if comparable else _NONE,
        saving(outcome, treated, control_share, span=span)
        if comparable and measure in _SAVED
        else _NONE,
    )


def _counts(roles: pd.Series[str]) -> dict[str, int]:
    return {str(role): int(count) for role, count in roles.value_counts().items()}
