"""From a prompt to the few numbers that stand for its content, in microseconds.

The word vectors are wordllama's (static, from its wheel, the first 64 of 256 numbers); a prompt is
the mean of its tokens' vectors, reduced by the projection that `feature_repo.fit_projection`
made.

Two things differ from wordllama's own ``embed``. Its files are read directly: importing the
package takes longer than reading them and sets the root logger's level. And a prompt is cut into
pieces (words, runs of signs, digits) whose tokens are remembered: no token of this vocabulary
crosses such a border, so that the tokens are those of the whole prompt, at a fraction of the time.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from safetensors import safe_open
from tokenizers import Tokenizer

from optimizer.projection import Projection
from optimizer.records import Matrix, Vector

__all__ = ["HEAD_CHARACTERS", "TAIL_CHARACTERS", "Embedder", "WordVectors"]

HEAD_CHARACTERS = 1500
TAIL_CHARACTERS = 500
"""What is read of a long prompt: instructions stand at its beginning, the question often at its
end. So a megabyte costs what 2,000 characters cost: 0.6 ms of words met before, 1 to 3 ms of text
that never was, 12 ms of 2,000 different Chinese characters at their first sight."""

PROJECTION_FILE = Path(__file__).with_name("projection.npz")

_DIMENSIONS = 64
_PIECES_REMEMBERED = 30_000
_LONGEST_REMEMBERED = 32
_ASCII_PIECE = re.compile(r" *+(?:[A-Za-z]++|[^A-Za-z0-9 \n\t]++|[0-9])|[\n\t]| ++")
_OWN = r"\u0e00-\u1cff\u2e80-\ufffc\U00010000-\U0010ffff"
_SIGN = r"_\u00b2\u00b3\u00b9"
_PIECE = re.compile(
    rf" *+(?:[^\W\d{_SIGN}{_OWN}]++|(?:[^\w \n\t{_OWN}]|[{_SIGN}])++|\d)|[\n\t]| ++|[{_OWN}]"
)
"""Letters, signs, or one digit, each with the spaces before it. Superscripts stand with the signs,
and a character of the scripts in ``_OWN`` (Chinese, Thai, emoji) by itself, as in the
vocabulary."""


class WordVectors:
    """Mean of the token vectors of a text, before any projection.

    Raises
    ------
    FileNotFoundError
        If wordllama's wheel is not installed or holds other files.
    """

    def __init__(self) -> None:
        folder = _package_folder()
        self._tokenizer = Tokenizer.from_file(
            str(folder / "tokenizers" / "l2_supercat_tokenizer_config.json")
        )
        weights = folder / "weights" / "l2_supercat_256.safetensors"
        with safe_open(str(weights), framework="np") as archive:
            part = archive.get_slice("embedding.weight")[:, :_DIMENSIONS]
        self._vectors = part.astype("float32")
        self._nothing: Vector = self._vectors[0] * 0.0
        self._tokens: dict[str, list[int]] = {}

    def mean(self, text: str) -> Vector:
        """Shape (64,), float32; zeros for an empty text."""
        if not text:
            return self._nothing
        tokens: list[int] = []
        known = self._tokens
        excerpt = " " + _excerpt(text)
        pieces = _ASCII_PIECE if excerpt.isascii() else _PIECE
        for piece in pieces.findall(excerpt):
            found = known.get(piece)
            tokens += self._tokenise(piece) if found is None else found
        mean: Vector = self._vectors.take(tokens, axis=0).sum(axis=0)
        return mean / len(tokens)

    def _tokenise(self, piece: str) -> list[int]:
        # By the tokenizer's model, to which text that looks like a control token is plain text.
        text = piece.replace(" ", "\u2581")
        tokens = [token.id for token in self._tokenizer.model.tokenize(text)]
        if len(piece) <= _LONGEST_REMEMBERED:
            if len(self._tokens) >= _PIECES_REMEMBERED:
                self._tokens.clear()
            self._tokens[piece] = tokens
        return tokens


class Embedder:
    """Reduced prompt embeddings.

    Parameters
    ----------
    projection
        File that `feature_repo.fit_projection` wrote.

    Attributes
    ----------
    size
        Length of an embedding.
    version
        Names word vectors and projection; embeddings of different versions don't mix.

    Raises
    ------
    FileNotFoundError
        If wordllama's wheel or the projection is missing.
    IncompatibleState
        If the projection's file holds something else.
    """

    def __init__(self, projection: Path = PROJECTION_FILE) -> None:
        content = projection.read_bytes()
        self._projection = Projection.from_bytes(content)
        self._words = WordVectors()
        self.size: int = self._projection.size
        digest = hashlib.blake2b(content, digest_size=4).hexdigest()
        self.version: str = f"wordllama-l2-{_DIMENSIONS}-pca-{self.size}-{digest}"

    def embed(self, prompt: str) -> Vector:
        """Shape (size,), float64, about 0.3 in standard deviation; zeros for an empty prompt.

        Of a prompt longer than 2,000 characters the first 1,500 and the last 500 count.
        """
        return self._projection.reduce(self._words.mean(prompt))

    def embed_many(self, prompts: Sequence[str]) -> Matrix:
        """Shape (n, size): each row exactly what `embed` gives for that prompt."""
        return self._projection.reduce_many([self._words.mean(prompt) for prompt in prompts])


def _excerpt(text: str) -> str:
    if len(text) <= HEAD_CHARACTERS + TAIL_CHARACTERS:
        return text
    return f"{text[:HEAD_CHARACTERS]} {text[-TAIL_CHARACTERS:]}"


def _package_folder() -> Path:
    spec = find_spec("wordllama")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("the wheel wordllama is not installed; run make setup")
    return Path(spec.submodule_search_locations[0])
