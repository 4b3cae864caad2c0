"""Where logged decisions come from: a file, or the live ledger of a decision point."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from infra.tables import read_table
from optimizer.errors import InvalidInput, InvalidRecording, Unavailable
from optimizer.feature_schema import FeatureSchema, Translations
from optimizer.offpolicy import LoggedDecisions
from optimizer.reward import Objective, parse_weights
from optimizer.settings import DecisionPoint, Settings

__all__ = ["OnStep", "Source", "arm_names", "find_source", "parse_since"]

OnStep = Callable[[int, int, str | None], None]

DEFAULT_SINCE = "7d"

_SKIPPED = {
    "fallback": "by the static rule, not drawn at random",
    "arm": "for arms that are no longer configured",
    "schema": "with a layout of features that is not known",
    "token": "in a token format of another version",
}
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


@dataclass(frozen=True)
class Source:
    """Logged decisions, and what is known of where they come from.

    Attributes
    ----------
    name
        For people.
    point
        The decision point; None for a file that belongs to none.
    schema
        Of the features, where they are from the ledger: all that requests get now.
    notes
        Plain sentences on what was left out or assumed.
    """

    name: str
    decisions: LoggedDecisions
    objective: Objective
    point: DecisionPoint | None
    schema: FeatureSchema | None
    notes: tuple[str, ...]


def find_source(
    settings: Callable[[], Settings],
    now: datetime,
    *,
    log: Path | None = None,
    decision_point: str | None = None,
    since: str | None = None,
    weights: str | None = None,
    on_step: OnStep = lambda done, total, label: None,
) -> Source:
    """The file, or else the ledger of the decision point.

    Parameters
    ----------
    settings
        Gives the settings, where a decision point or a server is needed.
    now
        End of the span of time that is read from the ledger.
    log
        See `from_file`; the ledger if None.
    decision_point
        May be left out if there is only one, or with a file.
    since
        Start of the span that is read from the ledger; a week if None.
    weights
        Of the reward, instead of the decision point's.
    on_step
        Called with the steps done, of all, and what is being done.

    Raises
    ------
    InvalidInput
        If ``since`` is given for a file, or it is not clear which decision point is meant.
    """
    if log is None:
        point = _the_point(decision_point, settings())
        return from_ledger(settings(), point, weights, since or DEFAULT_SINCE, now, on_step)
    if since is not None:
        raise InvalidInput("since", since, "it is for the ledger; a file is read whole")
    named = None if decision_point is None else settings().decision_point(decision_point)
    return from_file(log, weights, named)


def from_file(path: Path, weights: str | None, point: DecisionPoint | None) -> Source:
    """Read a file of logged decisions, see `LoggedDecisions.from_frame` for its columns.

    Parameters
    ----------
    path
        A parquet, CSV or JSONL file.
    weights
        Of the reward, ``quality=1,cost=0``; the decision point's or the defaults if None.
    point
        Gives arms and caps. Without it the arms are those in the file, and the caps are the highest
        mean of an arm.

    Raises
    ------
    InvalidRecording
        Naming the file, and the column and the row that is wrong.
    """
    names = None if point is None else arm_names(point)
    try:
        decisions = LoggedDecisions.from_frame(read_table(path), names)
    except InvalidRecording as error:
        if error.field == "file":
            raise
        raise InvalidRecording(f"{path}: {error.field}", error.value, error.remedy) from None
    if point is not None:
        return Source(str(path), decisions, _objective(point, weights), point, None, ())
    notes = ("Caps of cost and latency are the highest mean of an arm in this file.",)
    objective = decisions.objective(parse_weights(weights))
    return Source(str(path), decisions, objective, None, None, notes)


def from_ledger(
    settings: Settings,
    point: DecisionPoint,
    weights: str | None,
    since: str,
    now: datetime,
    on_step: OnStep,
) -> Source:
    """Read what a decision point decided since some time.

    Raises
    ------
    InvalidInput
        If there is no decision of use in that time.
    Unavailable
        If PostgreSQL is away.
    """
    import psycopg

    from feature_repo.embedding import Embedder
    from serving.feature_schemas import known_schemas
    from serving.ledger import create_tables
    from serving.live_point import make_encoder
    from serving.logged import read_log
    from serving.reward_writer import connect

    start = parse_since(since, now)
    schema = make_encoder(point, Embedder()).schema
    try:
        with connect(settings.postgres_dsn()) as connection:
            create_tables(connection)
            found = read_log(
                connection,
                point.name,
                point.records(),
                arm_names(point),
                Translations(schema, known_schemas(connection, point.name).values()),
                start,
                now,
                on_step=lambda done, total: on_step(done, total, "read the ledger"),
            )
    except psycopg.OperationalError as error:
        raise Unavailable("PostgreSQL") from error
    notes = [
        f"{count} decisions are left out: made {_SKIPPED[reason]}."
        for reason, count in sorted(found.skipped.items())
    ]
    span = f"{start:%Y-%m-%d %H:%M} to {now:%Y-%m-%d %H:%M} UTC"
    if found.decisions is None:
        why = " ".join([f"no decision of use from {span}; try an earlier time.", *notes])
        raise InvalidInput("since", since, why)
    read = len(found.decisions) + found.skipped.total()
    if read < found.logged:
        notes.append(f"Of {found.logged} decisions, the newest {read} were read.")
    objective = _objective(point, weights)
    name = f"ledger of {point.name}, {span}"
    return Source(name, found.decisions, objective, point, schema, tuple(notes))


def parse_since(text: str, now: datetime) -> datetime:
    """A length of time before now (``90m``, ``24h``, ``7d``, ``2w``), or a date and time.

    Raises
    ------
    InvalidInput
        If it is neither, or not in the past.

    Examples
    --------
    >>> parse_since("24h", datetime(2026, 1, 2, tzinfo=UTC)).isoformat()
    '2026-01-01T00:00:00+00:00'
    """
    length = re.fullmatch(r"(\d{1,6})([mhdw])", text.strip())
    try:
        if length is not None:
            return now - timedelta(**{_UNITS[length[2]]: int(length[1])})
        start = datetime.fromisoformat(text.strip())
    except (ValueError, OverflowError):
        remedy = "a length of time such as 90m, 24h, 7d or 2w, or a date and time in ISO 8601"
        raise InvalidInput("since", text, remedy) from None
    start = start if start.tzinfo is not None else start.replace(tzinfo=UTC)
    if start >= now:
        raise InvalidInput("since", text, "a time in the past")
    return start


def arm_names(point: DecisionPoint) -> tuple[str, ...]:
    """A name for each arm: its model, and more where a model has several arms."""
    from registry.description import PolicyDescription

    return PolicyDescription(decision_point=point, feature_names=("constant",)).arm_names


def _the_point(name: str | None, settings: Settings) -> DecisionPoint:
    if name is not None:
        return settings.decision_point(name)
    if len(settings.decision_points) > 1:
        known = [point.name for point in settings.decision_points]
        raise InvalidInput("decision_point", None, f"there are several; name one of {known}")
    return settings.decision_points[0]


def _objective(point: DecisionPoint, weights: str | None) -> Objective:
    if weights is None:
        return point.objective()
    return Objective(parse_weights(weights), point.cost_cap_usd, point.latency_cap_s)
