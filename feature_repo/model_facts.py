"""The facts of the arms' models, for Feast: tier, prices and context length.

They come from `optimizer.catalogue` and the settings, as an arm's traits. They change only with
these, but Valkey drops an arm's key an hour after its last write: write them at start, and again
within the hour.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime

import pandas as pd
import psycopg
from feast import FeatureStore

from feature_repo import quick_feast  # noqa: F401  (first, see there)
from feature_repo.catalogue import clip, of_view
from feature_repo.connections import SCHEMA
from feature_repo.definitions import PRICE_TIERS, model_facts_push
from optimizer.arm_traits import ArmTraits

__all__ = ["MODEL_FACTS_COLUMNS", "frame", "tier", "write"]

MODEL_FACTS_COLUMNS = tuple(one.name for one in of_view("model_facts"))

_LOG = logging.getLogger(__name__)
_CONNECT_TIMEOUT_S = 5
_INPUT_SHARE = 0.75
"""Three input tokens an output token, the mix by which prices of models are usually compared."""


def tier(traits: ArmTraits) -> int:
    """Price tier, 1 cheapest; 0 where a price is not known.

    Examples
    --------
    >>> tier(ArmTraits(price_in_usd=0.1, price_out_usd=0.4)), tier(ArmTraits())
    (1, 0)
    """
    if traits.price_in_usd is None or traits.price_out_usd is None:
        return 0
    price = _INPUT_SHARE * traits.price_in_usd + (1.0 - _INPUT_SHARE) * traits.price_out_usd
    return 1 + int(PRICE_TIERS.apply(price))


def frame(decision_point: str, models: Mapping[str, ArmTraits], at_s: float) -> pd.DataFrame:
    """One row a model, as `write` wants them.

    Parameters
    ----------
    decision_point
        Its name.
    models
        Traits by model.
    at_s
        Since when the facts are true, Unix time in seconds.

    Returns
    -------
    Its ``attrs`` have "violations": the names of facts that were out of range, one a value.
    """
    at, now = datetime.fromtimestamp(at_s, UTC), datetime.now(UTC)
    rows = []
    violations: list[str] = []
    for model, traits in models.items():
        given: dict[str, float | None] = {
            "tier": tier(traits),
            "price_in_usd": traits.price_in_usd,
            "price_out_usd": traits.price_out_usd,
            "context_tokens": traits.context_tokens,
        }
        facts: list[float | None] = []
        for name in MODEL_FACTS_COLUMNS:
            value, violated = clip(name, given[name])
            if violated:
                violations.append(name)
                _LOG.warning("%s of %s is %r, taken as %r", name, model, given[name], value)
            facts.append(None if given[name] is None else value)
        rows.append((f"{decision_point}/{model}", at, now, *facts))
    columns = ["arm_key", "event_timestamp", "created_at", *MODEL_FACTS_COLUMNS]
    made = pd.DataFrame(rows, columns=columns)
    made = made.astype(dict.fromkeys(MODEL_FACTS_COLUMNS, "float64"))
    made.attrs["violations"] = violations
    return made


def write(store: FeatureStore, dsn: str | None, rows: pd.DataFrame) -> None:
    """Log the rows in PostgreSQL, then make them the current ones in Valkey.

    Parameters
    ----------
    store
        An opened store whose registry has the definitions.
    dsn
        Of the database that holds the offline tables; None to log nothing.
    rows
        What `frame` made.

    Raises
    ------
    psycopg.OperationalError, redis.exceptions.ConnectionError
        If a server is away; `feature_repo.store` names it to its callers.
    """
    if rows.empty:
        return
    if dsn is not None:
        _log(dsn, rows)
    store.push(model_facts_push.name, rows)


def _log(dsn: str, rows: pd.DataFrame) -> None:
    copy = f"COPY {SCHEMA}.model_facts ({', '.join(rows.columns)}) FROM STDIN"
    with (
        psycopg.connect(dsn, connect_timeout=_CONNECT_TIMEOUT_S) as connection,
        connection.cursor().copy(copy) as target,
    ):
        for row in rows.astype(object).where(rows.notna(), None).itertuples(index=False):
            target.write_row(tuple(row))
