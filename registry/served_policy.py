"""The code of a policy model: MLflow runs this file wherever such a model is loaded.

No pickle: the model is this file, a JSON description and the learned state beside it.
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from optimizer.policies import Policy
from registry.description import PolicyDescription


class ServedPolicy(PythonModel):  # type: ignore[misc]  # MLflow has no types
    """Maps rows of features to the probability of each arm."""

    _description: PolicyDescription
    _policy: Policy

    def load_context(self, context: PythonModelContext) -> None:
        """Rebuild the policy from the two files of the model.

        Raises
        ------
        IncompatibleState
            If the state does not belong to the description.
        """
        text = Path(context.artifacts["description"]).read_text(encoding="utf-8")
        self._description = PolicyDescription.model_validate(json.loads(text))
        self._policy = self._description.policy()
        self._policy.from_bytes(Path(context.artifacts["state"]).read_bytes())

    def predict(self, context: PythonModelContext, model_input: pd.DataFrame) -> pd.DataFrame:
        rows = model_input[list(self._description.feature_names)].to_numpy(dtype="float64")
        return pd.DataFrame(
            [self._policy.probabilities(row) for row in rows],
            columns=list(self._description.arm_names),
            index=model_input.index,
        )


set_model(ServedPolicy())
