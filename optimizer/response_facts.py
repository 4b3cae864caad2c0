"""What the text of a response tells without a model: length, refusal, hedging, numbers, code.

Facts are numbers; the text is nowhere kept. Only the first `READ_CHARACTERS` are read, beside the
length and the end.
"""

from __future__ import annotations

import hashlib
import math
import re

import numpy as np

from optimizer.prompt_text import READ_CHARACTERS, language, words
from optimizer.records import Vector

__all__ = ["FACTS_ID", "RESPONSE_FACTS", "response_facts", "unknown_facts"]

RESPONSE_FACTS = (
    "empty",
    "characters_log",
    "ratio_log",
    "refusal",
    "hedging",
    "code_share",
    "digit_share",
    "distinct_words",
    "cut_off",
    "other_language",
    "similarity",
)
"""In the order of `response_facts`; new ones at the end."""

_MEANING = 1
"""Raise it when a fact keeps its name and means something else."""

FACTS_ID = int.from_bytes(
    hashlib.blake2b("\n".join((*RESPONSE_FACTS, str(_MEANING))).encode(), digest_size=4).digest(),
    "big",
)
"""Names what the facts are, 32 bits: facts that were stored under another are not to be read."""

_REFUSAL = re.compile(
    r"\b(?:i(?:'m| am) (?:sorry|unable|not able)|i (?:can(?:no|')t|won't|will not|must decline)"
    r"|as an ai\b|je ne peux pas|es tut mir leid|ich kann (?:das |ihnen |dir )?nicht"
    r"|lo siento|no puedo|mi dispiace|não posso|desculpe)",
    re.IGNORECASE,
)
_HEDGING = re.compile(
    r"\b(?:i think|i believe|i guess|not sure|unsure|perhaps|maybe|possibly|might be|could be"
    r"|it depends|hard to say|vielleicht|möglicherweise|peut-être|quizás|forse|talvez)\b",
    re.IGNORECASE,
)
_CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_ENDS = tuple(".!?:;。！？)]}\"'`*|>")
_REFUSAL_CHARACTERS = 300
"""A refusal stands at the beginning; later the same words are a quotation."""


def response_facts(
    prompt: str | None,
    response: str,
    prompt_embedding: Vector | None = None,
    response_embedding: Vector | None = None,
) -> Vector:
    """Facts about a response, shape (len(RESPONSE_FACTS),), NaN where one can't be known.

    Parameters
    ----------
    prompt
        What was asked, None if it is not known.
    response
        The text that came back.
    prompt_embedding, response_embedding
        Of the same embedder, same length; None if there is none.

    Examples
    --------
    >>> facts = response_facts("What is 2 + 2?", "I'm sorry, I can't say.")
    >>> float(facts[RESPONSE_FACTS.index("refusal")])
    1.0
    """
    head, stripped = response[:READ_CHARACTERS], response.strip()
    found = [word.lower() for word in words(head)]
    size = max(len(head), 1)
    told = language(prompt) if prompt else "unknown"
    return np.array(
        [
            float(not stripped),
            math.log1p(len(stripped)),
            math.log((len(stripped) + 20.0) / (len(prompt) + 20.0)) if prompt else math.nan,
            float(bool(_REFUSAL.search(head[:_REFUSAL_CHARACTERS]))),
            100.0 * len(_HEDGING.findall(head)) / max(len(found), 20),
            sum(len(block) for block in _CODE.findall(head)) / size,
            sum(map(head.count, "0123456789")) / size,
            len(set(found)) / len(found) if found else math.nan,
            float(bool(stripped) and not stripped.endswith(_ENDS)),
            math.nan if told == "unknown" else float(language(head) not in (told, "unknown")),
            _cosine(prompt_embedding, response_embedding),
        ]
    )


def unknown_facts(number: int) -> np.ndarray:
    """Of ``number`` responses that were not told: shape (number, len(RESPONSE_FACTS)), NaN."""
    return np.full((number, len(RESPONSE_FACTS)), np.nan)


def _cosine(one: Vector | None, other: Vector | None) -> float:
    if one is None or other is None:
        return math.nan
    size = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / size if size else math.nan
