"""How soon a change is seen, and what forgetting is worth: ``python -m benchmarks.forgetting``.

A policy learns the first half of a recording; then the world becomes another one, and the second
half follows. Control takes 5 % of the requests; the learner's watch looks on, as it does in
production. Every way to forget sees the same requests and draws, so differences are paired by seed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.forgetting_history import MADE, histories
from benchmarks.forgetting_page import page
from benchmarks.forgetting_variants import VARIANTS
from infra.recordings import PARETOBANDIT, load_recording
from infra.replays import encode
from optimizer.baselines import reward_table
from optimizer.control_regret import ControlRegret
from optimizer.learner_watch import LearnerWatch, WatchedRows
from optimizer.policies import Policy, PolicySettings, make_policy
from optimizer.policies.base import draw
from optimizer.policies.drift import DriftAware
from optimizer.recorded import RecordedOutcomes
from optimizer.records import Arm, Matrix, Observation, Outcome
from optimizer.replay_conditions import Conditions, course
from optimizer.reward import Objective, Weights

_CONTROL = 0.05
_BATCH = 8
"""Requests between two updates of the policy."""
_LOOK = 25
_SOON = 500
_NOTHING = Outcome()
_RESULT = Path(__file__).parent / "results" / "forgetting.md"
_WEIGHTS = {PARETOBANDIT: Weights()}
_QUALITY_ONLY = Weights(quality=1, cost=0, latency=0)

World = Callable[[RecordedOutcomes, Matrix], RecordedOutcomes]


def _cut(share: float) -> World:
    def world(recorded: RecordedOutcomes, reward: Matrix) -> RecordedOutcomes:
        quality = recorded.quality.copy()
        quality[:, reward.mean(axis=0).argmax()] *= 1.0 - share
        return replace(recorded, quality=quality)

    return world


def _permuted(recorded: RecordedOutcomes, reward: Matrix) -> RecordedOutcomes:
    """Each model does what the next worse one did, and the worst what the best did."""
    by_rank = reward.mean(axis=0).argsort()
    source = np.empty(len(by_rank), dtype=int)
    source[by_rank] = np.roll(by_rank, 1)
    latency = recorded.latency_s
    return replace(
        recorded,
        quality=recorded.quality[:, source],
        cost_usd=recorded.cost_usd[:, source],
        latency_s=None if latency is None else latency[:, source],
    )


_FALSE_ALARM = "no change, a false alarm"
WORLDS: dict[str, World] = {
    "no change": lambda recorded, reward: recorded,
    _FALSE_ALARM: lambda recorded, reward: recorded,
    "best arm 10 % worse": _cut(0.1),
    "best arm 20 % worse": _cut(0.2),
    "best arm 50 % worse": _cut(0.5),
    "arms permuted": _permuted,
}


def binary(recorded: RecordedOutcomes, seed: int = 0) -> RecordedOutcomes:
    """The same with a quality of 0 or 1, whose mean is the recorded one."""
    drawn = np.random.default_rng(seed).random(recorded.quality.shape) < recorded.quality
    return replace(recorded, quality=drawn * 1.0)


class Pass:
    """One policy on its way through a world, with the watch beside it."""

    def __init__(self, make: Callable[[], Policy], objective: Objective) -> None:
        self.policy = make()
        self._make, self._objective = make, objective
        self.watch = LearnerWatch(self.policy.arm_ids, objective, _CONTROL)
        self.forgot: list[int] = []

    def fork(self) -> Pass:
        """Another that knows what this one knows."""
        other = Pass(self._make, self._objective)
        other.policy.from_bytes(self.policy.to_bytes())
        other.watch.from_bytes(self.watch.to_bytes())
        return other

    def suspect(self, arm: int) -> None:
        """Let it see a change of one standard deviation in the quality of an arm."""
        forgetting = self.policy.forgetting
        if isinstance(forgetting, DriftAware):
            state = {name: array.copy() for name, array in forgetting.state().items()}
            state["cusum"][0, arm, 0] = 20.0
            if "cusum_run" in state:
                state["cusum_run"][0, arm, 0] = 40.0
            state["trusted"][arm] = 1.0
            forgetting.restore(state)

    def walk(
        self,
        recorded: RecordedOutcomes,
        reward: Matrix,
        features: Matrix,
        steps: Sequence[tuple[int, float, float, int]],
        start: int,
        before: float | None = None,
    ) -> dict[str, Any]:
        """Decide and learn; ``steps`` are request, draw, draw of control, control's arm."""
        policy, arms = self.policy, reward.shape[1]
        control_regret = ControlRegret(arms, _CONTROL)
        lost: list[float] = []
        waiting: list[tuple[int, int, bool, float, int, int]] = []
        excluded: int | None = None
        self.forgot = []
        for number, (request, uniform, lot, arm) in enumerate(steps, 1):
            in_control = lot < _CONTROL
            odds = 1.0 / arms
            if not in_control:
                chances = policy.probabilities(features[request])
                arm = draw(chances, uniform)
                odds = float(chances[arm])
            lost.append(float(reward[request].max() - reward[request, arm]))
            waiting.append((request, arm, in_control, odds, policy.learned, start + number))
            if len(waiting) == _BATCH or number == len(steps):
                self._learn(recorded, features, waiting)
                drawn = [row[1] for row in waiting]
                told = [row[2] for row in waiting]
                control_regret.add(
                    np.array(drawn),
                    told,
                    np.array([row[3] if row[2] else 1.0 for row in waiting]),
                    np.array([reward[row[0], row[1]] for row in waiting]),
                )
                waiting = []
            if before is not None and excluded is None and number % _LOOK == 0:
                figures = control_regret.figures()
                if (ends := figures.get("interval")) and ends[0] / figures["decisions"] > before:
                    excluded = number
        alarms = [one for one in self.watch.alarms if one.position > start]
        return {
            "regret": sum(lost),
            "regret_soon": sum(lost[:_SOON]),
            "forgot": [position - start for position in self.forgot],
            "alarms": [one.position - start for one in alarms],
            "excluded": excluded,
        }

    def _learn(
        self, recorded: RecordedOutcomes, features: Matrix, waiting: Sequence[tuple[Any, ...]]
    ) -> None:
        policy = self.policy
        rows = [
            Observation(
                arm, features[request], _NOTHING, recorded.outcome(request, arm), version, position
            )
            for request, arm, _, _, version, position in waiting
        ]
        watched = WatchedRows(
            [policy.arm_ids[row[1]] for row in waiting],
            [row[2] for row in waiting],
            [row[3] for row in waiting],
            [row[5] for row in waiting],
        )
        policy.learn(
            rows,
            lambda low, high, *tables: self.watch.see(watched.cut(low, high), *tables),
            lambda at, arm_id, kept: self.forgot.append(at),
        )


