"""One plain sentence: better, worse, undecided, or a question this log can't support."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from optimizer.confidence import Estimate
from optimizer.offpolicy.support import ENOUGH_EFFECTIVE, Support

__all__ = ["Answer", "Verdict", "verdict"]

Answer = Literal["better", "worse", "undecided", "unsupported"]

_MOST_TIMES = 100.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer as a word and as a sentence."""

    answer: Answer
    sentence: str


def verdict(
    policy: str, difference: Estimate, support: Support, rare_arm: str | None, level: str
) -> Verdict:
    """What the difference in reward to the logged traffic means.

    Parameters
    ----------
    policy
        How the target is called.
    difference
        Target minus logged mean reward, anytime-valid.
    support
        Of the log for this target; too little of it refuses a verdict.
    rare_arm
        The arm that the target takes more often, and the log draws less often, than any other.
    level
        Of the interval, for people ("95 %").
    """
    lacking = _lacking(support, rare_arm)
    if lacking is not None:
        return Verdict("unsupported", f"No verdict on {policy}: {lacking}")
    low, high, value = difference.low, difference.high, difference.value
    if low is None or high is None or value is None:
        return Verdict("unsupported", f"No verdict on {policy}: too few rows have a reward.")
    shown = f"{low:+.4f} to {high:+.4f} ({level})"
    if low > 0:
        return Verdict(
            "better", f"{policy} would have scored better than what was logged, by {shown} reward."
        )
    if high < 0:
        return Verdict(
            "worse", f"{policy} would have scored worse than what was logged, by {shown} reward."
        )
    return Verdict(
        "undecided",
        f"This log can't tell {policy} from what was logged: the difference in reward lies in "
        f"{shown}.{_more_rows(value, low, high, difference.count)}",
    )


def _lacking(support: Support, rare_arm: str | None) -> str | None:
    arm = "" if rare_arm is None else f" (above all {rare_arm})"
    if not support.enough:
        size = min(support.effective_sample_size, support.expected_sample_size)
        return (
            f"the effective sample size is {math.floor(size)} of {support.rows} "
            f"rows, and {ENOUGH_EFFECTIVE:.0f} are needed. The log rarely draws what the policy "
            f"takes{arm}: take a longer log, raise control_share or the policy's uniform_share, or "
            "ask about a policy closer to the logged one."
        )
    if not support.balanced:
        value = support.mean_weight.value
        return (
            f"the weights average {value:.3f}, where 1 is expected. Either the log never draws "
            f"some of what the policy takes{arm}, or its propensities are wrong, or outcomes are "
            "missing more often for some arms: put that right, or leave such arms out."
        )
    return None


def _more_rows(value: float, low: float, high: float, count: int) -> str:
    """How many rows would do, if the difference stays and widths shrink with the square root."""
    half = max(value - low, high - value)
    times = (half / value) ** 2 if value else _MOST_TIMES
    if times >= _MOST_TIMES:
        return ""
    return f" If it stays as it is, about {_rounded(times * count)} rows would settle it."


def _rounded(rows: float) -> str:
    """Two digits, in words that don't claim more."""
    return f"{float(f'{rows:.1e}'):,.0f}"
