"""What the statistics of experiments promise, measured: ``python -m benchmarks.experiments``.

Whole runs at once, as arrays: the formulas are written again over arrays, and at looks drawn at
random they must give what `optimizer.experiments` gives, or the run stops. Results go to
``benchmarks/results/experiments.md``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln, log_ndtr, ndtr

from benchmarks.processor import processor
from optimizer.confidence import ENOUGH, half_width
from optimizer.experiments import Moments, adaptive_difference, compare, exceeds, sample_ratio
from optimizer.experiments.adaptive import pseudo_outcomes
from optimizer.experiments.fixed_horizon import mean_size, proportion_size
from optimizer.experiments.pseudo_rows import pseudo_rows
from optimizer.experiments.sample_ratio import ALPHA, CONCENTRATION
from optimizer.experiments.sequential import UNKNOWN_SPAN

RESULT = Path(__file__).parent / "results" / "experiments.md"
LEVEL = 0.05
RUNS, LOOKS, LIFT_RUNS = 1000, 10_000, 400
BEST_AT = (300, 1000, 10_000)

Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Random = np.random.Generator
Outcomes = Callable[[Random, tuple[int, int]], Array]


def rate(probability: float) -> Outcomes:
    """Zeros and ones."""
    return lambda random, shape: (random.random(shape) < probability) * 1.0


def costs(random: Random, shape: tuple[int, int]) -> Array:
    """Of two models: one request in twenty costs thirty times as much."""
    dear = np.where(random.random(shape) < 0.05, 30.0, 1.0)
    return random.lognormal(0.0, 0.5, shape) * dear


NULLS: dict[str, tuple[Outcomes, float | None]] = {
    "rate 50 %": (rate(0.5), 1.0),
    "rate 10 %": (rate(0.1), 1.0),
    "rate 2 %": (rate(0.02), 1.0),
    "rate 0.3 %": (rate(0.003), 1.0),
    "rate 98 %": (rate(0.98), 1.0),
    "normal": (lambda random, shape: random.normal(size=shape), None),
    "exponential": (lambda random, shape: random.exponential(size=shape), None),
    "lognormal, sigma 1": (lambda random, shape: random.lognormal(0.0, 1.0, shape), None),
    "lognormal, sigma 1.5": (lambda random, shape: random.lognormal(0.0, 1.5, shape), None),
    "costs of two models": (costs, None),
}


class Looks:
    """Every look of many runs: arrays of shape (runs, observations)."""

    def __init__(self, outcome: Array, treated: Flags, span: float | None) -> None:
        self.span = span
        self.count = np.arange(1.0, outcome.shape[1] + 1)
        self.groups = [
            (
                flags.cumsum(1),
                np.where(flags, outcome, 0).cumsum(1),
                np.where(flags, outcome**2, 0).cumsum(1),
            )
            for flags in (treated, ~treated)
        ]
        total, squares = (self.groups[0][part] + self.groups[1][part] for part in (1, 2))
        with np.errstate(divide="ignore", invalid="ignore"):
            pooled = np.maximum(squares - total**2 / self.count, 0) / (self.count - 1)
            wide = UNKNOWN_SPAN**2 * pooled if span is None else span**2
            self.means, self.plain, added = [], 0.0, 0.0
            for number, total, squares in self.groups:
                spread = np.maximum(squares - total**2 / number, 0) / (number - 1)
                self.means.append(total / number)
                added = added + wide / number**2
                self.plain = self.plain + spread / number
        self.error = self.plain + pseudo_rows(LEVEL) * added
        self.enough = np.minimum(self.groups[0][0], self.groups[1][0]) >= ENOUGH

    def log_e(self, best_at: float) -> Array:
        scaled = self._scaled(best_at, LEVEL)
        with np.errstate(divide="ignore", invalid="ignore"):
            square = (self.means[0] - self.means[1]) ** 2 / self.error
            found = (square * scaled / (1 + scaled) - np.log1p(scaled)) / 2
        return np.where(self.enough & np.isfinite(found), found, 0.0)

    def log_e_above(self, best_at: float, sign: int = 1) -> Array:
        scaled = self._scaled(best_at, 2 * LEVEL)
        with np.errstate(divide="ignore", invalid="ignore"):
            score = (self.means[0] - self.means[1]) / np.sqrt(self.error)
            root = sign * score * np.sqrt(scaled / (1 + scaled))
            found = math.log(2) + (root**2 - np.log1p(scaled)) / 2 + log_ndtr(root)
        return np.where(self.enough & np.isfinite(found), found, 0.0)

    def fixed(self) -> Array:
        """The z-test that is meant to be read once, at every look."""
        with np.errstate(divide="ignore", invalid="ignore"):
            found = np.abs(self.means[0] - self.means[1]) / np.sqrt(self.plain)
        return np.where(self.enough & np.isfinite(found), found, 0.0)

    def check(self, random: Random, best_at: float) -> None:
        """The formulas above give what the project's own functions give."""
        run = int(random.integers(len(self.enough)))
        look = int(random.integers(self.count.size))
        treated, control = (
            Moments(int(number[run, look]), float(total[run, look]), float(squares[run, look]))
            for number, total, squares in self.groups
        )
        two = compare(treated, control, span=self.span, best_at=best_at)
        one = exceeds(treated, control, span=self.span, best_at=best_at)
        np.testing.assert_allclose(
            math.log(two.e_value), self.log_e(best_at)[run, look], rtol=1e-6, atol=1e-6
        )
        np.testing.assert_allclose(
            math.log(one.e_value), self.log_e_above(best_at)[run, look], rtol=1e-6, atol=1e-6
        )

    def _scaled(self, best_at: float, level: float) -> Array:
        return self.count * (-2 * math.log(level) + math.log(1 - 2 * math.log(level))) / best_at


