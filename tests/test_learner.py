"""The learner on real servers: its state is a pure function of the ledger."""

import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import psycopg
import pytest
import redis

from feature_repo.embedding import Embedder
from optimizer.feature_schema import Translations
from optimizer.features import pack
from optimizer.records import Outcome
from optimizer.settings import Settings
from serving import ledger
from serving.learner import Learner
from serving.live_point import make_encoder
from serving.policy_line import fold
from serving.retention import retire_ledger
from serving.routes import make_point_policy
from serving.snapshots import Snapshot, SnapshotStore
from serving.tokens import CHAMPION, FALLBACK, Decision, TokenSigner

KEY = "00" * 16
EMBEDDER = Embedder()


@pytest.fixture
def platform(settings: Callable[..., Settings]) -> Settings:
    return settings(token_keys=[KEY], learner={"batch_s": 0.02, "checkpoint_s": 0.05})


def events(platform: Settings, seed: int, count: int) -> list[ledger.RewardEvent]:
    """Rewards with corrections, repeats, retractions, fallbacks and arms that are gone."""
    random = np.random.default_rng(seed)
    point = platform.decision_points[0]
    encoder = make_encoder(point, EMBEDDER)
    signer = TokenSigner([KEY])
    made: list[ledger.RewardEvent] = []
    for _ in range(count):
        if made and random.random() < 0.3:
            old = made[int(random.integers(len(made)))]
            outcome = Outcome(quality=float(random.random()))
            retract = bool(random.random() < 0.2)
            made.append(
                ledger.RewardEvent(
                    point.name,
                    old.decision_id,
                    old.event_id,
                    Outcome() if retract else outcome,
                    retract,
                    old.token,
                )
            )
            continue
        arm_ids = [arm.id for arm in point.records()] + [b"gone    "]
        decision = Decision(
            FALLBACK if random.random() < 0.1 else CHAMPION,
            random.bytes(16),
            1.7e9,
            arm_ids[int(random.integers(len(arm_ids)))],
            0.5,
            0,
            encoder.schema_id,
            point.name,
            pack(np.round(random.normal(size=encoder.size) * 4096) / 4096),  # the encoder's grid
        )
        outcome = Outcome(quality=float(random.random()), cost_usd=float(random.random()))
        raw, _ = signer.sign(decision)
        made.append(ledger.RewardEvent(point.name, decision.decision_id, "", outcome, False, raw))
    return made


def newest(platform: Settings) -> Snapshot | None:
    store = SnapshotStore(platform.valkey_address)
    try:
        return store.newest("chat")
    finally:
        store.close()


def wait_for_position(platform: Settings, position: int) -> Snapshot:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        snapshot = newest(platform)
        if snapshot is not None and snapshot.position >= position:
            return snapshot
        time.sleep(0.02)
    raise AssertionError(f"no snapshot at {position}, newest is {snapshot and snapshot.position}")


def checkpoint(platform: Settings) -> bytes:
    """The state that a learner that was closed has left."""
    with psycopg.connect(platform.postgres_dsn()) as connection:
        row = connection.execute(
            "SELECT state FROM policy_checkpoints ORDER BY saved_at DESC"
        ).fetchone()
    assert row is not None
    return bytes(row[0])


def rebuilt(platform: Settings) -> tuple[bytes, Counter[str]]:
    """The state that the whole ledger gives when it is folded at once."""
    point = platform.decision_points[0]
    encoder = make_encoder(point, EMBEDDER)
    policy = make_point_policy(point, encoder)
    skipped: Counter[str] = Counter()
    with psycopg.connect(platform.postgres_dsn(), autocommit=True) as connection:
        rows = ledger.read(connection, "chat", 0, 10_000)
        fold(policy, Translations(encoder.schema), rows, skipped)
    return policy.to_bytes(), skipped


def test_state_after_many_restarts_is_the_same_bytes_as_one_fold(platform) -> None:
    told = events(platform, seed=1, count=400)
    written = 0
    with psycopg.connect(platform.postgres_dsn(), autocommit=True) as connection:
        ledger.create_tables(connection)
        for part in range(4):
            learner = Learner(platform, platform.decision_points[0], EMBEDDER)
            learner.start()
            for start in range(part * 100, part * 100 + 100, 17):
                batch = told[start : min(start + 17, part * 100 + 100)]
                written += len(batch) - sum(ledger.write(connection, batch))
            if part < 3:
                time.sleep(0.05 * part)
                learner.close()
        snapshot = wait_for_position(platform, written)
        learner.close()
    state, skipped = rebuilt(platform)
    assert snapshot.position == written
    assert checkpoint(platform) == state
    assert skipped["fallback"] > 0
    assert skipped["arm"] > 0


