"""What a log lets one believe of every arm, and of settings between arms, jointly.

Each arm's mean reward is estimated off-policy (doubly robust, by the recorded propensities). A
Gaussian process over models, prompts and parameters then shares strength between arms that are
alike, so that an arm that was hardly drawn, or a temperature between two known ones, has a belief,
too. These are beliefs to plan with; what is claimed in reports has intervals of its own
(`optimizer.confidence`).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel

from optimizer.confidence import PSEUDO_ROWS
from optimizer.errors import InvalidInput
from optimizer.offpolicy.draws import Draws
from optimizer.offpolicy.estimators import Rows, scores
from optimizer.offpolicy.evaluation import CHOSEN, default_clip
from optimizer.offpolicy.logged import LoggedDecisions
from optimizer.offpolicy.outcome_model import Predictions, predict_arms
from optimizer.records import Arm, Indices, Matrix, Vector
from optimizer.reward import Objective

__all__ = [
    "FEWEST_REWARDS",
    "ArmEvidence",
    "Beliefs",
    "arm_means",
    "believe",
    "gather",
    "settings_between",
]

FEWEST_REWARDS = 200
"""Decisions with a complete reward, below which nothing is planned on them."""

_STD_BOUNDS = (0.05, 0.5)
"""Prior standard deviation between arms' mean rewards. Two or three arms that happen to be close
don't prove that all arms are."""

_LENGTH_BOUNDS = (0.3, 3.0)
_MODEL_SCALE, _PROMPT_SCALE = 1.0, 0.5
"""A prompt is half as far from another one as a model from another model."""


@dataclass(frozen=True)
class ArmEvidence:
    """What a log says of each arm by itself.

    Attributes
    ----------
    arms
        Length k.
    reward, reward_error
        Shape (k,): mean reward and its standard error; NaN of an arm that was never drawn.
    cost_usd, cost_error
        Shape (k,): mean cost of a request and its standard error; NaN where unknown.
    deviation
        Standard deviation of one request's reward, arm given; above 0.
    incumbent
        Index of the arm that was drawn most often by the champion.
    decisions
        With a complete reward.
    """

    arms: tuple[Arm, ...]
    reward: Vector
    reward_error: Vector
    cost_usd: Vector
    cost_error: Vector
    deviation: float
    incumbent: int
    decisions: int


@dataclass(frozen=True)
class Beliefs:
    """A joint Gaussian over the mean reward of settings.

    Attributes
    ----------
    settings
        Length m; configured arms first.
    configured
        How many of them are.
    mean
        Shape (m,).
    covariance
        Shape (m, m).
    """

    settings: tuple[Arm, ...]
    configured: int
    mean: Vector
    covariance: Matrix

    def observed(self, setting: int, value: float, variance: float) -> Beliefs:
        """After a mean of a setting was measured.

        Parameters
        ----------
        variance
            Of the measurement, above 0.

        Examples
        --------
        >>> arms = (Arm("a"), Arm("b"))
        >>> prior = Beliefs(arms, 2, np.array([0.5, 0.5]), np.eye(2) * 0.01)
        >>> prior.observed(0, 0.7, 0.01).mean.round(3).tolist()
        [0.6, 0.5]
        """
        column = self.covariance[:, setting]
        weight = column / (column[setting] + variance)
        return replace(
            self,
            mean=self.mean + weight * (value - self.mean[setting]),
            covariance=self.covariance - np.outer(weight, column),
        )


def gather(log: LoggedDecisions, arms: Sequence[Arm], objective: Objective) -> ArmEvidence:
    """Estimate each arm's reward and cost from logged decisions.

    Parameters
    ----------
    log
        In time order, its arms in the order of ``arms``.

    Raises
    ------
    InvalidInput
        If fewer than `FEWEST_REWARDS` rewards are complete, or ``arms`` are not those of the log.
    """
    if len(arms) != log.arm_count:
        raise InvalidInput("arms", len(arms), f"the {log.arm_count} arms of the log")
    rewards = log.rewards(objective)
    complete = np.isfinite(rewards)
    number = int(complete.sum())
    if number < FEWEST_REWARDS:
        raise InvalidInput(
            "decisions", number, f"{FEWEST_REWARDS} decisions with a complete reward, or more"
        )
    kept = log.rows(complete)
    reward, reward_error = arm_means(kept, rewards[complete], 1.0)
    cost, cost_error = np.full(log.arm_count, np.nan), np.full(log.arm_count, np.nan)
    priced = np.isfinite(log.cost_usd)
    if priced.sum() >= FEWEST_REWARDS:
        values = log.cost_usd[priced]
        cost, cost_error = arm_means(log.rows(priced), values, float(values.max()))
        cost = np.maximum(cost, 0.0)
    champion = kept.of_role("champion") or kept
    counts = np.bincount(champion.arms, minlength=log.arm_count)
    return ArmEvidence(
        tuple(arms),
        reward,
        reward_error,
        cost,
        cost_error,
        _deviation(kept.arms, rewards[complete]),
        int(counts.argmax()),
        number,
    )


