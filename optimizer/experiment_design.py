r"""Which experiment to run next: the one whose information is worth most for its cost.

A comparison of the incumbent with a candidate is worth what the better choice afterwards gains over
the requests of a horizon. That is the knowledge gradient for correlated beliefs (Frazier, Powell
and Dayanik, INFORMS Journal on Computing 21 (2009) 599-613), a form of the expected value of sample
information: the expected maximum of the posterior means after the experiment, minus the maximum
now. Divided by the expected US dollars of the experiment it ranks the proposals.

More than two promising candidates are not all tested to the end: successive halving (Karnin, Koren
and Somekh, ICML 2013) gives each round the same number of requests and keeps the better half.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.special import ndtr

from optimizer.arm_beliefs import ArmEvidence, Beliefs
from optimizer.errors import InvalidInput
from optimizer.experiments.fixed_horizon import mean_size
from optimizer.records import Vector

__all__ = ["Cost", "Proposal", "Rung", "expected_gain", "halving", "promising", "propose"]

EFFECTS = (0.01, 0.02, 0.05, 0.1)
"""Differences of reward that a sample size is planned for; the one with most gain for its cost is
proposed."""

_PROMISING = 0.25
"""Of the best proposal's gain, what a candidate must promise to be in the first round with it."""

_MOST = 8


@dataclass(frozen=True, slots=True)
class Cost:
    """What an experiment may cost.

    Attributes
    ----------
    requests
        Over which the better choice pays, and which the experiment is part of; above 0.
    samples
        Most requests that an experiment may use, all its variants together; above 0.
    observing_usd
        Of learning one outcome (a judge, a label), beside what its request costs; above 0, or a
        cheaper candidate's experiment would cost nothing and any gain would be worth it.
    """

    requests: int
    samples: int
    observing_usd: float = 0.001

    def __post_init__(self) -> None:
        for name in ("requests", "samples", "observing_usd"):
            if not getattr(self, name) > 0:
                raise InvalidInput(name, getattr(self, name), "a number above 0")


@dataclass(frozen=True, slots=True)
class Proposal:
    """The incumbent against one candidate.

    Attributes
    ----------
    baseline, candidate
        Indices into the beliefs' settings.
    configured
        Whether the candidate is an arm already; if not, it has to become one first.
    difference, difference_std
        Candidate minus baseline, of the mean reward: what is believed now.
    better
        Probability that the candidate is better.
    effect
        Difference that the sample size is for (power 0.8, level 0.05).
    samples
        Requests of both variants together.
    cost_usd
        Expected: the candidate's extra price of its half, and observing all.
    gain
        Expected, in units of reward summed over the horizon.
    """

    baseline: int
    candidate: int
    configured: bool
    difference: float
    difference_std: float
    better: float
    effect: float
    samples: int
    cost_usd: float
    gain: float

    @property
    def gain_per_usd(self) -> float:
        """What proposals are ranked by."""
        return self.gain / self.cost_usd


@dataclass(frozen=True, slots=True)
class Rung:
    """One round of successive halving.

    Attributes
    ----------
    candidates
        In this round, beside the baseline.
    samples_each
        Requests of each variant, the baseline too.
    """

    candidates: int
    samples_each: int


def propose(
    beliefs: Beliefs,
    evidence: ArmEvidence,
    cost: Cost,
    effects: Sequence[float] = EFFECTS,
) -> tuple[Proposal, ...]:
    """Every candidate against the incumbent, most expected gain per US dollar first.

    Parameters
    ----------
    beliefs
        Of the arms in ``evidence``, and of settings that may become arms.
    effects
        Above 0, in units of reward.

    Returns
    -------
    Empty where no experiment fits into ``cost.samples``.
    """
    sizes = {effect: _size(effect, evidence.deviation) for effect in effects}
    fitting = [(effect, size) for effect, size in sizes.items() if size <= cost.samples]
    found = []
    for candidate in range(len(beliefs.settings)):
        if candidate == evidence.incumbent:
            continue
        more_usd = _extra_usd(beliefs, evidence, candidate)
        options = [
            _proposal(beliefs, evidence, cost, candidate, effect, size, more_usd)
            for effect, size in fitting
        ]
        if options:
            found.append(max(options, key=lambda one: one.gain_per_usd))
    return tuple(sorted(found, key=lambda one: -one.gain_per_usd))


