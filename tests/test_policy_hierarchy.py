"""The linear model against the textbook: one joint Gaussian over all coefficients."""

import numpy as np
import pytest

from optimizer.policies.hierarchy import Variances, estimate_variances, posterior

ARMS, SIZE, NOISE = 3, 4, 0.2
RANDOM = np.random.default_rng(1)
PRECISION = np.array([2.0, 5.0, 9.0, 20.0])
SHARED_PRECISION = np.array([0.5, 1.0, 0.7, 0.6, 3.0, 4.0])  # the last two are of traits
SHARED_MEAN = np.array([0.5, 0.0, 0.0, 0.0, 0.1, 0.0])
TRAITS = np.array([[1.0, -0.5], [0.0, 0.3], [-2.0, 0.7]])
PRIOR = (PRECISION, SHARED_PRECISION, SHARED_MEAN, TRAITS)
ROWS = RANDOM.normal(size=(50, SIZE))
CHOSEN = RANDOM.integers(ARMS - 1, size=50)  # the last arm is new
TARGETS = RANDOM.random(50)


def sums(rows: slice) -> tuple[np.ndarray, np.ndarray]:
    gram, moment = np.zeros((ARMS, SIZE, SIZE)), np.zeros((ARMS, SIZE))
    for row, arm, target in zip(ROWS[rows], CHOSEN[rows], TARGETS[rows], strict=True):
        gram[arm] += np.outer(row, row)
        moment[arm] += target * row
    return gram / NOISE, moment / NOISE


def textbook() -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of all arms' coefficients, by the joint prior and all rows at once."""
    lift = np.zeros((ARMS, SIZE, SIZE + 2))
    lift[:, :, :SIZE] = np.eye(SIZE)
    lift[:, 0, SIZE:] = TRAITS
    lift = lift.reshape(ARMS * SIZE, SIZE + 2)
    shared = lift @ np.diag(1 / SHARED_PRECISION) @ lift.T
    prior = shared + np.kron(np.eye(ARMS), np.diag(1 / PRECISION))
    design = np.zeros((50, ARMS * SIZE))
    for index, (row, arm) in enumerate(zip(ROWS, CHOSEN, strict=True)):
        design[index, arm * SIZE : (arm + 1) * SIZE] = row
    mean = lift @ SHARED_MEAN
    gain = prior @ design.T @ np.linalg.inv(design @ prior @ design.T + NOISE * np.eye(50))
    return mean + gain @ (TARGETS - design @ mean), prior - gain @ design @ prior


def test_the_posterior_is_that_of_the_joint_gaussian() -> None:
    mean, covariance = textbook()
    found = posterior(*sums(slice(None)), *PRIOR)
    np.testing.assert_allclose(found.coefficients.ravel(), mean, atol=1e-10)
    for arm in range(ARMS):
        block = slice(arm * SIZE, (arm + 1) * SIZE)
        np.testing.assert_allclose(found.covariance[arm], covariance[block, block], atol=1e-10)


def test_absorbing_one_by_one_is_solving_at_once() -> None:
    found = posterior(*sums(slice(0, 10)), *PRIOR)
    for row, arm, target in zip(ROWS[10:], CHOSEN[10:], TARGETS[10:], strict=True):
        found.absorb(int(arm), row / NOISE**0.5, target / NOISE**0.5)
    whole = posterior(*sums(slice(None)), *PRIOR)
    for name in ("coefficients", "covariance", "own", "shared", "shared_covariance"):
        np.testing.assert_allclose(getattr(found, name), getattr(whole, name), atol=1e-9)


@pytest.mark.parametrize("truth", [(0.05, 0.3), (0.2, 0.02)])
def test_variances_are_found_from_data(truth) -> None:
    noise, deviation = truth
    random = np.random.default_rng(2)
    arms, size, count = 30, 6, 4000
    coefficients = random.normal(size=(arms, size)) * deviation**0.5
    rows = random.normal(size=(count, size))
    chosen = random.integers(arms, size=count)
    targets = (rows * coefficients[chosen]).sum(1) + random.normal(size=count) * noise**0.5
    gram, moment = np.zeros((arms, size, size)), np.zeros((arms, size))
    np.add.at(gram, chosen, rows[:, :, None] * rows[:, None])
    np.add.at(moment, chosen, rows * targets[:, None])
    squares = np.bincount(chosen, targets**2, minlength=arms)
    number = np.bincount(chosen, minlength=arms).astype(float)
    prior = Variances(0.16, np.array([0.16]), np.array([0.1]))
    now = prior
    for _ in range(20):
        found = posterior(
            gram / now.noise,
            moment / now.noise,
            np.full(size, 1 / now.deviation[0]),
            np.full(size, 0.6),
            np.zeros(size),
            np.zeros((arms, 0)),
        )
        now = estimate_variances(
            found,
            gram,
            moment,
            squares,
            number,
            np.ones((1, size)),
            now,
            prior,
            (20.0, 20.0, np.array([5.0])),
        )
    assert now.noise == pytest.approx(noise, rel=0.1)
    assert now.deviation[0] == pytest.approx(deviation, rel=0.25)
    assert now.scatter.mean() == pytest.approx(noise, rel=0.15)
