"""Experiments on a real PostgreSQL: lifecycle, plan, trail, and conclusions from the ledger."""

import os
import threading
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import psycopg
import pytest

from feature_repo.embedding import Embedder
from optimizer.errors import InvalidInput, UnknownName
from optimizer.experiments.assignment import Assigner
from optimizer.experiments.experiment import ArmPattern, Design, Variant
from optimizer.records import Arm, Outcome
from optimizer.settings import Settings
from serving import audit, experiments, ledger, plans
from serving.ledger import RewardEvent
from serving.live_point import make_encoder
from serving.reward_writer import connect
from serving.tokens import Decision, TokenSigner

NOW = 1_800_000_000.0
SIGNER = TokenSigner(["00" * 16])
ARMS = [
    {"model": "small"},
    {"model": "small", "prompt_variant": "terse"},
    {"model": "small", "prompt_variant": "long"},
    {"model": "large"},
]


@pytest.fixture
def platform(settings: Callable[..., Settings]) -> Settings:
    return settings(
        decision_points=[
            {"name": "chat", "arms": ARMS, "weights": {"quality": 1, "cost": 0, "latency": 0}}
        ]
    )


@pytest.fixture
def connection(platform: Settings) -> Iterator[psycopg.Connection[Any]]:
    with connect(platform.postgres_dsn()) as made:
        point = platform.decision_point("chat")
        plans.ensure(made, point, make_encoder(point, Embedder()).schema, NOW)
        yield made


def prompts(*names: str) -> tuple[Variant, ...]:
    return tuple(Variant(name, (ArmPattern("small", None, name),)) for name in names)


def design(**given: Any) -> Design:
    defaults = {"decision_point": "chat", "name": "x", "variants": prompts("default", "terse")}
    return Design(**(defaults | given))


def started(connection, platform, at: float = NOW, **given: Any) -> str:
    made = experiments.create(connection, platform, design(**given), actor="test", now=at)
    return experiments.start(connection, platform, made.id, actor="test", now=at).id


def serve(
    connection,
    platform: Settings,
    quality: dict[str, float],
    number: int,
    *,
    at: float = NOW + 1,
    seed: int = 0,
    step_s: float = 1.0,
    lost: Callable[[Arm], bool] = lambda arm: False,
) -> None:
    """Decide as a replica does by the plan that is in force, log it, and reward it with 0 or 1."""
    ledger.create_tables(connection)
    point = platform.decision_point("chat")
    arms = point.records()
    assigner = Assigner(plans.current(connection, "chat").experiments, [arm.id for arm in arms])
    random = Random(seed)
    rows, events = [], []
    for place in range(number):
        found = assigner.variant(f"unit {seed} {place}", random.random())
        good = random.random()
        if found is None:
            continue
        chosen = random.choice(found.arms)
        arm = arms[chosen]
        if lost(arm):
            continue
        time = at + place * step_s
        propensity = found.propensity / len(found.arms)
        decision_id = random.randbytes(16)
        raw, _ = SIGNER.sign(Decision(0, decision_id, time, arm.id, propensity, 0, 0, "chat", b""))
        rows.append(("chat", decision_id.hex(), time, arm.model, propensity, raw))
        outcome = Outcome(quality=float(good < quality[arm.prompt_variant]))
        events.append(RewardEvent("chat", decision_id, "", outcome, False, raw))
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO decisions VALUES (%s, %s, to_timestamp(%s), %s, 'experiment', %s, 0, %s)",
            rows,
        )
    ledger.write(connection, events)


def actions(connection) -> list[str]:
    return [entry.action for entry in reversed(audit.trail(connection, "chat"))]