def expected_gain(mean: Vector, slope: Vector) -> float:
    r"""How far the best of several posterior means is expected to rise.

    :math:`E \max_i (m_i + b_i Z) - \max_i m_i` with a standard normal :math:`Z`, exactly: the
    maximum is piecewise linear, and only the lines on its upper hull count.

    Parameters
    ----------
    mean, slope
        Shape (m,).

    Examples
    --------
    >>> round(expected_gain(np.array([0.0, 0.0]), np.array([0.0, 1.0])), 4)
    0.3989
    >>> expected_gain(np.array([0.0, 9.0]), np.array([0.0, 0.1]))
    0.0
    """
    hull: list[int] = []
    starts: list[float] = []
    for line in np.lexsort((mean, slope)).tolist():
        start = -math.inf
        while hull:
            last = hull[-1]
            rise = slope[line] - slope[last]
            if rise > 0:
                start = float((mean[last] - mean[line]) / rise)
                if start > starts[-1]:
                    break
            hull.pop()  # it is never the highest
            starts.pop()
            start = -math.inf
        hull.append(line)
        starts.append(start)
    # The maximum begins as the leftmost line and turns upwards where each next one takes over, so
    # that its mean over Z, relative to the line that is highest at 0, is a sum over the turns.
    turns = np.array(starts[1:])
    rises = np.diff(slope[hull])
    # Nobody is 40 standard deviations away; the square of a far larger number would overflow.
    distance = np.minimum(np.abs(turns), 40.0)
    gains = rises * (
        np.exp(-(distance**2) / 2) / math.sqrt(2 * math.pi) - distance * ndtr(-distance)
    )
    return max(float(gains.sum()), 0.0)


def promising(proposals: Sequence[Proposal]) -> tuple[Proposal, ...]:
    """The configured candidates that one draft should test together, the best first.

    One, or the first round of `halving`: those that promise a quarter of the best one's gain for
    its cost, eight at most. Empty where nothing is expected to be gained.
    """
    known = [one for one in proposals if one.configured and one.gain > 0]
    if not known:
        return ()
    least = _PROMISING * known[0].gain_per_usd
    return tuple(one for one in known if one.gain_per_usd >= least)[:_MOST]


def halving(candidates: int, samples: int) -> tuple[Rung, ...]:
    """Divide requests over rounds that each keep the better half.

    Parameters
    ----------
    candidates
        1 or more, beside the baseline, which is in every round.
    samples
        Requests of all rounds together, at least one for each variant of each round.

    Examples
    --------
    >>> halving(4, 2400)
    (Rung(candidates=4, samples_each=160), Rung(candidates=2, samples_each=266), \
Rung(candidates=1, samples_each=400))
    """
    if candidates < 1:
        raise InvalidInput("candidates", candidates, "1 or more")
    sizes = [candidates]
    while sizes[-1] > 1:
        sizes.append(math.ceil(sizes[-1] / 2))
    if samples < len(sizes) * (candidates + 1):
        raise InvalidInput("samples", samples, f"{len(sizes) * (candidates + 1)} or more")
    return tuple(Rung(size, samples // len(sizes) // (size + 1)) for size in sizes)


@lru_cache(maxsize=64)
def _size(effect: float, deviation: float) -> int:
    """A root search of milliseconds, the same for every candidate and every plan after it."""
    return mean_size(effect, deviation)


def _proposal(
    beliefs: Beliefs,
    evidence: ArmEvidence,
    cost: Cost,
    candidate: int,
    effect: float,
    samples: int,
    more_usd: float,
) -> Proposal:
    baseline, covariance = evidence.incumbent, beliefs.covariance
    change = covariance[:, candidate] - covariance[:, baseline]
    variance = max(float(change[candidate] - change[baseline]), 0.0)
    noise = 4 * evidence.deviation**2 / samples
    slope = change / math.sqrt(variance + noise)
    kept = [one for one in range(beliefs.configured) if one != candidate] + [candidate]
    gain = expected_gain(beliefs.mean[kept], slope[kept])
    difference = float(beliefs.mean[candidate] - beliefs.mean[baseline])
    std = math.sqrt(variance)
    return Proposal(
        baseline,
        candidate,
        candidate < beliefs.configured,
        difference,
        std,
        float(ndtr(difference / std)) if std > 0 else float(difference > 0),
        effect,
        samples,
        samples * cost.observing_usd + samples / 2 * more_usd,
        gain * max(cost.requests - samples, 0),
    )


def _extra_usd(beliefs: Beliefs, evidence: ArmEvidence, candidate: int) -> float:
    """Expected price of a candidate's request above the incumbent's, counted where positive."""
    model = beliefs.settings[candidate].model
    alike = (
        [candidate]
        if candidate < beliefs.configured
        else [place for place, arm in enumerate(evidence.arms) if arm.model == model]
    )
    known = [place for place in alike if np.isfinite(evidence.cost_usd[place])]
    own = evidence.cost_usd[evidence.incumbent]
    if not np.isfinite(own) or not np.isfinite(evidence.cost_usd).any():
        return 0.0
    # Of an arm that nobody has paid for, the dearest known price is the careful guess.
    price = evidence.cost_usd[known].mean() if known else np.nanmax(evidence.cost_usd)
    error = float(np.mean(evidence.cost_error[known])) if known else 0.0
    std = math.hypot(error, float(evidence.cost_error[evidence.incumbent]))
    more = float(price - own)
    if std == 0:
        return max(more, 0.0)
    scaled = more / std
    density = math.exp(-(scaled**2) / 2) / math.sqrt(2 * math.pi)
    return more * float(ndtr(scaled)) + std * density