def batches(runs: int, size: int, *seed: int) -> Iterator[tuple[Random, tuple[int, int]]]:
    """As many runs at once as stay within some hundred megabytes."""
    rows = max(1, min(runs, 1_000_000 // size))
    for start in range(0, runs, rows):
        yield np.random.default_rng((*seed, start)), (min(rows, runs - start), size)


def false_positives() -> Iterator[str]:
    """A table: runs in which a difference was ever found though there is none."""
    yield (
        f"| outcomes | treated | {' | '.join(f'best at {best_at:,}' for best_at in BEST_AT)} "
        "| one-sided, best at 1,000 | z-test at every look |"
    )
    yield f"|---|---|{'---|' * (len(BEST_AT) + 2)}"
    for number, (name, (draw, span)) in enumerate(NULLS.items()):
        for share in (0.5, 0.95):
            hits = np.zeros(len(BEST_AT) + 3)
            for random, shape in batches(RUNS, LOOKS, 1, number, int(100 * share)):
                looks = Looks(draw(random, shape), random.random(shape) < share, span)
                looks.check(random, 1000)
                crossed = [looks.log_e(best_at) >= -math.log(LEVEL) for best_at in BEST_AT]
                crossed += [looks.log_e_above(1000, way) >= -math.log(LEVEL) for way in (1, -1)]
                crossed.append(looks.fixed() >= 1.959964)
                hits += [found.any(1).sum() for found in crossed]
            worse = max(hits[-3:-1])
            counts = [*hits[:-3], worse, hits[-1]]
            cells = " | ".join(f"{100 * count / RUNS:.1f} %" for count in counts)
            yield f"| {name} | {100 * share:.0f} % | {cells} |"


def stopping_times() -> Iterator[str]:
    """A table: how soon a relative lift of 5 % is found, well tuned and ill tuned."""
    yield "| outcomes | treated | fixed size | tuned to | median / fixed size | found by it |"
    yield "|---|---|---|---|---|---|"
    deviation = math.sqrt(math.e - 1)
    cases: list[tuple[str, Outcomes, float | None, Callable[[float], int]]] = [
        ("rate 70 %", rate(0.7), 1.0, lambda share: proportion_size(0.7, 0.035, share=share)),
        ("rate 50 %", rate(0.5), 1.0, lambda share: proportion_size(0.5, 0.025, share=share)),
        ("rate 20 %", rate(0.2), 1.0, lambda share: proportion_size(0.2, 0.01, share=share)),
        (
            "lognormal, sigma 1",
            lambda random, shape: random.lognormal(-0.5, 1.0, shape),
            None,
            lambda share: mean_size(0.05, deviation, share=share),
        ),
    ]
    for number, (name, draw, span, planned) in enumerate(cases):
        for share in (0.5, 0.95) if "20 %" not in name else (0.5,):
            size = planned(share)
            stops: dict[float, list[float]] = {0.25: [], 1.0: [], 4.0: []}
            for random, shape in batches(LIFT_RUNS, int(2.5 * size), 2, number, int(100 * share)):
                treated = random.random(shape) < share
                outcome = draw(random, shape)
                if span is None:
                    outcome *= np.where(treated, 1.05, 1.0)
                else:
                    control_rate = float(name.split()[1]) / 100
                    extra = 0.05 * control_rate / (1 - control_rate)
                    outcome = np.maximum(outcome, treated & (random.random(shape) < extra))
                looks = Looks(outcome, treated, span)
                for factor, found in stops.items():
                    crossed = looks.log_e(factor * size) >= -math.log(LEVEL)
                    found += np.where(crossed.any(1), crossed.argmax(1) + 1.0, np.inf).tolist()
            for factor, found in stops.items():
                ratio = np.array(found) / size
                yield (
                    f"| {name} | {100 * share:.0f} % | {size:,} | {factor:g} x "
                    f"| {np.median(ratio):.2f} | {100 * (ratio <= 1).mean():.0f} % |"
                )


def ratios() -> Iterator[str]:
    """A table: how soon a wrong division of units is flagged, and how often a right one."""
    yield "| true share of the first | planned | units | flagged within them | median units |"
    yield "|---|---|---|---|---|"
    for planned, true, size, runs in (
        (0.5, 0.48, 20_000, 1000),
        (0.05, 0.04, 20_000, 1000),
        (0.5, 0.5, 100_000, 1000),
        (0.05, 0.05, 100_000, 1000),
    ):
        stops: list[float] = []
        for random, shape in batches(runs, size, 3, int(1000 * true)):
            first = (random.random(shape) < true).cumsum(1)
            count = np.arange(1, size + 1)
            prior, other = CONCENTRATION * planned, CONCENTRATION * (1 - planned)
            log_e = (
                gammaln(CONCENTRATION) - gammaln(CONCENTRATION + count)
                + gammaln(prior + first) - gammaln(prior) - first * math.log(planned)
                + gammaln(other + count - first) - gammaln(other)
                - (count - first) * math.log(1 - planned)
            )  # fmt: skip
            look = int(random.integers(size))
            units = int(first[0, look])
            found = sample_ratio([units, look + 1 - units], [planned, 1 - planned])
            np.testing.assert_allclose(
                math.log(found.e_value), log_e[0, look], rtol=1e-6, atol=1e-6
            )
            crossed = log_e >= -math.log(ALPHA)
            stops += np.where(crossed.any(1), crossed.argmax(1) + 1.0, np.inf).tolist()
        median = float(np.median(stops))
        flagged = 100 * np.isfinite(stops).mean()
        yield (
            f"| {100 * true:g} % | {100 * planned:g} % | {size:,} | {flagged:.1f} % of {runs} runs "
            f"| {f'{median:,.0f}' if math.isfinite(median) else 'never'} |"
        )


def thompson(
    random: Random, runs: int, size: int, floor: float, rates: Callable[[int], tuple[float, float]]
) -> tuple[Array, npt.NDArray[np.int64], Array, Array]:
    """Two variants, Beta posteriors in their normal form, propensities clipped to the floor."""
    wins, tries = np.ones((2, runs)), np.full((2, runs), 2.0)
    outcome, propensity, effect = (np.empty((runs, size)) for _ in range(3))
    drawn = np.empty((runs, size), dtype=np.int64)
    every = np.arange(runs)
    for row in range(size):
        means = wins / tries
        spread = np.sqrt((means * (1 - means) / (tries + 1)).sum(0))
        second = np.clip(ndtr((means[1] - means[0]) / spread), floor, 1 - floor)
        arm = (random.random(runs) < second).astype(np.int64)
        now = rates(row)
        won = (random.random(runs) < np.array(now)[arm]) * 1.0
        outcome[:, row], drawn[:, row], effect[:, row] = won, arm, now[1] - now[0]
        propensity[:, row] = np.where(arm == 1, second, 1 - second)
        wins[arm, every] += won
        tries[arm, every] += 1
    return outcome, drawn, propensity, effect


def adaptive() -> Iterator[str]:
    """A table: intervals of a difference while the allocation follows the outcomes."""
    size, runs = 5000, RUNS
    yield (
        "| rates | floor | ever missed | without pseudo-rows | half width at the end "
        "| bias AIPW | bias of the first's plain mean |"
    )
    yield "|---|---|---|---|---|---|---|"
    cases: dict[str, Callable[[int], tuple[float, float]]] = {
        "50 %, 50 %": lambda _: (0.5, 0.5),
        "50 %, 60 %": lambda _: (0.5, 0.6),
        "10 %, 10 %": lambda _: (0.1, 0.1),
        "2 %, 2 %": lambda _: (0.02, 0.02),
        "97 %, 99 %": lambda _: (0.97, 0.99),
        "50 %, from 40 to 60 %": lambda row: (0.5, 0.4 + 0.2 * row / size),
    }
    count = np.arange(1.0, size + 1)
    for number, (name, rates) in enumerate(cases.items()):
        for floor in (0.02, 0.05, 0.2):
            random = np.random.default_rng((4, number, int(100 * floor)))
            outcome, drawn, propensity, effect = thompson(random, runs, size, floor, rates)
            pseudo = np.array([
                pseudo_outcomes(*rows, 1) - pseudo_outcomes(*rows, 0)
                for rows in zip(outcome, drawn, propensity, strict=True)
            ])  # fmt: skip
            means = pseudo.cumsum(1) / count
            variance = np.maximum((pseudo**2).cumsum(1) / count - means**2, 0)
            guarded = variance + pseudo_rows(LEVEL) / floor**2 / count
            truth = effect.cumsum(1) / count
            enough = np.minimum(drawn.cumsum(1), (1 - drawn).cumsum(1)) >= ENOUGH
            missed = [
                float(((np.abs(means - truth) > half_width(count, spread)) & enough).any(1).mean())
                for spread in (guarded, variance)
            ]
            own = adaptive_difference(
                outcome[0], drawn[0], propensity[0], 1, 0, floor=floor, span=1.0
            )
            assert own.value is not None and own.high is not None
            width = float(half_width(count[-1:], guarded[0, -1:])[0])
            np.testing.assert_allclose(
                (own.value, own.high - own.value), (means[0, -1], width), rtol=1e-6
            )
            first = np.array(
                [seen[arm == 0].mean() for seen, arm in zip(outcome, drawn, strict=True)]
            )
            ends = half_width(np.full(runs, float(size)), guarded[:, -1])
            yield (
                f"| {name} | {100 * floor:g} % | {100 * missed[0]:.1f} % | {100 * missed[1]:.1f} % "
                f"| {ends.mean():.3f} | {(means - truth)[:, -1].mean():+.4f} "
                f"| {first.mean() - rates(0)[0]:+.4f} |"
            )


def main() -> None:
    """Measure all of it and write the report."""
    started = perf_counter()
    parts = [
        (
            f"False positives under the null ({RUNS:,} runs of {LOOKS:,} observations, a look "
            f"after each; promised: at most {100 * LEVEL:.0f} %)",
            "Rates with `span=1`, the others with `span=None`. One-sided: the worse of both "
            "directions. The last column is what a z-test made to be read once does when it is "
            "read at every look.",
            false_positives(),
        ),
        (
            f"Observations until a relative lift of 5 % is found ({LIFT_RUNS} runs)",
            "Fixed size: both groups together, two-sided 5 %, power 80 %. Tuned to: `best_at` in "
            "multiples of it; a quarter is what somebody gets who plans for twice this lift. Runs "
            "end at 2.5 times the fixed size; never found counts as infinite.",
            stopping_times(),
        ),
        (
            f"Sample ratio (level {ALPHA:g} over the whole life, a look after each unit)",
            "",
            ratios(),
        ),
        (
            f"Differences under Thompson sampling ({RUNS:,} runs of 5,000 rows, a look after each)",
            "The truth is the mean difference over the rows so far.",
            adaptive(),
        ),
    ]
    lines = [
        "# Statistics of experiments",
        "",
        "By `python -m benchmarks.experiments`; seeded.",
        "",
    ]
    for title, note, table in parts:
        lines += [f"## {title}", "", *([note, ""] if note else []), *table, ""]
        print("\n".join(lines[-12:]), flush=True)
    lines += [f"{perf_counter() - started:.0f} s on {processor()}.", ""]
    RESULT.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
