"""Do tuned parameters come sooner than drawn ones? ``python -m benchmarks.tuning [FILE]``.

The response surfaces are SIMULATED, see `benchmarks.tuning_surface`; recorded outcomes give their
levels and noise. A seed draws the surfaces and the one of them that is tuned. A trial is a mean
over a few dozen noisy requests; what it reached is judged without noise.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import optuna
from scipy import stats
from scipy.stats import qmc
from threadpoolctl import threadpool_limits

from benchmarks.processor import processor
from benchmarks.tuning_surface import SPACE, Surface, surfaces
from infra.recordings import PARETOBANDIT, load_recording
from optimizer.parameter_proposals import Evaluated, Proposer
from optimizer.recorded import RecordedOutcomes
from optimizer.records import Vector

REACHED = 0.95
PRESENT = {"temperature": 0.7, "top_p": 1.0, "max_tokens": 1024}
_OTHERS = (
    {"temperature": 0.2, "top_p": 1.0, "max_tokens": 1024},
    PRESENT,
    {"temperature": 1.0, "top_p": 0.9, "max_tokens": 512},
)
"""Arms of the model whose outcomes at other task types are known."""

_KNOWN_TASKS, _KNOWN_REQUESTS = 5, 200
_SEARCHED_TASKS, _SEARCHED = 3, 16
_REQUESTS, _MOST_TRIALS = 50, 60
_ONLINE, _EACH = 100, 10


def drawn(recorded: RecordedOutcomes, seed: int) -> tuple[Surface, list[Surface]]:
    """The surface that is tuned, and those of the same model at other task types."""
    found = surfaces(recorded, seed)
    one = found[int(np.random.default_rng((8, seed)).integers(len(found)))]
    others = [other for other in found if other.model == one.model and other.task != one.task]
    return one, others[:_KNOWN_TASKS]


def measured(
    surface: Surface, place: Vector, requests: int, random: np.random.Generator, task: str = ""
) -> Evaluated:
    """A setting after some requests."""
    quality, cost = surface.measure(place, requests, random)
    # Ten alike outcomes don't mean that there is no noise; the recorded spread is a fair guess.
    error = max(float(quality.std(ddof=1)), 0.5 * surface.spread) / np.sqrt(requests)
    return Evaluated(
        SPACE.setting(place),
        float(quality.mean()),
        float(cost.mean()),
        float(error),
        float(cost.std(ddof=1) / np.sqrt(requests)),
        task,
    )


def known(others: Sequence[Surface], random: np.random.Generator) -> list[Evaluated]:
    """What arms of the model have shown at other task types."""
    return [
        measured(other, SPACE.place(parameters), _KNOWN_REQUESTS, random, other.task)
        for other in others
        for parameters in _OTHERS
    ]


def searched(others: Sequence[Surface], random: np.random.Generator) -> list[Evaluated]:
    """What searches at other task types have left: settings spread evenly."""
    return [
        measured(other, place, _REQUESTS, random, other.task)
        for other in others[:_SEARCHED_TASKS]
        for place in qmc.Sobol(SPACE.size, rng=random).random(_SEARCHED)
    ]


def ours(surface: Surface, before: Sequence[Evaluated], seed: int) -> int:
    """Trials until one is good enough."""
    random, proposer = (
        np.random.default_rng((9, seed)),
        Proposer(SPACE, surface.worth, before, seed),
    )
    goal, done = REACHED * surface.best(), list[Evaluated]()
    for number in range(_MOST_TRIALS):
        parameters = proposer.propose(done, number) if number else PRESENT
        place = SPACE.place(parameters)
        done.append(measured(surface, place, _REQUESTS, random))
        if surface.value(place[None])[0] >= goal:
            return number + 1
    return _MOST_TRIALS


def drawn_at_random(surface: Surface, seed: int, repeats: int = 50) -> int:
    """The same for settings drawn uniformly, the median of many runs."""
    goal = REACHED * surface.best()
    found = []
    for repeat in range(repeats):
        places = np.random.default_rng((10, seed, repeat)).random((_MOST_TRIALS, SPACE.size))
        hits = np.flatnonzero(surface.value(places) >= goal)
        found.append(int(hits[0]) + 1 if len(hits) else _MOST_TRIALS)
    return int(np.median(found))


def tpe(surface: Surface, seed: int) -> int:
    """The same for Optuna's TPE on the worth alone."""
    random = np.random.default_rng((9, seed))
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=5)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    goal = REACHED * surface.best()
    for number in range(_MOST_TRIALS):
        trial = study.ask()
        place = np.array([trial.suggest_float(name, 0.0, 1.0) for name in SPACE.ranges])
        if surface.value(place[None])[0] >= goal:
            return number + 1
        quality, cost = surface.measure(place, _REQUESTS, random)
        study.tell(trial, float(surface.worth(quality.mean(), cost.mean())))
    return _MOST_TRIALS


