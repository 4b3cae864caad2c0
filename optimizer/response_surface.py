"""What settings that were tried let one believe of those that were not: a Gaussian process."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

from optimizer.records import Matrix, Vector

__all__ = ["ResponseSurface"]

_SMALLEST_SPREAD = 1e-9
_LENGTHS = (0.2, 4.0)
_ELSEWHERE_LENGTHS = (0.5, 8.0)
"""How alike task types are is learned: the longer, the more alike."""

_NOISE = (1e-5, 2.0)
"""Variance of an evaluation, in units of the variance of all."""


@dataclass(frozen=True)
class ResponseSurface:
    r"""Believed means and their standard deviations, anywhere in the unit cube.

    The kernel is squared exponential with a length of its own for each parameter. What is known of
    other task types lies at a distance in one more dimension: their level is taken away, since a
    task that is harder for the model is so at any temperature, and their shape counts as far as
    theirs and ours agree. Lengths, spread and noise maximise the marginal likelihood within bounds
    (Rasmussen and Williams 2006, section 5.4.1; Swersky, Snoek and Adams, Multi-task Bayesian
    optimization, NIPS 2013).
    """

    process: Any
    level: float
    scale: float

    @classmethod
    def fit(
        cls,
        places: Matrix,
        values: Vector,
        errors: Vector,
        tasks: npt.NDArray[np.str_],
    ) -> ResponseSurface:
        """Learn from what was tried.

        Parameters
        ----------
        places
            Shape (n, d), in [0, 1].
        values
            Shape (n,), finite.
        errors
            Shape (n,): standard error of each value, 0 where unknown; noise beyond it is learned.
        tasks
            Shape (n,): empty where the value is of our task type, as one at least is; else the name
            of another.
        """
        level = float(values[tasks == ""].mean())
        centred = values - level
        elsewhere = tasks != ""
        for task in np.unique(tasks[elsewhere]):
            centred[tasks == task] -= centred[tasks == task].mean()
        scale = max(float(centred.std()), _SMALLEST_SPREAD)
        lengths = [_LENGTHS] * places.shape[1] + [_ELSEWHERE_LENGTHS]
        process = GaussianProcessRegressor(
            ConstantKernel(1.0, (0.1, 10.0)) * RBF([0.7] * places.shape[1] + [2.0], lengths)
            + WhiteKernel(0.1, _NOISE),
            alpha=(errors / scale) ** 2 + 1e-8,
        )
        with warnings.catch_warnings():
            # With few trials the likelihood often grows up to a bound; that is what they are for.
            warnings.simplefilter("ignore", ConvergenceWarning)
            process.fit(np.column_stack([places, elsewhere]), centred / scale)
        return cls(process, level, scale)

    def __call__(self, places: Matrix) -> tuple[Vector, Vector]:
        """Means and standard deviations of the means, each of shape (m,), for our task type."""
        mean, deviation = self.process.predict(
            np.column_stack([places, np.zeros(len(places))]), return_std=True
        )
        noise = self.process.kernel_.k2.noise_level
        pure = np.sqrt(np.maximum(deviation**2 - noise, 1e-12))
        return mean * self.scale + self.level, pure * self.scale
