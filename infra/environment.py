"""The environment that every part of the platform is started in."""

from __future__ import annotations

import json
import os
from pathlib import Path

from infra.home import Home
from infra.processes import STACK_MARK
from optimizer.settings import SETTINGS_VARIABLE, Settings

__all__ = ["UNWANTED", "stack_environment"]

UNWANTED = ("PYTHONDONTWRITEBYTECODE",)
"""Not handed on: a dozen Python processes would each compile a gigabyte of libraries anew."""

_SILENT = {
    "DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "FEAST_USAGE": "False",
}
"""Nothing phones home."""

_THREADS = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""Products of small matrices: more threads only take the cores from the decisions."""


def stack_environment(
    settings: Settings, settings_file: Path, home: Home, stack_id: str
) -> dict[str, str]:
    """The variables that children get on top of those of the user.

    Parameters
    ----------
    settings
        Read from ``settings_file`` and the user's variables.
    settings_file
        Absolute path.
    home
        Holds the token keys where the settings name none.
    stack_id
        By which the children are found again.
    """
    keys = [key.get_secret_value() for key in settings.token_keys] or home.token_keys()
    return {
        **_SILENT,
        **_THREADS,
        **_past_proxies(settings.host),
        "LLMOPT_HOME": str(home.folder),
        "TMPDIR": str(home.temporary),
        SETTINGS_VARIABLE: str(settings_file),
        "LLMOPT_TOKEN_KEYS": json.dumps(keys),
        "MLFLOW_TRACKING_URI": settings.mlflow_address,
        "PREFECT_API_URL": settings.prefect_address,
        "PREFECT_HOME": str(home.prefect),
        "PYTHONUNBUFFERED": "1",
        STACK_MARK: stack_id,
    }


def _past_proxies(host: str) -> dict[str, str]:
    """Talk to our own parts directly, where the user has a proxy for the rest of the world."""
    names = ("NO_PROXY", "no_proxy")
    before = next((os.environ[name] for name in names if os.environ.get(name)), "")
    hosts = ",".join(filter(None, (before, "127.0.0.1", "localhost", host)))
    return dict.fromkeys(names, hosts)
