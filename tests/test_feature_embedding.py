import importlib.util
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from feature_repo import fit_projection
from feature_repo.embedding import (
    _ASCII_PIECE,
    _PIECE,
    HEAD_CHARACTERS,
    PROJECTION_FILE,
    TAIL_CHARACTERS,
    Embedder,
    WordVectors,
)
from optimizer.errors import IncompatibleState, InvalidInput
from optimizer.projection import SPREAD, Projection, principal_axes, unit_rows


@pytest.fixture(scope="module")
def embedder():
    return Embedder()


@pytest.fixture(scope="module")
def words():
    return WordVectors()


def wordllama_tokenizer():
    folder = Path(importlib.util.find_spec("wordllama").submodule_search_locations[0])
    return Tokenizer.from_file(str(folder / "tokenizers/l2_supercat_tokenizer_config.json"))


@pytest.fixture(scope="module")
def reference():
    """The mean of the token vectors of a whole text, as wordllama defines it."""
    tokenizer = wordllama_tokenizer()
    vectors = WordVectors()._vectors

    def mean(text):
        tokens = tokenizer.encode(text, add_special_tokens=False).ids
        return vectors[tokens].sum(axis=0) / max(len(tokens), 1)

    return mean


def test_pieces_have_the_tokens_of_the_whole_for_recorded_prompts(words, reference):
    prompts = [p for p in fit_projection.recorded_prompts() if len(p) <= HEAD_CHARACTERS][::7]
    for prompt in prompts:
        np.testing.assert_array_equal(words.mean(prompt), reference(prompt))


@given(st.text(max_size=60) | st.text(" ab.\n\t_-²é日ก\ufffd\U0001f600９9'(", max_size=60))
def test_pieces_have_the_tokens_of_the_whole_for_any_text(words, reference, text):
    if not any(mark in text for mark in ("<s>", "</s>", "<unk>")):
        np.testing.assert_allclose(words.mean(text), reference(text), atol=1e-6)


def test_no_token_of_the_vocabulary_is_cut():
    for token in wordllama_tokenizer().get_vocab():
        text = token.replace("\u2581", " ")
        if not re.fullmatch("<0x..>|<unk>|</?s>", token):
            assert _PIECE.findall(text) == [text]
            assert not text.isascii() or _ASCII_PIECE.findall(text) == [text]


def test_an_embedding_has_its_shape_and_type(embedder):
    vector = embedder.embed("How many moons has Mars?")
    assert vector.shape == (embedder.size,) and vector.dtype == np.float64
    assert np.isfinite(vector).all() and vector.any()


def test_an_empty_prompt_is_zero(embedder):
    assert not embedder.embed("").any()


def test_many_are_the_same_as_one_by_one(embedder):
    prompts = ["Sum 2 and 3.", "", "Write a poem", "x" * 5000]
    np.testing.assert_array_equal(
        embedder.embed_many(prompts), [embedder.embed(prompt) for prompt in prompts]
    )
    assert embedder.embed_many([]).shape == (0, embedder.size)


def test_similar_prompts_are_nearer_than_others(embedder):
    sums, more_sums, poem = embedder.embed_many(
        ["What is 12 times 7?", "What is 45 times 9?", "Write a poem about the sea in spring"]
    )
    assert np.linalg.norm(sums - more_sums) < 0.5 * np.linalg.norm(sums - poem)


