"""The ledger against what was acknowledged, and the policy against one rebuilt from that ledger."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

import psycopg

from feature_repo.embedding import Embedder
from optimizer.feature_schema import Translations
from optimizer.settings import DecisionPoint
from serving import ledger
from serving.feature_schemas import known_schemas, policy_schema
from serving.live_point import make_encoder
from serving.policy_line import fold
from serving.routes import make_point_policy

__all__ = ["Verdict", "verify"]

_CHUNK = 5000


@dataclass(frozen=True)
class Verdict:
    """What must hold of a ledger.

    Attributes
    ----------
    rows
        Events that changed something.
    head
        The last position: the same number, if there is no gap.
    twice
        Pairs of decision and event with more than one row, though none was corrected.
    learned
        Position of the learner's checkpoint.
    identical
        Whether its bytes are those of a policy that folded the whole ledger at once.
    """

    rows: int
    head: int
    twice: int
    learned: int
    identical: bool

    def holds(self, acknowledged: int) -> bool:
        """Nothing lost, nothing counted twice, nothing learned differently."""
        counts = {self.rows, self.head, self.learned}
        return counts == {acknowledged} and not self.twice and self.identical


def verify(dsn: str, point: DecisionPoint, patience_s: float = 60.0) -> Verdict:
    """Wait until the learner has saved what it learned from the whole ledger, then compare.

    Parameters
    ----------
    dsn
        URL of the ledger's database.
    patience_s
        For the learner; the verdict says how far it came.
    """
    with psycopg.connect(dsn, autocommit=True) as connection:
        head = ledger.head(connection, point.name)
        deadline = time.monotonic() + patience_s
        while True:
            row = connection.execute(
                "SELECT position, state FROM policy_checkpoints WHERE decision_point = %s",
                (point.name,),
            ).fetchone()
            learned, state = (0, b"") if row is None else (int(row[0]), bytes(row[1]))
            if learned >= head or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        count = connection.execute(
            "SELECT count(*) FROM rewards WHERE decision_point = %s", (point.name,)
        ).fetchone()
        twice = connection.execute(
            "SELECT count(*) FROM (SELECT FROM rewards WHERE decision_point = %s "
            "GROUP BY decision_id, event_id HAVING count(*) > 1) AS repeated",
            (point.name,),
        ).fetchone()
        assert count is not None
        assert twice is not None
        same = _rebuilt(connection, point, learned) == state
    return Verdict(count[0], head, twice[0], learned, same)


def _rebuilt(connection: psycopg.Connection, point: DecisionPoint, until: int) -> bytes:
    computed = make_encoder(point, Embedder()).schema
    schema = policy_schema(point, computed)
    layouts = Translations(schema, known_schemas(connection, point.name).values())
    policy = make_point_policy(point, schema)
    at, skipped = 0, Counter[str]()
    while at < until:
        rows = ledger.read(connection, point.name, at, min(_CHUNK, until - at))
        if not rows:
            break
        fold(policy, layouts, rows, skipped)
        at = rows[-1].position
    return policy.to_bytes()
