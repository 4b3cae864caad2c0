"""What is sent: a few hundred different bodies of each kind, written to files, one a line."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

__all__ = [
    "BATCH",
    "KINDS",
    "POINT",
    "TASKS",
    "describe",
    "prompt_of",
    "recorded_prompts",
    "write_bodies",
]

POINT = "bench"
TASKS = ("arc_challenge", "gsm8k", "hellaswag", "mbpp", "mmlu", "winogrande")
"""Six, so that without the embedding's columns there are 24 features."""

BATCH = 100
_BODIES = 256
_BATCH_BODIES = 32
_PROMPT_TOKENS = 200

KINDS = {
    "single": "one decision, no prompt",
    "prompt": f"one decision, a prompt of {_PROMPT_TOKENS} tokens to embed",
    "batch": f"{BATCH} decisions in a request, no prompt",
    "batch, prompt": f"{BATCH} decisions in a request, each with such a prompt",
    "chat": "one chat completion of a short question",
}


def write_bodies(folder: Path, prompts: Sequence[str]) -> dict[str, Path]:
    """Write the bodies of every kind; the same in every run.

    Parameters
    ----------
    folder
        Where to.
    prompts
        Of `prompt_of`.
    """
    rng = random.Random(0)
    single = [_decision(rng, None) for _ in range(_BODIES)]
    prompted = [_decision(rng, prompt) for prompt in prompts]
    bodies = {
        "single": single,
        "prompt": prompted,
        "batch": [_batch(rng, single) for _ in range(_BATCH_BODIES)],
        "batch, prompt": [_batch(rng, prompted) for _ in range(_BATCH_BODIES)],
        "chat": [_chat(number) for number in range(_BODIES)],
    }
    files = {}
    for kind, lines in bodies.items():
        files[kind] = folder / f"{kind.replace(', ', '_')}.jsonl"
        files[kind].write_text("".join(json.dumps(line) + "\n" for line in lines))
    return files


def describe(files: dict[str, Path]) -> dict[str, str]:
    """Kind, content and mean size of the bodies in bytes."""
    told = {}
    for kind, file in files.items():
        lines = file.read_bytes().splitlines()
        told[kind] = (
            f"{KINDS[kind]}; {len(lines)} different bodies in turn, "
            f"{sum(map(len, lines)) // len(lines)} bytes each on average"
        )
    return told


def prompt_of(texts: Sequence[str], start: int, count_tokens: Mapping[str, int]) -> str:
    """Words of the texts from ``start`` on, as many as make 200 tokens.

    Parameters
    ----------
    texts
        Recorded prompts.
    start
        Which of them to begin with.
    count_tokens
        Tokens of each word of them.
    """
    words: list[str] = []
    tokens = 0
    number = start
    while True:
        for word in texts[number % len(texts)].split():
            if tokens >= _PROMPT_TOKENS:
                return " ".join(words)
            words.append(word)
            tokens += count_tokens[word]
        number += 1


def recorded_prompts() -> list[str]:
    """Prompts of 200 tokens, made of those in the recording that the demo sends."""
    from tokenizers import Tokenizer

    from infra.recordings import PARETOBANDIT, load_recording

    spec = find_spec("wordllama")
    assert spec is not None and spec.origin is not None
    file = Path(spec.origin).parent / "tokenizers" / "l2_supercat_tokenizer_config.json"
    tokenizer = Tokenizer.from_file(str(file))
    texts = load_recording(PARETOBANDIT).prompts
    step = max(len(texts) // _BODIES, 1)
    counts = _Counts(tokenizer)
    return [prompt_of(texts, number * step, counts) for number in range(_BODIES)]


class _Counts(dict[str, int]):
    """Tokens of a word, with the space before it."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __missing__(self, word: str) -> int:
        self[word] = len(self._tokenizer.model.tokenize("\u2581" + word))
        return self[word]


def _decision(rng: random.Random, prompt: str | None) -> dict[str, object]:
    context: dict[str, object] = {
        "task": rng.choice(TASKS),
        "input_tokens": rng.randint(20, 2000),
        "priority": rng.choice(("low", "standard", "high")),
    }
    if prompt is not None:
        context["prompt"] = prompt
    return {"decision_point": POINT, "context": context}


def _batch(rng: random.Random, items: Sequence[dict[str, object]]) -> dict[str, object]:
    return {"items": rng.sample(items, BATCH)}


def _chat(number: int) -> dict[str, object]:
    question = f"What is {17 + number} times 23?"
    return {"model": "chat", "messages": [{"role": "user", "content": question}]}
