"""Do savings, quality differences and fronts cover the truth? ``python -m benchmarks.savings``.

The recorded requests in a new order for each seed, 5 % decided uniformly, the others by the default
policy, which learns as it goes from everybody's outcomes. Every arm's outcome is recorded, so the
truth is known at each row: what the policy expects to give, and what uniform draws would. Intervals
promise to cover at every look at once; a seed counts as missed if any look of it misses.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from infra.recordings import PARETOBANDIT, load_recording
from infra.replays import encode
from optimizer.confidence import Estimate, difference, saving
from optimizer.offpolicy import LoggedDecisions
from optimizer.pareto import Standing, candidates, place
from optimizer.policies import PolicySettings, make_policy
from optimizer.policies.base import draw
from optimizer.recorded import RecordedOutcomes
from optimizer.records import Arm, Matrix, Observation, Outcome
from optimizer.reward import Weights

CONTROL_SHARE = 0.05
_BATCH = 10
_LOOKS = range(100, 100_000, 25)
_FRONT_LOOKS = (500, 1000, 2000, 3609)
_RESULT = Path(__file__).parent / "results" / "savings.md"


@dataclass(frozen=True)
class Traffic:
    """One pass.

    Attributes
    ----------
    log
        Decisions with the outcomes of what was drawn.
    quality, cost_usd
        Shape (n, arms): of every arm, in the order of the pass.
    chances
        Shape (n, arms): of the policy, also at rows of the control.
    """

    log: LoggedDecisions
    quality: Matrix
    cost_usd: Matrix
    chances: Matrix

    @property
    def treated(self) -> np.ndarray:
        """Shape (n,)."""
        return np.asarray(self.log.roles != "control")


def serve(recorded: RecordedOutcomes, features: Matrix, seed: int) -> Traffic:
    """One pass of the default policy with a control beside it."""
    random = np.random.default_rng((40, seed))
    order = random.permutation(len(recorded.prompts))
    arms, count = [Arm(model) for model in recorded.models], len(order)
    policy = make_policy(
        PolicySettings(), arms, features.shape[1], recorded.objective(Weights(latency=0))
    )
    control = random.random(count) < CONTROL_SHARE
    uniform = random.random(count)
    drawn, propensities = np.zeros(count, dtype=np.int64), np.zeros(count)
    chances = np.zeros((count, len(arms)))
    news: list[Observation] = []
    for step, request in enumerate(order):
        if step % _BATCH == 0 and news:
            policy.learn(news)
            news = []
        chances[step] = policy.probabilities(features[request])
        used = np.full(len(arms), 1 / len(arms)) if control[step] else chances[step]
        drawn[step] = draw(used, uniform[step])
        propensities[step] = used[drawn[step]]
        outcome = recorded.outcome(int(request), int(drawn[step]))
        version = step - step % _BATCH
        news.append(
            Observation(int(drawn[step]), features[request], Outcome(), outcome, version, step + 1)
        )
    unknown = np.full(count, np.nan)
    log = LoggedDecisions(
        features[order],
        drawn,
        propensities,
        np.arange(count, dtype=np.float64),
        recorded.quality[order, drawn],
        recorded.cost_usd[order, drawn],
        unknown,
        unknown,
        recorded.models,
        np.where(control, "control", "champion"),
    )
    return Traffic(log, recorded.quality[order], recorded.cost_usd[order], chances)


@dataclass
class Covered:
    """Of one interval over the looks of a seed."""

    missed: bool = False
    width: float = float("nan")
    truth: float = float("nan")
    first: int | None = None

    def look(self, found: Estimate, truth: float, row: int) -> None:
        """One look at it."""
        if found.low is None or found.high is None:
            return
        self.first = row if self.first is None else self.first
        self.missed |= not found.low <= truth <= found.high
        self.width, self.truth = found.high - found.low, truth


def savings(traffic: Traffic) -> dict[str, Covered]:
    """The three figures of ``/v1/decision-points/{name}``, at every look."""
    ours = {"quality": traffic.quality, "cost_usd": traffic.cost_usd}
    of_policy = {name: (traffic.chances * table).sum(axis=1) for name, table in ours.items()}
    of_uniform = {name: table.mean(axis=1) for name, table in ours.items()}
    told = {name: Covered() for name in ("quality difference", "cost difference", "saving")}
    for rows in (look for look in _LOOKS if look <= len(traffic.log)):
        treated = traffic.treated[:rows]
        means = {
            name: (float(of_policy[name][:rows].mean()), float(of_uniform[name][:rows].mean()))
            for name in ours
        }
        quality, cost = traffic.log.quality[:rows], traffic.log.cost_usd[:rows]
        by_policy, by_chance = means["cost_usd"]
        told["quality difference"].look(
            difference(quality, treated, CONTROL_SHARE, span=1.0),
            means["quality"][0] - means["quality"][1],
            rows,
        )
        told["cost difference"].look(
            difference(cost, treated, CONTROL_SHARE), by_policy - by_chance, rows
        )
        told["saving"].look(saving(cost, treated, CONTROL_SHARE), 1 - by_policy / by_chance, rows)
    return told


def fronts(traffic: Traffic) -> tuple[bool, list[Standing]]:
    """Whether any interval of any candidate ever missed, and the arms' standings at the end."""
    missed, standings = False, []
    for rows in _FRONT_LOOKS:
        found = candidates(traffic.log.rows(slice(0, rows)))
        standings = [one.standing for one in place(found)]
        for one in found:
            for name, table in (("quality", traffic.quality), ("cost_usd", traffic.cost_usd)):
                chances = _chances(one.name, traffic, rows)
                truth = float((chances * table[:rows]).sum(axis=1).mean())
                low, high = one.measures[name].low, one.measures[name].high
                missed |= low is not None and high is not None and not low <= truth <= high
    return missed, standings


