"""How well is quality predicted, and by what? ``python -m benchmarks.quality_model [FILE ...]``.

Recorded requests, a quarter of them held out whole. Training sees one arm a request, drawn at
random, as a log does. Correlation is capped by what the request does not tell: a trained model that
is also told how all other models did on the same request bounds what there is to know about how
hard it is. No recording here has the texts of responses; where the calls of a model have costs of
their own, these tell about how long each response was, and one model is told that. LightGBM takes
part where it is installed (``pip install lightgbm``).
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from infra.recordings import PARETOBANDIT, load_recording
from infra.replays import encode
from optimizer.boosted_trees import grow
from optimizer.calibration import calibrate, isotonic, logistic
from optimizer.quality_design import (
    Means,
    QualityDesign,
    QualityRows,
    request_groups,
    task_columns,
    tasks_of,
    traits_of,
)
from optimizer.quality_model import QualityModel
from optimizer.quality_score import QualityScore, score
from optimizer.recorded import RecordedOutcomes
from optimizer.records import Arm, Indices, Matrix, Vector
from optimizer.response_facts import RESPONSE_FACTS, unknown_facts

_RESULT = Path(__file__).parent / "results" / "quality_model.md"
_TEST_SHARE = 0.25
_READING = """\
## Reading

Measured on two cores that five other processes used, so seconds and milliseconds are upper bounds
(`OPENBLAS_NUM_THREADS=1`, one thread).

- A correlation of 0.7 is out of reach here without the response: a model that is also told how all
  other models did on the very same request reaches 0.60 and 0.73. What is left is chance of the
  single answer. Ours reaches 0.52 and 0.57.
- Beyond the mean of the arm on the task there is little in these recordings: nothing in Pearson
  correlation on the first, 0.005 on the second. Its gains are ranks and calibration, and what a
  response tells. Neither recording has its text. Its length alone, guessed by the cost of the call,
  gives 0.538 where the request gives 0.524 (rank correlation 0.577, not 0.552). In the second
  recording all calls of a model cost the same, so nothing is to be seen there.
- A model that was told responses predicts as well as the other where none is told.
- Calibration error is under 0.1 everywhere. With some 700 and 1,100 requests to calibrate on, two
  numbers (logistic) do better than a free curve (isotonic), which is why few rows get the former.
