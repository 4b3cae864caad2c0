"""Plans on real servers: by hand, by settings, and by the learner that watches a canary."""

import time
from collections.abc import Callable, Iterator

import numpy as np
import psycopg
import pytest

from feature_repo.embedding import Embedder
from infra.rollouts import roll_back
from optimizer.errors import InvalidInput, PartFailed, UnknownName
from optimizer.feature_schema import FeatureSchema
from optimizer.features import pack
from optimizer.policies.names import PolicySettings
from optimizer.records import Context, Outcome
from optimizer.rollout import PolicyRef, RoutingPlan
from optimizer.rollout.canary import Gate
from optimizer.settings import ArmSettings, Settings
from serving import audit, ledger, plans, variants
from serving.learner import Learner
from serving.live_point import make_encoder
from serving.promotion import Promotion
from serving.replica_state import ReplicaState
from serving.snapshots import FIRST, SnapshotStore
from serving.tokens import CHALLENGER, CHAMPION, Decision, TokenSigner

KEY = "00" * 16
EMBEDDER = Embedder()
ALLOWED = Gate(True, "Nothing speaks against it.", {})
LINUCB = PolicySettings(name="linucb")


@pytest.fixture
def platform(settings: Callable[..., Settings]) -> Settings:
    return settings(
        token_keys=[KEY],
        learner={"batch_s": 0.02, "checkpoint_s": 0.05},
        decision_points=[
            {
                "name": "chat",
                "arms": [{"model": "small"}, {"model": "large"}],
                "canary": {"shortest_stage_s": 0, "watch_s": 0, "minimum_samples": 100},
            }
        ],
    )


@pytest.fixture
def connection(platform: Settings) -> Iterator[psycopg.Connection]:
    with psycopg.connect(platform.postgres_dsn(), autocommit=True) as made:
        ledger.create_tables(made)
        yield made


@pytest.fixture
def learner(platform: Settings, connection: psycopg.Connection) -> Iterator[Learner]:
    made = Learner(platform, platform.decision_points[0], EMBEDDER)
    made.start()
    wait_until(lambda: plan_in_valkey(platform) is not None)
    yield made
    made.close()


@pytest.fixture
def promotion(platform: Settings) -> Promotion:
    return Promotion(platform, platform.decision_points[0])


def schema(platform: Settings) -> FeatureSchema:
    return make_encoder(platform.decision_points[0], EMBEDDER).schema


def add_variant(promotion: Promotion, policy: PolicySettings) -> str:
    point = promotion.point
    return promotion.add_variant(policy, make_encoder(point, EMBEDDER).schema)


def plan_in_valkey(platform: Settings) -> RoutingPlan | None:
    store = SnapshotStore(platform.valkey_address)
    try:
        return store.plan("chat")
    finally:
        store.close()