def settings_between(arms: Sequence[Arm]) -> tuple[Arm, ...]:
    """Parameter values half-way between neighbours that are configured alike otherwise.

    Examples
    --------
    >>> cold, hot = Arm("a", {"temperature": 0.2}), Arm("a", {"temperature": 1.0})
    >>> [dict(arm.parameters) for arm in settings_between([cold, hot, Arm("b")])]
    [{'temperature': 0.6}]
    """
    known = {arm.id for arm in arms}
    found: dict[bytes, Arm] = {}
    for name in sorted({key for arm in arms for key in arm.parameters}):
        alike: dict[bytes, list[Arm]] = {}
        for arm in arms:
            if _is_number(arm.parameters.get(name)):
                rest = {key: value for key, value in arm.parameters.items() if key != name}
                alike.setdefault(Arm(arm.model, rest, arm.prompt_variant).id, []).append(arm)
        for group in alike.values():
            group.sort(key=lambda arm: float(arm.parameters[name]))
            for low, high in pairwise(group):
                # A count such as max_tokens stays one.
                both = (low.parameters[name], high.parameters[name])
                middle: float = sum(both) / 2
                if all(isinstance(value, int) for value in both):
                    middle = int(middle)
                made = replace(low, parameters={**low.parameters, name: middle})
                if made.id not in known:
                    found[made.id] = made
    return tuple(found.values())


def believe(evidence: ArmEvidence, extra: Sequence[Arm] = ()) -> Beliefs:
    r"""Combine the arms' estimates by a Gaussian process.

    The kernel is :math:`s^2 \exp(-d^2 / 2 l^2)`, with the distance of models, prompts and scaled
    parameters; :math:`s` and :math:`l` maximise the marginal likelihood within bounds (Rasmussen
    and Williams 2006, section 5.4.1).

    Parameters
    ----------
    extra
        Settings that no request has met.
    """
    settings = (*evidence.arms, *extra)
    places = _places(settings)
    known = np.flatnonzero(np.isfinite(evidence.reward))
    level = float(np.mean(evidence.reward[known]))
    low, high = _STD_BOUNDS
    process = GaussianProcessRegressor(
        ConstantKernel(0.1**2, (low**2, high**2)) * RBF(1.0, _LENGTH_BOUNDS),
        alpha=evidence.reward_error[known] ** 2,
    )
    with warnings.catch_warnings():
        # With few arms the likelihood often grows up to a bound; that is what bounds are for.
        warnings.simplefilter("ignore", ConvergenceWarning)
        process.fit(places[known], evidence.reward[known] - level)
    mean, covariance = process.predict(places, return_cov=True)
    return Beliefs(settings, len(evidence.arms), mean + level, (covariance + covariance.T) / 2)


def arm_means(log: LoggedDecisions, values: Vector, span: float) -> tuple[Vector, Vector]:
    """Doubly robust means of the arms, and their standard errors.

    Parameters
    ----------
    values
        Shape (n,), finite.
    span
        How far values can lie apart, above 0.

    Returns
    -------
    Each of shape (k,); NaN of an arm that was never drawn.
    """
    expected = predict_arms(log.features, log.arms, values, log.arm_count)
    of_drawn = expected[np.arange(len(log)), log.arms]
    means, errors = np.full(log.arm_count, np.nan), np.full(log.arm_count, np.nan)
    for arm in range(log.arm_count):
        taken = log.arms == arm
        if not taken.any():
            continue
        draws = Draws(taken.astype(np.float64), log.propensities)
        predicted = Predictions(expected[:, arm], of_drawn)
        found = scores(CHOSEN, Rows(draws, values, predicted, default_clip(log.arm_count))).values
        # A lucky few rows look certain: two more at the distance of the whole range.
        pseudo = PSEUDO_ROWS * (span / draws.effective_sample_size) ** 2
        means[arm] = found.mean()
        errors[arm] = np.sqrt(found.var() / len(found) + pseudo)
    return means, errors


def _deviation(arms: Indices, rewards: Vector) -> float:
    means = np.bincount(arms, rewards) / np.maximum(np.bincount(arms), 1)
    return max(float(np.std(rewards - means[arms])), 0.01)


def _places(settings: Sequence[Arm]) -> Matrix:
    """Where each setting lies: equal ones at distance 0, models that differ at distance 1."""
    columns: list[list[float]] = []

    def add(values: Sequence[object], scale: float) -> None:
        columns.extend(
            [scale / np.sqrt(2) * (repr(one) == value) for one in values]
            for value in dict.fromkeys(map(repr, values))
        )

    add([arm.model for arm in settings], _MODEL_SCALE)
    add([arm.prompt_variant for arm in settings], _PROMPT_SCALE)
    for name in sorted({key for arm in settings for key in arm.parameters}):
        values = [arm.parameters.get(name) for arm in settings]
        numbers = [float(value) for value in values if _is_number(value)]  # type: ignore[arg-type]
        if not numbers or max(numbers) == min(numbers):
            add(values, _PROMPT_SCALE)
            continue
        low, span = min(numbers), max(numbers) - min(numbers)
        columns.append(
            [(float(v) - low) / span if _is_number(v) else -0.5 for v in values]  # type: ignore[arg-type]
        )
    return np.array(columns).T


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
