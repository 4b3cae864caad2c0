"""How soon drift is seen, and how often where there is none.

``python -m benchmarks.drift [FILE ...]``: FILE is a series of NAB (``timestamp,value``), one of the
two whose labels stand below. Synthetic shifts are drawn from recorded outcomes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from infra.recordings import PARETOBANDIT, load_recording
from optimizer.anomalies import scores
from optimizer.drift_check import check
from optimizer.drift_settings import DriftSettings
from optimizer.drift_stream import GRID, DriftStream
from optimizer.recorded import RecordedOutcomes

_RESULT = Path(__file__).parents[1] / "docs" / "drift-detection.md"
_LABELS = {
    "nab_ec2_request_latency_system_failure": [
        "2014-03-14 09:06", "2014-03-18 22:41", "2014-03-21 03:01",
    ],
    "nab_elb_request_count_8c0756": ["2014-04-13 04:52", "2014-04-22 19:34"],
}  # fmt: skip
"""Times of the anomalies, from memory of NAB's list: not checked against it."""

_NEAR = pd.Timedelta(hours=12)
_DAY = 288
_PER_S = 10.0


def traffic(
    recorded: RecordedOutcomes, rows: int, random: np.random.Generator, drop: float = 0.0
) -> pd.DataFrame:
    """Requests drawn anew at 10/s, each on a random arm; quality is lost by a relative drop."""
    request = random.integers(len(recorded.tasks), size=rows)
    arm = random.integers(len(recorded.models), size=rows)
    words = np.array([len(prompt.split()) for prompt in recorded.prompts], dtype=float)
    return pd.DataFrame(
        {
            "decided_at": pd.date_range("2026-01-01", periods=rows, freq="100ms", tz="UTC"),
            "arm": np.array(recorded.models)[arm],
            "feature__task": np.array(recorded.tasks)[request],
            "feature__words": words[request],
            "error": 0.0,
            "quality": recorded.quality[request, arm] * (1.0 - drop),
            "cost_usd": recorded.cost_usd[request, arm],
            "latency_s": np.nan,
        }
    )


def synthetic(windows: int, seeds: int) -> list[str]:
    """Rows of the table of shifts."""
    recorded, settings = load_recording(PARETOBANDIT), DriftSettings()
    random = np.random.default_rng(0)
    false = sum(
        bool(
            check(
                traffic(recorded, 12_000, random), traffic(recorded, 3000, random), settings
            ).findings()
        )
        for _ in range(windows)
    )
    lines = [f"| shuffled, nothing changes | all together | {false} of {windows} windows | |"]
    for drop in (0.05, 0.1, 0.2):
        delays, online = [], []
        for _ in range(seeds):
            window = traffic(recorded, 3000, random, drop)
            reference = traffic(recorded, 12_000, random)
            found = check(reference, window, settings).drop
            delays.append(None if found is None else found.rows)
            online.append(_online(reference, window))
        for name, told in (("e-detector of the flow", delays), ("River, on all arms", online)):
            seen = [one for one in told if one is not None]
            delay = f"{np.median(seen) / _PER_S:.0f} s, {max(seen) / _PER_S:.0f} s" if seen else ""
            lines.append(f"| quality -{drop:.0%} | {name} | {len(seen)} of {seeds} | {delay} |")
    return lines


def _online(reference: pd.DataFrame, window: pd.DataFrame) -> int | None:
    """Rows until the stream detector of the learner's watch tells a fall; None if it does not."""
    stream = DriftStream("down")
    for quality in reference["quality"][-2000:]:
        stream.update(round(quality / GRID))
    for row, quality in enumerate(window["quality"]):
        if stream.update(round(quality / GRID)):
            return row + 1
    return None


def series(file: Path) -> list[str]:
    """Rows of the table of NAB: each point against the day before it, alarms at 5 sigmas."""
    frame = pd.read_csv(file, parse_dates=["timestamp"])
    values = np.log1p(frame["value"].to_numpy(float))[:, None]
    labels = [pd.Timestamp(text) for text in _LABELS[file.stem]]
    lines = []
    for method in ("z", "iqr", "mad", "mahalanobis"):
        far = np.zeros(len(values), dtype=bool)
        step = 12  # an hour is judged by the day before it
        for at in range(_DAY, len(values), step):
            part = values[at : at + step]
            found = scores(method, values[at - _DAY : at], part, np.array([0.05]))
            far[at : at + step] = found[:, 0] >= 5
        alarm = far & np.roll(far, 1)  # two in a row
        times = frame["timestamp"][alarm]
        near = [(times - label).abs() <= _NEAR for label in labels]
        caught = [int(one.any()) for one in near]
        after = [
            f"{(times[one].min() - label).total_seconds() / 60:+.0f} min" if one.any() else "not"
            for one, label in zip(near, labels, strict=True)
        ]
        away = times[~np.logical_or.reduce(near)]
        false = int((away.diff() > pd.Timedelta(hours=1)).sum() + (len(away) > 0))
        found_text = f"{sum(caught)} of {len(labels)}"
        days = len(values) / _DAY
        lines.append(
            f"| {file.stem} | {method} | {found_text} | {', '.join(after)} | "
            f"{false} in {days:.0f} days |"
        )
    return lines


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--windows", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=20)
    given = parser.parse_args()
    lines = [
        "# Drift: delay and false alarms",
        "",
        "Made by `python -m benchmarks.drift FILE ...`; see its text for what is drawn how.",
        "",
        "## Shifts drawn from recorded outcomes (`paretobandit`)",
        "",
        "10 requests/s on random arms, two features; 12,000 decisions of reference, 3,000 (five",
        "minutes) in the window, the shift from its first row on. Delay: median, longest.",
        "",
        "| traffic | detector | alarms | delay |",
        "|---|---|---|---|",
        *synthetic(given.windows, given.seeds),
    ]
    if given.files:
        lines += [
            "",
            "## NAB",
            "",
            "Logarithms of five-minute values, each hour against the day before; an alarm is",
            "two values in a row at 5 sigmas or more. Found: an alarm within 12 hours of a",
            "label. False: others, an hour apart. The times of the labels were written down",
            "from memory of NAB's list and not checked against it. Anomalies inside of a",
            "series' daily swing (the request counts) are not seen: a day's spread is what they",
            "are measured by.",
            "",
            "| series | method | found | against the label | false alarms |",
            "|---|---|---|---|---|",
            *(line for file in given.files for line in series(file)),
        ]
    _RESULT.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