def test_only_one_learner_writes(platform) -> None:
    first = Learner(platform, platform.decision_points[0], EMBEDDER)
    first.start()
    wait_for_position(platform, 0)
    second = Learner(platform, platform.decision_points[0], EMBEDDER)
    second.start()
    with psycopg.connect(platform.postgres_dsn(), autocommit=True) as connection:
        ledger.write(connection, events(platform, 2, 20))
        written = ledger.head(connection, "chat")
        wait_for_position(platform, written)
        assert (first.position, second.position) == (written, 0)
        first.close()
        ledger.write(connection, events(platform, 3, 20))
        wait_for_position(platform, ledger.head(connection, "chat"))
    second.close()
    assert checkpoint(platform) == rebuilt(platform)[0]


def test_other_settings_start_from_the_beginning_of_the_ledger(platform) -> None:
    with psycopg.connect(platform.postgres_dsn(), autocommit=True) as connection:
        ledger.create_tables(connection)
        ledger.write(connection, events(platform, 4, 50))
        written = ledger.head(connection, "chat")
    learner = Learner(platform, platform.decision_points[0], EMBEDDER)
    learner.start()
    wait_for_position(platform, written)
    learner.close()
    point = platform.decision_points[0].model_copy(
        update={"policy": platform.decision_points[0].policy.model_copy(update={"horizon": 500.0})}
    )
    changed = platform.model_copy(update={"decision_points": (point,)})
    learner = Learner(changed, point, EMBEDDER)
    learner.start()
    end = time.monotonic() + 10
    while learner.position < written and time.monotonic() < end:
        time.sleep(0.02)
    learner.close()
    assert checkpoint(changed) == rebuilt(changed)[0]


def test_statistics_follow_what_was_learned(platform) -> None:
    learner = Learner(platform, platform.decision_points[0], EMBEDDER)
    learner.start()
    wait_for_position(platform, 0)
    with psycopg.connect(platform.postgres_dsn(), autocommit=True) as connection:
        ledger.write(connection, events(platform, 5, 60))
        wait_for_position(platform, ledger.head(connection, "chat"))
    with learner.statistics_lock:
        values = learner.statistics.values(1.7e9)
    learner.close()
    assert set(values) == {"small", "large"}
    assert all(0 <= one.quality <= 1 for one in values.values())


def test_without_a_checkpoint_it_goes_on_from_the_registry(platform) -> None:
    """What the ledger no longer has is taken from the registered champion."""
    point = platform.decision_points[0]
    first = Learner(platform, point, EMBEDDER)
    first.start()
    with psycopg.connect(platform.postgres_dsn(), autocommit=True) as connection:
        ledger.create_tables(connection)
        told = events(platform, 6, 80)
        ledger.write(connection, told[:40])
        early = wait_for_position(platform, ledger.head(connection, "chat"))
        early_state = rebuilt(platform)[0]
        ledger.write(connection, told[40:])
        full = wait_for_position(platform, ledger.head(connection, "chat"))
        first.close()
        full_state = checkpoint(platform)
        connection.execute("DELETE FROM policy_checkpoints")
        connection.execute("DELETE FROM rewards WHERE position <= %s", (early.position,))
    clear(platform)
    champions = {(point.name, early.lineage): (early.position, early_state)}
    second = Learner(
        platform, point, EMBEDDER, restore=lambda name, lineage: champions.get((name, lineage))
    )
    second.start()
    wait_for_position(platform, full.position)
    second.close()
    assert checkpoint(platform) == full_state


def test_old_weeks_that_are_gone_change_nothing_for_a_restarted_learner(platform, tmp_path) -> None:
    point = platform.decision_points[0]
    told = events(platform, 7, 60)  # of 2023
    with psycopg.connect(platform.postgres_dsn(), autocommit=True) as connection:
        ledger.create_tables(connection)
        first = Learner(platform, point, EMBEDDER)
        first.start()
        ledger.write(connection, told[:40])
        wait_for_position(platform, ledger.head(connection, "chat"))
        first.close()
        rows = ledger.read(connection, "chat", 0, 1000)
        report = retire_ledger(platform, time.time(), tmp_path)
        assert report.rewards and report.held == ()
        assert ledger.read(connection, "chat", 0, 1000) == []
        ledger.write(connection, told[40:])
        rows += ledger.read(connection, "chat", 0, 1000)
        second = Learner(platform, point, EMBEDDER)
        second.start()
        wait_for_position(platform, rows[-1].position)
        second.close()
    encoder = make_encoder(point, EMBEDDER)
    policy = make_point_policy(point, encoder)
    fold(policy, Translations(encoder.schema), rows, Counter())
    assert checkpoint(platform) == policy.to_bytes()


def test_a_valkey_that_lost_its_data_gets_the_snapshot_again(platform, monkeypatch) -> None:
    monkeypatch.setattr("serving.policy_line._REPUBLISH_S", 0.2)
    learner = Learner(platform, platform.decision_points[0], EMBEDDER)
    learner.start()
    wait_for_position(platform, 0)
    clear(platform)
    wait_for_position(platform, 0)
    learner.close()


def clear(platform: Settings) -> None:
    with redis.Redis.from_url(platform.valkey_address) as client:
        client.flushall()