def online(
    surface: Surface, before: Sequence[Evaluated], seed: int, each: int = _EACH
) -> tuple[int, float]:
    """Requests until the setting that is believed best is good enough, and its share at the end.

    ``each`` live requests a proposal, `_ONLINE` in all. At least once past it, if never.
    """
    random, proposer = (
        np.random.default_rng((11, seed)),
        Proposer(SPACE, surface.worth, before, seed),
    )
    best, done = surface.best(), list[Evaluated]()
    first, share = _ONLINE + 1, 0.0
    for number in range(_ONLINE // each):
        parameters = proposer.propose(done, number) if number else PRESENT
        done.append(measured(surface, SPACE.place(parameters), each, random))
        worth = proposer.believed(done, [one.parameters for one in done])[2]
        chosen = SPACE.place(done[int(worth.argmax())].parameters)
        share = float(surface.value(chosen[None])[0]) / best
        if share >= REACHED:
            first = min(first, each * (number + 1))
    return first, share


def online_at_random(surface: Surface, seed: int, each: int = _EACH) -> tuple[int, float]:
    """The same for settings drawn uniformly, of which that with the best mean is taken."""
    random = np.random.default_rng((12, seed))
    best, first, share, top = surface.best(), _ONLINE + 1, 0.0, -np.inf
    for number in range(_ONLINE // each):
        place = random.random(SPACE.size)
        quality, cost = surface.measure(place, each, random)
        worth = float(surface.worth(quality.mean(), cost.mean()))
        if worth > top:
            top, share = worth, float(surface.value(place[None])[0]) / best
        if share >= REACHED:
            first = min(first, each * (number + 1))
    return first, share


def main(arguments: Sequence[str] | None = None) -> None:
    """Run every way on every surface, and write the report."""
    parser = argparse.ArgumentParser(prog="benchmarks.tuning", description=__doc__)
    parser.add_argument("recording", nargs="?", default=PARETOBANDIT, help="default: %(default)s")
    parser.add_argument("--seeds", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--first", type=int, default=0, help="first seed; development had 1000 on")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/tuning.md"))
    asked = parser.parse_args(arguments)
    recorded = load_recording(asked.recording)
    seeds = range(asked.first, asked.first + asked.seeds)
    with threadpool_limits(1):
        worlds = [drawn(recorded, seed) for seed in seeds]
        before = [known(others, np.random.default_rng((13, seed)))
                  for seed, (_, others) in zip(seeds, worlds, strict=True)]  # fmt: skip
        tuned = [searched(others, np.random.default_rng((16, seed)))
                 for seed, (_, others) in zip(seeds, worlds, strict=True)]  # fmt: skip
        pairs = list(zip(seeds, [one for one, _ in worlds], before, strict=True))
        deep = list(zip(seeds, [one for one, _ in worlds], tuned, strict=True))
        trials = {
            "random search": [drawn_at_random(one, seed) for seed, one, _ in pairs],
            "TPE, reward only": [tpe(one, seed) for seed, one, _ in pairs],
            "ours, nothing known": [ours(one, (), seed) for seed, one, _ in pairs],
            "ours, warm": [ours(one, warm, seed) for seed, one, warm in pairs],
            "ours, other tasks searched": [ours(one, warm, seed) for seed, one, warm in deep],
        }
        live = {
            "random settings": [online_at_random(one, seed) for seed, one, _ in pairs],
            "ours, nothing known": [online(one, (), seed) for seed, one, _ in pairs],
            "ours, warm": [online(one, warm, seed) for seed, one, warm in pairs],
            "ours, other tasks searched": [online(one, warm, seed) for seed, one, warm in deep],
        }
        share = [_share(one) for one, _ in worlds]
    text = _report(asked.recording, asked.seeds, asked.first, trials, live, np.array(share))
    asked.out.write_text(text, encoding="utf-8")


def _share(surface: Surface) -> float:
    """Of all settings, how many are good enough."""
    places = np.random.default_rng(14).random((20_000, SPACE.size))
    return float((surface.value(places) >= REACHED * surface.best()).mean())


def _interval(values: Vector, statistic: Callable[..., float] = np.median) -> str:
    found = stats.bootstrap(
        (values,), statistic, rng=np.random.default_rng(15), method="percentile", n_resamples=4999
    ).confidence_interval
    return f"{statistic(values):.3g} ({found.low:.3g} to {found.high:.3g})"


def _report(
    source: str,
    seeds: int,
    first: int,
    trials: dict[str, list[int]],
    live: dict[str, list[tuple[int, float]]],
    share: Vector,
) -> str:
    drawn = np.array(trials["random search"], dtype=float)
    rows = []
    for name, figures in trials.items():
        values = np.array(figures, dtype=float)
        ratio = "" if values is drawn or name == "random search" else _interval(values / drawn)
        rows.append(
            f"| {name} | {_interval(values)} | {np.quantile(values, 0.9):.0f} | {ratio} | "
            f"{int((values <= drawn / 2).sum())} of {seeds} |"
        )
    online_rows = []
    for name, pairs in live.items():
        firsts, shares = (np.array(column, dtype=float) for column in zip(*pairs, strict=True))
        online_rows.append(
            f"| {name} | {int((firsts <= _ONLINE).sum())} of {seeds} | {_interval(firsts)} | "
            f"{int((shares >= REACHED).sum())} of {seeds} | {_interval(shares)} |"
        )
    name = Path(source).name
    return "\n".join(
        [
            "# Tuning temperature, top_p and max_tokens, on SIMULATED response surfaces",
            "",
            f"{datetime.now(UTC):%Y-%m-%d}, `python -m benchmarks.tuning {name} --seeds {seeds} "
            f"--first {first}`, {processor()}.",
            "",
            "**The surfaces are simulated.** Levels of quality and cost, and the noise of single "
            f"requests, are those recorded in `{name}` by model and task type; the effect of the "
            "parameters is drawn: bells around a best randomness (temperature damped by top_p) and "
            "a best top_p, answers that are cut off, cost by tokens written "
            "(`benchmarks/tuning_surface.py`). Worth is 0.7 for quality and 0.3 for cost. One "
            f"surface a seed; {share.min():.1%} to {share.max():.1%} of all settings (median "
            f"{np.median(share):.1%}) reach {REACHED:.0%} of the best expected worth. What a "
            "setting reaches is its expected worth without noise. `warm` knows what three arms of "
            f"the model have shown at up to {_KNOWN_TASKS} other task types, {_KNOWN_REQUESTS} "
            f"requests each; `other tasks searched` knows {_SEARCHED} settings at up to "
            f"{_SEARCHED_TASKS} of them, {_REQUESTS} requests each. Medians with 95 % bootstrap "
            "intervals over seeds.",
            "",
            f"## Trials until one reaches {REACHED:.0%}",
            "",
            f"A trial is the mean of {_REQUESTS} requests. Ours begins with the setting in use, "
            "which counts. Random search is the median of 50 runs on each surface. "
            f"After {_MOST_TRIALS} trials nobody goes on.",
            "",
            "| way | trials | 90 % of seeds within | of random's trials | half or less |",
            "|---|---:|---:|---:|---:|",
            *rows,
            "",
            f"## {_ONLINE} live requests of one task type",
            "",
            f"{_EACH} requests a proposal; what counts is the setting that is believed best.",
            "",
            f"| way | reaches {REACHED:.0%} within {_ONLINE} | requests until then | "
            f"there at request {_ONLINE} | share of the best at the end |",
            "|---|---:|---:|---:|---:|",
            *online_rows,
            "",
        ]
    )


if __name__ == "__main__":
    main()
