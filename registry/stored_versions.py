"""Reads policy versions from MLflow: find, list, load, compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from optimizer.errors import IncompatibleState, UnknownName
from registry.description import PolicyDescription
from registry.model_files import (
    DESCRIPTION_FILE,
    STATE_FILE,
    digest,
    read_description,
    read_settings,
)
from registry.policy_version import Differences, PolicyVersion, differences
from registry.tracking import connect, reaching

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

__all__ = ["CHAMPION", "Checkpoint", "StoredVersions"]

CHAMPION = "champion"
_MOST = 10_000


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state of one policy version.

    Attributes
    ----------
    version
        Its number in MLflow, 1 or more.
    position
        How far into the ledger it has learned.
    lineage
        What its state depends on, see `optimizer.policies.Policy`.
    state
        What `Policy.to_bytes` gave.
    semantic_version, variant
        See `PolicyVersion`.
    """

    version: int
    position: int
    lineage: str
    state: bytes
    semantic_version: str = ""
    variant: str = ""


class StoredVersions:
    """The versions there are; nothing here changes one.

    Parameters
    ----------
    address
        URL of the MLflow server. Constructing imports MLflow, which takes seconds of a core; it
        does not need the server.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._client = connect(address)

    def get(self, decision_point: str, version: str | int) -> PolicyVersion:
        """What is known of a version.

        Parameters
        ----------
        decision_point
            Its name.
        version
            A semantic version ("1.0.3"), a number in MLflow (4 or "4"), or an alias ("champion").

        Raises
        ------
        UnknownName
            If there is no such version; names those that there are.
        Unavailable
            If MLflow is away.
        """
        with reaching():
            return self._known(self._find(decision_point, version), self._roles(decision_point))

    def list(self, decision_point: str | None = None) -> Sequence[PolicyVersion]:
        """The versions of one decision point, or of all, newest first.

        Raises
        ------
        Unavailable
            If MLflow is away.
        """
        with reaching():
            found = self._search(decision_point)
            roles = {name: self._roles(name) for name in {one.name for one in found}}
            return [self._known(one, roles[one.name]) for one in found]

    def champion(self, decision_point: str) -> Checkpoint | None:
        """The version that has the alias ``champion``; None where there is none.

        Raises
        ------
        Unavailable
            If MLflow is away.
        """
        with reaching():
            found = self._aliased(decision_point, CHAMPION)
            return None if found is None else self._checkpoint(found)

    def load(self, decision_point: str, version: str | int) -> Checkpoint:
        """The state of a version; ``version`` as in `get`.

        Raises
        ------
        UnknownName
            If there is no such version.
        IncompatibleState
            If its file is not the one that was stored.
        Unavailable
            If MLflow is away.
        """
        with reaching():
            return self._checkpoint(self._find(decision_point, version))

    def description(self, decision_point: str, version: str | int) -> PolicyDescription:
        """What the policy of a version is; ``version`` and errors as in `load`."""
        with reaching(), TemporaryDirectory() as folder:
            found = self._find(decision_point, version)
            return read_description(self._download(found, DESCRIPTION_FILE, folder))

    def diff(self, decision_point: str, before: str | int, after: str | int) -> Differences:
        """Settings and metrics of two versions that differ; versions and errors as in `get`."""
        one, other = self.get(decision_point, before), self.get(decision_point, after)
        return Differences(
            one,
            other,
            differences(self._settings(one), self._settings(other)),
            differences(one.metrics, other.metrics),
        )

    def _settings(self, version: PolicyVersion) -> dict[str, Any]:
        with reaching(), TemporaryDirectory() as folder:
            found = self._find(version.decision_point, version.version)
            return read_settings(self._download(found, DESCRIPTION_FILE, folder))

    def _find(self, decision_point: str, version: str | int) -> ModelVersion:
        sought = str(version)
        aliased = self._aliased(decision_point, sought)
        if aliased is not None:
            return aliased
        versions = self._search(decision_point)
        for one in versions:
            if sought in (one.version, str(one.version), one.tags.get("semantic_version")):
                return one
        there = ", ".join(one.tags.get("semantic_version", str(one.version)) for one in versions)
        remedy = f"one of {there}, or an alias" if there else "no version is registered yet"
        raise UnknownName("version", version, f"{decision_point}: {remedy}")

    def _search(self, decision_point: str | None) -> Sequence[ModelVersion]:
        """Versions of decision points; the server may hold models of others, too."""
        query = None if decision_point is None else f"name = '{decision_point}'"
        found = self._client.search_model_versions(query, max_results=_MOST)
        ours = [one for one in found if "ledger_position" in one.tags]
        return sorted(ours, key=lambda one: (one.name, -int(one.version)))

    def _aliased(self, decision_point: str, alias: str) -> ModelVersion | None:
        number = self._roles(decision_point).get(alias)
        if number is None:
            return None
        return self._client.get_model_version(decision_point, str(number))

    def _roles(self, decision_point: str) -> Mapping[str, str]:
        """The version number of each alias."""
        model = self._model(decision_point)
        return {} if model is None else model.aliases

    def _model(self, decision_point: str) -> RegisteredModel | None:
        from mlflow.exceptions import MlflowException

        try:
            return self._client.get_registered_model(decision_point)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise

    def _known(self, found: ModelVersion, roles: Mapping[str, str]) -> PolicyVersion:
        number = int(found.version)
        aliases = sorted(alias for alias, other in roles.items() if int(other) == number)
        return PolicyVersion.of(found, tuple(aliases), self._run(found.run_id))

    def _run(self, run_id: str) -> Run | None:
        from mlflow.exceptions import MlflowException

        try:
            return self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise

    def _checkpoint(self, found: ModelVersion) -> Checkpoint:
        with TemporaryDirectory() as folder:
            state = self._download(found, STATE_FILE, folder).read_bytes()
        tags = found.tags
        if tags.get("state_digest", digest(state)) != digest(state):
            raise IncompatibleState(
                f"{found.name} version {found.version}: its file was changed after it was stored; "
                "use another version"
            )
        return Checkpoint(
            int(found.version),
            int(tags["ledger_position"]),
            tags["lineage"],
            state,
            tags.get("semantic_version", ""),
            tags.get("variant", ""),
        )

    def _download(self, found: ModelVersion, file: str, folder: str) -> Path:
        return Path(self._client.download_artifacts(found.run_id, file, folder))
