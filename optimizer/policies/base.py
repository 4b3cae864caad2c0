"""A policy: the one place where outcome model, objective and exploration meet."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import numpy as np

from optimizer.errors import IncompatibleState, InvalidInput
from optimizer.policies.exploration import Exploration
from optimizer.policies.outcome_models import OutcomeModel
from optimizer.records import Observation, Vector
from optimizer.reward import Objective

__all__ = ["Policy", "draw"]


class Policy:
    """Maps features to a probability for each arm, and learns from observations.

    Parameters
    ----------
    name
        Name of the combination, for people.
    arm_ids
        Stable ids, see `optimizer.records.Arm.id`; their order is the order of probabilities.
    outcome_model, objective, exploration
        The three parts.
    uniform_share
        In (0, 1]: this share of every decision is spread evenly over the candidates, so that each
        has a propensity of at least ``uniform_share / candidates``.
    lineage
        Names what the learned state depends on (arms, features, hyper-parameters); state of
        another lineage is refused.
    """

    def __init__(
        self,
        name: str,
        arm_ids: Sequence[bytes],
        outcome_model: OutcomeModel,
        objective: Objective,
        exploration: Exploration,
        uniform_share: float,
        lineage: str,
    ) -> None:
        if not 0 < uniform_share <= 1:
            raise InvalidInput("uniform_share", uniform_share, "a share in (0, 1]")
        if outcome_model.arms != len(arm_ids):
            raise InvalidInput("arms", len(arm_ids), f"the model has {outcome_model.arms} arms")
        self.name = name
        self.arm_ids = tuple(arm_ids)
        self.outcome_model = outcome_model
        self.exploration = exploration
        self.uniform_share = uniform_share
        self.lineage = hashlib.blake2b(lineage.encode(), digest_size=8).hexdigest()
        self.objective = objective

    @property
    def objective(self) -> Objective:
        """What is maximised; may be replaced at any time, nothing has to be relearned."""
        return self._objective

    @objective.setter
    def objective(self, objective: Objective) -> None:
        self._objective = objective
        self._target_weights = objective.target_weights()
        self.outcome_model.refresh(self._target_weights)

    def probabilities(
        self,
        features: Vector,
        candidates: Sequence[int] | None = None,
        set_aside: Sequence[int] = (),
    ) -> Vector:
        """Probability of each arm for one request.

        Parameters
        ----------
        features
            Shape (d,), finite.
        candidates
            Indices of the arms that may be chosen; all of them if None.
        set_aside
            Candidates that get their share of the uniform part only (unless that leaves none), so
            that an arm that fails lately is still tried now and then.

        Returns
        -------
        Shape (arms,), sum 1; 0 for arms that are no candidates, else at least
        ``uniform_share / candidates``.
        """
        mean, std = self.outcome_model.score(features)
        if candidates is None and not set_aside:
            chosen = self.exploration.probabilities(mean, std)
            chosen *= 1.0 - self.uniform_share
            chosen += self.uniform_share / chosen.size
            return chosen
        allowed = list(range(mean.size)) if candidates is None else list(candidates)
        preferred = [arm for arm in allowed if arm not in set_aside] or allowed
        among = np.full(mean.size, -np.inf)
        among[preferred] = mean[preferred]
        chosen = self.exploration.probabilities(among, std)
        chosen *= 1.0 - self.uniform_share
        chosen[allowed] += self.uniform_share / len(allowed)
        return chosen

    def learn(self, observations: Iterable[Observation]) -> None:
        """Apply observations in their order; the result does not depend on how they are cut."""
        for seen in observations:
            if not np.isfinite(seen.features).all():
                raise InvalidInput("features", seen.features.tolist(), "features are finite")
            self.outcome_model.learn(
                seen.arm,
                seen.features,
                self._objective.targets(seen.before),
                self._objective.targets(seen.after),
            )
        self.outcome_model.refresh(self._target_weights)

    def to_bytes(self) -> bytes:
        """Everything learned, the same bytes for the same state."""
        arrays: dict[str, Any] = {
            name: (array.shape, array.tobytes())
            for name, array in self.outcome_model.state().items()
        }
        return msgspec.msgpack.encode({"lineage": self.lineage, "arrays": arrays})

    def from_bytes(self, data: bytes) -> None:
        """Take what `to_bytes` gave.

        Raises
        ------
        IncompatibleState
            If the bytes cannot be read or belong to other arms, features or hyper-parameters.
        """
        try:
            content = msgspec.msgpack.decode(data)
            arrays = {
                name: np.frombuffer(raw).reshape(shape)
                for name, (shape, raw) in content["arrays"].items()
            }
            lineage = content["lineage"]
        except (msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
            raise IncompatibleState(f"not a policy state: {error}") from error
        if lineage != self.lineage:
            raise IncompatibleState(f"state of lineage {lineage}, this policy is {self.lineage}")
        self.outcome_model.restore(arrays)
        self.outcome_model.refresh(self._target_weights)


def draw(probabilities: Vector, uniform: float) -> int:
    """The arm at ``uniform`` in [0, 1) of the cumulative probabilities.

    Examples
    --------
    >>> draw(np.array([0.25, 0.0, 0.75]), 0.25)
    2
    """
    index = bisect_right(probabilities.cumsum().tolist(), uniform)
    if index >= probabilities.size or probabilities[index] <= 0.0:
        return int(probabilities.argmax())
    return index
