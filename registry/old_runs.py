"""Reports in MLflow that are over: their runs are deleted, and their files with them."""

from __future__ import annotations

from datetime import datetime

from registry.tracking import connect, reaching

__all__ = ["drop_runs"]

_AT_ONCE = 200


def drop_runs(
    address: str, experiments: tuple[str, ...], before: datetime, *, dry_run: bool = False
) -> dict[str, int]:
    """Delete the runs of experiments that began before a moment.

    MLflow hides a deleted run; its row in the database goes with ``mlflow gc``. A run without its
    files is found and deleted by the next call, so a killed one is only to be repeated.

    Parameters
    ----------
    address
        URL of the MLflow server.
    experiments
        Names; one that there is not has no runs.
    before
        With time zone.
    dry_run
        Only count.

    Returns
    -------
    For each experiment with such runs, how many.

    Raises
    ------
    Unavailable
        If MLflow is away.
    """
    client = connect(address)
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    query = f"attributes.start_time < {int(before.timestamp() * 1000)}"
    dropped: dict[str, int] = {}
    with reaching():
        for name in experiments:
            found = client.get_experiment_by_name(name)
            token: str | None = None
            while found is not None:
                runs = client.search_runs(
                    [found.experiment_id], query, max_results=_AT_ONCE, page_token=token
                )
                if runs:
                    dropped[name] = dropped.get(name, 0) + len(runs)
                token = runs.token if dry_run else None  # without those that are gone
                if not dry_run:
                    for run in runs:
                        uri = str(run.info.artifact_uri)
                        get_artifact_repository(uri, tracking_uri=address).delete_artifacts()
                        client.delete_run(run.info.run_id)
                if not (token if dry_run else runs):
                    break
    return dropped
