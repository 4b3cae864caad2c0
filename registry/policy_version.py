"""What is known of a policy version without loading it, and how two of them differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

__all__ = ["Differences", "PolicyVersion", "differences"]


@dataclass(frozen=True, slots=True)
class PolicyVersion:
    """One policy version as MLflow knows it.

    Attributes
    ----------
    version
        Its number in MLflow, 1 or more.
    semantic_version, variant
        See `optimizer.rollout.versioning`; empty where an older release registered it.
    aliases
        The roles it has, sorted.
    position
        How far into the ledger it has learned.
    samples
        Observations that it learned from; None where an older release registered it.
    algorithm
        Name of the policy.
    feature_schema
        Id of the layout of the features.
    created_at
        When it was registered.
    parent
        Semantic version it grew out of; None for the first.
    lineage
        What its state depends on, see `optimizer.policies.Policy`.
    code_version, code_commit
        What code made it.
    parameters, metrics
        Hyper-parameters and objective, and the figures at that time.
    tags
        All others, for instance the evidence of its rollout.
    """

    decision_point: str
    version: int
    semantic_version: str
    variant: str
    aliases: tuple[str, ...]
    position: int
    samples: int | None
    algorithm: str
    feature_schema: str
    created_at: datetime
    parent: str | None
    lineage: str
    code_version: str
    code_commit: str | None
    parameters: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]

    FIXED_TAGS: ClassVar[frozenset[str]] = frozenset(
        {
            "decision_point",
            "semantic_version",
            "variant",
            "algorithm",
            "feature_schema",
            "samples",
            "ledger_position",
            "lineage",
            "parent",
            "code_version",
            "code_commit",
            "state_digest",
        }
    )
    """What a version is; never written again."""

    @classmethod
    def of(cls, found: ModelVersion, aliases: tuple[str, ...], run: Run | None) -> PolicyVersion:
        """From what MLflow gave; ``run`` is None where somebody deleted it."""
        tags = found.tags
        parameters = {} if run is None else dict(run.data.params)
        return cls(
            decision_point=found.name,
            version=int(found.version),
            semantic_version=tags.get("semantic_version", ""),
            variant=tags.get("variant", ""),
            aliases=aliases,
            position=int(tags["ledger_position"]),
            samples=int(tags["samples"]) if "samples" in tags else None,
            algorithm=tags.get("algorithm") or parameters.get("name", ""),
            feature_schema=tags.get("feature_schema", ""),
            created_at=datetime.fromtimestamp(found.creation_timestamp / 1000, UTC),
            parent=tags.get("parent"),
            lineage=tags["lineage"],
            code_version=tags.get("code_version", ""),
            code_commit=tags.get("code_commit"),
            parameters=parameters,
            metrics={} if run is None else dict(run.data.metrics),
            tags={key: value for key, value in tags.items() if key not in cls.FIXED_TAGS},
        )

    @property
    def label(self) -> str:
        """For people: the semantic version, else the number."""
        return self.semantic_version or str(self.version)

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            **asdict(self),
            "aliases": list(self.aliases),
            "created_at": self.created_at.isoformat(),
        }


@dataclass(frozen=True, slots=True)
class Differences:
    """What two versions of a decision point do not have in common.

    Attributes
    ----------
    before, after
        The two.
    settings, metrics
        For each path or name that differs what the two have; None where one has it not.
    """

    before: PolicyVersion
    after: PolicyVersion
    settings: Mapping[str, tuple[Any, Any]]
    metrics: Mapping[str, tuple[float | None, float | None]]

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "decision_point": self.before.decision_point,
            "a": self.before.as_json(),
            "b": self.after.as_json(),
            "settings": {key: list(pair) for key, pair in self.settings.items()},
            "metrics": {key: list(pair) for key, pair in self.metrics.items()},
        }


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The keys whose values differ, in the order of both.

    Examples
    --------
    >>> differences({"alpha": 1, "arms": 2}, {"alpha": 2, "arms": 2, "floor": 0.9})
    {'alpha': (1, 2), 'floor': (None, 0.9)}
    """
    return {
        key: (before.get(key), after.get(key))
        for key in {**before, **after}
        if before.get(key) != after.get(key)
    }
