"""Quality models in MLflow: one registered model a decision point, beside its policies.

What replicas serve is the version with the alias ``champion``. The file is data, see
`optimizer.boosted_trees`: reading it runs no code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from optimizer.errors import IncompatibleState
from registry.code_version import code_version
from registry.model_files import digest
from registry.stored_versions import CHAMPION
from registry.tracking import connect, experiment_id, reaching

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

__all__ = ["QualityRegistry", "StoredQuality"]

EXPERIMENT = "quality models"
_FOLDER = "model"
_FILE = "quality.npz"


@dataclass(frozen=True, slots=True)
class StoredQuality:
    """A version of a quality model.

    Attributes
    ----------
    version
        Its number in MLflow, 1 or more.
    trained_at
        Unix time in seconds.
    state
        What `optimizer.quality_model.QualityModel.to_bytes` gave.
    """

    version: int
    trained_at: float
    state: bytes


class QualityRegistry:
    """The quality models of every decision point.

    Parameters
    ----------
    address
        URL of the MLflow server. Constructing imports MLflow, which takes seconds of a core.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._client = connect(address)

    def champion(self, decision_point: str) -> StoredQuality | None:
        """The version that serves, None where there is none.

        Raises
        ------
        IncompatibleState
            If its file is not the one that was stored.
        Unavailable
            If MLflow is away.
        """
        from mlflow.exceptions import MlflowException

        name = model_name(decision_point)
        with reaching(), TemporaryDirectory() as folder:
            try:
                found = self._client.get_model_version_by_alias(name, CHAMPION)
            except MlflowException as error:
                if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    return None  # no such model, or nobody has the alias
                raise
            file = self._client.download_artifacts(found.run_id, f"{_FOLDER}/{_FILE}", folder)
            state = Path(file).read_bytes()
        if found.tags.get("state_digest") != digest(state):
            raise IncompatibleState(
                f"{name} version {found.version}: its file was changed after it was stored; give "
                "the alias champion to another version"
            )
        return StoredQuality(int(found.version), float(found.tags["trained_at"]), state)

    def publish(
        self,
        decision_point: str,
        state: bytes,
        *,
        trained_at: float,
        metrics: Mapping[str, float],
        parameters: Mapping[str, Any],
        files: Sequence[Path] = (),
        champion: bool,
        kept: int = 5,
    ) -> StoredQuality:
        """Store a version; the same bytes of the same time again, or by two at once, are one.

        Parameters
        ----------
        state, trained_at
            See `StoredQuality`.
        metrics, parameters, files
            Of its run, for people.
        champion
            Whether it is to serve.
        kept
            Number of versions to keep, 1 or more; the champion is always kept.

        Raises
        ------
        Unavailable
            If MLflow is away; the champion stays.
        """
        from mlflow.exceptions import MlflowException

        name = model_name(decision_point)
        tags = {
            "decision_point": decision_point,
            "trained_at": repr(trained_at),
            "code_version": code_version(),
            "state_digest": digest(state),
        }
        with reaching(), TemporaryDirectory() as folder:
            run = self._client.create_run(
                experiment_id(self._client, EXPERIMENT), tags=tags, run_name=name
            )
            run_id = run.info.run_id
            for key, value in parameters.items():
                self._client.log_param(run_id, key, value)
            for key, figure in metrics.items():
                self._client.log_metric(run_id, key, figure)
            stored = Path(folder, _FILE)
            stored.write_bytes(state)
            self._client.log_artifact(run_id, str(stored), _FOLDER)
            for file in files:
                self._client.log_artifact(run_id, str(file))
            self._client.set_terminated(run_id)
            try:
                self._client.create_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            source = f"{run.info.artifact_uri}/{_FOLDER}"
            made = self._client.create_model_version(name, source, run_id=run_id, tags=tags)
            made = self._first_of_the_same(name, made)
            if champion:
                self._client.set_registered_model_alias(name, CHAMPION, made.version)
            self._drop(name, kept)
        return StoredQuality(int(made.version), trained_at, state)

    def _first_of_the_same(self, name: str, made: ModelVersion) -> ModelVersion:
        """The oldest version with these tags; if that is another one, ``made`` is gone."""
        found = self._client.search_model_versions(f"name = '{name}'", max_results=1000)
        same = [one for one in found if one.tags == made.tags]
        first = min(same, key=lambda one: int(one.version), default=made)
        if int(first.version) == int(made.version):
            return made
        self._client.delete_model_version(name, made.version)
        self._client.delete_run(made.run_id)
        return first

    def _drop(self, name: str, kept: int) -> None:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        aliases = self._client.get_registered_model(name).aliases
        aliased = {int(version) for version in aliases.values()}
        found: Sequence[ModelVersion] = self._client.search_model_versions(
            f"name = '{name}'", max_results=1000
        )
        for old in sorted(found, key=lambda one: int(one.version), reverse=True)[kept:]:
            if int(old.version) not in aliased:
                self._client.delete_model_version(name, old.version)
                get_artifact_repository(old.source, tracking_uri=self._address).delete_artifacts()


def model_name(decision_point: str) -> str:
    """The registered model's name; no decision point has one with a space."""
    return f"{decision_point} quality"