def wait_until(true: Callable[[], object], seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def rewards(
    platform: Settings, role: int, quality: float, count: int, seed: int
) -> list[ledger.RewardEvent]:
    """Of decisions that were made just now."""
    random = np.random.default_rng(seed)
    point = platform.decision_points[0]
    encoder = make_encoder(point, EMBEDDER)
    signer = TokenSigner([KEY])
    features = pack(encoder.encode(Context(), None, time.time()))
    made = []
    for _ in range(count):
        decision = Decision(
            role,
            random.bytes(16),
            time.time(),
            point.records()[int(random.integers(2))].id,
            0.5,
            0,
            encoder.schema_id,
            "chat",
            features,
            unit=random.bytes(8),
        )
        outcome = Outcome(quality=float(random.random() < quality), cost_usd=0.001)
        raw, _ = signer.sign(decision)
        made.append(ledger.RewardEvent("chat", decision.decision_id, "", outcome, False, raw))
    return made


def test_variants_get_numbers_by_what_differs(learner, connection, promotion) -> None:
    assert promotion.variants() == {"1.0": PolicySettings()}
    assert add_variant(promotion, PolicySettings(alpha=0.5)) == "1.1"
    assert add_variant(promotion, LINUCB) == "2.0"
    assert add_variant(promotion, PolicySettings(alpha=0.5)) == "1.1"
    assert add_variant(promotion, PolicySettings(alpha=0.7)) == "3.0"
    assert list(promotion.variants()) == ["1.0", "1.1", "2.0", "3.0"]


def test_other_arms_renumber_the_policies_and_keep_what_they_learned(
    platform, learner, connection, promotion
) -> None:
    ledger.write(connection, rewards(platform, CHAMPION, 0.5, 40, seed=3))
    wait_until(lambda: learner.position == 40)
    promotion.replace(PolicyRef(add_variant(promotion, LINUCB)), None, "for a test")
    wait_until(lambda: plan_in_valkey(platform).champion == PolicyRef("2.0"))
    learner.close()
    point = platform.decision_points[0]
    more = point.model_copy(update={"arms": (*point.arms, ArmSettings(model="third"))})
    again = Learner(platform.model_copy(update={"decision_points": (more,)}), more, EMBEDDER)
    again.start()
    wait_until(lambda: plan_in_valkey(platform).champion == PolicyRef("2.1"))
    assert variants.variants(connection, "chat")["2.1"] == LINUCB
    assert audit.trail(connection, "chat")[0].action == "policy.renumber"
    wait_until(lambda: again.position == 40)
    again.close()


def test_another_policy_in_the_settings_becomes_the_champion(platform, connection) -> None:
    point = platform.decision_points[0]
    computed = schema(platform)
    first = plans.ensure(connection, point, computed, 1.0)
    assert plans.ensure(connection, point, computed, 2.0) == first
    edited = point.model_copy(update={"policy": LINUCB})
    assert plans.ensure(connection, edited, computed, 3.0).champion == PolicyRef("2.0")
    assert plans.ensure(connection, point, computed, 4.0).champion == FIRST
    actions = [entry.action for entry in audit.trail(connection, "chat")]
    assert actions == ["policy.replace", "policy.replace"]


def test_a_promoted_champion_survives_a_restart(platform, learner, connection, promotion) -> None:
    promotion.replace(PolicyRef(add_variant(promotion, LINUCB)), None, "for a test")
    learner.close()
    plan = plans.ensure(connection, platform.decision_points[0], schema(platform), 5.0)
    assert plan.champion.variant == "2.0"


def test_a_bad_challenger_is_rolled_back_by_itself(
    platform, learner, connection, promotion
) -> None:
    variant = add_variant(promotion, LINUCB)
    promotion.canary(variant, ALLOWED)
    wait_until(lambda: plan_in_valkey(platform).challenger == PolicyRef(variant))
    with pytest.raises(InvalidInput, match="roll it back first"):
        promotion.canary(add_variant(promotion, PolicySettings(alpha=0.3)), ALLOWED)
    ledger.write(connection, rewards(platform, CHAMPION, 0.9, 600, seed=1))
    ledger.write(connection, rewards(platform, CHALLENGER, 0.5, 200, seed=2))
    told = time.monotonic()
    wait_until(lambda: plan_in_valkey(platform).challenger is None, 10.0)
    assert time.monotonic() - told < 10
    assert plan_in_valkey(platform).champion == FIRST
    newest = audit.trail(connection, "chat")[0]
    assert (newest.actor, newest.action) == ("learner", "canary.rollback")
    assert "quality" in newest.reason
    assert newest.evidence["guardrails"][0]["state"] == "violated"


def test_a_good_challenger_goes_through_every_stage(
    platform, learner, connection, promotion
) -> None:
    variant = add_variant(promotion, LINUCB)
    promotion.canary(variant, ALLOWED)
    seen = []
    for seed in range(40):
        plan = plan_in_valkey(platform)
        if plan.challenger_share not in seen:
            seen.append(plan.challenger_share)
        if plan.champion.variant == variant:
            break
        ledger.write(connection, rewards(platform, CHAMPION, 0.95, 2000, seed=2 * seed))
        ledger.write(connection, rewards(platform, CHALLENGER, 0.95, 2000, seed=2 * seed + 1))
        end = time.monotonic() + 3.0
        while plan_in_valkey(platform).epoch == plan.epoch and time.monotonic() < end:
            time.sleep(0.05)
    assert seen == [0.05, 0.25, 0.5, 0.95, 0.0]
    assert plan_in_valkey(platform).champion == PolicyRef(variant)
    actions = [entry.action for entry in audit.trail(connection, "chat")]
    assert actions == ["canary.promote", *["canary.advance"] * 3, "canary.start"]


def test_evidence_is_found_again_after_a_restart(platform, learner, connection, promotion) -> None:
    promotion.canary(add_variant(promotion, LINUCB), ALLOWED)
    wait_until(lambda: plan_in_valkey(platform).challenger is not None)
    ledger.write(connection, rewards(platform, CHAMPION, 0.9, 400, seed=1))
    learner.close()
    ledger.write(connection, rewards(platform, CHALLENGER, 0.5, 200, seed=2))
    again = Learner(platform, platform.decision_points[0], EMBEDDER)
    again.start()
    wait_until(lambda: plan_in_valkey(platform).challenger is None, 10.0)
    again.close()


@pytest.mark.parametrize("role", ["shadow", "champion"])
def test_a_policy_serves_when_it_has_learned_the_whole_ledger(
    platform, connection, promotion, role: str
) -> None:
    slow = platform.model_copy(
        update={"learner": platform.learner.model_copy(update={"batch_rewards": 10})}
    )
    learner = Learner(slow, slow.decision_points[0], EMBEDDER)
    learner.start()
    wait_until(lambda: plan_in_valkey(platform) is not None)
    ledger.write(connection, rewards(platform, CHAMPION, 0.5, 300, seed=5))
    wait_until(lambda: learner.position == 300)
    ref = PolicyRef(add_variant(promotion, LINUCB.model_copy(update={"horizon": 500.0})))
    if role == "shadow":
        promotion.shadow(ref.variant)
    else:
        promotion.replace(ref, None, "for a test")
    store = SnapshotStore(platform.valkey_address)
    wait_until(lambda: store.newest("chat", ref) is not None)
    assert store.newest("chat", ref).position == 300
    store.close()
    learner.close()


def test_rollback_by_hand_takes_back_one_step(learner, connection, promotion) -> None:
    with pytest.raises(InvalidInput, match="no other champion"):
        promotion.rollback()
    variant = add_variant(promotion, LINUCB)
    promotion.canary(variant, ALLOWED)
    assert promotion.rollback().challenger is None
    promotion.replace(PolicyRef(variant), None, "for a test")
    assert promotion.rollback().champion == FIRST
    with pytest.raises(InvalidInput, match="no other champion"):
        promotion.rollback()
    with pytest.raises(UnknownName, match=r"9\.9"):
        promotion.replace(PolicyRef("9.9"), None, "for a test")
    with pytest.raises(InvalidInput, match="--force"):
        promotion.canary(variant, Gate(False, "Refused: too dear.", {}))


def test_a_rollback_to_a_version_while_mlflow_is_away_leaves_the_plan(
    platform, learner, promotion, find_free_port
) -> None:
    away = platform.model_copy(update={"mlflow_url": f"http://127.0.0.1:{find_free_port()}"})
    before = promotion.plan()
    with pytest.raises(PartFailed, match="MLflow does not answer"):
        roll_back(away, "chat", "1.0.0")
    assert promotion.plan() == before


def test_a_change_that_raises_changes_nothing(learner, connection, promotion) -> None:
    before = promotion.plan(), len(audit.trail(connection, "chat"))

    def fail(plan: RoutingPlan) -> RoutingPlan:
        raise InvalidInput("plan", plan.epoch, "another one")

    with pytest.raises(InvalidInput):
        plans.change(connection, "chat", fail, actor="a", action="b", reason="c", evidence={})
    assert (promotion.plan(), len(audit.trail(connection, "chat"))) == before


def test_a_pinned_version_reaches_the_replica_and_stays(
    platform, learner, connection, promotion
) -> None:
    ledger.write(connection, rewards(platform, CHAMPION, 0.5, 50, seed=3))
    wait_until(lambda: learner.position == 50)
    wait_until(
        lambda: connection.execute("SELECT position FROM policy_checkpoints").fetchone() == (50,)
    )
    row = connection.execute("SELECT state FROM policy_checkpoints").fetchone()
    assert row is not None
    pinned = PolicyRef("1.0", 50)
    state = ReplicaState(platform)
    try:
        promotion.replace(pinned, bytes(row[0]), "for a test")
        shelf = state.points["chat"].shelf
        wait_until(lambda: shelf.routes.plan.champion == pinned)
        ledger.write(connection, rewards(platform, CHAMPION, 0.9, 50, seed=4))
        wait_until(lambda: learner.position == 100)
        time.sleep(0.5)
        assert shelf.routes.champion is not None
        assert shelf.routes.champion.version == 50
        assert state.details("chat")["plan"]["champion"]["pinned"] == 50
        promotion.rollback()
        wait_until(lambda: shelf.routes.champion.version == 100)
    finally:
        state.close()
