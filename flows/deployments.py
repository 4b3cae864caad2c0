"""Every flow that runs on a schedule: one entry each.

The runner registers these (`flows.runner`). For a Prefect of the user's own they are written by
``python -m flows.deployments > infra/prefect.yaml``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import yaml
from prefect import Flow

from flows.budget import budget
from flows.design import design
from flows.drift import drift
from flows.forecast import forecast
from flows.materialise import materialise
from flows.report import report
from flows.retention import retention
from flows.spend import SPEND_EVENT
from flows.train import train
from flows.tune import tune

__all__ = ["COLLISION_STRATEGY", "DEPLOYMENTS", "EVENT_PAUSE", "Deployed", "manifest"]


COLLISION_STRATEGY = "ENQUEUE"

EVENT_PAUSE = timedelta(minutes=1)
"""Of several events in this time the first starts a run: a burst is no queue of runs."""


@dataclass(frozen=True, slots=True)
class Deployed:
    """A flow and when it runs.

    Attributes
    ----------
    flow
        Its module should import what is heavy inside its tasks: the runner imports every flow.
    name
        Of the deployment.
    cron
        When, UTC.
    description
        One sentence for people in Prefect.
    tags
        To filter by.
    concurrency_limit
        Runs of this deployment at once. Others wait (`COLLISION_STRATEGY`): each may be of another
        span, and who asks for a run gets it.
    parameters
        Of the flow, where they differ from its own defaults.
    event
        Name of an event that starts a run, too (`EVENT_PAUSE`).
    """

    flow: Flow[Any, Any]
    name: str
    cron: str
    description: str
    tags: tuple[str, ...]
    concurrency_limit: int = 1
    parameters: Mapping[str, Any] = field(default_factory=dict)
    event: str | None = None

    @property
    def entrypoint(self) -> str:
        """Dotted path of the flow, for Prefect."""
        return f"{self.flow.fn.__module__}.{self.flow.fn.__name__}"


DEPLOYMENTS = (
    Deployed(
        tune,
        "tune",
        "30 2 * * *",
        "Better settings of policies and parameters of models, searched for and only offered.",
        ("policies",),
    ),
    Deployed(
        forecast,
        "forecast",
        "2 * * * *",
        "Requests a second for the next 1, 6 and 24 hours, and which method says so.",
        ("traffic",),
    ),
    Deployed(
        report,
        "report",
        "0 * * * *",
        "What each decision point did in the last hours, and what it saved.",
        ("report",),
    ),
    Deployed(
        materialise,
        "materialise",
        "10 * * * *",
        "Brings back what the online feature store lost, and checks that online and offline agree.",
        ("features",),
    ),
    Deployed(
        train,
        "train",
        "20 * * * *",
        "Trains the quality model on what has feedback; it serves if it is not worse than before.",
        ("quality",),
    ),
    Deployed(
        budget,
        "budget",
        "5 * * * *",
        "Spreads what is left of the budget over decision points and hours.",
        ("budget",),
        event=SPEND_EVENT,
    ),
    Deployed(
        report,
        "report-daily",
        "5 0 * * *",
        "The report of a whole day.",
        ("report",),
        parameters={"hours": 24},
    ),
    Deployed(
        retention,
        "retention",
        "40 3 * * *",
        "Exports and drops what is older than the settings keep it.",
        ("retention",),
    ),
    Deployed(
        drift,
        "drift",
        "*/15 * * * *",
        "Has anything changed against the day before? Told, written down, and acted upon by rule.",
        ("drift",),
    ),
    Deployed(
        design,
        "design",
        "40 5 * * 1",
        "Drafts the experiment that would teach most for its cost, and shows the Pareto front.",
        ("experiments",),
    ),
)


def manifest(deployments: tuple[Deployed, ...] = DEPLOYMENTS) -> str:
    """``infra/prefect.yaml``."""
    content = {"name": "llm-auto-optimizer", "deployments": [_entry(one) for one in deployments]}
    head = (
        "# Made by `python -m flows.deployments > infra/prefect.yaml`; edit flows/deployments.py.\n"
        "# `llmopt up` serves these by itself. For a Prefect of your own: make a work pool\n"
        "# `llmopt` whose workers have this project installed, LLMOPT_SETTINGS set, and then run\n"
        "# `prefect --no-prompt deploy --all --prefect-file infra/prefect.yaml`.\n"
    )
    return head + yaml.safe_dump(content, sort_keys=False, width=100)


def _entry(one: Deployed) -> dict[str, Any]:
    pause_s = int(EVENT_PAUSE.total_seconds())
    triggers = [{"type": "event", "expect": [one.event], "within": pause_s}] if one.event else []
    return {
        "name": one.name,
        "description": one.description,
        "tags": list(one.tags),
        "entrypoint": one.entrypoint,
        "schedules": [{"cron": one.cron, "timezone": "UTC"}],
        **({"triggers": triggers} if triggers else {}),
        "parameters": dict(one.parameters),
        "concurrency_limit": {
            "limit": one.concurrency_limit,
            "collision_strategy": COLLISION_STRATEGY,
        },
        "work_pool": {"name": "llmopt"},
    }


if __name__ == "__main__":
    sys.stdout.write(manifest())