def test_lifecycle_changes_plan_and_trail_together(connection, platform) -> None:
    made = experiments.create(connection, platform, design(share=0.5), actor="a", now=NOW)
    assert plans.current(connection, "chat").experiments == ()
    experiments.start(connection, platform, made.id, actor="a", now=NOW, reason="go")
    (running,) = plans.current(connection, "chat").experiments
    assert (running.experiment_id, running.share, running.weights) == (made.id, 0.5, (0.5, 0.5))
    assert running.sticky
    experiments.pause(connection, made.id, actor="a", now=NOW + 10)
    assert plans.current(connection, "chat").experiments == ()
    experiments.start(connection, platform, made.id, actor="a", now=NOW + 20)
    assert plans.current(connection, "chat").experiments == (running,)
    stopped, _ = experiments.stop(connection, platform, made.id, actor="a", now=NOW + 30)
    assert plans.current(connection, "chat").experiments == ()
    assert stopped.ran_s(NOW + 1000) == 20.0
    experiments.archive(connection, made.id, actor="a", now=NOW + 40)
    assert experiments.find(connection, made.id).state == "archived"
    assert actions(connection) == [
        f"experiment.{action}"
        for action in ("create", "start", "pause", "start", "stop", "archive")
    ]
    assert plans.current(connection, "chat").epoch == 5


def test_a_refused_action_says_what_is_allowed_and_changes_nothing(connection, platform) -> None:
    made = experiments.create(connection, platform, design(), actor="a", now=NOW)
    with pytest.raises(InvalidInput, match=r"pause is not for it; it can be: start, archive"):
        experiments.pause(connection, made.id, actor="a", now=NOW)
    assert experiments.find(connection, made.id) == made
    assert actions(connection) == ["experiment.create"]
    with pytest.raises(UnknownName):
        experiments.pause(connection, "none", actor="a", now=NOW)


def test_units_of_a_paused_experiment_are_kept_for_it(connection, platform) -> None:
    first = started(connection, platform, share=0.6)
    experiments.pause(connection, first, actor="a", now=NOW + 1)
    large = (Variant("a", (ArmPattern("large"),)), *prompts("long"))
    with pytest.raises(InvalidInput, match=r"at most 0\.4 is free"):
        started(connection, platform, share=0.5, variants=large)
    beside = started(connection, platform, share=0.4, variants=large)
    assert experiments.find(connection, beside).begin == pytest.approx(0.6)


def test_two_experiments_with_the_same_arm_cannot_run_at_once(connection, platform) -> None:
    started(connection, platform, share=0.1)
    with pytest.raises(InvalidInput, match="could not be told apart"):
        started(connection, platform, share=0.1, variants=prompts("terse", "long"))


