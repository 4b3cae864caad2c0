"""The files of a policy version, as MLflow wants them, and what is read back from them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ValidationError

from optimizer.errors import IncompatibleState
from registry.code_version import PACKAGE, code_version
from registry.description import PolicyDescription

__all__ = ["FOLDER", "digest", "parameters", "read_description", "read_settings", "save_model"]

FOLDER = "model"
"""Of the model among the artifacts of its run."""
_CODE = Path(__file__).with_name("served_policy.py")
_DESCRIPTION = "description.json"
STATE_FILE = f"{FOLDER}/artifacts/state.msgpack"
DESCRIPTION_FILE = f"{FOLDER}/artifacts/{_DESCRIPTION}"


def digest(state: bytes) -> str:
    """Names the learned state, so that a file that was changed later is noticed."""
    return hashlib.blake2b(state, digest_size=16).hexdigest()


def parameters(description: PolicyDescription) -> dict[str, Any]:
    """Hyper-parameters and objective, as parameters of the run."""
    point = description.decision_point
    return {
        **point.policy.model_dump(),
        **{f"weight_{part}": value for part, value in point.weights.model_dump().items()},
        "cost_cap_usd": point.cost_cap_usd,
        "latency_cap_s": point.latency_cap_s,
        "quality_floor": point.quality_floor,
        "arms": len(point.arms),
        "features": len(description.feature_names),
    }


def save_model(folder: Path, description: PolicyDescription, state: bytes) -> Path:
    """Write the model below ``folder``; returns the folder that is the model.

    Requirements, signature and example are given: to find them out MLflow would start a second
    Python.
    """
    from mlflow.models import ModelSignature
    from mlflow.pyfunc import save_model as save
    from mlflow.types import ColSpec, Schema

    described, learned = folder / _DESCRIPTION, folder / Path(STATE_FILE).name
    described.write_text(description.model_dump_json(), encoding="utf-8")
    learned.write_bytes(state)
    features, arms = description.feature_names, description.arm_names
    model = folder / FOLDER
    save(
        model,
        python_model=str(_CODE),
        artifacts={"description": str(described), "state": str(learned)},
        signature=ModelSignature(
            Schema([ColSpec("double", name) for name in features]),
            Schema([ColSpec("double", name) for name in arms]),
        ),
        input_example=pd.DataFrame([[1.0] + [0.0] * (len(features) - 1)], columns=list(features)),
        pip_requirements=[f"{PACKAGE}=={code_version()}"],
    )
    return model


def read_description(file: Path) -> PolicyDescription:
    """The description of a stored version.

    Raises
    ------
    IncompatibleState
        If this code does not know some of its settings any more.
    """
    try:
        return PolicyDescription.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise IncompatibleState(f"settings that this code does not know: {error}") from None


def read_settings(file: Path) -> dict[str, Any]:
    """The settings of a stored version by their paths; readable whatever code wrote them.

    Arms go by their names and not by their places, so that one more arm is one difference:
    ``arms[small].traits.price_in_usd``.
    """
    content = json.loads(file.read_text(encoding="utf-8"))
    point = content.pop("decision_point")
    arms = point.pop("arms")
    models = [arm["model"] for arm in arms]
    found = _flat({**point, **content}, "")
    for arm in arms:
        name = arm["model"]
        if models.count(name) > 1:
            name += f" {json.dumps(arm['parameters'], sort_keys=True)} {arm['prompt_variant']}"
        found |= _flat(arm, f"arms[{name}].")
    return found


def _flat(value: dict[str, Any], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, one in value.items():
        if isinstance(one, dict) and one:
            found |= _flat(one, f"{prefix}{key}.")
        else:
            found[prefix + key] = one
    return found