def _chances(name: str, traffic: Traffic, rows: int) -> Matrix:
    if name == "champion":
        return traffic.chances[:rows]
    size = traffic.chances.shape[1]
    if name == "control":
        return np.full((rows, size), 1 / size)
    return np.tile(np.eye(size)[traffic.log.arm_names.index(name)], (rows, 1))


def _median(values: list[float]) -> float:
    """Of those that are known."""
    return float(np.nanmedian(np.array(values)))


def main() -> None:
    """Run all seeds and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=200)
    seeds = parser.parse_args().seeds
    recorded = load_recording(PARETOBANDIT)
    told: list[dict[str, Covered]] = []
    of_fronts: list[tuple[bool, list[Standing]]] = []
    with threadpool_limits(1):
        features: Matrix = encode(recorded)[1]
        for seed in range(seeds):
            traffic = serve(recorded, features, seed)
            told.append(savings(traffic))
            of_fronts.append(fronts(traffic))
    _RESULT.write_text(_page(recorded, told, of_fronts), encoding="utf-8")
    print(_RESULT.read_text())


def _page(
    recorded: RecordedOutcomes,
    told: list[dict[str, Covered]],
    of_fronts: list[tuple[bool, list[Standing]]],
) -> str:
    seeds, requests = len(told), len(recorded.prompts)
    lines = [
        "# Savings and fronts against the truth",
        "",
        f"`python -m benchmarks.savings --seeds {seeds}`: {requests} recorded requests "
        f"(`{PARETOBANDIT}`) in a new order for each seed, {100 * CONTROL_SHARE:g} % uniform "
        f"control, the default policy learning from empty, rewards learned after every {_BATCH}. "
        "The truth at a look is the mean over all rows so far of what the policy expected to give "
        f"(saving: beside what uniform draws give). Looks: after every {_LOOKS.step} rows from row "
        f"{_LOOKS.start} on; a seed is covered if no look missed. 95 % is promised.",
        "",
        "| figure | seeds covered | true value at the end | width at the end | first interval | "
        "seeds without any |",
        "|---|---|---|---|---|---|",
    ]
    for name in told[0]:
        of_seeds = [one[name] for one in told]
        covered = sum(not one.missed for one in of_seeds)
        factor, unit = {"cost difference": (1000.0, " USD/1,000"), "saving": (100.0, " %")}.get(
            name, (1.0, "")
        )
        truth, width = (
            factor * _median([getattr(one, part) for one in of_seeds])
            for part in ("truth", "width")
        )
        first = _median([float(one.first or "nan") for one in of_seeds])
        lines.append(
            f"| {name} | {covered} of {seeds} ({100 * covered / seeds:.1f} %) | {truth:.4g}{unit} "
            f"| {width:.3g}{unit} | row {first:.0f} "
            f"| {sum(one.first is None for one in of_seeds)} |"
        )
    covered = sum(not missed for missed, _ in of_fronts)
    lines += [
        "",
        "Values and widths are medians over seeds.",
        "",
        "## Fronts",
        "",
        f"`optimizer.pareto` at rows {', '.join(map(str, _FRONT_LOOKS))}: every interval (quality "
        f"and cost of {len(recorded.models)} arms and 2 roles) held at every look in {covered} of "
        f"{seeds} seeds ({100 * covered / seeds:.1f} %). At the end:",
        "",
        "| candidate | true quality | true USD per 1,000 | front | perhaps front | "
        "perhaps dominated | dominated |",
        "|---|---|---|---|---|---|---|",
    ]
    names = [*recorded.models, "champion", "control"]
    for index, name in enumerate(names):
        standings = [standing for _, found in of_fronts for standing in [found[index]]]
        counts = [
            str(standings.count(standing))
            for standing in ("front", "perhaps front", "perhaps dominated", "dominated")
        ]
        values = ["", ""]
        if index < len(recorded.models):
            values = [
                f"{recorded.quality[:, index].mean():.4f}",
                f"{1000 * recorded.cost_usd[:, index].mean():.3f}",
            ]
        lines.append(f"| {' | '.join([name, *values, *counts])} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
