"""Serve every flow on its schedule: ``python -m flows.serve``.

Runs in the foreground until SIGTERM or Ctrl-C. Each run of a flow is a process of its own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from optimizer.settings import load_settings

__all__ = ["main"]

_QUIET = {
    "DO_NOT_TRACK": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def main(every_s: Mapping[str, float] | None = None) -> None:
    """Serve until told to stop.

    Parameters
    ----------
    every_s
        Seconds between runs, above 0, of deployments by name; the others keep their schedule.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("PREFECT_API_URL", load_settings().prefect_address)
    # Prefect reads its settings while it is imported, so they stand before.
    from flows.runner import serve_flows

    serve_flows(every_s)


if __name__ == "__main__":
    main()
