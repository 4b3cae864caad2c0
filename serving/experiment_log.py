"""What came of an experiment's decisions, read from the decision log and the ledger."""

from __future__ import annotations

from typing import Any

import pandas as pd
import psycopg

from optimizer.errors import InvalidToken
from optimizer.experiments.experiment import Experiment
from serving.known_signals import real_values
from serving.ledger import create_tables
from serving.tokens import parse

__all__ = ["COLUMNS", "experiment_frame"]

COLUMNS = (
    "decided_at",
    "variant",
    "propensity",
    "quality",
    "cost_usd",
    "latency_s",
    "feedback",
)
_ROLE = "experiment"
_CHUNK = 5000
_UNKNOWN = (None, None, None, None)
_DECISIONS = """
SELECT d.token, r.known_after
FROM decisions d
LEFT JOIN LATERAL (
    SELECT known_after FROM rewards
    WHERE decision_id = d.decision_id AND decided_at = d.decided_at
    ORDER BY position DESC LIMIT 1
) r ON true
WHERE d.decision_point = %s AND d.role = %s
    AND d.decided_at >= to_timestamp(%s) AND d.decided_at < to_timestamp(%s)
ORDER BY d.decided_at, d.decision_id
"""


def experiment_frame(
    connection: psycopg.Connection[Any], experiment: Experiment, now: float
) -> pd.DataFrame:
    """Every unit of an experiment with what is known about its outcomes, in the order they came.

    The requests of a unit that stays with its variant are one draw, so they are one row, with the
    means of their outcomes. Where units do not stay, each decision is a row.

    Returns
    -------
    `COLUMNS`: decided_at (Unix seconds, of the first decision), variant (its index), propensity (of
    the arm), and the parts of the outcome, NaN where unknown. A quality that a model predicted
    counts as unknown.
    """
    create_tables(connection)
    variants = {arm: place for place, arms in enumerate(experiment.arms) for arm in arms}
    rows: list[tuple[Any, ...]] = []
    with connection.transaction():
        for span in experiment.spans:
            end = now if span.end is None else span.end
            with connection.cursor(name="experiment", binary=True) as cursor:
                cursor.itersize = _CHUNK
                cursor.execute(
                    _DECISIONS, (experiment.design.decision_point, _ROLE, span.start, end)
                )
                for token, known in cursor:
                    try:
                        decision = parse(bytes(token))
                    except InvalidToken:
                        continue  # of a version before this one: no experiment ran then
                    variant = variants.get(decision.arm_id.hex())
                    if variant is None:
                        continue  # of another experiment
                    propensity = decision.propensity
                    unit = int.from_bytes(decision.unit, "big", signed=True)
                    told = (
                        decision.decided_at,
                        variant,
                        propensity,
                        *real_values(known or _UNKNOWN),
                    )
                    rows.append((unit, *told))
    frame = pd.DataFrame(rows, columns=["unit", *COLUMNS])
    frame = frame.astype(dict.fromkeys(COLUMNS, float) | {"variant": int, "unit": "int64"})
    if experiment.design.sticky and not frame["unit"].is_unique:
        first = dict.fromkeys(("decided_at", "propensity"), "first")
        means = dict.fromkeys(COLUMNS[3:], "mean")
        units = frame.groupby(["unit", "variant"], sort=False, as_index=False)
        frame = units.agg(first | means)
    return frame[list(COLUMNS)]
