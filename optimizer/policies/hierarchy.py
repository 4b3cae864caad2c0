r"""Bayesian linear regressions of several arms that borrow strength from each other.

The coefficients of arm ``k`` are :math:`\theta_k = \beta + \varepsilon_k`: what all arms share (how
hard a request is), plus what is special about the arm. With :math:`\varepsilon_k \sim N(0, \tau^2)`
and :math:`\beta` almost free, a new arm starts as an average one with the uncertainty that arms
differ by, and a rare task borrows from the rest (Lindley and Smith, Bayes estimates for the linear
model, 1972). Given :math:`\beta` the arms are independent, so everything is made of matrices of the
size of the features, however many arms there are. Sums are divided by the noise.
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
        Shapes (d,) and (d, d).
    precision
        Shape (d,): of an arm's deviations.
    """

    coefficients: Matrix
    covariance: Matrix
    own: Matrix
    shared: Vector
    shared_covariance: Matrix
    precision: Vector

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
        shared_gain = self.shared_covariance @ (self.precision * gain)
        covariance = self.own @ (self.precision * shared_gain)
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
    gram: Matrix, moment: Matrix, precision: Vector, shared_precision: Vector, shared_mean: Vector
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
        Shape (d,): prior of the shared coefficients; precision above 0.
    """
    index = np.arange(len(precision))
    design = gram.copy()
    design[:, index, index] += precision
    own: Matrix = np.linalg.inv(design).astype(np.float64, copy=False)
    explained = own @ moment[:, :, None]
    spread = own * precision  # (arms, d, d): own covariance times prior precision
    information = (precision[:, None] * (own @ gram)).sum(axis=0)
    information = (information + information.T) / 2
    information[index, index] += shared_precision
    shared_covariance: Matrix = np.linalg.inv(information).astype(np.float64, copy=False)
    pull = precision * explained[:, :, 0].sum(axis=0) + shared_precision * shared_mean
    shared = shared_covariance @ pull
    coefficients = explained[:, :, 0] + spread @ shared
    covariance: Matrix = own + spread @ shared_covariance @ spread.transpose(0, 2, 1)
    return Posterior(coefficients, covariance, own, shared, shared_covariance, precision)


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
    deviation = theta - found.shared
    pulled = found.own @ (gram / now.noise)
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
