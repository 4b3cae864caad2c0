"""The front over quality, cost and latency of arms and policies, as far as data can tell.

One candidate dominates another if it is at least as good in every measure and better in one; the
front is what nobody dominates. Measured means are uncertain, so each candidate gets an interval of
each measure, and all of them hold together, at any time, with one promised probability (each gets
an equal share of the error: Bonferroni). While they hold, nothing that is called certain is wrong:

=================  =============================================================================
front              no other can dominate it, wherever in the intervals the truth is
perhaps front      on the front by point estimates
perhaps dominated  dominated by point estimates
dominated          one other is better in every measure, by intervals that are apart
unknown            a measure of it is not known at all
=================  =============================================================================

An arm's mean is of the constant policy that always takes it, on the requests of the whole log: the
doubly robust estimate by the propensities of all decisions, and by those of the uniform control
alone, each at half the error; the narrower one is given. A learned policy draws a poor arm so
rarely that the few heavy weights make the first one wide; of a good arm it is far the narrower. A
policy's mean is that of the requests it decided itself. Assignment to a role is by chance, so these
are alike; of roles that began at different times this holds if traffic did not change meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from optimizer import confidence
from optimizer.confidence import Estimate
from optimizer.errors import InvalidInput
from optimizer.offpolicy.draws import Draws
from optimizer.offpolicy.estimators import Rows
from optimizer.offpolicy.evaluation import CHOSEN, default_clip, estimate
from optimizer.offpolicy.logged import LoggedDecisions
from optimizer.offpolicy.outcome_model import Predictions, predict_arms
from optimizer.offpolicy.support import support

__all__ = ["CONTROL", "MEASURES", "Candidate", "Placed", "Standing", "candidates", "place"]

MEASURES = ("quality", "cost_usd", "latency_s")
CONTROL = "control"

Standing = Literal["front", "perhaps front", "perhaps dominated", "dominated", "unknown"]

_BETTER = {"quality": 1.0, "cost_usd": -1.0, "latency_s": -1.0}
_NOT_SERVED = ("fallback", "shadow")
_NOTHING = Estimate(None, None, None, 0)


@dataclass(frozen=True, slots=True)
class Candidate:
    """An arm, or a policy by its role.

    Attributes
    ----------
    measures
        Of those in `MEASURES` that the log knows: mean and interval.
    """

    name: str
    kind: Literal["arm", "policy"]
    measures: Mapping[str, Estimate]


@dataclass(frozen=True, slots=True)
class Placed:
    """A candidate and its standing.

    Attributes
    ----------
    dominated_by
        Names of those that dominate it, certainly or by point estimates as its standing says.
    """

    candidate: Candidate
    standing: Standing
    dominated_by: tuple[str, ...] = ()


def candidates(log: LoggedDecisions, alpha: float = 0.05) -> tuple[Candidate, ...]:
    """Every arm, and every role that served, with intervals that hold together.

    Parameters
    ----------
    log
        In time order. A row counts for each measure that is known of it, which is right if a
        measure goes missing regardless of the arm and of its value.
    alpha
        In (0, 1): the probability that any of the intervals ever misses, as long as there are no
        more candidates.

    Returns
    -------
    Arms in the order of the log, then roles by name. An arm that was never drawn has no values; an
    interval is missing where there are too few rows, or the weights contradict the propensities.
    """
    if not 0 < alpha < 1:
        raise InvalidInput("alpha", alpha, "a probability in (0, 1)")
    known = [name for name in MEASURES if np.isfinite(getattr(log, name)).any()]
    if not known:
        raise InvalidInput("log", "no outcomes", f"rows of which one of {MEASURES} is known")
    roles = () if log.roles is None else sorted(set(log.roles.tolist()) - set(_NOT_SERVED))
    each = alpha / (len(known) * (log.arm_count + len(roles)))
    of_arms = {name: _arms(log, name, each) for name in known}
    arms = [
        Candidate(arm, "arm", {name: of_arms[name][index] for name in known})
        for index, arm in enumerate(log.arm_names)
    ]
    return (*arms, *(_policy(log, role, known, each) for role in roles))


def place(given: Sequence[Candidate]) -> tuple[Placed, ...]:
    """Compare every candidate with every other.

    Parameters
    ----------
    given
        All with the same measures; an interval that is missing may contain anything.

    Examples
    --------
    >>> def known(name, quality, cost):
    ...     ends = lambda value, half: Estimate(value, value - half, value + half, 100)
    ...     measures = {"quality": ends(quality, 0.02), "cost_usd": ends(cost, 0.001)}
    ...     return Candidate(name, "arm", measures)
    >>> arms = [known("good", 0.9, 0.010), known("cheap", 0.6, 0.002), known("poor", 0.5, 0.020)]
    >>> [(one.standing, *one.dominated_by) for one in place(arms)]
    [('front',), ('front',), ('dominated', 'good', 'cheap')]
    """
    told = [one for one in given if all(e.value is not None for e in one.measures.values())]
    return tuple(
        _placed(one, [other for other in told if other is not one])
        if one in told
        else Placed(one, "unknown")
        for one in given
    )


def _placed(one: Candidate, others: Sequence[Candidate]) -> Placed:
    certain = tuple(other.name for other in others if _dominates(_worst(other), _best(one)))
    if certain:
        return Placed(one, "dominated", certain)
    likely = tuple(other.name for other in others if _dominates(_means(other), _means(one)))
    if likely:
        return Placed(one, "perhaps dominated", likely)
    possible = any(_dominates(_best(other), _worst(one)) for other in others)
    return Placed(one, "perhaps front" if possible else "front")


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Of values of which more is better."""
    pairs = list(zip(one, other, strict=True))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def _means(one: Candidate) -> list[float]:
    return [_BETTER[name] * (found.value or 0.0) for name, found in one.measures.items()]


