import math

import numpy as np
import pytest

from optimizer.confidence import ENOUGH, difference, half_width, mean, saving
from optimizer.errors import InvalidInput

LOOKS = np.geomspace(50, 2000, 12).astype(int).tolist()


def test_width_equals_the_published_formula() -> None:
    count, sigma, alpha, best_at = 250.0, 0.4, 0.1, 500.0
    rho = math.sqrt((-2 * math.log(alpha) + math.log(-2 * math.log(alpha) + 1)) / best_at)
    boundary = sigma * math.sqrt(
        2
        * (count * rho**2 + 1)
        / (count**2 * rho**2)
        * math.log(math.sqrt(count * rho**2 + 1) / alpha)
    )
    assert half_width(count, sigma**2, alpha, best_at) == pytest.approx(boundary, rel=1e-12)


def test_width_is_tightest_where_it_was_tuned() -> None:
    widths = {best_at: half_width(1000.0, 1.0, best_at=best_at) for best_at in (300, 1000, 3000)}
    assert min(widths, key=widths.__getitem__) == 1000


def test_estimates_of_known_rows() -> None:
    outcome = np.array([1.0, 0.0, 1.0, 0.0])
    treated = np.array([True, False, True, True])
    # Row 2 is the first control: both groups stand at 1. Rows 3 and 4 are treated: 1 and 0, the
    # treated mean before them is 1, the control mean 0, and each counts 1 / 0.75.
    by_hand = [0 - (0 - 1) / 0.25, (1 - 0) + 0, (1 - 0) + (0 - 1) / 0.75]
    found = difference(outcome, treated, 0.25)
    assert found.value == pytest.approx(np.mean(by_hand))
    assert (found.low, found.high, found.count) == (None, None, 4)


def misses(paths: int, seed: int, share: float, kind: str) -> tuple[float, float]:
    """Shares of paths on which an interval missed the truth at any look."""
    missed = np.zeros((paths, 2), dtype=bool)
    for path in range(paths):
        random = np.random.default_rng((seed, path))
        size = int(LOOKS[-1])
        treated = random.random(size) >= share
        if kind == "rare failures":
            of_treated, of_control = np.full(size, 0.98), np.full(size, 0.97)
            outcome = (random.random(size) < np.where(treated, of_treated, of_control)) * 1.0
        elif kind == "costs":
            of_treated, of_control = np.full(size, 4e-4), np.full(size, 1e-3)
            outcome = random.lognormal(-0.5, 1.0, size) * np.where(treated, of_treated, of_control)
        else:
            of_treated, outcome = learning_arm(random, treated)
            of_control = np.full(size, 0.6)
        effects = (of_treated - of_control)[1:].cumsum() / np.arange(1, size)
        ratios = of_treated[1:].cumsum() / of_control[1:].cumsum()
        span = None if kind == "costs" else 1.0
        for look in LOOKS:
            rows = slice(0, look)
            effect = difference(outcome[rows], treated[rows], share, span=span)
            if effect.low is not None and effect.high is not None:
                missed[path, 0] |= not effect.low <= effects[look - 2] <= effect.high
            if look not in LOOKS[::4]:
                continue
            saved = saving(outcome[rows], treated[rows], share, span=span)
            if saved.low is not None and saved.high is not None:
                missed[path, 1] |= not saved.low <= 1 - ratios[look - 2] <= saved.high
    return float(missed[:, 0].mean()), float(missed[:, 1].mean())