def at_once(platform: Settings, work: list[Callable[[Any], Any]]) -> list[str]:
    """Run each in a thread with a connection of its own; what each ended in."""
    ready = threading.Barrier(len(work))
    ended: list[str] = []

    def run(one: Callable[[Any], Any]) -> None:
        with connect(platform.postgres_dsn()) as own:
            ready.wait()
            try:
                one(own)
                ended.append("done")
            except InvalidInput as error:
                ended.append(error.field)

    threads = [threading.Thread(target=run, args=(one,)) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(ended)


def test_two_starts_at_once_never_take_the_same_units(connection, platform) -> None:
    large = (Variant("a", (ArmPattern("large"),)), *prompts("long"))
    ids = [
        experiments.create(
            connection, platform, design(share=0.6, variants=variants), actor="a", now=NOW
        ).id
        for variants in (prompts("default", "terse"), large)
    ]
    work = [
        lambda own, one=one: experiments.start(own, platform, one, actor="a", now=NOW)
        for one in ids
    ]
    assert at_once(platform, work) == ["done", "share"]
    assert len(plans.current(connection, "chat").experiments) == 1


def test_the_same_experiment_is_started_once(connection, platform) -> None:
    made = experiments.create(connection, platform, design(), actor="a", now=NOW)
    start = lambda own: experiments.start(own, platform, made.id, actor="a", now=NOW)  # noqa: E731
    assert at_once(platform, [start] * 4) == ["done", "state", "state", "state"]
    assert actions(connection).count("experiment.start") == 1
    assert len(experiments.find(connection, made.id).spans) == 1


def test_a_better_prompt_wins_and_keeps_its_units_when_promoted(connection, platform) -> None:
    number = started(connection, platform, share=0.5)
    serve(connection, platform, {"default": 0.5, "terse": 0.8}, 4000)
    found = experiments.report(connection, platform, number, NOW + 5000)[1]
    assert (found.answer, found.winner, found.stop) == ("winner", "terse", "winner")
    assert found.sample_ratio.trusted
    old, new = found.variants
    assert old.outcomes + new.outcomes == pytest.approx(2000, abs=150)
    assert new.difference.low > 0.1
    assert new.difference.high < 0.5
    assert new.better
    assert len(found.history) == 40
    assert found.history[-1].outcomes == (old.outcomes, new.outcomes)

    experiments.stop(connection, platform, number, actor="a", now=NOW + 5000, promote=True)
    (kept,) = plans.current(connection, "chat").experiments
    assert (kept.experiment_id, kept.share, kept.weights) == (number, 0.5, (1.0,))
    arms = platform.decision_point("chat").records()
    assert kept.arms == ((arms[1].id.hex(),),)
    entry = audit.trail(connection, "chat")[0]
    assert entry.action == "experiment.promote"
    assert entry.reason.startswith("terse beats default")
    # What the winner serves from now on is no part of the experiment.
    serve(connection, platform, {"terse": 0.0}, 200, at=NOW + 6000, seed=1)
    again = experiments.report(connection, platform, number, NOW + 9000)[1]
    assert again.variants == found.variants
    with pytest.raises(InvalidInput, match="could not be told apart"):
        started(connection, platform, share=0.1)
    experiments.archive(connection, number, actor="a", now=NOW + 9000)
    assert plans.current(connection, "chat").experiments == ()


def test_nothing_is_promoted_that_has_not_won(connection, platform) -> None:
    number = started(connection, platform)
    serve(connection, platform, {"default": 0.5, "terse": 0.5}, 1000)
    before = plans.current(connection, "chat")
    with pytest.raises(InvalidInput, match="no variant has won"):
        experiments.stop(connection, platform, number, actor="a", now=NOW + 2000, promote=True)
    assert experiments.find(connection, number).state == "running"
    assert plans.current(connection, "chat") == before


def test_a_biased_log_turns_conclusions_off(connection, platform) -> None:
    number = started(connection, platform)
    random = Random(3)
    serve(
        connection,
        platform,
        {"default": 0.3, "terse": 0.9},
        3000,
        lost=lambda arm: arm.prompt_variant == "terse" and random.random() < 0.3,
    )
    found = experiments.report(connection, platform, number, NOW + 4000)[1]
    assert (found.answer, found.winner, found.stop) == ("untrusted", None, None)
    assert found.sample_ratio.trusted is False
    assert "instead of 50.0 %, 50.0 %" in found.sentence


def test_of_costs_less_is_better_and_several_are_corrected(connection, platform) -> None:
    number = started(connection, platform, variants=prompts("default", "terse", "long"))
    serve(connection, platform, {"default": 0.4, "terse": 0.8, "long": 0.42}, 6000)
    found = experiments.report(connection, platform, number, NOW + 9000)[1]
    assert found.winner == "terse"
    assert "corrected for 2 comparisons" in found.sentence
    raw = [one.p_value for one in found.variants[1:]]
    corrected = [one.p_corrected for one in found.variants[1:]]
    assert corrected[0] == pytest.approx(2 * raw[0])
    assert corrected[1] >= raw[1]


def test_a_gain_worth_having_is_excluded(connection, platform) -> None:
    number = started(connection, platform, smallest_effect=0.2)
    serve(connection, platform, {"default": 0.5, "terse": 0.5}, 4000)
    found = experiments.report(connection, platform, number, NOW + 9000)[1]
    assert (found.answer, found.stop, found.winner) == ("no_gain", "no_gain", None)


def test_a_fixed_horizon_is_read_once(connection, platform) -> None:
    number = started(connection, platform, analysis="fixed_horizon", planned_samples=500)
    quality = {"default": 0.4, "terse": 0.6}
    serve(connection, platform, quality, 600)
    found = experiments.report(connection, platform, number, NOW + 700)[1]
    assert (found.answer, found.stop) == ("waiting", None)
    assert [one.p_value for one in found.variants] == [None, None]
    assert "read once, at 500" in found.sentence
    assert "h more of running" in found.sentence
    serve(connection, platform, quality, 800, at=NOW + 1000, seed=1)
    first = experiments.report(connection, platform, number, NOW + 2000)[1]
    assert first.variants[1].p_value is not None
    assert first.stop == "winner"
    serve(connection, platform, {"default": 1.0, "terse": 0.0}, 400, at=NOW + 3000, seed=2)
    later = experiments.report(connection, platform, number, NOW + 4000)[1]
    assert later.variants[1].p_value == first.variants[1].p_value
    assert later.variants[1].difference == first.variants[1].difference


def test_only_decisions_of_its_time_and_arms_count(connection, platform) -> None:
    number = started(connection, platform)
    quality = {"default": 0.5, "terse": 0.5}
    serve(connection, platform, quality, 100, at=NOW - 500)
    serve(connection, platform, quality, 100)
    experiments.pause(connection, number, actor="a", now=NOW + 200)
    serve(connection, platform, quality, 100, at=NOW + 300, seed=1)
    found = experiments.report(connection, platform, number, NOW + 1000)[1]
    assert sum(one.decisions for one in found.variants) == 100


def test_tending_stops_what_is_done(connection, platform) -> None:
    number = started(connection, platform)
    assert experiments.tend(connection, platform, "chat", actor="learner", now=NOW + 1) == []
    serve(connection, platform, {"default": 0.2, "terse": 0.8}, 1000)
    (stopped,) = experiments.tend(connection, platform, "chat", actor="learner", now=NOW + 2000)
    assert (stopped.id, stopped.state, stopped.winner) == (number, "complete", "terse")
    assert stopped.reason.startswith("winner: terse beats default")
    assert not stopped.promoted
    assert audit.trail(connection, "chat")[0].actor == "learner"
    assert experiments.tend(connection, platform, "chat", actor="learner", now=NOW + 3000) == []


def test_time_stops_an_experiment_that_finds_nothing(connection, platform) -> None:
    started(connection, platform, longest_s=3600.0)
    serve(connection, platform, {"default": 0.5, "terse": 0.5}, 300)
    (stopped,) = experiments.tend(connection, platform, "chat", actor="learner", now=NOW + 3600)
    assert stopped.winner is None
    assert stopped.reason.startswith("longest_s: ")


def test_thompson_sampling_moves_to_the_better_variant(connection, platform) -> None:
    number = started(
        connection, platform, allocation="thompson", minimum_samples=10_000, measure="quality"
    )
    (running,) = plans.current(connection, "chat").experiments
    assert not running.sticky
    weights = []
    for step in range(4):
        at = NOW + 1000 * step + 1
        serve(connection, platform, {"default": 0.45, "terse": 0.6}, 300, at=at, seed=step)
        experiments.tend(connection, platform, "chat", actor="learner", now=at + 900)
        weights.append(plans.current(connection, "chat").experiments[0].weights[1])
    assert weights[-1] == pytest.approx(0.95, abs=0.03)
    assert actions(connection).count("experiment.allocate") <= 4
    found = experiments.report(connection, platform, number, NOW + 5000)[1]
    assert found.sample_ratio.trusted is None
    assert found.variants[1].mean == pytest.approx(0.6, abs=0.06)
    low, high = found.variants[1].difference.low, found.variants[1].difference.high
    assert low < 0.15 < high


def test_settings_without_the_arm_refuse_a_second_start(connection, platform) -> None:
    number = started(connection, platform)
    experiments.pause(connection, number, actor="a", now=NOW + 1)
    content = platform.model_dump(mode="json")
    content["decision_points"][0]["arms"][1]["parameters"] = {"temperature": 0.1}
    changed = Settings(**content)
    with pytest.raises(InvalidInput, match="not configured any more"):
        experiments.start(connection, changed, number, actor="a", now=NOW + 2)


def test_tables_are_made_once_by_many(platform) -> None:
    def create(own: Any) -> None:
        experiments.create(own, platform, design(), actor=str(os.getpid()), now=NOW)

    assert at_once(platform, [create] * 4) == ["done"] * 4
