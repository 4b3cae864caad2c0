import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.errors import InvalidInput
from optimizer.features import SIDE_COLUMNS, FeatureEncoder
from optimizer.prompt_text import LANGUAGES, READ_CHARACTERS, complexity, language, words
from optimizer.records import Context
from optimizer.transformations import (
    Bins,
    MinMax,
    OneHot,
    ZScore,
    cyclical,
    hashed,
    interaction,
    phase,
    request_cost_usd,
    versions,
)

values = st.floats(-1e6, 1e6)
columns = st.lists(values, min_size=1, max_size=30).map(np.array)
periods = st.sampled_from([1.0, 7.0, 24.0, 86400.0])

ROWWISE = {
    "z-score": ZScore(3.0, 0.7).apply,
    "z-score back": ZScore(3.0, 0.7).invert,
    "min-max": MinMax(-5.0, 11.0).apply,
    "min-max back": MinMax(-5.0, 11.0).invert,
    "bins": Bins((-1.0, 0.0, 0.1, 100.0)).apply,
    "sine": lambda x: cyclical(x, 24.0)[0],
    "cosine": lambda x: cyclical(x, 24.0)[1],
    "phase": lambda x: phase(x, x, 24.0),
    "interaction": lambda x: interaction(x, x),
    "cost": lambda x: request_cost_usd(x, x, x, x),
}


@pytest.mark.parametrize("name", ROWWISE)
@given(column=columns)
def test_the_row_online_is_the_row_of_the_column_offline(name, column):
    apply = ROWWISE[name]
    whole = apply(column)
    for value, expected in zip(column.tolist(), whole.tolist(), strict=True):
        assert apply(value) == pytest.approx(expected, rel=1e-12, abs=1e-12)


@given(columns, columns)
def test_z_scores_go_back(fitted, column):
    scale = ZScore.fit(fitted)
    back = scale.invert(scale.apply(column))
    np.testing.assert_allclose(back, column, rtol=1e-9, atol=1e-9 * (1 + abs(scale.mean)))


@pytest.mark.parametrize("value", [0.0, 0.1, 5e-324, 1e17])
def test_a_constant_column_can_be_fitted(value):
    column = np.array([value] * 7)
    assert ZScore.fit(column).apply(column) == pytest.approx(np.zeros(7), abs=1e-9 * value)
    assert (MinMax.fit(column).apply(column) == 0.0).all()
    assert Bins.fit(column, 3).apply(column).tolist() == [1] * 7


@given(st.lists(st.integers(-1000, 1000), min_size=2, unique=True))
def test_z_scores_of_what_was_fitted_have_mean_0_and_deviation_1(numbers):
    column = np.array(numbers, dtype=float)
    scores = ZScore.fit(column).apply(column)
    assert scores.mean() == pytest.approx(0.0, abs=1e-9)
    assert scores.std() == pytest.approx(1.0)


@given(columns, columns)
def test_min_max_stays_in_range_and_goes_back_inside_it(fitted, column):
    scale = MinMax.fit(fitted)
    shares = scale.apply(column)
    assert ((shares >= 0.0) & (shares <= 1.0)).all()
    np.testing.assert_allclose(
        scale.invert(shares), np.clip(column, scale.low, scale.high), rtol=1e-9, atol=1e-6
    )


@given(columns, st.integers(2, 9))
def test_bins_rise_with_the_value_and_each_holds_its_own(column, count):
    bins = Bins.fit(column, count)
    found = bins.apply(np.sort(column))
    assert (np.diff(found) >= 0).all() and found.min() >= 0 and found.max() <= len(bins.edges)
    assert len(bins.edges) < count
    edges = (-math.inf, *bins.edges, math.inf)
    for value, index in zip(np.sort(column), found, strict=True):
        assert edges[index] <= value < edges[index + 1]


def test_bins_of_different_values_are_equally_full():
    column = np.random.default_rng(3).permutation(100).astype(float)
    found = Bins.fit(column, 4).apply(column)
    assert np.bincount(found).tolist() == [25, 25, 25, 25]


@given(st.floats(0, 0.999), periods, st.integers(-3, 3))
def test_cyclical_goes_back_whatever_the_period_it_is_in(share, period, turns):
    sine, cosine = cyclical((share + turns) * period, period)
    assert sine**2 + cosine**2 == pytest.approx(1.0)
    away = abs(phase(sine, cosine, period) / period - share)
    assert min(away, 1.0 - away) < 1e-9


@given(st.lists(st.sampled_from(["chat", "code", "poem", None]), min_size=1))
def test_one_hot_has_a_single_1_and_goes_back(given_values):
    encoder = OneHot(("chat", "code"))
    table = encoder.apply(given_values)
    assert (table.sum(axis=1) == 1.0).all() and set(np.unique(table)) <= {0.0, 1.0}
    known = [value if value in encoder.categories else None for value in given_values]
    assert encoder.invert(table) == known
    for value, row in zip(given_values, table, strict=True):
        assert (encoder.apply([value])[0] == row).all()


