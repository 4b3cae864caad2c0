"""A feature that comes keeps old tokens and versions valid; one that is used cannot go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import msgspec
import numpy as np
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_repo.embedding import Embedder
from infra.feature_check import announce_features
from optimizer.errors import InvalidInput
from optimizer.feature_schema import FeatureSchema, Translation, Translations
from optimizer.features import FeatureEncoder, pack
from optimizer.records import Context, Outcome
from optimizer.rollout import PolicyRef
from optimizer.settings import DecisionPoint, Settings
from serving import ledger, plans, variants
from serving.feature_schemas import known_schemas, policy_schema
from serving.learner import Learner
from serving.live_point import LivePoint, make_encoder
from serving.logged import read_log
from serving.policy_line import fold, snapshot_of
from serving.promotion import Promotion
from serving.routes import make_point_policy
from serving.snapshots import SnapshotStore
from serving.tokens import CHAMPION, Decision, TokenSigner

KEY = "00" * 16
SIGNER = TokenSigner([KEY])
EMBEDDER = Embedder()
TASKS = ["chat", "math"]
NAMES = st.lists(
    st.sampled_from(["task=a", "task=b", "task=c", "priority", "hour_sin", "x=1", "x=(other)"]),
    unique=True,
)


@pytest.fixture
def make(settings: Callable[..., Settings]) -> Callable[..., Settings]:
    """Settings with some tasks, and more."""

    def made(tasks: list[str], **more: object) -> Settings:
        point = {"name": "chat", "arms": [{"model": "small"}, {"model": "large"}], "tasks": tasks}
        return settings(
            token_keys=[KEY],
            learner={"batch_s": 0.02, "checkpoint_s": 0.05},
            decision_points=[point | {"policy": {"name": "linucb"}} | more],
        )

    return made


@pytest.fixture
def connection(make: Callable[..., Settings]) -> Iterator[psycopg.Connection]:
    with psycopg.connect(make([]).postgres_dsn(), autocommit=True) as opened:
        ledger.create_tables(opened)
        yield opened


def point_of(platform: Settings) -> DecisionPoint:
    return platform.decision_points[0]


def computed(platform: Settings) -> FeatureSchema:
    return make_encoder(point_of(platform), EMBEDDER).schema


def ensure(connection: psycopg.Connection, platform: Settings) -> PolicyRef:
    return plans.ensure(connection, point_of(platform), computed(platform), 1.0).champion


def decided(platform: Settings, count: int, seed: int, at_s: float = 1.7e9) -> list[Decision]:
    random = np.random.default_rng(seed)
    encoder = make_encoder(point_of(platform), EMBEDDER)
    arms = point_of(platform).records()
    return [
        Decision(
            CHAMPION,
            random.bytes(16),
            at_s + number,
            arms[int(random.integers(2))].id,
            0.5,
            0,
            encoder.schema_id,
            "chat",
            pack(encoder.encode(Context(task=str(random.choice(TASKS))), None, at_s)),
        )
        for number in range(count)
    ]


def write(
    connection: psycopg.Connection, decisions: list[Decision], seed: int = 0
) -> list[tuple[Decision, bytes]]:
    """Log decisions and their rewards."""
    random = np.random.default_rng(seed)
    signed = [(one, SIGNER.sign(one)[0]) for one in decisions]
    ledger.write(
        connection,
        [
            ledger.RewardEvent(
                "chat", one.decision_id, "", Outcome(float(random.random()), 0.001), False, raw
            )
            for one, raw in signed
        ],
    )
    for one, raw in signed:
        connection.execute(
            "INSERT INTO decisions VALUES ('chat', %s, to_timestamp(%s), 'small', 'champion', 0.5,"
            " 0, %s)",
            (one.decision_id.hex(), one.decided_at, raw),
        )
    return signed


@given(NAMES, NAMES, st.integers(0, 1000))
def test_columns_are_read_by_their_names(old: list[str], new: list[str], seed: int) -> None:
    source, target = (
        FeatureSchema(("constant", *names, "task=(other)"), (0, *[1] * (len(names) + 1)))
        for names in (old, new)
    )
    vector = np.rint(np.random.default_rng(seed).normal(size=source.size) * 4096) / 4096
    seen = dict(zip(target.names, Translation(source, target)(vector), strict=True))
    told = dict(zip(source.names, vector, strict=True))
    for name in set(target.names) - {"task=(other)", "x=(other)"}:
        assert seen[name] == told.get(name, 0.0)
    folded = [value for name, value in told.items() if name[:5] == "task=" and name not in new]
    assert seen["task=(other)"] == sum(folded)
    assert source == target or not np.shares_memory(vector, Translation(source, target)(vector))


def test_what_a_caller_does_not_tell_is_0() -> None:
    """A column that an old token lacks is read as 0."""
    encoder = FeatureEncoder(("chat",), 4)
    told = dict(zip(encoder.names, encoder.encode(Context(), None, 1.7e9), strict=True))
    known = {"constant", "hour_sin", "hour_cos", "weekday_sin", "weekday_cos"}
    assert {name for name, value in told.items() if value} <= known


@pytest.mark.parametrize("task", ["chat", "math", "poem", None])
def test_fewer_tasks_read_what_the_smaller_encoder_would_have_made(task: str | None) -> None:
    large, small = FeatureEncoder(("math", "chat"), 0), FeatureEncoder(("chat",), 0)
    context = Context("What is 3 + 4?", task)
    seen = Translation(large.schema, small.schema)(large.encode(context, None, 5.0))
    assert seen.tobytes() == small.encode(context, None, 5.0).tobytes()


def test_retired_features_are_named_exactly_or_by_a_pattern() -> None:
    schema = FeatureEncoder(("a[b]", "ab"), 3).schema
    assert set(schema.names) - set(schema.without(["task=a[b]", "embedding_*"]).names) == {
        "task=a[b]",
        *(f"embedding_{index}" for index in range(3)),
    }
    for pattern in ("task=mth", "*", "constant"):
        with pytest.raises(InvalidInput, match="retired_features"):
            schema.without([pattern])


def test_old_tokens_teach_a_larger_layout_and_a_rebuild_gives_the_same_bytes(
    make, connection
) -> None:
    before, after = make(["chat"]), make(TASKS)
    assert ensure(connection, before) == PolicyRef("1.0")
    write(connection, decided(before, 60, seed=1))
    assert ensure(connection, after) == PolicyRef("2.0")
    write(connection, decided(after, 60, seed=2))
    strange = decided(after, 3, seed=3)
    write(connection, [msgspec.structs.replace(one, schema_id=7) for one in strange])
    learner = Learner(after, point_of(after), EMBEDDER)
    learner.start()
    store = SnapshotStore(after.valkey_address)
    for _ in range(1000):
        snapshot = store.newest("chat", PolicyRef("2.0"))
        if snapshot is not None and snapshot.position == 123:
            break
        learner._stop.wait(0.01)
    learner.close()
    store.close()
    assert snapshot is not None
    assert snapshot.schema == computed(after)
    policy = make_point_policy(point_of(after), computed(after))
    skipped: Counter[str] = Counter()
    layouts = Translations(computed(after), known_schemas(connection, "chat").values())
    fold(policy, layouts, ledger.read(connection, "chat", 0, 1000), skipped)
    assert skipped == learner.skipped == {"schema": 3}
    assert policy.snapshot() == snapshot.state
    row = connection.execute("SELECT state FROM policy_checkpoints WHERE variant = '2.0'")
    assert bytes(row.fetchone()[0]) == policy.to_bytes()


def test_a_pinned_version_decides_as_before_after_a_task_was_added(make, connection) -> None:
    before, after = make(["chat"]), make(TASKS)
    ensure(connection, before)
    write(connection, decided(before, 80, seed=4))
    rows = ledger.read(connection, "chat", 0, 1000)
    policy = make_point_policy(point_of(before), computed(before))
    fold(policy, Translations(computed(before)), rows, Counter())
    pinned = PolicyRef("1.0", rows[-1].position)
    promotion = Promotion(before, point_of(before))
    promotion.replace(pinned, policy.to_bytes(), "for a test")
    assert ensure(connection, after) == pinned, "it learns no more, so it keeps its layout"

    def live(platform: Settings) -> LivePoint:
        made = LivePoint(point_of(platform), EMBEDDER, SIGNER, lambda logged: None)
        made.shelf.follow(plans.current(connection, "chat"))
        schema = variants.variant_schemas(connection, "chat")["1.0"]
        made.shelf.take(snapshot_of(point_of(platform), pinned, policy, 80, schema))
        return made

    old, new = live(before), live(after)
    assert old.shelf.routes.champion.translation is None, "no extra work in the ordinary case"
    assert new.shelf.routes.champion.translation is not None
    contexts = [Context("What is 3 + 4?", task) for task in (*TASKS, "poem", None)]
    odds = []
    for point in (old, new):
        features = point.encoder.encode_many(contexts, [None] * 4, 1.7e9)
        serving = point.shelf.routes.champion
        odds.append(serving.policy.probabilities_many(serving.seen(features), ()))
    assert odds[0].tobytes() == odds[1].tobytes()


def test_a_feature_in_use_cannot_go_and_the_way_out_is_told(make, connection) -> None:
    with_math, without = make(TASKS), make(["chat"])
    assert ensure(connection, with_math) == PolicyRef("1.0")
    plan = plans.current(connection, "chat")
    with pytest.raises(
        InvalidInput, match=r"version 1\.0 \(champion\).*retired_features"
    ) as refused:
        ensure(connection, without)
    assert "task=math" in str(refused.value)
    assert plans.current(connection, "chat") == plan
    with pytest.raises(InvalidInput, match="task=math"):
        announce_features(without)
    # Retired, it is still computed, and a champion without it takes over.
    retired = make(TASKS, retired_features=["task=math"])
    assert ensure(connection, retired) == PolicyRef("2.0")
    schema = variants.variant_schemas(connection, "chat")["2.0"]
    assert schema == policy_schema(point_of(retired), computed(retired)) == computed(without)
    with pytest.raises(InvalidInput, match=r"1\.0 \(previous\)"):
        ensure(connection, without)
    promotion = Promotion(retired, point_of(retired))
    with pytest.raises(InvalidInput, match="does not serve"):
        promotion.archive("2.0")
    promotion.archive("1.0")
    announce_features(without)
    assert ensure(connection, without) == PolicyRef("2.0"), "nothing is relearned"
    with pytest.raises(InvalidInput, match=r"version='1\.0': it uses task=math"):
        promotion.replace(PolicyRef("1.0"), None, "for a test")
    with pytest.raises(InvalidInput, match="no other champion"):
        promotion.rollback()


def test_a_rollback_to_an_older_layout_survives_a_restart(make, connection) -> None:
    before, after = make(["chat"]), make(TASKS)
    ensure(connection, before)
    assert ensure(connection, after) == PolicyRef("2.0")
    assert Promotion(after, point_of(after)).rollback().champion == PolicyRef("1.0")
    assert ensure(connection, after) == PolicyRef("1.0")
    assert variants.variant_schemas(connection, "chat")["1.0"] == computed(before)


def test_a_log_with_two_layouts_is_read_in_one(make, connection) -> None:
    before, after = make(["chat"]), make(TASKS)
    for platform in (before, after):
        ensure(connection, platform)
    write(connection, decided(before, 30, seed=5))
    write(connection, decided(after, 30, seed=6, at_s=1.7e9 + 100))
    found = read_log(
        connection,
        "chat",
        point_of(after).records(),
        ("small", "large"),
        Translations(computed(after), known_schemas(connection, "chat").values()),
        datetime.fromtimestamp(1.69e9, UTC),
        datetime.fromtimestamp(1.71e9, UTC),
    )
    assert not found.skipped
    math, other = map(computed(after).names.index, ("task=math", "task=(other)"))
    features = found.decisions.features
    assert features.shape == (60, computed(after).size)
    assert not features[:30, math].any()
    assert features[:30, other].any()
    assert features[30:, math].any()
    assert not features[30:, other].any()
