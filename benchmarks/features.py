"""What each group of features earns: replays with and without. ``python -m benchmarks.features``.

The default policy, one pass for each seed and each choice of columns. All choices of a seed meet
the same requests in the same order with the same draws: differences are taken seed by seed.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from infra.recordings import PARETOBANDIT, load_recording
from infra.replays import encode
from optimizer.extra_columns import EXTRA_COLUMNS, FEATURE_SETS
from optimizer.policies import PolicySettings, make_policy
from optimizer.recorded import RecordedOutcomes
from optimizer.records import Arm, Vector
from optimizer.replay import replay
from optimizer.replay_history import PassHistory
from optimizer.replay_seeds import Interval, interval
from optimizer.reward import Weights

_RESULT = Path(__file__).parent.parent / "docs" / "feature-ablation.md"

CHOICES: Mapping[str, tuple[str, ...]] = {
    **FEATURE_SETS,
    **{
        f"full without {group}": tuple(other for other in EXTRA_COLUMNS if other != group)
        for group in EXTRA_COLUMNS
    },
}


def passes(recorded: RecordedOutcomes, groups: Sequence[str], seeds: int) -> tuple[Vector, int]:
    """Mean reward of each pass, shape (seeds,), and the number of columns."""
    encoder, features = encode(recorded, groups)
    rewards = np.zeros(seeds)
    for seed in range(seeds):
        policy = make_policy(
            PolicySettings(),
            [Arm(model) for model in recorded.models],
            encoder.size,
            recorded.objective(Weights()),
            schema_id=encoder.schema_id,
            groups=encoder.groups,
        )
        past = PassHistory(encoder, recorded.users) if encoder.knows_past else None
        rewards[seed] = replay(recorded, features, policy, seed, history=past).rewards.mean()
    return rewards, encoder.size


def main() -> None:
    """Replay every recording with every choice and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recordings", nargs="*", default=[PARETOBANDIT])
    parser.add_argument("--seeds", type=int, default=10)
    arguments = parser.parse_args()
    lines = _beginning(arguments.seeds)
    with threadpool_limits(1):
        for name in arguments.recordings:
            lines += _table(Path(name).stem, load_recording(name), arguments.seeds)
    _RESULT.write_text("\n".join(lines), encoding="utf-8")


def _table(name: str, recorded: RecordedOutcomes, seeds: int) -> list[str]:
    lines = [
        f"## {name}",
        "",
        f"{len(recorded.prompts)} requests, {len(recorded.models)} models, "
        + ("users known." if recorded.users else "no user ids."),
        "",
        "| columns seen | number | reward | minus small | minus full |",
        "|---|---|---|---|---|",
    ]
    found = {}
    for choice, groups in CHOICES.items():
        found[choice] = passes(recorded, groups, seeds)
        print(f"{name}, {choice}: {found[choice][0].mean():.4f}", flush=True)
    for choice, (rewards, size) in found.items():
        of_small, of_full = (
            "" if choice == other else _signed(interval(list(rewards - found[other][0])))
            for other in ("small", "full")
        )
        lines.append(f"| {choice} | {size} | {rewards.mean():.4f} | {of_small} | {of_full} |")
    return [*lines, ""]


def _signed(found: Interval) -> str:
    if found.low is None or found.high is None:
        return f"{found.mean:+.4f}"
    return f"{found.mean:+.4f} ({found.low:+.4f} to {found.high:+.4f})"


def _beginning(seeds: int) -> list[str]:
    groups = [
        f"- `{group}`: {', '.join(f'`{column}`' for column in columns)}"
        for group, columns in EXTRA_COLUMNS.items()
    ]
    return [
        "# What the features earn",
        "",
        f"Made by `python -m benchmarks.features RECORDING ... --seeds {seeds}`; don't edit. Mean "
        f"reward a request of the default policy, one pass for each of {seeds} seeds that learns "
        "from empty, every reward at once. Differences are taken seed by seed; in brackets the "
        "95 % Student t interval over seeds, which covers orders and draws of these requests, not "
        "other requests.",
        "",
        "Recordings tell no times, so all requests come at one hour: the columns of `calendar` are "
        "all 0, and without user ids so are those of `user` and `past_user`. Their rows say "
        "nothing about their worth in live traffic. They show noise: sums of another length may "
        "round otherwise, and one other draw makes the rest of a pass another one.",
        "",
        "Groups of columns, which come to the small set's:",
        "",
        *groups,
        "",
    ]


if __name__ == "__main__":
    main()
