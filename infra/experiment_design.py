"""The design of an experiment as people write it: a YAML file, or options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec.yaml

from optimizer.errors import InvalidInput

__all__ = ["read_design", "read_prompts", "read_variants"]


def read_design(file: Path | None) -> dict[str, Any]:
    """The content of a YAML file, whose keys are those of `POST /v1/experiments`; {} without one.

    Raises
    ------
    InvalidInput
        Naming the file.
    """
    if file is None:
        return {}
    try:
        content = msgspec.yaml.decode(file.read_bytes())
    except (msgspec.DecodeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise InvalidInput("file", str(file), f"it cannot be read: {reason}") from error
    if not isinstance(content, dict):
        raise InvalidInput("file", str(file), "keys and values, such as `name: terse or long`")
    return content


def read_variants(options: list[str], weights: str | None = None) -> list[dict[str, Any]]:
    """Variants from ``NAME=ARMS``, each arm ``MODEL``, ``MODEL#PROMPT`` or ``#PROMPT``.

    Raises
    ------
    InvalidInput
        Naming the option that cannot be read.

    Examples
    --------
    >>> read_variants(["old=small", "new=#terse"])[1]
    {'name': 'new', 'arms': [{'prompt_variant': 'terse'}]}
    """
    found: list[dict[str, Any]] = []
    for option in options:
        name, _, arms = option.partition("=")
        patterns = [_pattern(arm.strip()) for arm in arms.split(",")]
        if not name.strip() or not all(patterns):
            raise InvalidInput(
                "variant", option, "write NAME=MODEL, NAME=MODEL#PROMPT or NAME=#PROMPT"
            )
        found.append({"name": name.strip(), "arms": patterns})
    if weights is None:
        return found
    numbers = weights.split(",")
    if len(numbers) != len(found):
        raise InvalidInput("weights", weights, f"one for each of the {len(found)} variants")
    for variant, number in zip(found, numbers, strict=True):
        try:
            variant["weight"] = float(number)
        except ValueError:
            raise InvalidInput("weights", weights, "numbers joined by commas") from None
    return found


def read_prompts(decision_point: str | None) -> dict[str, Any]:
    """The design that compares the prompt variants of a decision point's arms.

    Raises
    ------
    InvalidInput
        If no two arms differ in their prompt alone, or it is not clear which decision point is
        meant.
    """
    from infra.home import find_settings
    from infra.models_cli import chosen_point
    from optimizer.experiments.prompts import prompt_experiment

    settings = find_settings()[0]
    return prompt_experiment(settings.decision_point(chosen_point(settings, decision_point)))


def _pattern(text: str) -> dict[str, str]:
    model, _, prompt = text.partition("#")
    named = {"model": model, "prompt_variant": prompt}
    return {name: value for name, value in named.items() if value}
