"""Before anything decides: the features that the settings bring, stored or refused."""

from __future__ import annotations

import psycopg

from optimizer.settings import Settings

__all__ = ["announce_features"]


def announce_features(settings: Settings) -> None:
    """Store each decision point's layout of features, unless a live version needs another.

    Raises
    ------
    InvalidInput
        Naming the features, the versions that use them, and what to do.
    psycopg.Error
        If PostgreSQL does not answer.
    """
    # Half a second, while the other parts are starting anyway.
    from feature_repo.embedding import Embedder
    from serving.live_point import make_encoder
    from serving.plans import announce_features as announce

    embedder = Embedder()
    with psycopg.connect(settings.postgres_dsn(), autocommit=True, connect_timeout=5) as connection:
        for point in settings.decision_points:
            announce(connection, point, make_encoder(point, embedder).schema)
