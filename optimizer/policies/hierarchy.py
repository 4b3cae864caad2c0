r"""Bayesian linear regressions of several arms that borrow strength from each other.

The coefficients of arm ``k`` are :math:`\theta_k = \beta + \varepsilon_k`: what all arms share (how
hard a request is), plus what is special about the arm. With :math:`\varepsilon_k \sim N(0, \tau^2)`
and :math:`\beta` almost free, a new arm starts as an average one with the uncertainty that arms
differ by, and a rare task borrows from the rest (Lindley and Smith, Bayes estimates for the linear
model, 1972). What is known of an arm beforehand, its traits :math:`z_k`, moves its constant by
:math:`z_k^T \gamma` with :math:`\gamma` shared by all arms, too: where dear models were better, a
new dear one starts better. Given :math:`\beta` and :math:`\gamma` the arms are independent, so
everything is made of matrices of the size of the features, however many arms there are. Sums are
divided by the noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from optimizer.records import Matrix, Vector

__all__ = ["Posterior", "Variances", "estimate_variances", "posterior"]


@dataclass(slots=True)
class Posterior:
    """What is known of one target's coefficients.

    Attributes
    ----------
    coefficients
        Shape (arms, d).
    covariance
        Shape (arms, d, d): of each arm's coefficients.
    own
        Shape (arms, d, d): of each arm's coefficients if those shared were known.
    shared, shared_covariance
        Shapes (d + m,) and (d + m, d + m): the coefficients all arms share, then those of traits.
    precision
        Shape (d,): of an arm's deviations.
    traits
        Shape (arms, m).
    """

    coefficients: Matrix
    covariance: Matrix
    own: Matrix
    shared: Vector
    shared_covariance: Matrix
    precision: Vector
    traits: Matrix

    @property
    def expected(self) -> Matrix:
        """Shape (arms, d): what the coefficients would be, were nothing special about an arm."""
        return _of_arms(self.shared, self.traits)

    def absorb(self, arm: int, features: Vector, target: float) -> None:
        """One observation more, in place: exact (Sherman and Morrison), at a fraction of the time.

        Parameters
        ----------
        arm
            Index of the arm that was chosen.
        features
            Shape (d,), divided by the standard deviation of the noise.
        target
            What was seen, divided by the same.
        """
        own = self.own[arm]
        gain = own @ features
        leverage = 1.0 + float(features @ gain)
        pull = self.precision * gain
        shared_gain = self.shared_covariance @ np.append(pull, pull[0] * self.traits[arm])
        expected = self.precision * _of_arms(shared_gain, self.traits)
        covariance: Matrix = (self.own @ expected[:, :, None])[:, :, 0]
        covariance[arm] += gain
        scale = 1.0 + float(features @ covariance[arm])
        surprise = (target - float(features @ self.coefficients[arm])) / scale
        self.coefficients += covariance * surprise
        self.shared += shared_gain * surprise
        self.covariance -= covariance[:, :, None] * (covariance / scale)[:, None, :]
        own -= gain[:, None] * (gain / leverage)
        self.shared_covariance -= shared_gain[:, None] * (shared_gain / scale)


@dataclass(frozen=True, slots=True)
class Variances:
    """Hyper-parameters of one target, estimated from the data.

    Attributes
    ----------
    noise
        Of a target around its prediction, pooled over arms.
    scatter
        Shape (arms,): the same of each arm by itself, drawn to the pooled one. It tells what is
        unusual for an arm; predicting by it was worse (docs/log.md).
    deviation
        Shape (groups,): of an arm's coefficients around the shared ones, by group of features.
    """

    noise: float
    scatter: Vector
    deviation: Vector


def posterior(
    gram: Matrix,
    moment: Matrix,
    precision: Vector,
    shared_precision: Vector,
    shared_mean: Vector,
    traits: Matrix,
) -> Posterior:
    """The posterior of all arms, from their sums.

    Parameters
    ----------
    gram
        Shape (arms, d, d), divided by the noise.
    moment
        Shape (arms, d), divided by the noise.
    precision
        Shape (d,): prior precision of an arm's deviations, above 0.
    shared_precision, shared_mean
        Shape (d + m,): prior of the shared coefficients, then of those of traits; precision above
        0.
    traits
        Shape (arms, m): they move the first coefficient.
    """
    index = np.arange(len(precision))
    design = gram.copy()
    design[:, index, index] += precision
    own: Matrix = np.linalg.inv(design).astype(np.float64, copy=False)
    explained = own @ moment[:, :, None]
    # What an arm's coefficients move by with the shared ones.
    follows = _with_traits(own * precision, traits)
    known = _with_traits(precision[:, None] * (own @ gram), traits)
    information = np.vstack(
        [known.sum(axis=0), np.einsum("km,kj->mj", traits, known[:, 0])],
    )
    information = (information + information.T) / 2
    every = np.arange(len(information))
    information[every, every] += shared_precision
    shared_covariance: Matrix = np.linalg.inv(information).astype(np.float64, copy=False)
    pull = precision * explained[:, :, 0]
    shared = shared_covariance @ (
        np.append(pull.sum(axis=0), pull[:, 0] @ traits) + shared_precision * shared_mean
    )
    coefficients = explained[:, :, 0] + follows @ shared
    covariance: Matrix = own + follows @ shared_covariance @ follows.transpose(0, 2, 1)
    return Posterior(coefficients, covariance, own, shared, shared_covariance, precision, traits)


def estimate_variances(
    found: Posterior,
    gram: Matrix,
    moment: Matrix,
    squares: Vector,
    count: Vector,
    groups: Matrix,
    now: Variances,
    prior: Variances,
    prior_weight: tuple[float, float, Vector],
) -> Variances:
    r"""One step of empirical Bayes (MacKay, Bayesian interpolation, 1992, eq. 4.8).

    A variance is the sum of squared deviations over the number of them that the data determine,
    :math:`\sum_j (1 - V_j / \tau^2)`; both with a prior, so that little data moves little.

    Parameters
    ----------
    found
        The posterior under ``now``.
    gram, moment, squares, count
        The sums, as they are, shapes (arms, d, d), (arms, d), (arms,), (arms,).
    groups
        Shape (groups, d): 1 where a feature belongs to a group.
    now
        The variances in use.
    prior
        What they are without data.
    prior_weight
        How much that counts: in observations, for the noise of all and for the noise of an arm;
        in coefficients, for each group.
    """
    theta = found.coefficients
    deviation = theta - found.expected
    pulled = _with_traits(found.own @ (gram / now.noise), found.traits)
    spread = np.einsum("kii->ki", found.own) + np.einsum(
        "kij,kij->ki", pulled @ found.shared_covariance, pulled
    )
    determined = np.clip(1.0 - spread * found.precision, 0.0, 1.0)
    noise_weight, arm_weight, group_weight = prior_weight
    squared = (deviation**2).sum(axis=0) @ groups.T
    number = determined.sum(axis=0) @ groups.T
    fitted = (gram @ theta[:, :, None])[:, :, 0]
    residual = np.maximum(squares - (theta * (2.0 * moment - fitted)).sum(axis=1), 0.0)
    free = np.maximum(count - determined.sum(axis=1), 0.2 * count)
    pooled = float((residual.sum() + noise_weight * prior.noise) / (free.sum() + noise_weight))
    return Variances(
        pooled,
        (residual + arm_weight * pooled) / (free + arm_weight),
        (squared + group_weight * prior.deviation) / (number + group_weight),
    )


def _of_arms(shared: Vector, traits: Matrix) -> Matrix:
    """Shape (arms, d): shared coefficients as each arm has them, traits in the constant."""
    size = len(shared) - traits.shape[1]
    coefficients = np.tile(shared[:size], (len(traits), 1))
    coefficients[:, 0] += traits @ shared[size:]
    return coefficients


def _with_traits(matrices: Matrix, traits: Matrix) -> Matrix:
    """Shape (arms, d, d + m): the columns of traits beside those of features."""
    return np.concatenate([matrices, matrices[:, :, :1] * traits[:, None, :]], axis=2)