- LightGBM predicts equally well. It would be one more dependency, so scikit-learn grows the trees.
"""

Predict = Callable[[Matrix], Vector]


def lightgbm(made: QualityDesign, seed: int) -> tuple[Predict, int]:
    """LightGBM with the settings of `optimizer.boosted_trees.grow`, and the size of its text."""
    import lightgbm as gbm

    settings = {
        "objective": "l2",
        "learning_rate": 0.05,
        "num_leaves": 8,
        "max_depth": 8,
        "min_data_in_leaf": 40,
        "feature_fraction_bynode": 0.3,
        "lambda_l2": 1.0,
        "num_threads": 1,
        "seed": seed,
        "verbosity": -1,
    }
    later = gbm.Dataset(made.later_table, made.later_quality - made.later_offset)
    model = gbm.train(
        settings,
        gbm.Dataset(made.table, made.quality - made.offset),
        300,
        valid_sets=[later],
        callbacks=[gbm.early_stopping(20, verbose=False)],
    )
    text = model.model_to_string()
    return lambda table: np.asarray(model.predict(table)), len(text)


def rows_of(
    recorded: RecordedOutcomes, requests: Matrix, at: Indices, arms: Indices
) -> QualityRows:
    """Rows of these requests with these arms."""
    return QualityRows(requests[at], arms, recorded.quality[at, arms], unknown_facts(len(at)))


def lengths_by_cost(recorded: RecordedOutcomes) -> Matrix | None:
    """Log of what each call cost against the model's median, shape (n, k): about its length.

    Most of a call's cost is that of the tokens that came back. None where all calls of a model have
    one price.
    """
    cost = np.log(np.maximum(recorded.cost_usd, 1e-12))
    return cost - np.median(cost, axis=0) if np.ptp(cost, axis=0).all() else None


def with_lengths(rows: QualityRows, lengths: Vector) -> QualityRows:
    """The rows with one fact about each response, the others unknown."""
    facts = unknown_facts(len(lengths))
    facts[:, RESPONSE_FACTS.index("characters_log")] = lengths
    return replace(rows, responses=facts)


def one(seed: int, recorded: RecordedOutcomes) -> list[tuple[str, QualityScore, float, float, int]]:
    """Name, score, seconds to train, milliseconds for one request with all arms, bytes."""
    encoder, requests = encode(recorded)
    arms = [Arm(model) for model in recorded.models]
    k = recorded.quality.shape[1]
    random = np.random.default_rng(seed)
    groups = request_groups(requests, encoder.names)
    test = (random.random(int(groups.max()) + 1) < _TEST_SHARE)[groups]
    at, later = np.flatnonzero(~test), np.flatnonzero(test)
    training = rows_of(recorded, requests, at, random.integers(k, size=len(at)))
    tested = rows_of(recorded, requests, np.repeat(later, k), np.tile(np.arange(k), len(later)))
    columns = task_columns(encoder.names)
    tasks = tasks_of(tested.requests, columns)
    truth = tested.quality
    found = []

    means = Means.of(training, tasks_of(training.requests, columns), k, len(columns) + 1)
    told = means.columns(tested.arms, tasks)
    found.append(("mean of the arm", score(told[:, 0], truth), 0.0, 0.0, 0))
    found.append(("mean of the arm on the task", score(told[:, 1], truth), 0.0, 0.0, 0))

    made = QualityDesign.of(training, encoder.names, arms, seed=seed)
    traits = traits_of(arms)

    def table(which: QualityRows, by: Means) -> Matrix:
        cells = by.columns(which.arms, tasks_of(which.requests, columns))
        return np.hstack([which.requests, cells, traits[which.arms], which.responses])

    tested_table = table(tested, made.means)
    few = tested_table[:k]

    started = time.perf_counter()
    model = QualityModel.fit(training, encoder.names, arms, seed=seed)
    took = time.perf_counter() - started
    few_arms = [arms[arm] for arm in tested.arms[:k]]
    found.append(
        (
            "ours: scikit-learn's trees, calibrated",
            score(model.predict(tested.requests, [arms[arm] for arm in tested.arms]), truth),
            took,
            _milliseconds(lambda: model.predict(tested.requests[:k], few_arms)),
            len(model.to_bytes()),
        )
    )
    lengths = lengths_by_cost(recorded)
    if lengths is not None:
        answered = [arms[arm] for arm in tested.arms]
        told_training = with_lengths(training, lengths[at, training.arms])
        knowing = QualityModel.fit(told_training, encoder.names, arms, seed=seed)
        facts = with_lengths(tested, lengths[later].ravel()).responses
        for name, responses in (("told how long the response is", facts), ("not told now", None)):
            predicted = knowing.predict(tested.requests, answered, responses)
            found.append((f"ours, {name}", score(predicted, truth), 0.0, 0.0, 0))
    later_target = made.later_table, made.later_quality - made.later_offset
    trees = grow(made.table, made.quality - made.offset, later_target, seed=seed)
    offset = tested_table[:, len(encoder.names) + 1]
    raw, later_raw = trees.predict(tested_table) + offset, trees.predict(made.later_table)
    later_raw += made.later_offset
    found.append(("the same without calibration", score(raw, truth), 0.0, 0.0, 0))
    for name, fit in (("isotonic", isotonic), ("logistic", logistic)):
        knots = fit(later_raw, made.later_quality)
        found.append((f"the same, {name}", score(np.interp(raw, *knots), truth), 0.0, 0.0, 0))
    if find_spec("lightgbm"):
        started = time.perf_counter()
        predict, size = lightgbm(made, seed)
        took = time.perf_counter() - started
        knots = calibrate(predict(made.later_table) + made.later_offset, made.later_quality)
        found.append(
            (
                "LightGBM's trees, calibrated",
                score(np.interp(predict(tested_table) + offset, *knots), truth),
                took,
                _milliseconds(lambda: np.interp(predict(few), *knots)),
                size,
            )
        )
    # What the others did on the same request, which nobody knows before all were asked.
    every = rows_of(recorded, requests, np.repeat(at, k), np.tile(np.arange(k), len(at)))
    full = QualityDesign.of(every, encoder.names, arms, seed=seed)

    def others(which: Indices) -> Matrix:
        quality = recorded.quality[which]
        shown = np.repeat(quality[:, None, :], k, axis=1)
        shown[:, np.arange(k), np.arange(k)] = np.nan
        flat = shown.reshape(-1, k)
        return np.column_stack([flat, np.nanmean(flat, axis=1)])

    half = random.random(len(at)) < 0.75
    rows = np.repeat(half, k)
    seen = np.hstack([table(every, full.means), others(at)])
    best = grow(seen[rows], every.quality[rows], (seen[~rows], every.quality[~rows]), seed=seed)
    bound = best.predict(np.hstack([table(tested, full.means), others(later)]))
    found.append(("told what all other models did", score(bound, truth), 0.0, 0.0, 0))
    return found


def _milliseconds(work: Callable[[], object]) -> float:
    times = []
    for _ in range(300):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return 1000.0 * float(np.median(times))


def section(name: str, recorded: RecordedOutcomes, seeds: int) -> str:
    """One recording's part of the result."""
    out = io.StringIO()
    runs = [one(seed, recorded) for seed in range(seeds)]
    number, k = recorded.quality.shape
    out.write(f"## {name}\n\n{number} requests, {k} models, {seeds} seeds (means).\n\n")
    out.write(
        "| by | Pearson | Spearman | AUC | Brier | calibration error | train s | predict ms |"
        " kB |\n|---|---|---|---|---|---|---|---|---|\n"
    )
    for place, (what, *_) in enumerate(runs[0]):
        scores = [run[place][1] for run in runs]

        def mean(field: str, scores: list[QualityScore] = scores) -> str:
            values = [getattr(one, field) for one in scores]
            return "" if None in values else f"{np.mean(values):.3f}"

        train, predict, size = (float(np.mean([run[place][i] for run in runs])) for i in (2, 3, 4))
        out.write(
            f"| {what} | {mean('pearson')} | {mean('spearman')} | {mean('auc')} | "
            f"{np.mean([s.brier for s in scores]):.4f} | {mean('calibration_error')} | "
            f"{f'{train:.1f}' if train else ''} | {f'{predict:.2f}' if predict else ''} | "
            f"{f'{size / 1000:.0f}' if size else ''} |\n"
        )
    return out.getvalue()


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recordings", nargs="*", help=f"files, beside {PARETOBANDIT}")
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    parts = ["# Predicting quality\n", (__doc__ or "").split("\n\n", 1)[1]]
    with threadpool_limits(1):
        for name in (PARETOBANDIT, *given.recordings):
            parts.append(section(Path(name).stem, load_recording(name), given.seeds))
            print(parts[-1], flush=True)
    parts.append(_READING)
    _RESULT.write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
