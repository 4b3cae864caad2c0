"""The client of MLflow: imported when first needed, quiet, and quick to give up.

Importing MLflow takes seconds of a core, so this room's modules do it inside of functions; what a
caller can import stays light.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from optimizer.errors import Unavailable

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["connect", "experiment_id", "reaching"]

_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
}
"""MLflow reads the first two while it is imported. Its own limits are 120 s and 7 retries: minutes
until a caller knows that the server is away, where ours try again by themselves."""


def connect(address: str) -> MlflowClient:
    """A client of the server at ``address``; a variable the user has set is left as it is."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("mlflow.utils.environment").setLevel(logging.ERROR)
    return MlflowClient(tracking_uri=address, registry_uri=address)


@contextmanager
def reaching() -> Iterator[None]:
    """Turn what MLflow raises into the error that other rooms know.

    Raises
    ------
    Unavailable
        If the server is away or refuses; its own words are the cause.
    """
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:
        raise Unavailable("MLflow", retry_after_s=5) from error


def experiment_id(client: MlflowClient, name: str) -> str:
    """Id of the experiment of that name, made where there is none."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            experiment = client.get_experiment_by_name(name)  # another was quicker
            if experiment is None:
                raise
    return str(experiment.experiment_id)
