"""What past requests tell: never a request's own outcome, always the same for the same events."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.replays import ReplayRequest, encode, run_replay
from optimizer.errors import IncompatibleState, InvalidInput, UnknownName
from optimizer.extra_columns import EXTRA_COLUMNS, FEATURE_SETS
from optimizer.features import FeatureEncoder, pack, unpack
from optimizer.policies import PolicySettings, make_policy
from optimizer.recorded import RecordedOutcomes
from optimizer.records import Arm, Context, Outcome
from optimizer.replay import replay
from optimizer.replay_conditions import Conditions, Delay
from optimizer.replay_history import PassHistory
from optimizer.request_history import CLUSTERS, SEGMENTS, RequestHistory
from optimizer.reward import Weights

SIZE = 4
NOTHING = Outcome()

vectors = st.lists(st.floats(-2, 2), min_size=SIZE, max_size=SIZE).map(np.array)
events = st.lists(
    st.tuples(st.none() | vectors, st.none() | st.sampled_from("abc"), st.none() | st.floats(0, 1)),
    max_size=60,
)


def folded(told) -> RequestHistory:
    history = RequestHistory(SIZE)
    for embedding, user, quality in told:
        history.update(embedding, user, NOTHING, Outcome(quality=quality))
    return history


@settings(max_examples=60)
@given(events, st.integers(0, 60), st.none() | vectors, st.none() | st.sampled_from("abcd"))
def test_any_past_is_in_range_and_goes_on_after_a_restart(told, cut, embedding, user) -> None:
    history = folded(told)
    past = history.read(embedding, user)
    assert -1 <= past.similarity <= 1 and 0 <= past.segment < len(SEGMENTS)
    assert all(0 <= quality <= 1 for quality in (past.quality, past.user_quality, past.overall))
    restarted = RequestHistory.from_bytes(folded(told[:cut]).to_bytes())
    for one, of_user, quality in told[cut:]:
        restarted.update(one, of_user, NOTHING, Outcome(quality=quality))
    assert restarted.to_bytes() == history.to_bytes()
    assert restarted.read(embedding, user) == past


def test_similar_requests_share_their_quality() -> None:
    east, north = np.eye(SIZE)[:2]
    history = folded([(east, None, 1.0)] * 50 + [(north, None, 0.0)] * 50)
    assert history.used == 2
    good, bad = history.read(east + 0.1 * north, None), history.read(north, None)
    assert good.similarity > 0.99 and good.quality > 0.9 and bad.quality < 0.1
    assert good.overall == pytest.approx(0.5)
    assert history.read(None, None).quality == history.read(0 * east, None).quality == good.overall


def test_users_are_told_apart_by_what_was_seen_of_them() -> None:
    history = folded([(None, "ann", 1.0)] * 100 + [(None, "bob", 0.0)] * 9)
    found = {user: history.read(None, user) for user in ("ann", "bob", "eve", None)}
    assert [SEGMENTS[past.segment] for past in found.values()] == [
        "heavy", "few", "new", "not told",
    ]  # fmt: skip
    assert found["ann"].user_quality > 0.98 > found["eve"].user_quality > found["bob"].user_quality


def test_there_are_never_more_clusters_than_there_is_room_for() -> None:
    random = np.random.default_rng(0)
    history = RequestHistory(40)
    for row in random.normal(size=(300, 40)):
        history.update(row, None, NOTHING, Outcome(quality=0.5))
    assert history.used == CLUSTERS


def test_the_first_quality_of_a_decision_counts_and_nothing_else() -> None:
    history = folded([(np.ones(SIZE), "ann", 0.5)])
    state = history.to_bytes()
    told = Outcome(quality=0.5)
    for before, after in (
        (told, Outcome(quality=1.0)),
        (told, NOTHING),
        (NOTHING, Outcome(cost_usd=1.0)),
    ):
        history.update(np.ones(SIZE), "ann", before, after)
    assert history.to_bytes() == state


@pytest.mark.parametrize("state", [b"", b"nonsense", RequestHistory(SIZE).to_bytes()[:500]])
def test_what_is_no_history_is_refused(state) -> None:
    with pytest.raises(IncompatibleState, match="not a request history"):
        RequestHistory.from_bytes(state)


def recording(quality_of_first: float = 0.25) -> RecordedOutcomes:
    rows = [
        (
            f"r{i}", f"What is {i} times {i % 7}?", "math", model, f"u{i % 3}",
            quality_of_first if i == 0 else (i % 5) / 4, cost,
        )
        for i in range(40)
        for model, cost in (("small", 0.001), ("large", 0.01))
    ]  # fmt: skip
    names = ["request_id", "prompt", "task", "model", "user_id", "quality", "cost_usd"]
    return RecordedOutcomes.from_frame(pd.DataFrame(rows, columns=names))


class Noted(PassHistory):
    """Keeps what each decision saw."""

    def fill(self, request, features):
        filled = super().fill(request, features)
        self.__dict__.setdefault("noted", []).append((request, filled))
        return filled


def seen(recorded: RecordedOutcomes, conditions: Conditions = Conditions()) -> list:  # noqa: B008
    encoder, features = encode(recorded, FEATURE_SETS["full"])
    policy = make_policy(
        PolicySettings.model_validate({"name": "random"}),
        [Arm(model) for model in recorded.models],
        encoder.size,
        recorded.objective(Weights()),
    )
    history = Noted(encoder, recorded.users)
    replay(recorded, features, policy, 3, conditions=conditions, history=history)
    return history.__dict__["noted"]


def test_no_request_sees_its_own_outcome_and_later_ones_do() -> None:
    one, other = seen(recording(0.0)), seen(recording(1.0))
    at = next(step for step, (request, _) in enumerate(one) if request == 0)
    same = [np.array_equal(a, b) for (_, a), (_, b) in zip(one, other, strict=True)]
    assert all(same[: at + 1]) and not all(same[at + 1 :])


def test_an_outcome_that_is_late_is_not_seen_before_it_comes() -> None:
    late = Conditions(delay=Delay(10.0))
    one, other = seen(recording(0.0), late), seen(recording(1.0), late)
    at = next(step for step, (request, _) in enumerate(one) if request == 0)
    same = [np.array_equal(a, b) for (_, a), (_, b) in zip(one, other, strict=True)]
    assert all(same[: at + 11]) and not all(same[at + 11 :])


def test_without_extra_groups_the_layout_is_what_it_was() -> None:
    encoder = FeatureEncoder(("math",), 2)
    assert encoder.schema_id == 3891177067
    context = Context("Add 12", "math", priority="high", extra=(("team", "a"),))
    plain = encoder.encode(context, np.array([0.1, 0.2]), 1e9)
    full = FeatureEncoder(("math",), 2, FEATURE_SETS["full"])
    assert full.names[: encoder.size] == encoder.names and full.schema_id != encoder.schema_id
    wide = full.encode(context, np.array([0.1, 0.2]), 1e9)
    assert wide[: encoder.size].tolist() == plain.tolist()
    assert len(full.names) == full.size == len(full.groups) == len(wide)


def test_extra_columns_say_what_they_are_named_after() -> None:
    encoder = FeatureEncoder((), 2, FEATURE_SETS["full"])
    history = RequestHistory(2)
    history.update(np.array([0.3, 0.0]), "ann", NOTHING, Outcome(quality=1.0))
    saturday_s = 2 * 86400.0
    contexts = [Context("Wie ist das Wetter?"), Context()]
    embeddings = [np.array([0.3, 0.0]), None]
    vectors = encoder.encode_many(contexts, embeddings, saturday_s, ["ann", None])
    told, nothing = (
        dict(zip(encoder.names, encoder.fill_past(vector, user, history), strict=True))
        for vector, user in zip(vectors, ("ann", None), strict=True)
    )
    assert told["language_de"] == told["weekend"] == pytest.approx(0.3, abs=2e-4)
    assert told["business_hours"] == told["language_other"] == 0.0
    assert sum(abs(told[name]) for name in EXTRA_COLUMNS["user"]) == pytest.approx(0.3, abs=2e-4)
    assert told["past_similarity"] == pytest.approx(0.3, abs=2e-4)
    assert told["past_quality"] > 0 and told["past_user_quality"] > 0
    for name in {*encoder.names[encoder.size - 24 :]} - {"weekend", "past_quality"}:
        assert nothing[name] == 0.0, name
    filled = encoder.fill_past(vectors[0], "ann", history)
    assert unpack(pack(filled)).tolist() == filled.tolist()


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(UnknownName, match="colour"):
        FeatureEncoder((), 2, ("colour",))
    with pytest.raises(InvalidInput, match="once"):
        FeatureEncoder((), 2, ("user", "user"))
    with pytest.raises(InvalidInput, match="embedding"):
        FeatureEncoder((), 0, FEATURE_SETS["full"])
    with pytest.raises(UnknownName, match="big"):
        run_replay(ReplayRequest("paretobandit", features="big"))


def test_a_recording_may_tell_users(tmp_path) -> None:
    recorded = recording()
    assert recorded.users is not None and recorded.users[:4] == ("u0", "u1", "u2", "u0")
    assert recorded.take(np.array([2, 0])).users == ("u2", "u0")
    assert len(recorded.followed_by(recorded).users or ()) == 80
    assert recorded.only(["large"]).users == recorded.users
