"""Reports as MLflow runs: files for people, figures that can be compared over time."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from registry.tracking import connect, experiment_id, reaching

__all__ = ["log_report"]

_TAG = "report_digest"
_MOST = 1000


def log_report(
    address: str,
    experiment: str,
    files: Sequence[Path],
    metrics: Mapping[str, float],
    parameters: Mapping[str, str | float],
    run_name: str,
) -> str:
    """Store a report as one run, instead of what a run of the same name and parameters stored.

    So a repeat, also of one that was killed half-way, leaves one run and not two; and so do two at
    once, of which the one that ended last stays.

    Parameters
    ----------
    address
        URL of the MLflow server.
    experiment
        Name of the experiment; made where there is none.
    files
        Files to keep, by their names.
    metrics, parameters
        Figures, and what they were made with.
    run_name
        Name of the run, for people.

    Returns
    -------
    URL of the run in MLflow's pages.

    Raises
    ------
    Unavailable
        If MLflow is away.
    """
    client = connect(address)
    with reaching():
        experiment_of_report = experiment_id(client, experiment)
        digest = hashlib.blake2b(
            repr((run_name, sorted(parameters.items()))).encode(), digest_size=12
        ).hexdigest()
        same = f"tags.{_TAG} = '{digest}'"
        before = client.search_runs([experiment_of_report], same, max_results=_MOST)
        run = client.create_run(experiment_of_report, run_name=run_name, tags={_TAG: digest})
        run_id = run.info.run_id
        for name, value in parameters.items():
            client.log_param(run_id, name, value)
        for name, figure in metrics.items():
            client.log_metric(run_id, name, figure)
        for file in files:
            client.log_artifact(run_id, str(file))
        client.set_terminated(run_id)
        # Whoever ends last sees all that ended, and both choose the same one.
        ended = client.search_runs(
            [experiment_of_report], f"{same} AND attributes.status = 'FINISHED'", max_results=_MOST
        )
        kept = max(ended, key=lambda one: (one.info.end_time, one.info.run_id)).info.run_id
        for old in {one.info.run_id for one in [*before, *ended]} - {kept}:
            client.delete_run(old)
    return f"{address.rstrip('/')}/#/experiments/{experiment_of_report}/runs/{kept}"
