"""Prompt variants: Markdown files, their versions named by the text, kept in MLflow's registry.

``FOLDER/DECISION_POINT/VARIANT.md`` is one variant; a head between two lines of ``---`` may tell
more about it in YAML. What an arm names is the variant; which text that was at a time is told by
its version, a hash, so that editing a file is a new version and undoing the edit is the old one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec.yaml

from optimizer.errors import InvalidSettings
from optimizer.settings import DecisionPoint, Settings
from registry.tracking import connect, reaching

__all__ = ["PromptRegistry", "PromptVariant", "check_prompts", "read_prompts"]

DEFAULT = "default"
"""An arm that names no variant has this one; it needs no file, since it may be the caller's own."""
CURRENT = "current"
"""Alias of the version that the file has."""
_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")
_HEAD = re.compile(r"\A---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_LONGEST = 100_000
"""Characters that MLflow takes."""
_VERSION_BYTES = 6


@dataclass(frozen=True, slots=True)
class PromptVariant:
    """One variant as its file has it.

    Attributes
    ----------
    variant
        Its name, that of the file.
    text
        The prompt, without the head.
    head
        What the file's head tells.
    """

    decision_point: str
    variant: str
    text: str
    head: Mapping[str, Any]

    @property
    def version(self) -> str:
        """Hexadecimal hash of the text.

        Examples
        --------
        >>> PromptVariant("chat", "brief", "Answer in one line.", {}).version
        'd4f3e701a5ec'
        """
        return hashlib.blake2b(self.text.encode(), digest_size=_VERSION_BYTES).hexdigest()

    @property
    def registered_name(self) -> str:
        """In MLflow, whose prompts share their names with its models."""
        return f"prompt.{self.decision_point}.{self.variant}"


def read_prompts(folder: Path, decision_point: str) -> tuple[PromptVariant, ...]:
    """The variants of a decision point, by name; none where it has no folder.

    Raises
    ------
    InvalidSettings
        Naming the file that cannot be used.
    """
    files = sorted((folder / decision_point).glob("*.md"))
    return tuple(_read(file, decision_point) for file in files)


def check_prompts(settings: Settings) -> None:
    """Refuse arms whose prompt variant has no file, where a folder of prompts is set.

    Raises
    ------
    InvalidSettings
        Naming the decision point, the variant and the file that is missing.
    """
    if settings.prompts is None:
        return
    for point in settings.decision_points:
        there = {one.variant for one in read_prompts(settings.prompts, point.name)}
        for variant in _named(point):
            if variant not in there and variant != DEFAULT:
                file = settings.prompts / point.name / f"{variant}.md"
                raise InvalidSettings(
                    f"decision point {point.name!r}: prompt_variant={variant!r} has no file; write "
                    f"{file}, or leave the setting `prompts` out"
                )


class PromptRegistry:
    """The versions of prompts in MLflow.

    Parameters
    ----------
    address
        URL of the MLflow server.
    """

    def __init__(self, address: str) -> None:
        self._client = connect(address)

    def register(self, prompt: PromptVariant) -> int:
        """Store a prompt's text unless it is there; it becomes the one with alias ``current``.

        Returns
        -------
        The number of this text's version in MLflow, the same whenever the text is the same.

        Raises
        ------
        Unavailable
            If MLflow is away.
        """
        name = prompt.registered_name
        with reaching():
            number = self._numbers(name).get(prompt.version)
            if number is None:
                tags = {"version": prompt.version, "decision_point": prompt.decision_point}
                made = self._client.register_prompt(name, prompt.text, tags=tags)
                number = int(made.version)
            self._client.set_prompt_alias(name, CURRENT, number)
        return number

    def text(self, decision_point: str, variant: str, version: str) -> str | None:
        """The text of a version, by its hash; None where it was never registered.

        Raises
        ------
        Unavailable
            If MLflow is away.
        """
        name = PromptVariant(decision_point, variant, "", {}).registered_name
        with reaching():
            number = self._numbers(name).get(version)
            if number is None:
                return None
            found = self._client.get_prompt_version(name, number)
        return None if found is None else str(found.template)

    def numbers(self, prompt: PromptVariant) -> Mapping[str, int]:
        """The number in MLflow of each registered version of a variant, by its hash.

        Raises
        ------
        Unavailable
            If MLflow is away.
        """
        with reaching():
            return self._numbers(prompt.registered_name)

    def _numbers(self, name: str) -> dict[str, int]:
        if self._client.get_prompt(name) is None:
            return {}
        found = self._client.search_prompt_versions(name, max_results=1000)
        return {one.tags["version"]: int(one.version) for one in found if "version" in one.tags}


def _named(point: DecisionPoint) -> Sequence[str]:
    return [arm.prompt_variant for arm in point.arms]


def _read(file: Path, decision_point: str) -> PromptVariant:
    if _NAME.fullmatch(file.stem) is None:
        raise InvalidSettings(
            f"{file}: a prompt variant's name has letters, digits, - and _ only; rename the file"
        )
    try:
        content = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSettings(f"{file} cannot be read: {error}") from None
    head: Any = {}
    if found := _HEAD.match(content):
        try:
            head = msgspec.yaml.decode(found.group(1)) or {}
        except msgspec.DecodeError as error:
            raise InvalidSettings(f"{file}: its head is not YAML: {error}") from None
        if not isinstance(head, dict):
            raise InvalidSettings(f"{file}: its head must have keys and values, got {head!r}")
        content = content[found.end() :]
    text = content.strip()
    if not text or len(text) > _LONGEST:
        raise InvalidSettings(
            f"{file}: a prompt has 1 to {_LONGEST:,} characters, this one has {len(text):,}"
        )
    return PromptVariant(decision_point, file.stem, text, head)
