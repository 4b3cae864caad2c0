"""What the text of a prompt tells without a model: its words, how hard it reads, its language.

Only the first `READ_CHARACTERS` are read, so that a megabyte costs no more than a page.
"""

from __future__ import annotations

import re

__all__ = ["LANGUAGES", "READ_CHARACTERS", "complexity", "language", "words"]

READ_CHARACTERS = 2000

LANGUAGES = (
    "unknown",
    *("en", "de", "fr", "es", "it", "pt", "nl"),
    *("ja", "zh", "ko", "ru", "el", "ar", "he", "hi", "th"),
)
"""ISO 639-1, new ones at the end: a feature holds the index."""

_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_SENTENCE_END = re.compile(r"[.!?:。！？]+(?=\s|$)|\n{2,}")
_LONG_WORD = 7

_FUNCTION_WORDS = {
    "en": "the of and to is that for with you what how this are in",
    "de": "der die das und ist nicht ein eine mit für wie den von zu",
    "fr": "le les des et est une pour dans du sur pas avec quel vous",
    "es": "el los las y es una para por con del cómo qué no se",
    "it": "il gli di che è per una non sono con della come nel cosa",
    "pt": "o os as e é uma para não com do da em você como",
    "nl": "de het een en van niet dat voor met zijn op wat ik",
}
_LANGUAGES_OF_WORD: dict[str, list[str]] = {}
for _name, _words in _FUNCTION_WORDS.items():
    for _word in _words.split():
        _LANGUAGES_OF_WORD.setdefault(_word, []).append(_name)

_SCRIPTS = {
    "ja": re.compile(r"[\u3040-\u30ff]"),
    "ko": re.compile(r"[\uac00-\ud7af\u1100-\u11ff]"),
    "zh": re.compile(r"[\u4e00-\u9fff]"),
    "ru": re.compile(r"[\u0400-\u04ff]"),
    "el": re.compile(r"[\u0370-\u03ff]"),
    "ar": re.compile(r"[\u0600-\u06ff]"),
    "he": re.compile(r"[\u0590-\u05ff]"),
    "hi": re.compile(r"[\u0900-\u097f]"),
    "th": re.compile(r"[\u0e00-\u0e7f]"),
}
_SCRIPT_SHARE = 0.2
"""So much of the letters of a prompt makes it one of that script: quotes and names are less."""


def words(prompt: str) -> list[str]:
    """Runs of letters, as they stand; Chinese and Thai, without spaces, are few long runs.

    Examples
    --------
    >>> words("Don't add 12, please.")
    ["Don't", 'add', 'please']
    """
    return _WORD.findall(prompt[:READ_CHARACTERS])


def complexity(prompt: str) -> float:
    """LIX, a measure of reading difficulty (Björnsson 1968), 0 without words.

    Words a sentence plus the percentage of words longer than six letters. A children's book is
    about 25, a newspaper 40, a law 60. It needs no dictionary and so no language.

    Examples
    --------
    >>> complexity("The cat sat. It slept.")
    2.5
    """
    found = words(prompt)
    if not found:
        return 0.0
    text = prompt[:READ_CHARACTERS].strip()
    ends = len(_SENTENCE_END.findall(text))
    sentences = ends + (0 if _SENTENCE_END.search(text[-1]) else 1)
    long_words = sum(len(word) >= _LONG_WORD for word in found)
    return len(found) / max(sentences, 1) + 100.0 * long_words / len(found)


def language(prompt: str) -> str:
    """A guess, one of `LANGUAGES`: by the script, in Latin script by function words.

    Cyrillic counts as Russian and Devanagari as Hindi, their most frequent languages.

    Examples
    --------
    >>> language("Wie ist das Wetter?"), language("今日の天気"), language("12 + 30")
    ('de', 'ja', 'unknown')
    """
    head = prompt[:READ_CHARACTERS]
    found = words(head)
    letters = sum(map(len, found))
    if not letters:
        return LANGUAGES[0]
    if not head.isascii():
        for name, script in _SCRIPTS.items():
            # A Chinese text has no kana, a Japanese one has both.
            if len(script.findall(head)) >= _SCRIPT_SHARE * letters:
                return name
    counts: dict[str, int] = {}
    for word in found:
        for name in _LANGUAGES_OF_WORD.get(word.lower(), ()):
            counts[name] = counts.get(name, 0) + 1
    return max(counts, key=counts.__getitem__) if counts else LANGUAGES[0]
