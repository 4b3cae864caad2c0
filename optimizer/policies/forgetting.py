"""Forgetting: how a policy lets go of a world that is no more.

A decision's weight is the product of all the factors by which was forgotten since it was made. So
a reward that comes late counts as little as those of its time, and a correction takes out exactly
what it corrects.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from optimizer.errors import InvalidInput
from optimizer.policies.sums import Rows, State, Sums
from optimizer.records import Indices, Matrix, Vector

__all__ = ["Discounted", "Forgetful", "Forgetting", "Moments", "Never", "Window"]

_EVENTS = 32
"""Moments of forgetting that are remembered; what lies further back has lost nearly all weight."""


class Forgetful(Protocol):
    """A model that can forget."""

    arms: int
    sums: Sums

    def scale(self, factor: float | Vector) -> None:
        """Forget a part, one factor or shape (arms,)."""

    def surprises(self, rows: Rows) -> Matrix:
        """Shape (n, targets): standardised errors of prediction."""


class Forgetting(Protocol):
    """When to forget, and how much.

    Attributes
    ----------
    sees_change
        Whether it forgets because the world has changed, and not as time goes by.
    """

    sees_change: bool

    def weights(self, arm: Indices, version: Vector) -> Vector:
        """Shape (n,): what decisions count that were made by these policy versions."""

    def watch(self, model: Forgetful, rows: Rows) -> int:
        """How many rows may be learned before the world has to be looked at anew."""

    def after(self, model: Forgetful, rows: int, position: int, block_ends: bool) -> bool:
        """Forget, where that is due after ``rows`` more rows; True if something was forgotten."""

    def choose(self, rows: Sequence[int | None]) -> None:
        """Change the arms: each is the one that was at that index, None a new one."""

    def state(self) -> State:
        """All that is remembered, as arrays."""

    def restore(self, state: State) -> None:
        """Take what `state` gave."""


class Never:
    """Everything counts for ever."""

    sees_change = False

    def weights(self, arm: Indices, version: Vector) -> Vector:
        """All 1."""
        return np.ones(len(arm))

    def watch(self, model: Forgetful, rows: Rows) -> int:
        """All of them."""
        return len(rows.arm)

    def after(self, model: Forgetful, rows: int, position: int, block_ends: bool) -> bool:
        """Nothing is forgotten."""
        return False

    def choose(self, rows: Sequence[int | None]) -> None:
        """Nothing depends on the arms."""

    def state(self) -> State:
        """Nothing."""
        return {}

    def restore(self, state: State) -> None:
        """Nothing."""


class Moments:
    """Moments of forgetting: the ledger position, and the factor of each arm.

    Parameters
    ----------
    arms
        Number of arms.
    """

    def __init__(self, arms: int) -> None:
        self.position = np.zeros(0)
        self.factor = np.zeros((0, arms))

    def add(self, position: int, factor: float | Vector) -> None:
        """Remember one, of one factor or shape (arms,)."""
        row = np.broadcast_to(np.asarray(factor, dtype=float), self.factor.shape[1:])
        self.position = np.append(self.position, position)[-_EVENTS:]
        self.factor = np.vstack([self.factor, row])[-_EVENTS:]

    def weights(self, arm: Indices, version: Vector) -> Vector:
        """Shape (n,): what is left of decisions of these arms and versions."""
        if not self.position.size:
            return np.ones(len(arm))
        since = self.position[:, None] > version
        weight: Vector = np.where(since, self.factor[:, arm], 1.0).prod(axis=0)
        return weight

    def choose(self, rows: Sequence[int | None]) -> None:
        """Change the arms."""
        factor = np.ones((len(self.position), len(rows)))
        for index, row in enumerate(rows):
            if row is not None:
                factor[:, index] = self.factor[:, row]
        self.factor = factor

    def state(self) -> State:
        """All of them, as arrays."""
        return {"forgotten_at": self.position, "forgotten": self.factor}

    def restore(self, state: State) -> None:
        """Take what `state` gave."""
        self.position = state["forgotten_at"].copy()
        self.factor = state["forgotten"].copy()


class Discounted:
    """The weight of a decision falls by e for every ``horizon`` rewards that come after it.

    Parameters
    ----------
    arms
        Number of arms.
    horizon
        In rewards, at least 10. It is applied at the end of each block of rewards.
    """

    sees_change = False

    def __init__(self, arms: int, horizon: float) -> None:
        if not horizon >= 10:
            raise InvalidInput("horizon", horizon, "at least 10 rewards")
        self.horizon = horizon
        self._moments = Moments(arms)
        self._rows = np.zeros(1)

    def weights(self, arm: Indices, version: Vector) -> Vector:
        """By what was forgotten since."""
        return self._moments.weights(arm, version)

    def watch(self, model: Forgetful, rows: Rows) -> int:
        """All of them."""
        return len(rows.arm)

    def after(self, model: Forgetful, rows: int, position: int, block_ends: bool) -> bool:
        """Forget the share that belongs to the length of the block."""
        self._rows += rows
        if not block_ends:
            return False
        factor = math.exp(-float(self._rows[0]) / self.horizon)
        self._rows[:] = 0.0
        model.scale(factor)
        self._moments.add(position, factor)
        return True

    def choose(self, rows: Sequence[int | None]) -> None:
        """Change the arms."""
        self._moments.choose(rows)

    def state(self) -> State:
        """Moments of forgetting, and rows of the block so far."""
        return {**self._moments.state(), "block_rows": self._rows}

    def restore(self, state: State) -> None:
        """Take what `state` gave."""
        self._moments.restore(state)
        self._rows[:] = state["block_rows"]


class Window:
    """Only the last ``horizon`` rewards count, give or take a quarter.

    Parameters
    ----------
    horizon
        In rewards, at least 10.
    size
        Number of features of the model, 1 for means.
    """

    sees_change = False
    _BLOCKS = 4

    def __init__(self, horizon: float, size: int) -> None:
        if not horizon >= 10:
            raise InvalidInput("horizon", horizon, "at least 10 rewards")
        self.horizon = horizon
        self._size = size
        self._dropped = np.zeros(1)
        self._rows = np.zeros(1)
        self._blocks: list[Sums] = []
        self._ends: list[float] = []

    def weights(self, arm: Indices, version: Vector) -> Vector:
        """0 for decisions that left the window."""
        kept: Vector = np.where(version >= self._dropped, 1.0, 0.0)
        return kept

    def watch(self, model: Forgetful, rows: Rows) -> int:
        """All of them."""
        return len(rows.arm)

    def after(self, model: Forgetful, rows: int, position: int, block_ends: bool) -> bool:
        """Close a quarter of the window, and drop the oldest."""
        self._rows += rows
        if not block_ends or self._rows[0] < self.horizon / self._BLOCKS:
            return False
        self._rows[:] = 0.0
        block = model.sums.copy()
        for earlier in self._blocks:
            block.subtract(earlier)
        self._blocks.append(block)
        self._ends.append(float(position))
        if len(self._blocks) <= self._BLOCKS:
            return False
        model.sums.subtract(self._blocks.pop(0))
        self._dropped[:] = self._ends.pop(0)
        model.scale(1.0)  # what follows from the sums is out of date
        return True

    def choose(self, rows: Sequence[int | None]) -> None:
        """Change the arms."""
        self._blocks = [block.choose(rows) for block in self._blocks]

    def state(self) -> State:
        """The blocks, and rows of the newest so far."""
        blocks = {
            f"block_{index}_{name}": array
            for index, block in enumerate(self._blocks)
            for name, array in block.arrays().items()
        }
        return {
            **blocks,
            "block_rows": self._rows,
            "block_ends": np.array(self._ends),
            "dropped": self._dropped,
        }

    def restore(self, state: State) -> None:
        """Take what `state` gave."""
        self._ends = state["block_ends"].tolist()
        self._dropped[:] = state["dropped"]
        self._rows[:] = state["block_rows"]
        self._blocks = []
        while f"block_{len(self._blocks)}_gram" in state:
            prefix = f"block_{len(self._blocks)}_"
            block = Sums(state[prefix + "count"].shape[1], self._size)
            block.restore({name: state[prefix + name] for name in block.arrays()})
            self._blocks.append(block)
