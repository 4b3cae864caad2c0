"""What a policy would have scored and cost on logged traffic, by every estimator."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from optimizer import confidence
from optimizer.confidence import Estimate
from optimizer.errors import InvalidInput, InvalidRecording
from optimizer.offpolicy.draws import Draws
from optimizer.offpolicy.estimators import ESTIMATORS, Rows, scores
from optimizer.offpolicy.intervals import asymptotic, complementary
from optimizer.offpolicy.logged import LoggedDecisions
from optimizer.offpolicy.outcome_model import predict
from optimizer.offpolicy.support import Support, support
from optimizer.offpolicy.verdict import Verdict, verdict
from optimizer.records import Matrix, Vector
from optimizer.reward import Objective

__all__ = ["CHOSEN", "MEASURES", "Evaluation", "Result", "default_clip", "estimate", "evaluate"]

CHOSEN = "dr"
"""The estimator whose verdict counts. It is fixed beforehand: whoever picks the most pleasing of
five has no 95 % any more."""

MEASURES = ("reward", "quality", "cost_usd", "latency_s")
_BOUNDED = ("reward", "quality")
_CLIP_PER_ARM = 10.0


@dataclass(frozen=True, slots=True)
class Result:
    """What one estimator says.

    Attributes
    ----------
    measures
        Estimates by name, of those measures that the log knows.
    difference
        Mean reward of the target minus that of the log.
    clipped_share
        Share of rows whose weight this estimator leaves out.
    """

    measures: Mapping[str, Estimate]
    difference: Estimate
    effective_sample_size: float
    clipped_share: float
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Everything about one target policy.

    Attributes
    ----------
    logged
        Means of what was logged, by measure, on the same rows.
    decided, evaluated
        Number of logged decisions, and of those whose reward is known.
    results
        By the names of `optimizer.offpolicy.estimators.ESTIMATORS`.
    """

    policy: str
    decided: int
    evaluated: int
    logged: Mapping[str, Estimate]
    support: Support
    results: Mapping[str, Result]

    @property
    def verdict(self) -> Verdict:
        """That of the estimator `CHOSEN`."""
        return self.results[CHOSEN].verdict


def default_clip(arms: int) -> float:
    """Ten times the number of arms: a tenth of the probability a uniform draw would give."""
    return _CLIP_PER_ARM * arms


def evaluate(
    log: LoggedDecisions,
    probabilities: Matrix,
    objective: Objective,
    *,
    policy: str = "the policy",
    clip: float | None = None,
    alpha: float = 0.05,
) -> Evaluation:
    """Estimate what the target would have got at the rows whose reward is known.

    Other rows are left out, which is right if an outcome goes missing regardless of the arm and of
    its value; `Support.mean_weight` contradicts 1 where the arm matters. Where it does, no interval
    is given but the exact one of IPS, which holds nevertheless.

    Parameters
    ----------
    log
        In time order.
    probabilities
        Shape (n, k): of the target, see `optimizer.offpolicy.targets`.
    objective
        Makes the reward.
    policy
        How verdicts call the target.
    clip
        For SWITCH, above 0 and set before looking at the log; `default_clip` if None.
    alpha
        In (0, 1): the probability that the interval of one estimate ever misses.

    Raises
    ------
    InvalidInput
        If probabilities are not of the log's shape or do not sum to 1.
    InvalidRecording
        If no row has a reward.

    References
    ----------
    Waudby-Smith, Wu, Ramdas, Karampatziakis, Mineiro: Anytime-valid off-policy inference for
    contextual bandits, ACM/IMS J. Data Science 1 (2024): on adaptively collected logs and for
    targets that change, the estimates are of the mean conditional value so far.
    """
    _check(log, probabilities)
    reward = log.rewards(objective)
    known = np.isfinite(reward)
    if not known.any():
        raise InvalidRecording(
            "reward", None, "no row has every part of its reward; set the weight of a part to 0"
        )
    seen, chances = log.rows(known), probabilities[known]
    draws = Draws(chances[np.arange(len(seen)), seen.arms], seen.propensities)
    clip = default_clip(log.arm_count) if clip is None else clip
    found = support(draws, clip, alpha)
    measures: dict[str, dict[str, Estimate]] = {name: {} for name in ESTIMATORS}
    differences: dict[str, Estimate] = {}
    logged: dict[str, Estimate] = {}
    for measure in MEASURES:
        values = reward[known] if measure == "reward" else getattr(seen, measure)
        there = np.isfinite(values)
        if not there.any():
            continue
        outcomes = values[there]
        bounded = measure in _BOUNDED
        logged[measure] = confidence.mean(outcomes, alpha, 1.0 if bounded else None)
        model = predict(seen.features[there], seen.arms[there], outcomes, chances[there])
        rows = Rows(draws[there], outcomes, model, clip)
        for name in ESTIMATORS:
            trusted = found.balanced or (name == "ips" and bounded)
            value = estimate(name, rows, alpha, bounded=bounded)
            measures[name][measure] = value if trusted else _without_interval(value)
            if measure == "reward":
                value = estimate(name, rows, alpha, against_logged=True)
                differences[name] = value if trusted else _without_interval(value)
    rare = _rarest(seen, chances)
    level = f"{100 * (1 - alpha):g} %"
    clipped = {"switch": found.clipped_share, "dm": 1.0}
    return Evaluation(
        policy,
        len(log),
        len(seen),
        logged,
        found,
        {
            name: Result(
                measures[name],
                differences[name],
                found.effective_sample_size,
                clipped.get(name, 0.0),
                verdict(policy, differences[name], found, rare, level),
            )
            for name in ESTIMATORS
        },
    )


