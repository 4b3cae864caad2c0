"""Which way of proposing experiments pays, on simulated worlds: ``python -m benchmarks.design``.

A world is drawn: models with three temperatures each, their true mean rewards and prices, and a
little traffic of the past. Then experiments are run one after the other until the money is spent;
after each, the arm with the highest believed reward would serve. All ways see the same world, the
same noise of outcomes, the same beliefs and the same sizes, so that only the choice of the
candidate differs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from scipy import stats

from benchmarks.processor import processor
from optimizer.arm_beliefs import ArmEvidence, Beliefs, believe
from optimizer.experiment_design import Cost, Proposal, halving, propose
from optimizer.records import Arm, Vector

__all__ = ["World", "halved", "run", "world"]

COST = Cost(requests=500_000, samples=40_000)
BUDGETS_USD = (15.0, 60.0)
_MODELS, _TEMPERATURES = 5, (0.0, 0.5, 1.0)
_DEVIATION = 0.4

Choose = Callable[[Sequence[Proposal], int, np.random.Generator], Proposal]


@dataclass(frozen=True)
class World:
    """What is true, and what a little traffic showed of it.

    Attributes
    ----------
    reward, cost_usd
        Shape (k,): true means.
    """

    reward: Vector
    cost_usd: Vector
    evidence: ArmEvidence


def world(seed: int) -> World:
    """Rewards are model + temperature effects; prices spread over two powers of ten."""
    random = np.random.default_rng(seed)
    arms = tuple(
        Arm(f"m{model}", {"temperature": one}) for model in range(_MODELS) for one in _TEMPERATURES
    )
    level = np.repeat(random.normal(0.7, 0.06, _MODELS), len(_TEMPERATURES))
    slope = np.repeat(random.normal(0.0, 0.03, _MODELS), len(_TEMPERATURES))
    reward = np.clip(level + slope * np.tile(_TEMPERATURES, _MODELS), 0.05, 0.95)
    cost = np.repeat(10 ** random.uniform(-4, -2, _MODELS), len(_TEMPERATURES))
    rows = np.exp(random.uniform(np.log(15), np.log(400), len(arms)))
    error = np.sqrt(_DEVIATION**2 / rows)
    seen = reward + random.normal(0.0, error)
    incumbent = int(seen.argmax())
    evidence = ArmEvidence(
        arms, seen, error, cost, np.zeros(len(arms)), _DEVIATION, incumbent, int(rows.sum())
    )
    return World(reward, cost, evidence)


def run(
    given: World, choose: Choose, seed: int, budget_usd: float
) -> tuple[float, float, float, float]:
    """Regret taken away, US dollars spent, and the gain of all proposals, expected and true."""
    random = np.random.default_rng(seed + 10**6)
    beliefs = believe(given.evidence)
    before = given.reward[int(beliefs.mean.argmax())]
    spent, number, expected, arm = 0.0, 0, 0.0, given.evidence.incumbent
    gained = 0.0
    while True:
        evidence = _with_incumbent(given.evidence, arm)
        proposals = propose(beliefs, evidence, COST)
        chosen = choose(proposals, number, random)
        if spent + chosen.cost_usd > budget_usd or number == 60:
            break
        expected += chosen.gain
        old = given.reward[int(beliefs.mean.argmax())]
        beliefs = _tested(given, beliefs, chosen, random)
        spent, number = spent + chosen.cost_usd, number + 1
        arm = int(beliefs.mean.argmax())
        gained += (given.reward[arm] - old) * (COST.requests - chosen.samples)
    return float((given.reward[arm] - before) * COST.requests), spent, expected, float(gained)


def halved(seed: int, arms: int, samples: int) -> tuple[float, float]:
    """True reward that is missed by what successive halving, and equal shares, choose at last."""
    random = np.random.default_rng(seed)
    truth = random.normal(0.7, 0.04, arms)
    sums, counts = np.zeros(arms), np.zeros(arms)
    left = np.arange(arms)
    for rung in halving(arms - 1, samples):
        # The first arm is the baseline, which is in every round.
        others = left[1:]
        means = sums[others] / np.maximum(counts[others], 1)
        kept = others[np.argsort(-means, kind="stable")][: rung.candidates]
        left = np.concatenate([[0], kept])
        sums[left] += _sum(truth[left], rung.samples_each, random)
        counts[left] += rung.samples_each
    best = left[(sums[left] / counts[left]).argmax()]
    equal = _sum(truth, samples // arms, random).argmax()
    return float(truth.max() - truth[best]), float(truth.max() - truth[equal])


def _sum(truth: Vector, number: int, random: np.random.Generator) -> Vector:
    return number * truth + np.sqrt(number) * _DEVIATION * random.normal(size=truth.size)


def _tested(
    given: World, beliefs: Beliefs, chosen: Proposal, random: np.random.Generator
) -> Beliefs:
    variance = _DEVIATION**2 / (chosen.samples / 2)
    for arm in (chosen.baseline, chosen.candidate):
        value = float(given.reward[arm] + random.normal(0.0, np.sqrt(variance)))
        beliefs = beliefs.observed(arm, value, variance)
    return beliefs


def _with_incumbent(evidence: ArmEvidence, arm: int) -> ArmEvidence:
    return replace(evidence, incumbent=arm)


def _best(proposals: Sequence[Proposal], number: int, random: np.random.Generator) -> Proposal:
    return proposals[0]


def _random(proposals: Sequence[Proposal], number: int, random: np.random.Generator) -> Proposal:
    return proposals[int(random.integers(len(proposals)))]


def _in_turn(proposals: Sequence[Proposal], number: int, random: np.random.Generator) -> Proposal:
    ordered = sorted(proposals, key=lambda one: one.candidate)
    return ordered[number % len(ordered)]


def _most_gain(proposals: Sequence[Proposal], number: int, random: np.random.Generator) -> Proposal:
    return max(proposals, key=lambda one: one.gain)


WAYS: dict[str, Choose] = {
    "gain per USD (ours)": _best,
    "gain alone": _most_gain,
    "round robin": _in_turn,
    "random": _random,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run every way in every world, and write the report."""
    parser = argparse.ArgumentParser(prog="benchmarks.design", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/design.md"))
    asked = parser.parse_args(arguments)
    worlds = [world(seed) for seed in range(asked.seeds)]
    tables = [line for budget in BUDGETS_USD for line in _table(worlds, budget)]
    halvings = [_halving_row(asked.seeds, arms, samples)
                for arms, samples in ((5, 2000), (9, 4000), (9, 12_000))]  # fmt: skip
    asked.out.write_text(_report(asked.seeds, tables, halvings), encoding="utf-8")


def _table(worlds: Sequence[World], budget_usd: float) -> list[str]:
    found = {
        name: np.array([run(one, choose, seed, budget_usd) for seed, one in enumerate(worlds)])
        for name, choose in WAYS.items()
    }
    ours = next(iter(found.values()))
    rows = []
    for name, figures in found.items():
        taken, spent, expected, true = figures.mean(axis=0)
        ahead = "" if figures is ours else _interval(ours[:, 0] - figures[:, 0])
        rows.append(
            f"| {name} | {taken:,.0f} | {spent:.1f} | {taken / spent:,.0f} | {ahead} | "
            f"{expected:,.0f} | {true:,.0f} |"
        )
    return [
        f"Up to {budget_usd:.0f} USD:",
        "",
        "| proposes | regret taken away | USD spent | per USD | ours ahead | expected gain | "
        "true gain |",
        "|---|---:|---:|---:|---:|---:|---:|",
        *rows,
        "",
    ]


def _halving_row(seeds: int, arms: int, samples: int) -> str:
    figures = np.array([halved(seed, arms, samples) for seed in range(10 * seeds)])
    ahead = figures[:, 1] - figures[:, 0]
    return (
        f"| {arms} | {samples:,} | {figures[:, 0].mean():.4f} | {figures[:, 1].mean():.4f} | "
        f"{_interval(ahead, 4)} |"
    )


def _interval(values: Vector, digits: int = 0) -> str:
    """Of a mean, read once: the 95 % of Student's t."""
    low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    return f"{values.mean():,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def _report(seeds: int, tables: Sequence[str], halvings: Sequence[str]) -> str:
    return "\n".join(
        [
            "# Proposing experiments, on simulated worlds",
            "",
            f"{datetime.now(UTC):%Y-%m-%d}, `python -m benchmarks.design --seeds {seeds}`, "
            f"{processor()}.",
            "",
            f"**Everything here is simulated.** {seeds} worlds of {_MODELS} models with "
            f"{len(_TEMPERATURES)} temperatures each; mean reward of a model 0.7 with a standard "
            "deviation of 0.06, the effect of temperature 0.03, prices from 0.0001 to 0.01 USD a "
            "request, 15 to 400 past requests an arm, a request's reward with a standard deviation "
            f"of {_DEVIATION}; 0.001 USD to observe an "
            f"outcome; the choice pays over {COST.requests:,} requests. All ways share beliefs "
            "and sizes; they differ in the candidate alone. Regret taken away is reward summed "
            "over the horizon; negative where an experiment misled. `ours ahead` is the paired "
            "difference with its 95 % interval. `expected gain` is what the proposals promised, "
            "`true gain` what came of them, over the requests after each experiment.",
            "",
            *tables,
            f"Successive halving against equal shares, the same number of requests, "
            f"{10 * seeds} simulated worlds: the true reward that the final choice misses.",
            "",
            "| arms | requests | halving | equal shares | halving ahead |",
            "|---:|---:|---:|---:|---:|",
            *halvings,
            "",
        ]
    )


if __name__ == "__main__":
    main()
