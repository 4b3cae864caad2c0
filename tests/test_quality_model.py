import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from optimizer.boosted_trees import grow, read_sklearn
from optimizer.errors import IncompatibleState, InvalidInput
from optimizer.features import FeatureEncoder
from optimizer.quality_design import QualityDesign, QualityRows, request_groups
from optimizer.quality_model import QualityModel
from optimizer.quality_score import calibration_bins, compare, score
from optimizer.records import Arm, Context
from optimizer.response_facts import RESPONSE_FACTS, response_facts, unknown_facts

ENCODER = FeatureEncoder(("chat", "math"), 4)
ARMS = [Arm("small"), Arm("large")]


def truth(rows: QualityRows) -> np.ndarray:
    """The chance of a good answer: the large arm is good, the small one where it is easy."""
    hard = rows.requests[:, ENCODER.names.index("embedding_0")]
    return np.where(rows.arms == 1, 0.9, 1.0 / (1.0 + np.exp(8.0 * hard)))


def simulated(number: int, seed: int, *, told: bool = False, refused: float = 0.5) -> QualityRows:
    random = np.random.default_rng(seed)
    contexts = [Context(task=("chat", "math")[row % 2]) for row in range(number)]
    embeddings = list(random.normal(0.0, 0.5, (number, 4)))
    requests = ENCODER.encode_many(contexts, embeddings, 0.0)
    blank = QualityRows(
        requests, random.integers(2, size=number), np.zeros(number), unknown_facts(number)
    )
    quality = (random.random(number) < truth(blank)) * 1.0
    facts = unknown_facts(number)
    if told:
        facts[:] = response_facts("a question", "a full answer.")
        refusals = random.random(number) < refused
        facts[refusals] = response_facts("a question", "I'm sorry, I cannot help with that.")
        quality = quality * ~refusals
    return QualityRows(requests, blank.arms, quality, facts)


@pytest.fixture(scope="module")
def model() -> QualityModel:
    return QualityModel.fit(simulated(3000, 1), ENCODER.names, ARMS, seed=1)


def arms_of(rows: QualityRows) -> list[Arm]:
    return [ARMS[arm] for arm in rows.arms]


def test_it_finds_the_truth_and_is_calibrated(model: QualityModel) -> None:
    rows = simulated(4000, 2)
    predicted = model.predict(rows.requests, arms_of(rows))
    found, best = score(predicted, rows.quality), score(truth(rows), rows.quality)
    assert found.calibration_error < 0.05
    assert found.pearson is not None and best.pearson is not None
    assert found.pearson > 0.9 * best.pearson
    assert np.corrcoef(predicted, truth(rows))[0, 1] > 0.95
    means = QualityDesign.of(simulated(3000, 1), ENCODER.names, ARMS, seed=1).means
    assert found.brier < score(means.arm[rows.arms], rows.quality).brier - 0.05


def test_the_same_rows_give_the_same_bytes_and_they_come_back(model: QualityModel) -> None:
    content = model.to_bytes()
    again = QualityModel.fit(simulated(3000, 1), ENCODER.names, ARMS, seed=1)
    assert again.to_bytes() == content
    read, rows = QualityModel.from_bytes(content), simulated(100, 3)
    assert read.to_bytes() == content and read.names == ENCODER.names
    np.testing.assert_array_equal(
        read.predict(rows.requests, arms_of(rows)), model.predict(rows.requests, arms_of(rows))
    )


@given(cut=st.floats(0, 0.999), byte=st.integers(0, 255))
def test_what_is_no_model_is_refused(model: QualityModel, cut: float, byte: int) -> None:
    content = model.to_bytes()
    place = int(cut * len(content))
    with pytest.raises(IncompatibleState):
        QualityModel.from_bytes(content[:place])
    changed = content[:place] + bytes([byte]) + content[place + 1 :]
    try:
        read = QualityModel.from_bytes(changed)
    except IncompatibleState:
        return
    assert np.isfinite(read.predict(np.zeros((1, ENCODER.size)), [ARMS[0]])).all()


def test_a_pickle_is_never_loaded() -> None:
    import io
    import pickle

    buffer = io.BytesIO()
    np.savez(buffer, start=np.array([object()], dtype=object))
    for content in (buffer.getvalue(), pickle.dumps({"start": 1}), b""):
        with pytest.raises(IncompatibleState):
            QualityModel.from_bytes(content)


def test_trees_say_what_scikit_learn_says() -> None:
    from sklearn.ensemble import HistGradientBoostingRegressor

    random = np.random.default_rng(0)
    table = random.normal(size=(500, 5))
    table[random.random((500, 5)) < 0.2] = np.nan
    target = np.nan_to_num(table[:, 0]) ** 2 + np.isnan(table[:, 1])
    regressor = HistGradientBoostingRegressor(max_iter=30, random_state=0)
    with threadpool_limits(1):
        regressor.fit(table, target)
    trees = read_sklearn(regressor, np.arange(5), 5)
    np.testing.assert_allclose(trees.predict(table), regressor.predict(table), atol=1e-9)


def test_growing_skips_columns_without_values() -> None:
    random = np.random.default_rng(0)
    table = np.column_stack([np.full(300, np.nan), random.normal(size=300)])
    trees = grow(table, table[:, 1], (table[:50], table[:50, 1]), seed=0)
    assert set(trees.column[trees.left != np.arange(len(trees.left))]) == {1}


