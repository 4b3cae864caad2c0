"""What every outcome model can do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from optimizer.policies.sums import Rows, State, Sums
from optimizer.records import Matrix, Vector

__all__ = ["OutcomeModel"]


class OutcomeModel(Protocol):
    """Predicts the score of every arm under a linear objective."""

    arms: int
    sums: Sums

    def learn(self, rows: Rows) -> None:
        """Apply changes of targets."""

    def settle(self) -> None:
        """A block of rewards is complete: estimate what is estimated once a block."""

    def scale(self, factor: float | Vector) -> None:
        """Forget a part of what was learned, one factor or shape (arms,)."""

    def surprises(self, rows: Rows) -> Matrix:
        """Shape (n, targets): standardised errors of the predictions of the last `settle`."""

    def foreseen(self, rows: Rows) -> Matrix:
        """Shape (n, targets): the predictions of the last `settle` for what was drawn."""

    def refresh(self, target_weights: Vector) -> None:
        """Bring `score` up to date with what was learned, for this objective."""

    def score(self, features: Vector) -> tuple[Vector, Vector]:
        """Mean and standard error, each of shape (arms,), of ``target_weights @ targets``.

        The targets are taken as independent of each other.
        """

    def score_many(self, features: Matrix) -> tuple[Matrix, Matrix]:
        """`score` of many requests, each of shape (n, arms)."""

    def expect(self, target: int, features: Matrix) -> Matrix:
        """Shape (n, arms): the expected value of one target."""

    def doubt(self, target: int, features: Matrix) -> Matrix:
        """Shape (n, arms): the standard error of `expect`."""

    def state(self) -> State:
        """Everything learned."""

    def restore(self, state: State) -> None:
        """Take what `state` gave; `score` follows at the next `refresh`."""

    def scoring(self) -> State:
        """What `score` needs and nothing else."""

    def use(self, scoring: State) -> None:
        """Take what `scoring` gave."""

    def choose(self, rows: Sequence[int | None]) -> None:
        """Change the arms: each is the one that was at that index, None a new one."""

    def describe(self, traits: Matrix) -> None:
        """What is known of the arms beforehand, shape (arms, traits), 0 what is typical or unknown.

        Follows `choose`, which forgets it. A model may leave it alone.
        """
