"""How likely the arms that were drawn were, to the log and to the target."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from optimizer.errors import InvalidInput
from optimizer.records import Vector

__all__ = ["Draws", "Flags"]

Flags = npt.NDArray[np.bool_]

_ROUNDING = 1.0 + 1e-9


@dataclass(frozen=True)
class Draws:
    """Two probabilities of each arm that was drawn.

    Attributes
    ----------
    target
        Shape (n,), in [0, 1]: of the policy that is evaluated.
    logged
        Shape (n,), in (0, 1]: its propensity.
    """

    target: Vector
    logged: Vector

    def __post_init__(self) -> None:
        for name, values in (("target", self.target), ("logged", self.logged)):
            if not ((values >= 0) & (values <= 1 + 1e-9)).all():
                raise InvalidInput(name, float(values.max()), "probabilities in [0, 1]")
        if not (self.logged > 0).all():
            raise InvalidInput("logged", 0.0, "what was drawn had a propensity above 0")

    def __len__(self) -> int:
        return self.target.size

    def __getitem__(self, rows: slice | Flags) -> Draws:
        return Draws(self.target[rows], self.logged[rows])

    @cached_property
    def weights(self) -> Vector:
        """Shape (n,), 0 or more; of expectation 1."""
        result: Vector = self.target / self.logged
        return result

    def clipped(self, clip: float) -> Vector:
        """Shape (n,): the weights, 0 where they are above ``clip``."""
        return np.where(self.above(clip), 0.0, self.weights)

    def above(self, clip: float) -> Flags:
        """Shape (n,): which weights are above ``clip``, by more than rounding."""
        return self.weights > clip * _ROUNDING

    def second_moments(self, clip: float = math.inf) -> Vector:
        r"""Shape (n,): the least that a squared weight must be worth, in the mean over draws.

        A log tells the propensity of the drawn arm only, so what the others may weigh is not known;
        but with probability :math:`1 - b` one of them would have been drawn, and by Cauchy and
        Schwarz

        .. math:: E w^2 \ge \frac{e^2}{b} + \frac{(1 - e)^2}{1 - b}.

        The sum of the squared weights that were seen is far too small while the rare and heavy ones
        have not come up yet; this is not. Rows with a propensity of 1 say nothing of other arms.

        Parameters
        ----------
        clip
            Weights above it are taken as 0.
        """
        rest = 1.0 - self.logged
        others = np.divide(1.0 - self.target, rest, out=np.zeros_like(rest), where=rest > 1e-12)
        others[others > clip * _ROUNDING] = 0.0
        moments: Vector = self.clipped(clip) * self.target + others * (1.0 - self.target)
        return moments

    @property
    def effective_sample_size(self) -> float:
        """So many rows of the target's own traffic would say as much: ``sum(w)^2 / sum(w^2)``.

        In [0, n] (Kong 1992); 0 where every weight is 0.

        Examples
        --------
        >>> Draws(np.array([0.5, 0.5, 0.0, 1.0]), np.full(4, 0.5)).effective_sample_size
        2.6666666666666665
        """
        squares = float(self.weights @ self.weights)
        return float(self.weights.sum()) ** 2 / squares if squares else 0.0

    @property
    def expected_sample_size(self) -> float:
        """What the effective sample size should be by the propensities alone, at most.

        ``n`` over the mean of `second_moments`. It is the smaller one as long as heavy weights are
        still to come.
        """
        moment = float(self.second_moments().mean())
        return len(self) / moment if moment else 0.0