@given(
    st.text(max_size=20),
    st.text(max_size=20) | st.floats(allow_nan=False, allow_infinity=False),
    st.integers(1, 256),
)
def test_hashing_stays_in_its_columns(name, value, count):
    column, amount = hashed(name, value, count)
    assert 0 <= column < count and -1.0 <= amount <= 1.0
    assert (column, amount) == hashed(name, value, count)
    if isinstance(value, str):
        assert abs(amount) == 1.0


def test_hashing_spreads_evenly():
    counts = np.bincount([hashed("user", f"u{i}", 16)[0] for i in range(16_000)], minlength=16)
    # Chi-squared with 15 degrees of freedom: 37.7 is passed once in a thousand.
    assert ((counts - 1000.0) ** 2 / 1000.0).sum() < 37.7


def test_what_policies_see_of_a_hashed_field_has_not_moved():
    encoder = FeatureEncoder((), 0)
    vector = encoder.encode(Context(extra=(("team", "search"), ("load", 3.0))), None, 0.0)
    seen = vector[2 + len(SIDE_COLUMNS) :]
    assert seen.tolist() == [0.0, 0.0, 0.0, 0.300048828125, 0.0, -0.22509765625, 0.0, 0.0]


def test_the_version_names_kind_and_every_number():
    states = [
        *(ZScore(0.0, 1.0), ZScore(0.0, 1.0000000001), MinMax(0.0, 1.0), Bins((0.0, 1.0))),
        *(Bins((0.0,)), OneHot(("a", "b")), OneHot(("b", "a")), OneHot(("a, b",))),
    ]
    assert len({state.version for state in states}) == len(states)
    assert ZScore(0.0, 1.0).version == ZScore.fit(np.array([-1.0, 1.0])).version
    assert versions({"x": Bins((0.0,))}) == {"transform.x": Bins((0.0,)).version}


def test_only_finite_values_are_fitted():
    column = np.array([1.0, math.nan, 3.0, math.inf])
    assert ZScore.fit(column) == ZScore(2.0, 1.0)
    assert MinMax.fit(column) == MinMax(1.0, 3.0)
    for fit in (ZScore.fit, MinMax.fit, lambda empty: Bins.fit(empty, 2)):
        with pytest.raises(InvalidInput, match="finite"):
            fit(np.array([math.nan]))


@pytest.mark.parametrize(
    "make",
    [
        lambda: ZScore(0.0, 0.0),
        lambda: ZScore(math.nan, 1.0),
        lambda: MinMax(1.0, 1.0),
        lambda: MinMax(0.0, math.inf),
        lambda: Bins((1.0, 1.0)),
        lambda: Bins((math.nan,)),
        lambda: Bins.fit(np.array([1.0]), 1),
        lambda: OneHot(("a", "a")),
        lambda: cyclical(1.0, 0.0),
        lambda: hashed("a", "b", 0),
        lambda: hashed("a", "b", 257),
    ],
)
def test_state_that_makes_no_sense_is_refused(make):
    with pytest.raises(InvalidInput):
        make()


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("What is the capital of France?", "en"),
        ("Wie ist das Wetter in Berlin?", "de"),
        ("Quelle est la capitale de la France pour vous?", "fr"),
        ("¿Cómo se llama el perro de los vecinos?", "es"),
        ("Che cosa è successo nel mondo della musica?", "it"),
        ("Não sei como fazer uma torta para você", "pt"),
        ("Wat is het verschil tussen een hond en een kat?", "nl"),
        ("今日の天気はどうですか", "ja"),
        ("今天天气怎么样", "zh"),
        ("오늘 날씨 어때요", "ko"),
        ("Какая сегодня погода?", "ru"),
        ("Translate the word Привет for me, that is what I want to read", "en"),
        ("12 * 30 =", "unknown"),
        ("", "unknown"),
    ],
)
def test_languages_are_guessed(prompt, expected):
    assert language(prompt) == expected


@given(st.text(max_size=300))
def test_any_text_has_words_a_complexity_and_a_language(prompt):
    assert 0.0 <= complexity(prompt) <= 100.0 + READ_CHARACTERS
    assert language(prompt) in LANGUAGES
    assert all(word in prompt for word in words(prompt))


def test_harder_text_reads_harder():
    easy = "The cat sat. The dog ran. We all had fun."
    hard = (
        "Notwithstanding contractual obligations previously established between participating"
        " organisations, subsequent amendments necessitate comprehensive documentation."
    )
    assert complexity(easy) < 20 < 60 < complexity(hard)


def test_only_the_beginning_of_a_long_prompt_is_read():
    head = "What is the plan? " * 200
    assert words(head) == words(head[:READ_CHARACTERS])
    assert complexity(head + "unverhältnismäßig " * 10_000) == complexity(head)