def estimate(
    name: str,
    rows: Rows,
    alpha: float = 0.05,
    *,
    bounded: bool = True,
    against_logged: bool = False,
) -> Estimate:
    """One estimate with an interval that is valid at any time.

    - IPS of a bounded outcome: exact, see `optimizer.offpolicy.intervals`.
    - SNIPS, DR, and any outcome without an upper bound: asymptotic, with pseudo-rows as far away as
      the largest weight seen carries a bounded outcome, else as far as the scores spread; and with
      no less variance than the propensities imply for residuals as large as the target's are.
    - SWITCH: as DR, and on both sides wider by the share of the target's choices that it drops
      times the range of an outcome, since nothing but the model speaks for them.
    - The direct method: sampling error says nothing of its bias, so its interval is DR's, stretched
      to contain its value. It is never narrower than DR's.

    Parameters
    ----------
    name
        One of `ESTIMATORS`.
    rows
        In time order.
    alpha
        In (0, 1): the probability that the sequence of intervals ever misses.
    bounded
        Whether outcomes lie in [0, 1].
    against_logged
        Estimate the target's mean minus the logged mean instead.
    """
    made = scores(name, rows)
    values = made.values - rows.outcomes if against_logged else made.values
    value = float(values.mean())
    if name == "ips" and bounded:
        weights = rows.draws.weights - (1.0 if against_logged else 0.0)
        floor = -1.0 if against_logged else 0.0
        lacks = weights * (1.0 - rows.outcomes)
        return complementary(value, weights * rows.outcomes, lacks, alpha, floor)
    if name == "dm":
        around = estimate("dr", rows, alpha, bounded=bounded, against_logged=against_logged)
        return _stretched(around, value)
    extent = 1.0 if bounded else float(np.ptp(rows.outcomes))
    reach = max(1.0, float(made.weights.max())) if bounded else float(np.ptp(values))
    moment = made.second_moment - (1.0 if against_logged else 0.0)
    unseen = moment * _weighted_mean(made.residuals**2, made.weights)
    unseen -= value**2 if name == "ips" else 0.0
    found = _widened(asymptotic(values, alpha, reach, unseen), made.dropped * extent)
    least = -1.0 if against_logged else 0.0
    return _within(found, least, 1.0 if bounded else math.inf)


def _weighted_mean(values: Vector, weights: Vector) -> float:
    """Mean under the target, as far as it was drawn; 0 where it never was."""
    total = float(weights.sum())
    return float(weights @ values) / total if total else 0.0


def _widened(found: Estimate, more: float) -> Estimate:
    if found.low is None or found.high is None:
        return found
    return Estimate(found.value, found.low - more, found.high + more, found.count)


def _within(found: Estimate, least: float, most: float) -> Estimate:
    """Leave out of an interval what no mean can be."""
    if found.low is None or found.high is None:
        return found
    low, high = (min(max(end, least), most) for end in (found.low, found.high))
    return Estimate(found.value, low, high, found.count)


def _without_interval(found: Estimate) -> Estimate:
    return Estimate(found.value, None, None, found.count)


def _stretched(found: Estimate, value: float) -> Estimate:
    if found.low is None or found.high is None:
        return Estimate(value, None, None, found.count)
    return Estimate(value, min(found.low, value), max(found.high, value), found.count)


def _rarest(log: LoggedDecisions, probabilities: Matrix) -> str | None:
    """The arm of which the target takes most more than was drawn; None with one arm."""
    if log.arm_count == 1:
        return None
    drawn = np.bincount(log.arms, minlength=log.arm_count) / len(log)
    return log.arm_names[int((probabilities.mean(axis=0) - drawn).argmax())]


def _check(log: LoggedDecisions, probabilities: Matrix) -> None:
    shape = (len(log), log.arm_count)
    if probabilities.shape != shape:
        raise InvalidInput("probabilities", probabilities.shape, f"shape {shape}, as of the log")
    total = probabilities.sum(axis=1)
    if not ((probabilities >= 0).all() and np.allclose(total, 1.0, atol=1e-6)):
        raise InvalidInput("probabilities", float(total.min()), "0 or more, each row sums to 1")
