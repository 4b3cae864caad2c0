"""A policy: the one place where outcome model, objective and exploration meet."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from optimizer.errors import IncompatibleState, InvalidInput
from optimizer.policies.exploration import Exploration, RandomUcb
from optimizer.policies.forgetting import Forgetting
from optimizer.policies.outcome_model import OutcomeModel
from optimizer.policies.price import Price
from optimizer.policies.sums import Rows, State
from optimizer.policies.tuning import WidthTuner
from optimizer.records import Indices, Matrix, Observation, Vector
from optimizer.reward import Objective

__all__ = ["OnBlock", "OnForget", "Policy", "draw", "draw_many"]

_SHORTEST_BLOCK, _LONGEST_BLOCK, _GROWTH = 32, 1000, 8
"""Variances are estimated anew after 32 rewards, later after an eighth of those learned, at last
after every 1,000: where a block ends depends on the number of rewards alone."""

_PRICED_EVERY = 16
"""Rewards after which a price is looked for anew."""

OnBlock = Callable[[int, int, Matrix, Matrix, Matrix], None]
"""Takes first and last (exclusive) of the observations, and of each target what was foreseen (NaN
while there is nothing to foresee it from), was known before, and is known now."""

OnForget = Callable[[int, bytes, float], None]
"""Takes the position of the row after which a policy forgot because the world had changed, the arm
of which it forgot most, and the share of that arm that it kept."""

_RETIRED = 32

_PROBE_SHARE = 0.05
"""Share of requests for the arm that a quality floor has to know better, see `Price.probe`."""


class Policy:
    """Maps features to a probability for each arm, and learns from observations.

    Parameters
    ----------
    name
        Name of the combination, for people.
    arm_ids
        Stable ids, see `optimizer.records.Arm.id`; their order is the order of probabilities.
    outcome_model, objective, exploration, forgetting
        The parts.
    feature_size
        Length of feature vectors.
    uniform_share
        In (0, 1]: this share of every decision is spread evenly over the candidates, so that each
        has a propensity of at least ``uniform_share / candidates``.
    lineage
        Names what the learned state depends on (features, hyper-parameters, units; not the arms);
        state of another lineage is refused.
    tuner
        Chooses the width of a `RandomUcb` exploration while it learns, or None.
    """

    def __init__(
        self,
        name: str,
        arm_ids: Sequence[bytes],
        outcome_model: OutcomeModel,
        objective: Objective,
        exploration: Exploration,
        forgetting: Forgetting,
        feature_size: int,
        uniform_share: float,
        lineage: str,
        tuner: WidthTuner | None = None,
    ) -> None:
        if not 0 < uniform_share <= 1:
            raise InvalidInput("uniform_share", uniform_share, "a share in (0, 1]")
        if outcome_model.arms != len(arm_ids):
            raise InvalidInput("arms", len(arm_ids), f"the model has {outcome_model.arms} arms")
        self.name = name
        self.arm_ids = tuple(arm_ids)
        self.retired_ids: tuple[bytes, ...] = ()
        self._traits: dict[bytes, tuple[float, ...]] = {}
        self.outcome_model = outcome_model
        self.exploration = exploration
        self.forgetting = forgetting
        self._tuner = tuner
        self.uniform_share = uniform_share
        self.learned = 0
        self.lineage = hashlib.blake2b(lineage.encode(), digest_size=8).hexdigest()
        self._block_end = _SHORTEST_BLOCK
        self._price = Price(feature_size)
        self._probe: int | None = None
        self.objective = objective

    @property
    def objective(self) -> Objective:
        """What is maximised; may be replaced at any time, nothing has to be relearned."""
        return self._objective

    @objective.setter
    def objective(self, objective: Objective) -> None:
        self._objective = objective
        self._priced_at = -_PRICED_EVERY
        self._refresh()

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
        if self.retired_ids:
            mean, std = mean[: len(self.arm_ids)], std[: len(self.arm_ids)]
        if candidates is None and not set_aside:
            chosen = self.exploration.probabilities(mean, std, self.learned)
            return self._with_floor(chosen)
        allowed = list(range(len(self.arm_ids))) if candidates is None else list(candidates)
        preferred = [arm for arm in allowed if arm not in set_aside] or allowed
        among = np.full(mean.size, -np.inf)
        among[preferred] = mean[preferred]
        chosen = self.exploration.probabilities(among, std, self.learned)
        if self._probe in preferred:
            chosen *= 1.0 - _PROBE_SHARE
            chosen[self._probe] += _PROBE_SHARE
        chosen *= 1.0 - self.uniform_share
        chosen[allowed] += self.uniform_share / len(allowed)
        return chosen

    def probabilities_many(self, features: Matrix, set_aside: Sequence[int] = ()) -> Matrix:
        """`probabilities` of many requests in one go, all arms being candidates.

        Parameters
        ----------
        features
            Shape (n, d), finite.
        set_aside
            As in `probabilities`, of all requests.

        Returns
        -------
        Shape (n, arms), each row of sum 1.
        """
        mean, std = self.outcome_model.score_many(features)
        if self.retired_ids:
            mean, std = mean[:, : len(self.arm_ids)], std[:, : len(self.arm_ids)]
        if set_aside and len(set(set_aside)) < len(self.arm_ids):
            mean = mean.copy()
            mean[:, list(set_aside)] = -np.inf
        chosen = self.exploration.probabilities(mean, std, self.learned)
        return self._with_floor(chosen, set_aside)

    def learn(
        self,
        observations: Iterable[Observation],
        on_block: OnBlock | None = None,
        on_forget: OnForget | None = None,
    ) -> None:
        """Apply observations in their order; the result does not depend on how they are cut.

        Parameters
        ----------
        observations
            What changed.
        on_block
            Called before each part of them is learned; it may be cut anywhere.
        on_forget
            Called after a change was seen, before any later row is told to ``on_block``; what is
            forgotten as time goes by is not told.

        Raises
        ------
        InvalidInput
            Where features are not finite; nothing is learned then.
        """
        seen = list(observations)
        if not seen:
            return
        position = [one.position for one in seen]
        version = np.array([one.version for one in seen], dtype=float)
        rows = self._columns(seen)
        done = 0
        while done < len(seen):
            rest = rows.cut(done, min(len(seen), done + self._block_end - self.learned))
            watched = self.forgetting.watch(self.outcome_model, rest)
            block = rest.cut(0, watched)
            if on_block is not None:
                expected = self.outcome_model.foreseen(block)
                if self.learned < _SHORTEST_BLOCK:
                    expected = np.full_like(expected, np.nan)
                on_block(done, done + watched, expected, block.before, block.after)
            self.outcome_model.learn(block)
            self._price.learn(block)
            if self._tuner is not None:
                now = slice(done, done + watched)
                self._tuner.credit(
                    version[now], self._reward(block.before), self._reward(block.after)
                )
            done += watched
            self.learned += watched
            block_ends = self.learned >= self._block_end
            at = position[done - 1]
            forgot = self.forgetting.after(self.outcome_model, watched, at, block_ends)
            if forgot and on_forget is not None and self.forgetting.sees_change:
                kept = self._kept(at)
                arm = int(kept.argmin())
                on_forget(at, self.known_ids[arm], float(kept[arm]))
            if forgot and done < len(seen):
                rows.weight[done:] = self._faded(seen[done:])
            if block_ends or forgot:
                self.outcome_model.settle()
            if block_ends and self._tuner is not None and self._tuner.advance(at):
                self.exploration = RandomUcb(self._tuner.width)
            if block_ends:
                growth = min(max(self.learned // _GROWTH, _SHORTEST_BLOCK), _LONGEST_BLOCK)
                self._block_end = self.learned + growth
        self._refresh()

    def describe(self, traits: Mapping[bytes, Sequence[float]]) -> None:
        """Tell what is known of arms beforehand, by their ids; arms may be still to come.

        See `optimizer.arm_traits`. What was told before about other arms is kept.
        """
        self._traits |= {arm_id: tuple(values) for arm_id, values in traits.items()}
        self._describe()
        self._refresh()

    def set_arms(self, arm_ids: Sequence[bytes]) -> None:
        """Change the arms that may be chosen.

        What was learned of those that stay is kept, and new ones start warm. An arm that goes is
        retired: late rewards still teach what it shares with others, and if it comes back it knows
        what it knew. The last 32 of them are remembered.
        """
        known = self.known_ids
        gone = [arm_id for arm_id in known if arm_id not in arm_ids]
        self.retired_ids = tuple(gone[-_RETIRED:])
        self.arm_ids = tuple(arm_ids)
        place = {arm_id: index for index, arm_id in enumerate(known)}
        rows = [place.get(arm_id) for arm_id in self.known_ids]
        self.outcome_model.choose(rows)
        self.forgetting.choose(rows)
        self._describe()
        self._priced_at = -_PRICED_EVERY
        self._refresh()

    @property
    def known_ids(self) -> tuple[bytes, ...]:
        """The arms that observations may be of: those that may be chosen, then the retired."""
        return self.arm_ids + self.retired_ids

    def to_bytes(self) -> bytes:
        """Everything learned, the same bytes for the same state."""
        state = {
            **self.outcome_model.state(),
            **self.forgetting.state(),
            **self._price.state(),
            **({} if self._tuner is None else self._tuner.state()),
        }
        return self._encode(state, self._block_end)

    def from_bytes(self, data: bytes) -> None:
        """Take what `to_bytes` gave; of other arms, what is known of those that are here, too.

        Raises
        ------
        IncompatibleState
            If the bytes cannot be read or belong to other features or hyper-parameters.
        """
        content, arrays = self._decode(data)
        if not self.outcome_model.state().keys() <= arrays.keys():
            raise IncompatibleState("no state to learn on from; is it a snapshot?")
        here = self.arm_ids
        self.arm_ids = tuple(content["arm_ids"])
        self.retired_ids = tuple(content["retired_ids"])
        nothing: list[int | None] = [None] * len(self.known_ids)
        self.outcome_model.choose(nothing)
        self.forgetting.choose(nothing)
        self.outcome_model.restore(arrays)
        self.forgetting.restore(arrays)
        self._price.restore(arrays)
        if self._tuner is not None:
            self._tuner.restore(arrays)
            self.exploration = RandomUcb(self._tuner.width)
        told = dict(zip(self.known_ids, map(tuple, content["traits"]), strict=True))
        self._traits = told | self._traits
        self._describe()
        self._priced_at = -_PRICED_EVERY
        self.learned, self._block_end = content["learned"], content["block_end"]
        if here != self.arm_ids:
            self.set_arms(here)
        self._refresh()

    def snapshot(self) -> bytes:
        """What deciding needs and nothing else; `use_snapshot` of the same policy takes it."""
        return self._encode(self.outcome_model.scoring())

    def use_snapshot(self, data: bytes) -> None:
        """Decide by what `snapshot` gave; to learn on, `from_bytes` is needed.

        Raises
        ------
        IncompatibleState
            If the bytes cannot be read or belong to other arms, features or hyper-parameters.
        """
        content, arrays = self._decode(data)
        if tuple(content["arm_ids"]) != self.arm_ids:
            raise IncompatibleState("a snapshot of other arms")
        self.retired_ids = tuple(content["retired_ids"])
        self.learned, self._probe = content["learned"], content["probe"]
        if self._tuner is not None:
            self.exploration = RandomUcb(content["width"])
        self.outcome_model.use(arrays)

    def _describe(self) -> None:
        told = [self._traits.get(arm_id, ()) for arm_id in self.known_ids]
        traits = np.zeros((len(told), max(map(len, told))))
        for row, values in zip(traits, told, strict=True):
            row[: len(values)] = values
        self.outcome_model.describe(traits)

    def _encode(self, arrays: State, block_end: int = 0) -> bytes:
        packed: dict[str, Any] = {
            name: (array.shape, array.tobytes()) for name, array in arrays.items()
        }
        return msgspec.msgpack.encode(
            {
                "lineage": self.lineage,
                "arm_ids": self.arm_ids,
                "retired_ids": self.retired_ids,
                "traits": [self._traits.get(arm_id, ()) for arm_id in self.known_ids],
                "learned": self.learned,
                "block_end": block_end,
                "probe": self._probe,
                "width": None if self._tuner is None else self._tuner.width,
                "arrays": packed,
            }
        )

    def _decode(self, data: bytes) -> tuple[dict[str, Any], State]:
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
        return content, arrays

    def _columns(self, seen: list[Observation]) -> Rows:
        features = np.array([one.features for one in seen])
        finite = np.isfinite(features).all(axis=1)
        if not finite.all():
            raise InvalidInput(
                "features", features[finite.argmin()].tolist(), "features are finite"
            )
        before = np.array([one.before.values() for one in seen], dtype=float)
        after = np.array([one.after.values() for one in seen], dtype=float)
        return Rows(
            np.array([one.arm for one in seen]),
            features,
            self._objective.target_table(before),
            self._objective.target_table(after),
            self._faded(seen),
        )

    def _with_floor(self, chosen: Matrix, set_aside: Sequence[int] = ()) -> Matrix:
        """All arms being candidates: the probe and every arm get their shares."""
        if self._probe is not None and self._probe not in set_aside:
            chosen *= 1.0 - _PROBE_SHARE
            chosen[..., self._probe] += _PROBE_SHARE
        chosen *= 1.0 - self.uniform_share
        chosen += self.uniform_share / len(self.arm_ids)
        return chosen

    def _reward(self, targets: Matrix) -> Vector:
        """Shape (n,): the reward of each row, NaN while a part that counts is missing."""
        weights = self._objective.target_weights()
        used = np.flatnonzero(weights)
        reward: Vector = targets[:, used] @ weights[used]
        return reward

    def _faded(self, seen: list[Observation]) -> Vector:
        arm = np.array([one.arm for one in seen])
        return self.forgetting.weights(arm, np.array([one.version for one in seen], dtype=float))

    def _kept(self, position: int) -> Vector:
        """Shape (arms,): what was kept of each where something was forgotten at ``position``."""
        arms = self.outcome_model.arms
        return self.forgetting.weights(np.arange(arms), np.full(arms, position - 1.0))

    def _refresh(self) -> None:
        objective = self._objective
        if not objective.constrained:
            self._target_weights, self._probe = objective.target_weights(), None
        elif not 0 <= self.learned - self._priced_at < _PRICED_EVERY:
            model, active = self.outcome_model, len(self.arm_ids)
            self._target_weights = self._price.target_weights(model, objective, active)
            self._probe = self._price.probe(model, objective, active)
            self._priced_at = self.learned
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


def draw_many(probabilities: Matrix, uniform: Sequence[float]) -> tuple[list[int], list[float]]:
    """`draw` of many requests: arms and their probabilities, from shape (n, arms) and n numbers.

    Examples
    --------
    >>> draw_many(np.array([[0.25, 0.0, 0.75], [1.0, 0.0, 0.0]]), [0.25, 0.5])
    ([2, 0], [0.75, 1.0])
    """
    rows = np.arange(len(probabilities))
    drawn: Indices = (probabilities.cumsum(axis=1) <= np.array(uniform)[:, None]).sum(axis=1)
    np.minimum(drawn, probabilities.shape[1] - 1, out=drawn)
    propensity = probabilities[rows, drawn]
    # Where rounding leaves the sum below 1 a draw may pass the last arm that can be drawn.
    lost = propensity <= 0.0
    if lost.any():
        drawn[lost] = probabilities[lost].argmax(axis=1)
        propensity = probabilities[rows, drawn]
    return drawn.tolist(), propensity.tolist()