def test_an_arm_it_never_saw_counts_as_typical(model: QualityModel) -> None:
    request = simulated(1, 4).requests
    assert 0.0 <= model.predict(request, [Arm("new")])[0] <= 1.0
    assert model.has_seen(ARMS[0]) and not model.has_seen(Arm("new"))


def test_facts_about_responses_count_where_they_were_told(model: QualityModel) -> None:
    taught = QualityModel.fit(simulated(2000, 5, told=True), ENCODER.names, ARMS, seed=1)
    request = np.repeat(simulated(1, 6).requests, 2, axis=0)
    facts = np.vstack(
        [
            response_facts("a question", "a full answer."),
            response_facts("a question", "I'm sorry, I cannot help with that."),
        ]
    )
    good, refused = taught.predict(request, [ARMS[1]] * 2, facts)
    assert taught.knows_responses and refused < 0.2 and good > 0.6
    assert not model.knows_responses
    assert len(set(model.predict(request, [ARMS[1]] * 2, facts))) == 1


def test_an_arm_that_has_not_answered_is_not_expected_to_answer_as_most_do() -> None:
    """All responses were told and a fifth refused: what is not known is no full answer."""
    rows = simulated(3000, 8, told=True, refused=0.2)
    model = QualityModel.fit(rows, ENCODER.names, ARMS, seed=1)
    later = simulated(3000, 9, told=True, refused=0.2)
    untold = model.predict(later.requests, arms_of(later))
    assert untold.mean() == pytest.approx(later.quality.mean(), abs=0.03)
    told = model.predict(later.requests, arms_of(later), later.responses)
    assert told.mean() == pytest.approx(later.quality.mean(), abs=0.03)


def test_one_prompt_is_never_on_both_sides() -> None:
    contexts = [Context(prompt="again", task="chat")] * 3 + [Context(prompt="other", task="chat")]
    early = ENCODER.encode_many(contexts, [np.full(4, 0.5)] * 3 + [np.full(4, 0.1)], 0.0)
    late = ENCODER.encode_many(contexts, [np.full(4, 0.5)] * 3 + [np.full(4, 0.1)], 50_000.0)
    groups = request_groups(np.vstack([early, late]), ENCODER.names)
    assert list(groups == groups[0]) == [True, True, True, False, True, True, True, False]


def test_too_little_is_refused() -> None:
    with pytest.raises(InvalidInput, match="200 or more"):
        QualityModel.fit(simulated(150, 1), ENCODER.names, ARMS, seed=1)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=50))
def test_scores_stay_in_their_ranges(pairs: list[tuple[float, float]]) -> None:
    predicted, quality = np.array(pairs).T
    assume(all(not np.ptp(one) or np.std(one) > 1e-6 for one in (predicted, quality)))
    found = score(predicted, quality)
    assert 0.0 <= found.brier <= 1.0 and 0.0 <= found.calibration_error <= 1.0
    assert found.pearson is None or abs(found.pearson) <= 1.0 + 1e-9
    assert sum(count for *_, count in calibration_bins(predicted, quality)) == len(pairs)


def test_calibration_error_is_the_shift() -> None:
    random = np.random.default_rng(0)
    chance = random.random(20_000)
    quality = (random.random(20_000) < chance) * 1.0
    assert score(chance, quality).calibration_error < 0.02
    shifted = score(np.clip(chance + 0.2, 0, 2), quality)
    assert shifted.calibration_error == pytest.approx(0.2, abs=0.01)


def test_the_better_of_two_models_is_seen() -> None:
    rows = simulated(2000, 7)
    groups = np.arange(2000)
    constant = np.full(2000, rows.quality.mean())
    better = compare(truth(rows), constant, rows.quality, groups)
    assert better.high < 0 and better.low < better.difference < better.high
    assert compare(constant, constant, rows.quality, groups).difference == 0.0


@pytest.mark.parametrize(
    ("response", "fact", "value"),
    [
        ("", "empty", 1.0),
        ("  \n", "empty", 1.0),
        ("I cannot help.", "refusal", 1.0),
        ("Ich kann das nicht beantworten.", "refusal", 1.0),
        ("Paris.", "refusal", 0.0),
        ("It is Par", "cut_off", 1.0),
        ("It is Paris.", "cut_off", 0.0),
        ("1234", "digit_share", 1.0),
        ("```x```", "code_share", 1.0),
        ("Das ist die Stadt, und sie ist nicht für den Markt.", "other_language", 1.0),
        ("This is the city of the king and it is not for you.", "other_language", 0.0),
    ],
)
def test_facts_of_a_response(response: str, fact: str, value: float) -> None:
    found = response_facts("What is the capital of this land?", response)
    assert found[RESPONSE_FACTS.index(fact)] == value


def test_similarity_needs_both_embeddings() -> None:
    place = RESPONSE_FACTS.index("similarity")
    one = np.array([1.0, 0.0])
    assert math.isnan(response_facts("a", "b")[place])
    assert response_facts("a", "b", one, one)[place] == 1.0
    assert math.isnan(response_facts("a", "b", one, 0 * one)[place])


@given(st.text(max_size=300), st.none() | st.text(max_size=50))
def test_facts_are_finite_or_unknown(response: str, prompt: str | None) -> None:
    found = response_facts(prompt, response)
    assert found.shape == (len(RESPONSE_FACTS),) and not np.isinf(found).any()
