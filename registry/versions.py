"""Policy versions in MLflow: publish one, drop the oldest.

Each is a version of a registered model named like its decision point, loadable anywhere by
``mlflow.pyfunc.load_model("models:/chat@champion")``, and linked to a run with its parameters and
metrics. The learner's own checkpoints are in PostgreSQL: nothing on the request path needs MLflow.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from msgspec import json

from optimizer.rollout.versioning import NextVersion, Variant, configuration, next_version
from registry.aliases import CHAMPION, Aliases
from registry.code_version import code_commit, code_version
from registry.description import PolicyDescription
from registry.model_files import FOLDER, digest, parameters, save_model
from registry.stored_versions import Checkpoint
from registry.tracking import experiment_id, reaching

__all__ = ["CHAMPION", "Checkpoint", "PolicyRegistry"]

EXPERIMENT = "policies"
_VARIANT_TAG = "variant."
"""Before each variant's name, in the tags of the registered model."""


class PolicyRegistry(Aliases):
    """The policy versions of every decision point.

    Stored versions never change: each has files of its own, written once, and a digest of its
    state. What changes is which version has an alias, and the tags that tell its story.

    Parameters
    ----------
    address
        URL of the MLflow server. Constructing imports MLflow, which takes seconds of a core; it
        does not need the server.
    """

    def publish(
        self,
        description: PolicyDescription,
        state: bytes,
        *,
        position: int,
        metrics: Mapping[str, float],
        kept: int = 5,
        alias: str | None = CHAMPION,
        variant: str | None = None,
    ) -> int:
        """Store a policy version, and give it an alias.

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
        alias
            The role it gets; none if None.
        variant
            "major.minor" that it must get, see `optimizer.rollout.versioning.next_version`.

        Returns
        -------
        The number of the new version.

        Raises
        ------
        IncompatibleState
            If the state does not belong to the description.
        InvalidInput
            If ``variant`` is another configuration's.
        Unavailable
            If MLflow is away; what was half stored has no alias and is dropped by a later call.
        """
        policy = description.policy()
        policy.from_bytes(state)
        name = description.decision_point.name
        with reaching():
            self._make_model(name)
            coming = next_version(
                self._variants(name),
                configuration(description.decision_point, description.schema_id),
                variant,
            )
        tags = {
            "decision_point": name,
            "semantic_version": coming.variant.newest,
            "variant": coming.variant.name,
            "algorithm": policy.name,
            "feature_schema": str(description.schema_id),
            "samples": str(policy.learned),
            "ledger_position": str(position),
            "lineage": policy.lineage,
            "code_version": code_version(),
            "state_digest": digest(state),
        }
        optional = {"parent": coming.parent, "code_commit": code_commit()}
        tags |= {key: value for key, value in optional.items() if value is not None}
        with TemporaryDirectory() as folder:
            model = save_model(Path(folder), description, state)
            with reaching():
                source, run_id = self._log_run(description, metrics, tags, model)
                version = self._register(name, source, run_id, tags, coming)
                if alias is not None:
                    self._client.set_registered_model_alias(name, alias, version)
        with reaching():
            self._drop(name, kept)
        return version

    def _make_model(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _variants(self, name: str) -> list[Variant]:
        """Every variant that ever had a version; kept apart, since versions are dropped."""
        model = self._model(name)
        tags = {} if model is None else model.tags
        return [
            json.decode(text, type=Variant)
            for key, text in tags.items()
            if key.startswith(_VARIANT_TAG)
        ]

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
            run_name=f"{name} {tags['semantic_version']}",
        )
        run_id = run.info.run_id
        for key, value in parameters(description).items():
            self._client.log_param(run_id, key, value)
        for key, value in metrics.items():
            self._client.log_metric(run_id, key, value)
        self._client.log_artifacts(run_id, str(model), FOLDER)
        self._client.set_terminated(run_id)
        return f"{run.info.artifact_uri}/{FOLDER}", run_id

    def _register(
        self, name: str, source: str, run_id: str, tags: Mapping[str, str], coming: NextVersion
    ) -> int:
        # The number is taken first: after a crash between the two it is skipped, never used twice.
        variant = coming.variant
        self._client.set_registered_model_tag(
            name, _VARIANT_TAG + variant.name, json.encode(variant).decode()
        )
        made = self._client.create_model_version(name, source, run_id=run_id, tags=dict(tags))
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
