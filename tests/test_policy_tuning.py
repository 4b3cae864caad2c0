"""The search for policy settings, on a log whose answer is known, and resumed from PostgreSQL."""

import itertools
import time
from collections.abc import Callable

import numpy as np
import psycopg
import pytest

from feature_repo.embedding import Embedder
from optimizer.errors import InvalidInput
from optimizer.features import pack
from optimizer.offpolicy import LoggedDecisions
from optimizer.offpolicy.logged import LoggedRow
from optimizer.policies import Policy, PolicySettings, make_policy
from optimizer.policy_tuning import search
from optimizer.records import Arm, Outcome
from optimizer.reward import Objective, Weights
from optimizer.study_plots import draw_study
from serving import decision_log, ledger, plans, variants
from serving.live_point import make_encoder
from serving.tokens import CONTROL, Decision, TokenSigner
from serving.tuning_store import study_storage

ARMS = (Arm("small"), Arm("middle"), Arm("large"))
OBJECTIVE = Objective(Weights(quality=1, cost=0, latency=0))
STATIC = PolicySettings(name="static")


def make(settings: PolicySettings) -> Policy:
    return make_policy(settings, ARMS, 3, OBJECTIVE)


def logged(rows: int, seed: int = 0) -> LoggedDecisions:
    """Drawn uniformly; the second arm is right for one kind of request, the third for the other."""
    random = np.random.default_rng(seed)
    made = []
    for row in range(rows):
        kind = int(random.integers(2))
        arm = int(random.integers(3))
        chance = 0.9 if arm == 1 + kind else 0.3
        outcome = Outcome(quality=float(random.random() < chance))
        vector = np.array([1.0, float(kind), 1.0 - kind])
        made.append(LoggedRow(vector, arm, 1 / 3, float(row), outcome, "control"))
    return LoggedDecisions.from_rows(made, tuple(arm.model for arm in ARMS))


def test_what_learns_is_found_better_than_what_is_fixed() -> None:
    found, _ = search(logged(1500), OBJECTIVE, STATIC, make, "chat", trials=6)
    assert found.better and found.best.name != "static"
    assert found.present_reward == pytest.approx(0.3, abs=0.08)
    assert found.best_reward == pytest.approx(0.9, abs=0.08)


def test_a_search_goes_on_where_another_stopped(settings, tmp_path) -> None:
    storage = study_storage(settings().postgres_dsn())
    log = logged(600)
    first, _ = search(log, OBJECTIVE, STATIC, make, "chat", trials=3, storage=storage)
    assert first.trials == 3
    again, study = search(log, OBJECTIVE, STATIC, make, "chat", trials=9, storage=storage)
    assert again.trials == 9
    done, _ = search(log, OBJECTIVE, STATIC, make, "chat", trials=9, storage=storage)
    assert (done.trials, done.best) == (9, again.best)
    assert study.trials[0].params["name"] == "static"
    files = draw_study(study, tmp_path)
    assert [file.name for file in files] == ["history.png", "importance.png"]
    assert all(file.stat().st_size > 1000 for file in files)


def make_until(last: int) -> Callable[[PolicySettings], Policy]:
    calls = itertools.count(1)

    def dies(policy: PolicySettings) -> Policy:
        if next(calls) == last:
            raise KeyboardInterrupt
        return make(policy)

    return dies


def test_a_search_that_was_cut_off_ends_as_one_that_was_not(settings) -> None:
    storage, log = study_storage(settings().postgres_dsn()), logged(600)
    whole, _ = search(log, OBJECTIVE, STATIC, make, "whole", trials=4)
    for last in (1, 3):  # within the first trial, and later
        cut = make_until(last)
        with pytest.raises(KeyboardInterrupt):
            search(log, OBJECTIVE, STATIC, cut, str(last), trials=4, storage=storage)
        again, _ = search(log, OBJECTIVE, STATIC, make, str(last), trials=4, storage=storage)
        assert again == whole


def test_too_short_a_log_is_refused() -> None:
    with pytest.raises(InvalidInput, match="400 decisions"):
        search(logged(100), OBJECTIVE, STATIC, make, "chat", trials=1)


@pytest.mark.timeout(600)
def test_the_flow_offers_what_it_finds_and_serves_nothing(settings, flows, mlflow_url) -> None:
    arms = [{"model": arm.model} for arm in ARMS]
    point = {"name": "chat", "arms": arms, "weights": {"quality": 1, "cost": 0, "latency": 0}}
    point["policy"] = {"name": "random"}
    platform = settings(decision_points=[point], mlflow_url=mlflow_url, token_keys=["00" * 16])
    assert "no decisions were logged" in flows.run(platform, "tune(trials=4)")

    signer, random = TokenSigner(["00" * 16]), np.random.default_rng(5)
    live = platform.decision_points[0]
    encoder, events = make_encoder(live, Embedder()), []
    with psycopg.connect(platform.postgres_dsn(), autocommit=True) as connection:
        ledger.create_tables(connection)
        plan = plans.ensure(connection, live, encoder.schema, 0.0)
    log = decision_log.DecisionLog(platform.postgres_dsn())
    for row in range(900):
        arm = int(random.integers(3))
        features = np.zeros(encoder.size)
        features[0] = 1.0
        decision = Decision(
            CONTROL, random.bytes(16), time.time() - 3600 + row, live.records()[arm].id, 1 / 3, 0,
            encoder.schema_id, "chat", pack(features),
        )  # fmt: skip
        raw, _ = signer.sign(decision)
        log.add(decision_log.LoggedDecisions("chat", [ARMS[arm].model], [CONTROL], [raw]))
        quality = float(random.random() < (0.3, 0.3, 0.9)[arm])
        told = Outcome(quality=quality)
        events.append(ledger.RewardEvent("chat", decision.decision_id, "", told, False, raw))
    log.close()
    with psycopg.connect(platform.postgres_dsn(), autocommit=True) as connection:
        ledger.write(connection, events)
    said = flows.run(platform, "tune(trials=4)")
    assert "is worth a canary" in said
    assert "is worth a canary" in flows.artifacts("tune-chat")[0]
    assert "uniform_share" in flows.artifacts("tune-chat-settings")[0]
    with psycopg.connect(platform.postgres_dsn(), autocommit=True) as connection:
        assert plans.current(connection, "chat") == plan
        assert len(variants.variants(connection, "chat")) == 2