def _best(one: Candidate) -> list[float]:
    return [max(_ends(name, found)) for name, found in one.measures.items()]


def _worst(one: Candidate) -> list[float]:
    return [min(_ends(name, found)) for name, found in one.measures.items()]


def _ends(name: str, found: Estimate) -> tuple[float, float]:
    if found.low is None or found.high is None:
        return -math.inf, math.inf
    return _BETTER[name] * found.low, _BETTER[name] * found.high


def _policy(log: LoggedDecisions, role: str, known: Sequence[str], alpha: float) -> Candidate:
    own = log.of_role(role)
    assert own is not None
    measures = {}
    for name in known:
        values = getattr(own, name)
        span = 1.0 if name == "quality" else float(np.nanmax(getattr(log, name)))
        measures[name] = confidence.mean(values[np.isfinite(values)], alpha, span or None)
    return Candidate(role, "policy", measures)


def _arms(log: LoggedDecisions, measure: str, alpha: float) -> list[Estimate]:
    """Of each arm; the narrower of two estimates that hold together."""
    control = log.of_role(CONTROL)
    if control is None or control.arm_count < 2:
        return _estimates(log, measure, alpha)
    pairs = zip(
        _estimates(log, measure, alpha / 2), _estimates(control, measure, alpha / 2), strict=True
    )
    return [min(pair, key=_width) for pair in pairs]


def _estimates(log: LoggedDecisions, measure: str, alpha: float) -> list[Estimate]:
    there = np.isfinite(getattr(log, measure))
    if not there.any():
        return [_NOTHING] * log.arm_count
    log = log.rows(there)
    values = getattr(log, measure)
    expected = predict_arms(log.features, log.arms, values, log.arm_count)
    of_drawn = expected[np.arange(len(log)), log.arms]
    result = []
    for arm in range(log.arm_count):
        taken = log.arms == arm
        if not taken.any():
            result.append(_NOTHING)
            continue
        draws = Draws(taken.astype(np.float64), log.propensities)
        clip = default_clip(log.arm_count)
        rows = Rows(draws, values, Predictions(expected[:, arm], of_drawn), clip)
        found = estimate(CHOSEN, rows, alpha, bounded=measure == "quality")
        if found.low is not None and not support(draws, clip, alpha).balanced:
            found = Estimate(found.value, None, None, found.count)
        result.append(found)
    return result


def _width(found: Estimate) -> float:
    """Where neither has an interval, the one with a value and more rows comes first."""
    if found.low is not None and found.high is not None:
        return found.high - found.low
    return math.inf if found.value is None else 1e300 / max(found.count, 1)