def learning_arm(random: np.random.Generator, treated: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A policy between a good and a bad arm that goes by its own past outcomes."""
    wins, tries = [1.0, 1.0], [2.0, 2.0]
    expected, outcome = np.empty(treated.size), np.empty(treated.size)
    draws = random.random((treated.size, 2))
    for row, (explore, luck) in enumerate(draws.tolist()):
        best = int(wins[1] / tries[1] > wins[0] / tries[0])
        expected[row] = 0.9 * (0.9 if best else 0.4) + 0.1 * (0.4 if best else 0.9)
        arm = best if explore >= 0.1 else 1 - best
        outcome[row] = luck < ((0.9 if arm else 0.4) if treated[row] else 0.6)
        if treated[row]:
            tries[arm] += 1
            wins[arm] += outcome[row]
    return expected, outcome


@pytest.mark.parametrize(
    ("kind", "share"), [("rare failures", 0.05), ("costs", 0.2), ("a learning arm", 0.1)]
)
def test_peeking_at_every_look_misses_no_more_than_promised(kind: str, share: float) -> None:
    paths = 500
    slack = 2 * math.sqrt(0.05 * 0.95 / paths)
    missed = misses(paths, 11, share, kind)
    assert max(missed) <= 0.05 + slack, missed


def test_a_fixed_interval_would_not_survive_peeking() -> None:
    missed = 0
    for path in range(300):
        values = np.random.default_rng((3, path)).normal(size=2000)
        counts = np.arange(1, 2001)
        centre = values.cumsum() / counts
        missed += bool((np.abs(centre) > 1.96 / np.sqrt(counts))[50:].any())
    assert missed / 300 > 0.2


def test_saving_is_where_the_scaled_difference_contains_zero() -> None:
    random = np.random.default_rng(5)
    treated = random.random(3000) >= 0.1
    outcome = random.gamma(2.0, 1.0, 3000) * np.where(treated, 0.5, 1.0)
    # A first control at 0, so that what the treated borrow before their first row scales too.
    treated[:2], outcome[0] = (False, True), 0.0
    found = saving(outcome, treated, 0.1, span=1e-9)
    assert found.low is not None and found.high is not None and found.low < 0.5 < found.high
    for edge in (found.low, found.high):
        assert zero_distance(outcome, treated, edge) == pytest.approx(0.0, abs=1e-9)


def zero_distance(outcome: np.ndarray, treated: np.ndarray, saved: float) -> float:
    """How far 0 is from the nearer end of the interval of ``y_T - (1 - saved) y_C``."""
    scaled = np.where(treated, outcome, (1 - saved) * outcome)
    found = difference(scaled, treated, 0.1, span=1e-9)
    assert found.low is not None and found.high is not None
    return min(abs(found.low), abs(found.high))


def test_too_few_controls_give_no_interval() -> None:
    treated = np.arange(200) >= ENOUGH - 1
    found = difference(np.linspace(0, 1, 200), treated, 0.05)
    assert found.value is not None and found.low is None and found.high is None
    assert difference(np.zeros(5), np.ones(5, dtype=bool), 0.05).value is None
    assert mean(np.zeros(0)).value is None


def test_all_successes_are_no_certainty() -> None:
    treated = np.arange(400) % 20 != 0
    found = difference(np.ones(400), treated, 0.05, span=1.0)
    assert found.value == 0.0
    assert found.low is not None and found.low < -0.05


def test_a_control_that_may_be_zero_has_no_saving_interval() -> None:
    random = np.random.default_rng(2)
    outcome = random.normal(0.01, 1.0, 500)
    found = saving(outcome, random.random(500) >= 0.2, 0.2)
    assert found.low is None and found.high is None


@pytest.mark.parametrize("share", [0.0, 1.0, math.nan])
def test_impossible_arguments_are_refused(share: float) -> None:
    with pytest.raises(InvalidInput, match="control_share"):
        difference(np.zeros(3), np.array([True, False, True]), share)
    with pytest.raises(InvalidInput, match="outcome"):
        difference(np.array([math.nan, 0.0]), np.array([True, False]), 0.5)
    with pytest.raises(InvalidInput, match="treated"):
        difference(np.zeros(3), np.array([True, False]), 0.5)
    with pytest.raises(InvalidInput, match="alpha"):
        half_width(10.0, 1.0, alpha=0.0)
    with pytest.raises(InvalidInput, match="best_at"):
        half_width(10.0, 1.0, best_at=0.0)
    with pytest.raises(InvalidInput, match="span"):
        mean(np.zeros(20), span=0.0)
