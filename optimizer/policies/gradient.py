"""Gradient heads: linear models that learn by one small step for each reward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from optimizer.policies.sums import Rows, State, Sums
from optimizer.records import Matrix, Vector
from optimizer.reward import PART_OF_TARGET, TARGETS

__all__ = ["GradientHeads"]

_RATE = 0.3
_PRIOR_MEAN = 0.5
_PRIOR_NOISE, _PRIOR_NOISE_WEIGHT = 0.16, 20.0
_FTRL_BETA = 1.0

_PART = np.array(PART_OF_TARGET)


class GradientHeads:
    """Predicts every target of every arm linearly, learned by stochastic gradients.

    The state grows with the number of features, not with its square: for many features. Steps of
    the past cannot be undone, so a correction is a step towards the difference and a retraction a
    step back, which is not the same as never having seen the value; the exact models are linear
    and mean heads.

    Parameters
    ----------
    arms, size
        Number of arms and of features.
    rule
        ``ftrl`` is FTRL-Proximal (McMahan et al., Ad click prediction, KDD 2013) without its
        penalties; ``adagrad`` divides each coordinate's step by the root of its squared
        gradients (Duchi, Hazan, Singer, JMLR 2011).
    """

    def __init__(self, arms: int, size: int, rule: Literal["ftrl", "adagrad"] = "ftrl") -> None:
        self.arms = arms
        self.size = size
        self.sums = Sums(arms, 1)
        self._is_ftrl = rule == "ftrl"
        self._arrays = self._empty(arms)
        self._weights = np.zeros((arms, size))
        self._spread = np.zeros((arms, size))

    def _empty(self, arms: int) -> State:
        shape = (len(TARGETS), arms, self.size)
        coefficients = np.zeros(shape)
        coefficients[:, :, 0] = _PRIOR_MEAN
        return {
            "start": coefficients,
            "coefficients": coefficients.copy(),
            "pull": np.zeros(shape),
            "gradients": np.zeros(shape),
            "design": np.zeros(shape),
            "reference": coefficients.copy(),
            "errors": np.zeros((2, len(TARGETS))),
            "usual": np.full((1, len(TARGETS)), _PRIOR_NOISE),
        }

    def learn(self, rows: Rows) -> None:
        """One step for each row and target that changed."""
        constant = np.ones((len(rows.arm), 1))
        self.sums.add(Rows(rows.arm, constant, rows.before, rows.after, rows.weight))
        for row, arm in enumerate(rows.arm.tolist()):
            self._step(arm, rows.features[row], rows.before[row], rows.after[row], rows.weight[row])

    def _step(
        self, arm: int, features: Vector, before: Vector, after: Vector, weight: float
    ) -> None:
        arrays = self._arrays
        coefficients = arrays["coefficients"][:, arm]
        predicted = coefficients @ features
        first, gone = np.isnan(before), np.isnan(after)
        changed = np.flatnonzero(~(first & gone))
        error = np.where(
            first, predicted - after, np.where(gone, before - predicted, before - after)
        )
        gradient = weight * np.multiply.outer(error[changed], features)
        squared = arrays["gradients"][changed, arm]
        grown = squared + gradient**2
        if self._is_ftrl:
            slower = (np.sqrt(grown) - np.sqrt(squared)) / _RATE
            pull = arrays["pull"][changed, arm] + gradient
            pull -= slower * (coefficients[changed] - arrays["start"][changed, arm])
            arrays["pull"][changed, arm] = pull
            step = pull * _RATE / (_FTRL_BETA + np.sqrt(grown))
            arrays["coefficients"][changed, arm] = arrays["start"][changed, arm] - step
        else:
            step = _RATE * gradient / np.sqrt(grown + 1e-12)
            arrays["coefficients"][changed, arm] -= step
        arrays["gradients"][changed, arm] = grown
        fresh = changed[first[changed]]
        arrays["design"][fresh, arm] += weight * features**2
        arrays["errors"][0, fresh] += error[fresh] ** 2
        arrays["errors"][1, fresh] += 1.0

    def scale(self, factor: float | Vector) -> None:
        """Forget: steps become longer again, coefficients stay where they are."""
        self.sums.scale(factor)
        share = np.broadcast_to(np.asarray(factor, dtype=float), (self.arms,))[:, None]
        arrays = self._arrays
        if self._is_ftrl:  # what is pulled is where the coefficients are now
            arrays["start"][:] = arrays["coefficients"]
            arrays["pull"][:] = 0.0
        arrays["gradients"] *= share
        arrays["design"] *= share

    def settle(self) -> None:
        """Keep predictions to compare the next block with."""
        self._arrays["reference"][:] = self._arrays["coefficients"]
        self._arrays["usual"][:] = self._noise()

    def surprises(self, rows: Rows) -> Matrix:
        """Shape (n, targets): what was seen minus what was expected, in units of the noise."""
        expected = self.foreseen(rows)
        first = np.where(np.isnan(rows.before), rows.after, np.nan)
        surprise: Matrix = (first - expected) / np.sqrt(self._arrays["usual"][0])
        return surprise

    def foreseen(self, rows: Rows) -> Matrix:
        """Shape (n, targets): what was expected at the last `settle`."""
        reference = self._arrays["reference"][:, rows.arm]
        expected: Matrix = np.einsum("tnd,nd->nt", reference, rows.features)
        return expected

    def refresh(self, target_weights: Vector) -> None:
        """Fold the objective in."""
        self._weights = np.tensordot(target_weights, self._arrays["coefficients"], axes=1)
        share = target_weights**2 * self._noise()
        self._spread = np.tensordot(share, 1.0 / (1.0 + self._arrays["design"]), axes=1)

    def score(self, features: Vector) -> tuple[Vector, Vector]:
        """Mean and (diagonal) standard error of the weighted sum of targets, shape (arms,)."""
        return self._weights @ features, np.sqrt(self._spread @ features**2)

    def score_many(self, features: Matrix) -> tuple[Matrix, Matrix]:
        """`score` of many requests, each of shape (n, arms)."""
        return features @ self._weights.T, np.sqrt(features**2 @ self._spread.T)

    def expect(self, target: int, features: Matrix) -> Matrix:
        """Shape (n, arms): the mean of one target."""
        expected: Matrix = features @ self._arrays["coefficients"][target].T
        return expected

    def doubt(self, target: int, features: Matrix) -> Matrix:
        """Shape (n, arms): the standard error of `expect`."""
        design = self._arrays["design"][target]
        doubt: Matrix = np.sqrt(features**2 @ (self._noise()[target] / (1.0 + design)).T)
        return doubt

    def state(self) -> State:
        """Counts, coefficients and what their next step depends on."""
        return {**self.sums.arrays(), **self._arrays}

    def restore(self, state: State) -> None:
        """Take the arrays that `state` gave."""
        self.sums.restore(state)
        for name, array in self._arrays.items():
            array[:] = state[name]

    def scoring(self) -> State:
        """What `score` needs."""
        return {"weights": self._weights, "spread": self._spread}

    def use(self, scoring: State) -> None:
        """Score by what `scoring` gave."""
        self._weights, self._spread = scoring["weights"], scoring["spread"]

    def describe(self, traits: Matrix) -> None:
        """Arms are strangers to each other here: traits tell nothing."""

    def choose(self, rows: Sequence[int | None]) -> None:
        """Change the arms: each is the one that was at that index, None a new one."""
        arrays = self._empty(len(rows))
        for name, array in arrays.items():
            if name in ("errors", "usual"):
                array[:] = self._arrays[name]
                continue
            for index, row in enumerate(rows):
                if row is not None:
                    array[:, index] = self._arrays[name][:, row]
        self._arrays, self.arms = arrays, len(rows)
        self.sums = self.sums.choose(rows)

    def _noise(self) -> Vector:
        squared, count = self._arrays["errors"]
        noise: Vector = (squared + _PRIOR_NOISE * _PRIOR_NOISE_WEIGHT) / (
            count + _PRIOR_NOISE_WEIGHT
        )
        return noise
