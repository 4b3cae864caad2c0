"""Policy versions in MLflow: publish one, find the champion, drop the oldest.

Each is a version of a registered model named like its decision point, loadable anywhere by
``mlflow.pyfunc.load_model("models:/chat@champion")``, and linked to a run with its parameters and
metrics. The learner's own checkpoints are in PostgreSQL: nothing on the request path needs MLflow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pandas as pd

from optimizer.policies import Policy
from registry.description import PolicyDescription
from registry.tracking import connect, experiment_id, reaching

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

__all__ = ["CHAMPION", "Checkpoint", "PolicyRegistry"]

CHAMPION = "champion"
EXPERIMENT = "policies"
_PACKAGE = "llm-auto-optimizer"
_CODE = Path(__file__).with_name("served_policy.py")
_FOLDER = "model"
_STATE = "state.msgpack"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One policy version as it is stored.

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
    """

    version: int
    position: int
    lineage: str
    state: bytes


class PolicyRegistry:
    """The policy versions of every decision point.

    Parameters
    ----------
    address
        URL of the MLflow server. Constructing imports MLflow, which takes seconds of a core; it
        does not need the server.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._client = connect(address)

    def publish(
        self,
        description: PolicyDescription,
        state: bytes,
        *,
        position: int,
        metrics: Mapping[str, float],
        kept: int = 5,
    ) -> int:
        """Store a policy version and make it the champion.

        Parameters
        ----------
        description
            What the policy is.
        state
            What it learned, from `Policy.to_bytes`.
        position
            How far into the ledger it has learned, 0 or more.
        metrics
            Figures of this version, shown beside it.
        kept
            Number of versions to keep, 1 or more. Older ones go with their files, their runs stay
            as history; a version that has an alias is never dropped.

        Returns
        -------
        The number of the new version.

        Raises
        ------
        IncompatibleState
            If the state does not belong to the description.
        Unavailable
            If MLflow is away; what was half stored has no alias and is dropped by a later call.
        """
        policy = description.policy()
        policy.from_bytes(state)
        point = description.decision_point
        tags = {
            "decision_point": point.name,
            "ledger_position": str(position),
            "lineage": policy.lineage,
            "code_version": installed_version(_PACKAGE),
        }
        with TemporaryDirectory() as folder:
            model = _save_model(Path(folder), description, policy, state)
            with reaching():
                source, run_id = self._log_run(description, metrics, tags, model)
                version = self._register(point.name, source, run_id, tags)
        with reaching():
            self._drop(point.name, kept)
        return version

    def champion(self, decision_point: str) -> Checkpoint | None:
        """The version that has the alias ``champion``; None where there is none.

        Raises
        ------
        Unavailable
            If MLflow is away.
        """
        with reaching(), TemporaryDirectory() as folder:
            found = self._champion(decision_point)
            if found is None:
                return None
            file = self._client.download_artifacts(
                found.run_id, f"{_FOLDER}/artifacts/{_STATE}", folder
            )
            return Checkpoint(
                int(found.version),
                int(found.tags["ledger_position"]),
                found.tags["lineage"],
                Path(file).read_bytes(),
            )

    def _champion(self, name: str) -> ModelVersion | None:
        from mlflow.exceptions import MlflowException

        try:
            return self._client.get_model_version_by_alias(name, CHAMPION)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise

    def _log_run(
        self,
        description: PolicyDescription,
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
        model: Path,
    ) -> tuple[str, str]:
        """Where the files of the model are, and the id of the run."""
        name = tags["decision_point"]
        run = self._client.create_run(
            experiment_id(self._client, EXPERIMENT),
            tags=dict(tags),
            run_name=f"{name} at {tags['ledger_position']}",
        )
        run_id = run.info.run_id
        for key, value in _parameters(description).items():
            self._client.log_param(run_id, key, value)
        for key, value in metrics.items():
            self._client.log_metric(run_id, key, value)
        self._client.log_artifacts(run_id, str(model), _FOLDER)
        self._client.set_terminated(run_id)
        return f"{run.info.artifact_uri}/{_FOLDER}", run_id

    def _register(self, name: str, source: str, run_id: str, tags: Mapping[str, str]) -> int:
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        made = self._client.create_model_version(name, source, run_id=run_id, tags=dict(tags))
        self._client.set_registered_model_alias(name, CHAMPION, made.version)
        return int(made.version)

    def _drop(self, name: str, kept: int) -> None:
        """Delete all but the newest ``kept`` versions, with their files."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        aliases = self._client.get_registered_model(name).aliases
        aliased = {int(version) for version in aliases.values()}
        found = self._client.search_model_versions(f"name = '{name}'", max_results=1000)
        newest = sorted(found, key=lambda one: int(one.version), reverse=True)
        for old in newest[kept:]:
            if int(old.version) in aliased:
                continue
            self._client.delete_model_version(name, old.version)
            get_artifact_repository(old.source, tracking_uri=self._address).delete_artifacts()


def _parameters(description: PolicyDescription) -> dict[str, Any]:
    point = description.decision_point
    return {
        **point.policy.model_dump(),
        **{f"weight_{part}": value for part, value in point.weights.model_dump().items()},
        "cost_cap_usd": point.cost_cap_usd,
        "latency_cap_s": point.latency_cap_s,
        "arms": len(point.arms),
        "features": len(description.feature_names),
    }


def _save_model(folder: Path, description: PolicyDescription, policy: Policy, state: bytes) -> Path:
    """Write the model as MLflow wants it.

    Requirements, signature and example are given: to find them out MLflow would start a second
    Python.
    """
    from mlflow.models import ModelSignature
    from mlflow.pyfunc import save_model
    from mlflow.types import ColSpec, Schema

    (folder / "description.json").write_text(description.model_dump_json(), encoding="utf-8")
    (folder / _STATE).write_bytes(state)
    features, arms = description.feature_names, description.arm_names
    model = folder / _FOLDER
    save_model(
        model,
        python_model=str(_CODE),
        artifacts={"description": str(folder / "description.json"), "state": str(folder / _STATE)},
        signature=ModelSignature(
            Schema([ColSpec("double", name) for name in features]),
            Schema([ColSpec("double", name) for name in arms]),
        ),
        input_example=pd.DataFrame([[1.0] + [0.0] * (len(features) - 1)], columns=list(features)),
        pip_requirements=[f"{_PACKAGE}=={installed_version(_PACKAGE)}"],
    )
    return model
