"""Canaries on recorded outcomes, many seeds each: ``python -m benchmarks.canary --seeds 100``.

A stream of requests is drawn from a recording with replacement; each goes to champion or challenger
by the stage's share, and that one's probabilities draw the model, whose recorded outcome becomes
evidence. `optimizer.rollout.canary.step` is asked once a second with the settings that ship. What a
policy would get on the whole recording is known, so an interval that ever misses it is counted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter

import numpy as np

from benchmarks.processor import processor
from infra.recordings import PARETOBANDIT, load_recording
from infra.replays import dearest_model, encode
from optimizer.policies import PolicySettings, make_policy
from optimizer.recorded import RecordedOutcomes
from optimizer.records import Arm, Matrix, Observation, Outcome
from optimizer.reward import Weights
from optimizer.rollout.canary import next_plan, start, step
from optimizer.rollout.evidence import Evidence, Role
from optimizer.rollout.plan import PolicyRef, RoutingPlan
from optimizer.rollout.settings import CanarySettings
from optimizer.settings import Guardrails

__all__ = ["Contender", "Course", "always", "mixed", "run", "trained"]

_BLOCK = 20_000
_NOTHING = Outcome()
_PARTS: tuple[Role, Role] = ("champion", "challenger")


@dataclass(frozen=True)
class Contender:
    """A policy that no longer learns.

    Attributes
    ----------
    name
        For people.
    chances
        Shape (n, k): probability of each model on each request.
    quality_factor
        What becomes of the recorded quality, in [0, 1].
    """

    name: str
    chances: Matrix
    quality_factor: float = 1.0

    def truth(self, recorded: RecordedOutcomes) -> dict[str, float]:
        """Mean quality and cost over the recording."""
        return {
            "quality": float((self.chances * recorded.quality).sum(axis=1).mean())
            * self.quality_factor,
            "cost_usd": float((self.chances * recorded.cost_usd).sum(axis=1).mean()),
        }


@dataclass
class Course:
    """How one canary went.

    Attributes
    ----------
    ended
        "promote" or "rollback".
    requests
        Of champion and challenger, in each stage that was begun, in their order.
    reason
        Of the last step.
    missed
        Whether an interval ever missed the truth.
    """

    ended: str = ""
    requests: list[int] = field(default_factory=list)
    reason: str = ""
    missed: bool = False

    @property
    def stages(self) -> int:
        """How many were begun."""
        return len(self.requests)


def run(
    recorded: RecordedOutcomes,
    champion: Contender,
    challenger: Contender,
    seed: int,
    settings: CanarySettings,
    requests_per_s: int = 25,
) -> Course:
    """One canary from its start to its end."""
    limits = Guardrails()
    course = Course()
    mine, theirs = champion.truth(recorded), challenger.truth(recorded)
    truth = {part: theirs[part] / mine[part] - 1.0 for part in mine}
    plan = RoutingPlan("simulated", 1, PolicyRef("1.0"))
    plan = start(plan, PolicyRef("2.0"), settings, 0.0, 0)
    evidence, begun = Evidence(), 0
    stream = _requests(recorded, champion, challenger, seed)
    served = 0
    while True:
        for _ in range(requests_per_s):
            uniform, outcomes = next(stream)
            index = int(uniform < plan.challenger_share)
            evidence.update(_PARTS[index], _NOTHING, outcomes[index])
        served += requests_per_s
        now_s = served / requests_per_s
        taken = step(plan, evidence, settings, limits, now_s)
        for found in taken.evidence["guardrails"]:
            low, high = found["low"], found["high"]
            if low is not None and high is not None:
                course.missed |= not low <= truth[found["part"]] <= high
        if taken.action == "stay":
            continue
        course.requests.append(served - begun)
        plan = next_plan(plan, taken, now_s, served)
        evidence, begun = Evidence(), served
        if taken.action in ("promote", "rollback"):
            course.ended, course.reason = taken.action, taken.reason
            return course


def _requests(
    recorded: RecordedOutcomes, champion: Contender, challenger: Contender, seed: int
) -> Iterator[tuple[float, tuple[Outcome, Outcome]]]:
    """Where each request falls in [0, 1), and what either policy would get on it."""
    random = np.random.default_rng(seed)
    while True:
        rows = random.integers(len(recorded.prompts), size=_BLOCK)
        units = random.random(_BLOCK)
        drawn = random.random(_BLOCK)
        columns = []
        for one in (champion, challenger):
            arms = (one.chances[rows].cumsum(axis=1) < drawn[:, None]).sum(axis=1)
            arms = np.minimum(arms, one.chances.shape[1] - 1)
            quality = recorded.quality[rows, arms] * one.quality_factor
            columns += [quality.tolist(), recorded.cost_usd[rows, arms].tolist()]
        for unit, mine, mine_usd, theirs, theirs_usd in zip(units.tolist(), *columns, strict=True):
            yield unit, (Outcome(mine, mine_usd), Outcome(theirs, theirs_usd))


def always(recorded: RecordedOutcomes, model: str) -> Contender:
    """One model for everything."""
    chances = np.zeros(recorded.quality.shape)
    chances[:, recorded.models.index(model)] = 1.0
    return Contender(f"always {model}", chances)


def mixed(recorded: RecordedOutcomes, good: Contender, worse: Contender, loss: float) -> Contender:
    """``good``, and ``worse`` at random so often that mean quality falls by the share ``loss``."""
    best, least = (one.truth(recorded)["quality"] for one in (good, worse))
    share = loss * best / (best - least)
    chances = (1.0 - share) * good.chances + share * worse.chances
    return Contender(f"{good.name}, {share:.0%} of it {worse.name}", chances)


def trained(recorded: RecordedOutcomes) -> Contender:
    """The policy that ships, after one pass over the recording, then pinned."""
    encoder, features = encode(recorded)
    settings = PolicySettings()
    policy = make_policy(
        settings,
        [Arm(model) for model in recorded.models],
        encoder.size,
        recorded.objective(Weights()),
        static_arm=recorded.models.index(dearest_model(recorded)),
        schema_id=encoder.schema_id,
        groups=encoder.groups,
    )
    random = np.random.default_rng(0)
    for row in random.permutation(len(features)).tolist():
        chances = policy.probabilities(features[row])
        arm = int(random.choice(chances.size, p=chances))
        policy.learn([Observation(arm, features[row], _NOTHING, recorded.outcome(row, arm))])
    return Contender(f"trained {settings.name}", policy.probabilities_many(features))


def _pairs(recorded: RecordedOutcomes) -> list[tuple[str, Contender, Contender]]:
    """What is compared: the case, the champion and the challenger."""
    gemini, llama, mistral = (always(recorded, model) for model in recorded.models)
    learned = trained(recorded)
    pairs = []
    for champion in (mistral, learned):
        worse = Contender(f"{champion.name}, quality x 0.9", champion.chances, 0.9)
        pairs += [
            ("10 % worse, scaled", champion, worse),
            ("10 % worse, mixed", champion, mixed(recorded, champion, llama, 0.1)),
            ("equal", champion, champion),
        ]
    pairs.append(("cheaper", gemini, learned))
    return pairs


def main(arguments: Sequence[str] | None = None) -> None:
    """Run every pair with every seed, and write the report."""
    parser = argparse.ArgumentParser(prog="benchmarks.canary", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/canary.md"))
    asked = parser.parse_args(arguments)
    recorded = load_recording(PARETOBANDIT)
    settings = CanarySettings()
    rows = []
    for case, champion, challenger in _pairs(recorded):
        began = perf_counter()
        courses = [
            run(recorded, champion, challenger, seed, settings) for seed in range(asked.seeds)
        ]
        rows.append(_row(case, recorded, champion, challenger, courses, settings))
        print(f"{rows[-1]} {perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    asked.out.write_text(_report(asked.seeds, settings, rows), encoding="utf-8")


def _row(
    case: str,
    recorded: RecordedOutcomes,
    champion: Contender,
    challenger: Contender,
    courses: Sequence[Course],
    settings: CanarySettings,
) -> str:
    mine, theirs = champion.truth(recorded), challenger.truth(recorded)
    change = [f"{theirs[part] / mine[part] - 1.0:+.1%}" for part in mine]
    back = [one for one in courses if one.ended == "rollback"]
    early = [one for one in back if one.stages == 1]
    spans = [
        _span([one.requests[stage] for one in courses if one.stages > stage])
        for stage in range(len(settings.shares))
    ]
    missed = sum(one.missed for one in courses)
    cells = [
        case, champion.name, *change, f"{len(early)}", f"{len(back)}",
        f"{len(courses) - len(back)}", *spans, f"{missed}",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def _span(requests: Sequence[int]) -> str:
    if not requests:
        return "-"
    middle, most = np.quantile(requests, [0.5, 0.95])
    return f"{middle:,.0f} ({most:,.0f})"


def _report(seeds: int, settings: CanarySettings, rows: Sequence[str]) -> str:
    stages = [f"requests at {share:.0%}" for share in settings.shares]
    heads = [
        "challenger", "champion", "quality", "cost", "rolled back at 5 %", "rolled back",
        "promoted", *stages, "an interval missed",
    ]  # fmt: skip
    return "\n".join(
        [
            "# Canaries on recorded outcomes",
            "",
            f"{datetime.now(UTC):%Y-%m-%d}, `python -m benchmarks.canary --seeds {seeds}`, "
            f"{processor()}.",
            "",
            f"Runs of {seeds} seeds each, on the set `paretobandit`: 3,609 prompts drawn with "
            "replacement, every request a unit of its own, 25 a second, rewards at once, a look "
            "every second, the settings that ship. The last stage, the watch, lasts an hour at "
            "least, which is 90,000 requests here. Requests are champion's and challenger's "
            "together: the median over the runs that reached the stage, behind it the 95th "
            "percentile. `an interval missed` counts runs where any interval of quality or cost, "
            "in any stage at any look, did not contain the true ratio: 5 % is promised. The set "
            "has no latency, so that guardrail is absent.",
            "",
            "| " + " | ".join(heads) + " |",
            "|---|---|" + "---:|" * (len(heads) - 2),
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    main()