def passes(
    data: str, names: Sequence[str], worlds: Sequence[str], seeds: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """Rows of ``data, seed, forgetting, world`` and what `Pass.walk` gave."""
    name, _, kind = data.partition("@")
    recorded = load_recording(name)
    objective = recorded.objective(_WEIGHTS.get(name, _QUALITY_ONLY))
    encoder, features = encode(recorded)
    if kind == "binary":
        recorded = binary(recorded)
    reward = reward_table(recorded, objective)
    others = {world: WORLDS[world](recorded, reward) for world in worlds}
    rewards = {world: reward_table(other, objective) for world, other in others.items()}
    arms = [Arm(model) for model in recorded.models]
    for seed in seeds:
        path = course(len(recorded.prompts), seed, Conditions())
        random = np.random.default_rng([seed, 1])
        lots = random.random(len(path.order)).tolist()
        control = random.integers(len(arms), size=len(path.order)).tolist()
        steps = list(zip(path.order.tolist(), path.uniform.tolist(), lots, control, strict=True))
        half = len(steps) // 2
        for forgetting in names:

            def make(forgetting: str = forgetting) -> Policy:
                policy = make_policy(
                    PolicySettings(),
                    arms,
                    encoder.size,
                    objective,
                    schema_id=encoder.schema_id,
                    groups=encoder.groups,
                )
                policy.forgetting = VARIANTS[forgetting](len(arms))
                return policy

            first = Pass(make, objective)
            then = first.walk(recorded, reward, features, steps[:half], 0)
            rows = path.order[half // 2 : half]
            best = float(reward[rows].mean(axis=0).max())
            oracle = float(reward[rows].max(axis=1).mean())
            late = then["regret"] - then["regret_soon"]
            before = max(late / (half - _SOON) - (oracle - best), 0.0)
            yield {"data": data, "seed": seed, "forgetting": forgetting, "world": "before", **then}
            for world in worlds:
                second = first.fork()
                if world == _FALSE_ALARM:
                    second.suspect(int(reward.mean(axis=0).argmax()))
                result = second.walk(
                    others[world], rewards[world], features, steps[half:], half, before
                )
                yield {
                    "data": data,
                    "seed": seed,
                    "forgetting": forgetting,
                    "world": world,
                    **result,
                }
        print(f"{data} seed {seed}", file=sys.stderr, flush=True)


def main() -> None:
    """Run the passes and write the page, or one of the two."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", nargs="+", default=[PARETOBANDIT, MADE], help="recordings, made; X@binary: 0 or 1"
    )
    parser.add_argument("--forgetting", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--worlds", nargs="+", default=list(WORLDS), choices=WORLDS)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--raw", type=Path, help="add the passes to this file, and write no page")
    parser.add_argument("--of", nargs="+", type=Path, help="write the page of such files")
    given = parser.parse_args()
    if given.of:
        done = [json.loads(line) for file in given.of for line in file.read_text().splitlines()]
        _RESULT.write_text(page(done))
        return
    seeds = range(given.first, given.first + given.seeds)
    done = []
    with threadpool_limits(1):
        for data in given.data:
            made = data == MADE
            for row in (
                histories(seeds) if made else passes(data, given.forgetting, given.worlds, seeds)
            ):
                done.append(row)
                if given.raw:
                    with given.raw.open("a") as file:
                        file.write(json.dumps(row) + "\n")
    if not given.raw:
        _RESULT.write_text(page(done))


if __name__ == "__main__":
    main()
