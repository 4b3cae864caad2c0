"""Columns of past requests in a replay: filled as a live decision would see them."""

from __future__ import annotations

from collections.abc import Sequence

from optimizer.features import FeatureEncoder
from optimizer.records import Observation, Vector
from optimizer.request_history import RequestHistory

__all__ = ["PassHistory"]


class PassHistory:
    """The history of one pass, empty at its beginning.

    Parameters
    ----------
    encoder
        With columns of past requests.
    users
        Who asked each request of the recording, length n, or None where it does not say.
    """

    def __init__(self, encoder: FeatureEncoder, users: Sequence[str] | None = None) -> None:
        self._encoder = encoder
        self._users = users
        self.history = RequestHistory(encoder.embedding_size)

    def fill(self, request: int, features: Vector) -> Vector:
        """The features of a request of the recording, as its decision sees them now."""
        return self._encoder.fill_past(features, self._user(request), self.history)

    def learn(self, request: int, news: Observation) -> None:
        """Take in what has become known of a request; what was filled before stays as it is."""
        embedding = self._encoder.embedding_of(news.features)
        self.history.update(embedding, self._user(request), news.before, news.after)

    def _user(self, request: int) -> str | None:
        return (self._users[request] or None) if self._users is not None else None