def test_only_the_ends_of_a_long_prompt_count(embedder):
    head, tail = "begin " * (HEAD_CHARACTERS // 6), "a question" * (TAIL_CHARACTERS // 10)
    one = embedder.embed(head + "middle " * 1000 + tail)
    other = embedder.embed(head + "something else " * 70_000 + tail)
    np.testing.assert_array_equal(one, other)
    assert (embedder.embed(head + "middle " * 1000 + "another end") != one).any()


@pytest.mark.parametrize("unit", ["a", " ", "\n", "日本語", "word "])
def test_a_megabyte_does_not_stall(embedder, unit):
    prompt = unit * (1_000_000 // len(unit))
    started = time.perf_counter()
    embedder.embed(prompt)
    assert time.perf_counter() - started < 1.0  # a whole one takes seconds


def test_memory_of_pieces_is_bounded(monkeypatch):
    monkeypatch.setattr("feature_repo.embedding._PIECES_REMEMBERED", 10)
    small, fresh = WordVectors(), WordVectors()
    for number in range(50):
        text = f"word{chr(97 + number % 26)}{chr(97 + number // 26)} " * 3
        np.testing.assert_array_equal(small.mean(text), fresh.mean(text))
        assert len(small._tokens) <= 10


def test_recorded_prompts_are_centred_and_scaled(embedder):
    vectors = embedder.embed_many(fit_projection.recorded_prompts())
    assert np.abs(vectors.mean(axis=0)).max() < 0.01
    assert vectors.std(axis=0).mean() == pytest.approx(SPREAD, rel=0.01)


def test_the_projection_that_ships_is_the_one_that_is_fitted(embedder):
    fitted = fit_projection.fit(fit_projection.recorded_prompts())
    shipped = Projection.from_bytes(PROJECTION_FILE.read_bytes())
    assert embedder.size == fit_projection.SIZE
    for name in ("mean", "axes", "scale"):
        np.testing.assert_allclose(getattr(shipped, name), getattr(fitted, name), atol=1e-5)


def test_fitting_again_writes_the_same_file(tmp_path, monkeypatch):
    again = tmp_path / "projection.npz"
    monkeypatch.setattr(fit_projection, "PROJECTION_FILE", again)
    fit_projection.main()
    first = again.read_bytes()
    fit_projection.main()
    assert again.read_bytes() == first


def test_versions_differ_with_the_projection(embedder, tmp_path):
    other = tmp_path / "other.npz"
    other.write_bytes(fit_projection.fit(["one thing", "another", "a third"], 2).to_bytes())
    assert Embedder(other).version != embedder.version
    assert Embedder(other).size == 2


def test_refuses_a_file_that_is_no_projection(tmp_path):
    wrong = tmp_path / "wrong.npz"
    wrong.write_bytes(b"no archive")
    with pytest.raises(IncompatibleState, match="not a projection"):
        Embedder(wrong)


def test_loads_neither_feast_nor_heavy_libraries():
    code = (
        "import sys, feature_repo.aggregates; from feature_repo.embedding import Embedder;"
        "Embedder(); print({'feast', 'torch', 'sklearn', 'wordllama'} & sys.modules.keys())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"


def test_axes_find_the_directions_of_a_known_cloud():
    generator = np.random.default_rng(0)
    cloud = generator.normal(size=(4000, 3)) * [1.0, 5.0, 0.1] + [7.0, 0.0, 0.0]
    mean, axes, scale = principal_axes(cloud, 2)
    np.testing.assert_allclose(mean, [7.0, 0.0, 0.0], atol=0.3)
    np.testing.assert_allclose(axes, [[0, 1], [1, 0], [0, 0]], atol=0.05)
    assert scale == pytest.approx(3.0, rel=0.05)


@given(st.integers(1, 4), st.integers(0, 1000))
def test_axes_are_orthonormal_with_fixed_signs(size, seed):
    rows = np.random.default_rng(seed).normal(size=(30, 4))
    _, axes, _ = principal_axes(rows, size)
    np.testing.assert_allclose(axes.T @ axes, np.eye(size), atol=1e-9)
    assert (axes[np.abs(axes).argmax(axis=0), np.arange(size)] > 0).all()


@pytest.mark.parametrize(
    ("rows", "size"), [((1, 3), 1), ((5, 3), 0), ((5, 3), 4)], ids=["one row", "none", "too many"]
)
def test_axes_refuse_what_has_none(rows, size):
    with pytest.raises(InvalidInput):
        principal_axes(np.random.default_rng(0).normal(size=rows), size)


def test_axes_refuse_rows_that_are_the_same():
    with pytest.raises(InvalidInput, match="rows that differ"):
        principal_axes(np.ones((5, 3)), 2)


def test_a_projection_survives_its_bytes():
    rows = unit_rows(list(np.random.default_rng(1).normal(size=(20, 6))))
    projection = Projection(*principal_axes(rows, 3))
    again = Projection.from_bytes(projection.to_bytes())
    np.testing.assert_allclose(again.reduce(rows[0]), projection.reduce(rows[0]), atol=1e-6)
    assert again.to_bytes() == projection.to_bytes()
