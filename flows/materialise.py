"""Online and offline features kept the same: what Valkey lost comes back, and both are compared."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from prefect.states import Failed
from pydantic import Field

from flows.artifacts import markdown_table
from optimizer.settings import Settings, load_settings
from serving.feature_parity import TOLERANCE, FeatureParity, check_now, check_span

__all__ = ["materialise"]

Minutes = Annotated[
    int,
    Field(ge=1, le=10_080, json_schema_extra={"description": "length of the span, in minutes"}),
]
Pairs = Annotated[
    int,
    Field(
        ge=1,
        le=100_000,
        json_schema_extra={"description": "arms and moments that are compared, drawn at random"},
    ),
]


@flow(name="materialise", timeout_seconds=1800)
def materialise(minutes: Minutes = 60, pairs: Pairs = 1000) -> Any:
    """Bring back what the online store lost, and check that online and offline agree.

    Parameters
    ----------
    minutes
        Length of the span that is checked, from 1 to 10,080 (a week).
    pairs
        Arms and moments that are compared, from 1 to 100,000.

    Returns
    -------
    The number of pairs that were compared; the run fails if any of them disagree.
    """
    settings = load_settings()
    end = flow_run.scheduled_start_time or datetime.now(UTC)
    start = end - timedelta(minutes=minutes)
    restored = {point.name: restore(settings, point.name) for point in settings.decision_points}
    found = compare(settings, start, end, pairs)
    show(start, end, restored, found)
    if not found.agrees:
        first = found.disagreements[0]
        return Failed(
            message=f"{found.disagreeing} of {found.pairs} pairs disagree by more than "
            f"{TOLERANCE}; the first: {first.feature} of {first.arm_key} at "
            f"{first.at.isoformat()} is {dict(first.values)}. See the artifact materialise-parity."
        )
    return found.pairs


@task(retries=3, retry_delay_seconds=[2, 10, 30], cache_policy=NO_CACHE)
def restore(settings: Settings, decision_point: str) -> list[str]:
    """Write what is missing online, never an older row over a newer one."""
    from feature_repo.store import FeatureStoreClient  # Feast takes seconds to import

    point = next(one for one in settings.decision_points if one.name == decision_point)
    models = list(dict.fromkeys(arm.model for arm in point.arms))
    with closing(FeatureStoreClient(settings)) as store:
        return store.restore(decision_point, models, datetime.now(UTC))


@task(retries=3, retry_delay_seconds=[2, 10, 30], cache_policy=NO_CACHE)
def compare(settings: Settings, start: datetime, end: datetime, pairs: int) -> FeatureParity:
    """What was online, what looking back finds, and what the ledger says."""
    from feature_repo.store import FeatureStoreClient

    with closing(FeatureStoreClient(settings)) as store:
        found = check_span(settings, store, start, end, pairs, seed=int(end.timestamp()))
        found.merge(check_now(settings, store))
    return found


@task(retries=3, retry_delay_seconds=[2, 10, 30], cache_policy=NO_CACHE)
def show(
    start: datetime, end: datetime, restored: dict[str, list[str]], found: FeatureParity
) -> None:
    """Put the page and its table where people see them in Prefect."""
    create_markdown_artifact(_page(start, end, restored, found), key="materialise-parity")
    rows = [
        {"feature": name, "largest difference": f"{difference:.3g}"}
        for name, difference in sorted(found.largest.items())
    ]
    create_table_artifact(rows, key="materialise-differences")


def _page(
    start: datetime, end: datetime, restored: dict[str, list[str]], found: FeatureParity
) -> str:
    lines = [
        "# Online and offline features",
        "",
        f"{start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC",
        "",
        "🟢 They agree." if found.agrees else "🔴 **They do not agree.**",
        "",
        f"{found.pairs} pairs of an arm and a moment were compared, {found.known} of them with "
        f"anything online; {found.rebuilt} rows were found again in the ledger. "
        f"{found.disagreeing} pairs differ by more than {TOLERANCE}.",
    ]
    back = [f"{name}: {', '.join(views)}" for name, views in restored.items() if views]
    lines += ["", "Lost online and looked for offline: " + ("; ".join(back) or "nothing") + "."]
    if found.disagreements:
        rows = [
            {
                "arm": one.arm_key,
                "at": one.at.isoformat(),
                "feature": one.feature,
                "values": ", ".join(f"{route} {value}" for route, value in one.values.items()),
            }
            for one in found.disagreements
        ]
        lines += ["", *markdown_table(rows)]
    return "\n".join([*lines, ""])
