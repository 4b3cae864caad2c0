"""What ``llmopt models`` asks: the registry, waited for while it starts, and the catalogue."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from infra.addresses import without_password
from infra.home import Home
from infra.stack import running
from infra.state import StackState
from optimizer.catalogue import CatalogueEntry, entry, find, search
from optimizer.errors import InvalidSettings, PartFailed, Unavailable
from optimizer.settings import DecisionPoint, Settings
from registry.policy_version import PolicyVersion
from registry.prompts import PromptRegistry, read_prompts
from registry.stored_versions import CHAMPION
from registry.versions import PolicyRegistry

__all__ = ["catalogue_entries", "first_versions", "listed_prompts", "registry_of"]

_WAIT_S = 90.0
_PAUSE_S = 1.0
_FIRST_VERSION_S = 60.0
"""After its last part is up a platform still counts as starting for so long: the learner tries
every few seconds to register the first version."""


@contextmanager
def registry_of(settings: Settings) -> Iterator[PolicyRegistry]:
    """The registry; what it raises when MLflow is away says what to do.

    Raises
    ------
    PartFailed
        If MLflow is away.
    """
    try:
        yield PolicyRegistry(settings.mlflow_address)
    except Unavailable as error:
        raise PartFailed(_remedy(settings)) from error


def first_versions(
    settings: Settings,
    points: Sequence[str],
    say: Callable[[str], None],
    wait_s: float = _WAIT_S,
) -> list[PolicyVersion]:
    """The versions of decision points, newest first.

    Right after a start MLflow and the first version may still be coming: they are waited for, but
    only then.

    Parameters
    ----------
    settings
        Of the platform.
    points
        Names of decision points.
    say
        Told once that there is something to wait for.
    wait_s
        Longest wait.

    Raises
    ------
    PartFailed
        If MLflow is away.
    """
    registry = PolicyRegistry(settings.mlflow_address)
    deadline = time.monotonic() + wait_s
    said = False
    while True:
        found: list[PolicyVersion] | None = None
        try:
            found = [version for name in points for version in registry.list(name)]
        except Unavailable as error:
            if not _waits(settings, deadline):
                raise PartFailed(_remedy(settings)) from error
        if found is not None:
            there = {version.decision_point for version in found if CHAMPION in version.aliases}
            if there >= set(points) or not _waits(settings, deadline):
                return found
        if not said:
            said = True
            say(f"the platform is starting: waiting up to {wait_s:.0f} s for the first version")
        time.sleep(_PAUSE_S)


def catalogue_entries(settings: Settings, name: str | None) -> Mapping[str, CatalogueEntry]:
    """Models by the name they were asked by: the settings' own, or what fits ``name``.

    Raises
    ------
    UnknownName
        If nothing does.
    """
    overrides = settings.catalogue
    if name is None:
        arms = [arm.model for point in settings.decision_points for arm in point.arms]
        names = dict.fromkeys([*arms, *overrides])
        found = {one: find(one, overrides) for one in names}
        return {one: known or CatalogueEntry(one, "") for one, known in found.items()}
    exact = find(name, overrides)
    if exact is not None:
        return {name: exact}
    fitting = {f"{one.provider}/{one.model}": one for one in search(name)}
    return fitting or {name: entry(name, overrides)}


def listed_prompts(
    settings: Settings, points: Sequence[DecisionPoint], register: bool
) -> list[dict[str, Any]]:
    """Each prompt variant with its version, the arms that name it, and its number in MLflow.

    Parameters
    ----------
    register
        Store texts that MLflow does not have. Else ``number`` is that of a text which is there, and
        None also where MLflow is away.

    Raises
    ------
    InvalidSettings
        If no folder of prompts is set, or a file cannot be used.
    PartFailed
        If MLflow is away and texts are to be stored.
    """
    if settings.prompts is None:
        raise InvalidSettings(
            "no folder of prompts is set: write `prompts: FOLDER` into your settings, with files "
            "FOLDER/DECISION_POINT/VARIANT.md"
        )
    found = [
        (prompt, [arm.model for arm in point.arms if arm.prompt_variant == prompt.variant])
        for point in points
        for prompt in read_prompts(settings.prompts, point.name)
    ]
    registry = PromptRegistry(settings.mlflow_address)
    listed = []
    away = False
    for prompt, arms in found:
        number: int | None = None
        try:
            if register:
                number = registry.register(prompt)
            elif not away:
                number = registry.numbers(prompt).get(prompt.version)
        except Unavailable as error:
            if register:
                raise PartFailed(_remedy(settings)) from error
            away = True
        listed.append(
            {
                "decision_point": prompt.decision_point,
                "variant": prompt.variant,
                "version": prompt.version,
                "number": number,
                "registered_name": prompt.registered_name,
                "models": arms,
                "characters": len(prompt.text),
                "head": dict(prompt.head),
            }
        )
    return listed


def _waits(settings: Settings, deadline: float) -> bool:
    state = running(settings)
    return state is not None and time.monotonic() < deadline and _starting(state, settings)


def _starting(state: StackState, settings: Settings) -> bool:
    """Whether something is still to come up, or the last part came up just now."""
    if not state.complete:
        return True
    file = Home(settings.home).folder / "stack.json"
    try:
        changed_at = file.stat().st_mtime
        return psutil.pid_exists(state.supervisor) and time.time() - changed_at < _FIRST_VERSION_S
    except FileNotFoundError:
        return False


def _remedy(settings: Settings) -> str:
    address = without_password(settings.mlflow_address)
    if settings.mlflow_url is not None:
        return f"MLflow does not answer at {address}: start it, or correct `mlflow_url`"
    log = Path(Home(settings.home).logs) / "mlflow.log"
    if running(settings) is None:
        return f"MLflow does not answer at {address}: `llmopt up` starts the platform"
    return f"MLflow does not answer at {address}: `llmopt status` shows the parts, its log is {log}"
