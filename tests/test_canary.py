"""A canary: evidence that can take back, guardrails, and stages that are never skipped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from infra.recordings import load_recording
from optimizer.errors import InvalidInput
from optimizer.experiments.moments import Moments
from optimizer.records import Outcome
from optimizer.rollout.canary import Step, next_plan, start, step
from optimizer.rollout.evidence import Evidence, GroupEvidence
from optimizer.rollout.guardrails import judge
from optimizer.rollout.plan import PolicyRef, RoutingPlan
from optimizer.rollout.quantiles import bin_of
from optimizer.rollout.settings import CanarySettings
from optimizer.settings import Guardrails

LIMITS = Guardrails()
SETTINGS = CanarySettings()
NOTHING = Outcome()
OLD, NEW = PolicyRef("1.0"), PolicyRef("2.0")

qualities = st.none() | st.floats(0, 1)
amounts = st.none() | st.floats(0, 1e4)
outcomes = st.builds(Outcome, qualities, amounts, amounts)


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[str, Outcome, Outcome]]:
    """Changes of a few decisions, each from what was known of it, in any order."""
    known: dict[int, Outcome] = {}
    changes = []
    for _ in range(draw(st.integers(0, 30))):
        decision = draw(st.integers(0, 5))
        after = draw(outcomes)
        role = "challenger" if decision % 2 else "champion"
        changes.append((role, known.get(decision, NOTHING), after))
        known[decision] = after
    return changes


def folded(changes: list[tuple[str, Outcome, Outcome]]) -> Evidence:
    evidence = Evidence()
    for change in changes:
        evidence.update(*change)
    return evidence


@given(histories())
def test_corrections_end_where_the_last_word_alone_does(
    changes: list[tuple[str, Outcome, Outcome]],
) -> None:
    found = folded(changes)
    last: list[tuple[str, Outcome, Outcome]] = []
    for role, before, after in changes:
        if (role, NOTHING, before) in last:
            last.remove((role, NOTHING, before))
        last.append((role, NOTHING, after))
    expected = folded(last)
    for mine, plain in (
        (found.champion, expected.champion),
        (found.challenger, expected.challenger),
    ):
        assert mine.cost_usd_bins == plain.cost_usd_bins
        assert mine.latency_s_bins == plain.latency_s_bins
        for part in ("quality", "cost_usd", "latency_s"):
            here, there = getattr(mine, part), getattr(plain, part)
            assert here.count == there.count
            assert here.total == pytest.approx(there.total, abs=1e-7)


@given(
    st.lists(st.tuples(st.sampled_from([b"a", b"b", None]), outcomes, outcomes), max_size=20),
)
def test_a_unit_counts_once_with_the_mean_of_what_it_told_last(
    told: list[tuple[bytes | None, Outcome, Outcome]],
) -> None:
    evidence = Evidence()
    for unit, first, _ in told:
        evidence.update("champion", NOTHING, first, unit)
    for unit, first, corrected in told:
        evidence.update("champion", first, corrected, unit)
    for part in ("quality", "cost_usd", "latency_s"):
        known = [(unit, value) for unit, _, of in told if (value := getattr(of, part)) is not None]
        means = [value for unit, value in known if unit is None]
        for named in (b"a", b"b"):
            own = [value for unit, value in known if unit == named]
            means += [sum(own) / len(own)] if own else []
        found = getattr(evidence.champion, part)
        assert found.count == len(means)
        assert found.total == pytest.approx(sum(means), abs=1e-7)
        assert found.squares == pytest.approx(sum(mean**2 for mean in means), rel=1e-6, abs=1e-6)


def of(quality: float = 0.8, cost_usd: float = 0.01, rows: int = 2000) -> GroupEvidence:
    """Qualities of 0 and 1, costs all alike, no latency."""
    right = round(quality * rows)
    return GroupEvidence(
        quality=Moments(rows, right, right),
        cost_usd=Moments(rows, rows * cost_usd, rows * cost_usd**2),
        cost_usd_bins={bin_of(cost_usd): rows},
    )


def slow(factor: float, seed: int, rows: int = 3000) -> GroupEvidence:
    """Latencies with a long tail; only those above the median are changed by ``factor``."""
    random = np.random.default_rng(seed)
    group = GroupEvidence()
    for latency_s in random.lognormal(0.0, 0.5, rows):
        told = latency_s * factor if latency_s > 1 else latency_s
        group.update(NOTHING, Outcome(latency_s=float(told)))
    return group


@pytest.mark.parametrize(
    ("challenger", "states"),
    [
        (of(), ["holds", "holds", "absent"]),
        (of(quality=0.7), ["violated", "holds", "absent"]),
        (of(quality=0.76), ["open", "holds", "absent"]),
        (of(cost_usd=0.012), ["holds", "violated", "absent"]),
        (of(cost_usd=0.001), ["holds", "holds", "absent"]),
        (of(rows=9), ["open", "open", "absent"]),
    ],
)
def test_guardrails_on_quality_and_cost(challenger: GroupEvidence, states: list[str]) -> None:
    findings = judge(Evidence(of(rows=20_000), challenger), LIMITS, 0.1, 0.01)
    assert [finding.state for finding in findings] == states
    for finding in findings:
        if finding.state == "holds" and finding.part == "quality":
            assert finding.low is not None and finding.low >= finding.limit


@pytest.mark.parametrize(("factor", "state"), [(1.0, "holds"), (1.6, "violated"), (1.2, "open")])
def test_a_slow_tail_is_seen_in_the_p95(factor: float, state: str) -> None:
    finding = judge(Evidence(slow(1.0, 0), slow(factor, 1)), LIMITS, 0.5, 0.01)[2]
    assert finding.state == state
    assert finding.change == pytest.approx(factor - 1, abs=0.08)
    assert finding.low is not None and finding.high is not None
    assert finding.low < factor - 1 < finding.high


def test_models_that_cost_nothing_can_be_compared() -> None:
    free, dear = of(cost_usd=0.0), of(cost_usd=0.01)
    assert judge(Evidence(free, free), LIMITS, 0.5, 0.01)[1].state == "holds"
    assert judge(Evidence(free, dear), LIMITS, 0.5, 0.01)[1].state == "violated"


def test_without_any_quality_a_stage_does_not_end_well() -> None:
    silent = GroupEvidence(cost_usd=of().cost_usd, cost_usd_bins=of().cost_usd_bins)
    findings = judge(Evidence(silent, silent), LIMITS, 0.5, 0.01)
    assert [finding.state for finding in findings] == ["open", "holds", "absent"]


def test_a_limit_that_allows_everything_holds() -> None:
    lax = Guardrails(quality_drop=1.0, cost_rise=1e6)
    findings = judge(Evidence(of(), of(quality=0.1, cost_usd=0.1)), lax, 0.5, 0.01)
    assert [finding.state for finding in findings] == ["holds", "holds", "absent"]


def at(share: float) -> RoutingPlan:
    return RoutingPlan("chat", 7, OLD, NEW, share, stage_at=1000.0, stage_position=50)


def ask(evidence: Evidence, share: float = 0.05, age_s: float = 100.0, fallbacks: int = 0) -> Step:
    return step(at(share), evidence, SETTINGS, LIMITS, 1000.0 + age_s, fallbacks)


EQUAL = Evidence(of(rows=20_000), of())

evidences = st.builds(
    Evidence,
    st.builds(of, st.sampled_from([0.5, 0.8]), st.just(0.01), st.sampled_from([5, 300, 20_000])),
    st.builds(
        of, st.sampled_from([0.6, 0.8, 0.9]), st.just(0.01), st.sampled_from([5, 300, 20_000])
    ),
)
looks = st.tuples(evidences, st.sampled_from([1.0, 61.0, 3601.0, 8 * 86400.0]), st.integers(0, 20))


@given(st.lists(looks, max_size=12))
def test_no_stage_is_ever_skipped(told: list[tuple[Evidence, float, int]]) -> None:
    plan = start(RoutingPlan("chat", 1, OLD), NEW, SETTINGS, 0.0, 0)
    now_s, seen = 0.0, [plan.challenger_share]
    for evidence, later_s, fallbacks in told:
        now_s += later_s
        taken = step(plan, evidence, SETTINGS, LIMITS, now_s, fallbacks)
        after = next_plan(plan, taken, now_s, 1)
        if taken.action == "stay":
            assert after is plan and taken.share == plan.challenger_share
            continue
        assert after.epoch == plan.epoch + 1 and after.stage_at == now_s
        if taken.action == "advance":
            assert after.challenger_share == taken.share and after.champion == OLD
            seen.append(taken.share)
        elif taken.action == "promote":
            assert seen == list(SETTINGS.shares)
        if taken.action in ("promote", "rollback"):
            assert after.champion == (NEW if taken.action == "promote" else OLD)
            assert after.challenger is None and after.challenger_share == 0.0
            break
        plan = after
    assert seen == list(SETTINGS.shares[: len(seen)])


def test_an_equal_challenger_goes_through_all_stages_and_its_watch() -> None:
    assert [ask(EQUAL, share).share for share in (0.05, 0.25, 0.5)] == [0.25, 0.5, 0.95]
    watched = Evidence(of(), of(rows=40_000))
    assert ask(watched, 0.95, age_s=3599).action == "stay"
    assert ask(watched, 0.95, age_s=3600).action == "promote"


def test_quality_that_drops_in_the_watch_is_taken_back() -> None:
    taken = ask(Evidence(of(), of(quality=0.7, rows=40_000)), 0.95)
    assert taken.action == "rollback" and taken.share == 0.0
    assert "beyond the limit -5.0%" in taken.reason


def test_a_challenger_that_always_fails_is_taken_back_after_a_few_outcomes() -> None:
    evidence = Evidence(of(rows=570), of(quality=0.0, rows=30))
    assert ask(evidence, age_s=1.0).action == "rollback"


@pytest.mark.parametrize(
    ("evidence", "age_s", "fallbacks", "action", "said"),
    [
        (EQUAL, 59.0, 0, "stay", "59 of at least 60 s"),
        (Evidence(of(rows=20_000), of(rows=199)), 100.0, 0, "stay", "199 of at least 200 samples"),
        (Evidence(of(), of(quality=0.76)), 100.0, 0, "stay", "undecided against the limit -5.0%"),
        (Evidence(of(), of(quality=0.76)), 7 * 86400.0, 0, "rollback", "no verdict after 604800 s"),
        (Evidence(), 7 * 86400.0, 0, "rollback", "quality cannot be compared yet"),
        (EQUAL, 100.0, 9, "advance", "within the limit"),
        (EQUAL, 100.0, 30, "rollback", "failed to decide 30 times"),
        (EQUAL, 100.0, 20, "advance", "no decision has a p95 latency"),
    ],
)
def test_what_a_stage_says(
    evidence: Evidence, age_s: float, fallbacks: int, action: str, said: str
) -> None:
    taken = ask(evidence, age_s=age_s, fallbacks=fallbacks)
    assert taken.action == action and said in taken.reason


def test_too_many_samples_without_a_verdict_are_an_end() -> None:
    settings = CanarySettings(longest_samples=2000)
    undecided = Evidence(of(rows=20_000), of(quality=0.76))
    taken = step(at(0.05), undecided, settings, LIMITS, 1100.0)
    assert taken.action == "rollback" and "2000 samples" in taken.reason


def test_a_second_canary_is_refused_and_none_is_no_step() -> None:
    with pytest.raises(InvalidInput, match=r"2\.0 is: roll it back first"):
        start(at(0.05), PolicyRef("3.0"), SETTINGS, 0.0, 0)
    with pytest.raises(InvalidInput, match="no canary is running"):
        step(RoutingPlan("chat", 1, OLD), Evidence(), SETTINGS, LIMITS, 0.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"stages": (0.25, 0.05)},
        {"stages": (0.5, 0.97)},
        {"stages": ()},
        {"minimum_samples": 500, "longest_samples": 400},
        {"watch_s": 8 * 86400.0},
    ],
)
def test_settings_that_no_canary_can_follow_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        CanarySettings.model_validate(wrong)


def test_on_recorded_outcomes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few of the seeds of `python -m benchmarks.canary`."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    from benchmarks.canary import Contender, always, mixed, run

    recorded = load_recording("paretobandit")
    gemini, llama, mistral = (always(recorded, model) for model in recorded.models)
    settings = CanarySettings(watch_s=60.0)
    scaled = Contender("scaled", mistral.chances, 0.9)
    for worse in (scaled, mixed(recorded, mistral, llama, 0.1)):
        for seed in range(5):
            course = run(recorded, mistral, worse, seed, settings)
            assert (course.ended, course.stages) == ("rollback", 1), course.reason
    for champion, seeds in ((mistral, 1), (gemini, 2)):
        for seed in range(seeds):
            course = run(recorded, champion, mistral, seed, settings)
            assert (course.ended, course.stages) == ("promote", 4), course.reason
