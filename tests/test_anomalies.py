import numpy as np
import pytest

from optimizer.anomalies import scores
from optimizer.errors import InvalidInput

FLOORS = np.array([0.01, 0.01])
METHODS = ("z", "iqr", "mad", "mahalanobis")


def minutes(rows: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal([1.0, 2.0], [0.1, 0.5], size=(rows, 2))


@pytest.mark.parametrize("method", METHODS)
def test_scores_of_ordinary_minutes_are_those_of_a_normal_distribution(method: str) -> None:
    found = scores(method, minutes(3000, 1), minutes(3000, 2), FLOORS)
    assert (found > 1.96).mean() == pytest.approx(0.05, abs=0.012)
    assert (found > 5).sum() == 0


@pytest.mark.parametrize("method", ["iqr", "mad", "mahalanobis"])
def test_outliers_in_the_reference_do_not_hide_others(method: str) -> None:
    reference = minutes(500, 1)
    reference[:75] += 5.0
    far = np.array([[1.0 + 1.0, 2.0 + 4.5]])
    assert scores(method, reference, far, FLOORS).min() > 5
    assert scores("z", reference, far, FLOORS).max() < 5


def test_only_mahalanobis_sees_a_pair_that_never_comes_together() -> None:
    random = np.random.default_rng(3)
    first = random.normal(size=1000)
    reference = np.column_stack([first, first + 0.05 * random.normal(size=1000)])
    odd = np.array([[1.5, -1.5]])
    assert scores("mahalanobis", reference, odd, FLOORS)[0, 0] > 8
    assert scores("mad", reference, odd, FLOORS).max() < 3


@pytest.mark.parametrize("method", METHODS)
def test_what_never_moved_may_move_as_far_as_its_floor(method: str) -> None:
    still = np.column_stack([np.zeros(100), np.random.default_rng(1).normal(size=100)])
    found = scores(method, still, np.array([[0.01, 0.0], [0.2, 0.0]]), np.array([0.01, 0.01]))
    assert found[0, 0] < 5 < found[1, 0] and np.isfinite(found).all()


@pytest.mark.parametrize("method", METHODS)
def test_what_is_not_known_is_not_judged(method: str) -> None:
    unknown = np.full((3, 2), np.nan)
    assert np.isnan(scores(method, minutes(100, 1), unknown, FLOORS)).all()
    assert np.isnan(scores(method, minutes(5, 1), minutes(3, 2), FLOORS)).all()


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(InvalidInput, match="method"):
        scores("mode", minutes(30, 1), minutes(3, 2), FLOORS)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="columns"):
        scores("z", minutes(30, 1), minutes(3, 2)[:, :1], FLOORS)
