"""`llmopt features`: training sets, and whether online and offline features are the same."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infra.terminal import Json, errors_shown, on_stderr, print_json

if TYPE_CHECKING:
    from feature_repo.store import FeatureStoreClient
    from optimizer.settings import Settings

__all__ = ["features"]

features = typer.Typer(
    help="Training sets, and whether online and offline features are the same.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@features.command(name="training-set")
def training_set(
    decision_point: Annotated[str, typer.Argument(metavar="POINT", help="Its name.")],
    out: Annotated[Path, typer.Option(help="The Parquet file to write.")],
    hours: Annotated[float, typer.Option(help="Length of the span that ends now.")] = 168.0,
    limit: Annotated[int, typer.Option(help="Most decisions, the newest.")] = 100_000,
    as_json: Json = False,
) -> None:
    """Write decisions with the features of then and their outcomes to a Parquet file."""
    with errors_shown(as_json):
        from optimizer.errors import InvalidInput
        from serving.training_set import training_set as build

        if out.is_dir() or not out.parent.is_dir():
            raise InvalidInput("--out", str(out), "a file in a folder that exists")
        if not (math.isfinite(hours) and hours > 0):
            raise InvalidInput("--hours", hours, "a number above 0")
        if limit < 1:
            raise InvalidInput("--limit", limit, "1 or more")
        end = datetime.now(UTC)
        with _store() as (settings, store):
            point = settings.decision_point(decision_point)
            made = build(settings, store, point, end - timedelta(hours=hours), end, limit=limit)
        made.rows.to_parquet(out, index=False)
        on_stderr().print(
            f"{len(made.rows)} decisions with {len(made.rows.columns)} columns in {out}"
            + "".join(f"; {count} skipped: {why}" for why, count in made.skipped.items()),
            markup=False,
        )
        if as_json:
            print_json(
                {
                    "file": str(out),
                    "rows": len(made.rows),
                    "columns": list(made.rows.columns),
                    "skipped": dict(made.skipped),
                }
            )


@features.command()
def parity(
    pairs: Annotated[int, typer.Option(help="Arms and moments, drawn at random.")] = 1000,
    hours: Annotated[float, typer.Option(help="Length of the span that ends now.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 0,
    as_json: Json = False,
) -> None:
    """Compare what was online with what looking back finds and with the ledger; 1 if they differ.

    Then what is online now with the offline store.
    """
    with errors_shown(as_json):
        from optimizer.errors import InvalidInput
        from serving.feature_parity import TOLERANCE, check_now, check_span

        if not (math.isfinite(hours) and hours > 0):
            raise InvalidInput("--hours", hours, "a number above 0")
        end = datetime.now(UTC)
        with _store() as (settings, store):
            found = check_span(settings, store, end - timedelta(hours=hours), end, pairs, seed)
            found.merge(check_now(settings, store))
        say = on_stderr()
        say.print(
            f"{found.pairs} pairs compared, {found.known} with anything online, {found.rebuilt} "
            f"rows found again in the ledger; {found.disagreeing} differ by more than {TOLERANCE}",
            markup=False,
        )
        for one in found.disagreements[:10]:
            values = ", ".join(f"{route} {value}" for route, value in one.values.items())
            say.print(f"{one.arm_key} {one.at.isoformat()} {one.feature}: {values}", markup=False)
        if as_json:
            print_json(
                {
                    "pairs": found.pairs,
                    "known": found.known,
                    "rebuilt": found.rebuilt,
                    "disagreeing": found.disagreeing,
                    "largest": {
                        name: value if math.isfinite(value) else None
                        for name, value in found.largest.items()
                    },
                    "disagreements": [
                        {
                            "arm": one.arm_key,
                            "at": one.at.isoformat(),
                            "feature": one.feature,
                            "values": dict(one.values),
                        }
                        for one in found.disagreements
                    ],
                }
            )
        if not found.agrees:
            raise SystemExit(1)


@contextmanager
def _store() -> Iterator[tuple[Settings, FeatureStoreClient]]:
    """Settings and the feature store; a PostgreSQL that is away is said so."""
    import psycopg

    from feature_repo.store import FeatureStoreClient
    from infra.home import find_settings
    from optimizer.errors import PartFailed, Unavailable

    settings = find_settings()[0]
    try:
        with closing(FeatureStoreClient(settings)) as store:
            yield settings, store
    except (Unavailable, psycopg.OperationalError) as error:
        raise PartFailed(f"{error}; start the platform with `llmopt up` first") from error
