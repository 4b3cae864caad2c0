"""Is a challenger within its limits? For quality, cost and p95 latency: yes, no, or open.

A limit is relative to the champion. Means are compared by `optimizer.experiments.sequential`: the
limit is kept, or broken, where a one-sided test at the limit itself says so. p95s are compared by a
confidence sequence each (`optimizer.rollout.quantiles`).

Quality and cost count each unit once. The p95 counts decisions as independent: where units send
many, and units differ, its interval is too narrow.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from optimizer.confidence import BEST_AT, ENOUGH
from optimizer.experiments import sequential
from optimizer.experiments.moments import Moments
from optimizer.experiments.sequential import Exceedance
from optimizer.rollout.evidence import Evidence
from optimizer.rollout.quantiles import quantile, upper_tail_mean

if TYPE_CHECKING:  # the settings hold this package's own
    from optimizer.settings import Guardrails

__all__ = ["GUARDRAILS", "Finding", "State", "judge"]

State = Literal["holds", "violated", "open", "absent"]

GUARDRAILS = 3
"""Quality, cost and latency: among so many the level of a stage is split."""

_P95 = 0.95
_FAR = 0.01
"""A cost has no known range, so its pseudo-rows (`optimizer.confidence`) lie at the mean of the
dearest hundredth. Measured on 100 canaries of an equal policy that takes a model of 30 times the
price once in 1,500 requests: at 5 % a promise an interval missed in 1. With the largest cost in its
place the first stage took three times as many requests; with no pseudo-rows 3 of 60 missed."""
_LEAST_FACTOR = 1e-9
"""A limit of -100 % allows everything; tests want a multiple above 0."""
_WORDS = {"quality": "quality", "cost_usd": "cost", "latency_s": "p95 latency"}


class Finding(Struct, frozen=True):
    """What is known of one guardrail.

    Attributes
    ----------
    part
        "quality", "cost_usd" or "latency_s".
    state
        "holds": the interval lies within the limit. "violated": beyond it. "open": neither.
        "absent": no decision has that part, which is no obstacle; except for quality, which is then
        open.
    limit
        Relative change that is still allowed; for quality the most negative one.
    champion, challenger
        Mean, for latency the p95; None where there is none.
    change, low, high
        Of the challenger, relative to the champion (-0.1 is a tenth less), with its interval. None
        where it cannot be told, or has no end on that side.
    champion_count, challenger_count
        Decisions where the part is known.
    """

    part: str
    state: State
    limit: float
    champion: float | None
    challenger: float | None
    change: float | None
    low: float | None
    high: float | None
    champion_count: int
    challenger_count: int

    @property
    def sentence(self) -> str:
        """For people."""
        word = _WORDS[self.part]
        if self.state == "absent":
            return f"no decision has a {word}, so that its limit is not asked for"
        if self.change is None:
            return f"{word} cannot be compared yet (limit {self.limit:+.1%})"
        low = "?" if self.low is None else f"{self.low:+.1%}"
        high = "?" if self.high is None else f"{self.high:+.1%}"
        said = {"holds": "within", "violated": "beyond", "open": "undecided against"}[self.state]
        return f"{word} {self.change:+.1%} ({low} to {high}), {said} the limit {self.limit:+.1%}"


def judge(
    evidence: Evidence, guardrails: Guardrails, share: float, alpha: float
) -> tuple[Finding, ...]:
    """A finding each for quality, cost and p95 latency.

    Parameters
    ----------
    evidence
        Of one stage.
    guardrails
        The limits.
    share
        The challenger's share of the stage, in (0, 1): intervals are tightest when the smaller
        group has `optimizer.confidence.BEST_AT` rows.
    alpha
        In (0, 1): the probability that one guardrail's interval ever misses in this stage.

    Examples
    --------
    >>> from optimizer.records import Outcome
    >>> from optimizer.settings import Guardrails
    >>> evidence = Evidence()
    >>> for row in range(2000):
    ...     right = float(row % 10 > 0)
    ...     evidence.update("champion", Outcome(), Outcome(quality=right))
    ...     evidence.update("challenger", Outcome(), Outcome(quality=0.8 * right))
    >>> [finding.state for finding in judge(evidence, Guardrails(), 0.5, 0.01)]
    ['violated', 'absent', 'absent']
    """
    champion, challenger = evidence.champion, evidence.challenger
    best_at = BEST_AT / min(share, 1.0 - share)
    costs = Counter(champion.cost_usd_bins)
    costs.update(challenger.cost_usd_bins)
    cost_span = upper_tail_mean(costs, _FAR) or None
    drop, rise = -guardrails.quality_drop, guardrails.cost_rise
    return (
        _of_means("quality", champion.quality, challenger.quality, drop, 1.0, alpha, best_at),
        _of_means(
            "cost_usd", champion.cost_usd, challenger.cost_usd, rise, cost_span, alpha, best_at
        ),
        _of_p95(evidence, guardrails.latency_rise, share, alpha),
    )


def _of_means(
    part: str,
    champion: Moments,
    challenger: Moments,
    limit: float,
    span: float | None,
    alpha: float,
    best_at: float,
) -> Finding:
    counts = (champion.count, challenger.count)
    state: State = "open"
    if max(counts) == 0 and part != "quality":
        state = "absent"
    elif min(counts) >= ENOUGH:
        factor = max(1.0 + limit, _LEAST_FACTOR)

        def exceeds(first: Moments, second: Moments, times: float) -> Exceedance:
            return sequential.exceeds(
                first, second, factor=times, alpha=alpha / 2, span=span, best_at=best_at
            )

        above = exceeds(challenger, champion, factor).low
        below = exceeds(champion, challenger, 1.0 / factor).low
        assert above is not None and below is not None
        kept, broken = (above, below) if part == "quality" else (below, above)
        if broken > 0:
            state = "violated"
        elif kept >= 0:  # costs of 0 on both sides are known to be equal
            state = "holds"
    change = sequential.lift(challenger, champion, alpha=alpha, span=span, best_at=best_at)
    return Finding(
        part,
        state,
        limit,
        champion.mean if champion.count else None,
        challenger.mean if challenger.count else None,
        change.value,
        change.low,
        change.high,
        *counts,
    )


def _of_p95(evidence: Evidence, limit: float, share: float, alpha: float) -> Finding:
    champion = quantile(evidence.champion.latency_s_bins, _P95, alpha / 2, _best_at(1.0 - share))
    challenger = quantile(evidence.challenger.latency_s_bins, _P95, alpha / 2, _best_at(share))
    state: State = "open"
    if champion.count == challenger.count == 0:
        state = "absent"
    elif _at_most(challenger.high, champion.low, 1.0 + limit):
        state = "holds"
    elif _above(challenger.low, champion.high, 1.0 + limit):
        state = "violated"
    return Finding(
        "latency_s",
        state,
        limit,
        champion.value,
        challenger.value,
        _relative(challenger.value, champion.value),
        _relative(challenger.low, champion.high),
        _relative(challenger.high, champion.low),
        champion.count,
        challenger.count,
    )


def _best_at(share: float) -> float:
    """Of a group with this share, when the smaller of both has `BEST_AT`."""
    return BEST_AT * share / min(share, 1.0 - share)


def _at_most(value: float | None, of: float | None, ratio: float) -> bool:
    return value is not None and of is not None and value <= ratio * of


def _above(value: float | None, of: float | None, ratio: float) -> bool:
    return value is not None and of is not None and value > ratio * of


def _relative(value: float | None, of: float | None) -> float | None:
    return None if value is None or not of else value / of - 1.0
