"""What past requests tell about a new one: how well answers like its own went, and to its user.

A history takes in requests with their outcomes, in the order of the ledger, and is read before a
decision. It holds a fixed number of clusters of prompts and of buckets of users, so that its size
does not grow. The same events in the same order give the same bytes.

Clusters are found by the sequential leader algorithm (Hartigan 1975) while there is room, then by
online k-means (MacQueen 1967), both by cosine. Library implementations of the second start from
random centres or a first batch, or take a dictionary a point; neither fits a stream that is folded
one event at a time.
"""

from __future__ import annotations

import hashlib
import io
import math
import zipfile
from typing import NamedTuple

import numpy as np

from optimizer.errors import IncompatibleState, InvalidInput
from optimizer.records import Matrix, Outcome, Vector

__all__ = ["CLUSTERS", "SEGMENTS", "USER_BUCKETS", "Past", "RequestHistory", "user_bucket"]

CLUSTERS = 32
USER_BUCKETS = 1024

SEGMENTS = ("not told", "new", "few", "regular", "heavy")
"""A user by the rewarded requests seen of it: none, fewer than 10, fewer than 100, 100 or more."""

_SEGMENT_FROM = (1.0, 10.0, 100.0)
_NEW_CLUSTER_BELOW = 0.5
"""Cosine to the nearest cluster; a request less similar starts one of its own while there is
room."""

_PRIOR_COUNT = 10.0
"""So many requests of the overall mean are added to a cluster or a user."""

_PRIOR_QUALITY = 0.5
_LENGTH_FLOOR = 1e-12
_FORMAT = 1


class Past(NamedTuple):
    """What a history says of a request.

    Attributes
    ----------
    similarity
        Cosine to the nearest cluster of past requests, in [-1, 1]; 0 without prompt or past.
    quality
        Mean quality in that cluster, shrunk to the overall mean; in [0, 1].
    user_requests
        Rewarded requests in the user's bucket, 0 or more.
    user_quality
        Their mean quality, shrunk likewise.
    overall
        Mean quality of all past requests, shrunk to 0.5 by one request.
    segment
        Index of `SEGMENTS`.
    """

    similarity: float
    quality: float
    user_requests: float
    user_quality: float
    overall: float
    segment: int


class RequestHistory:
    """Clusters of prompts and buckets of users, with the quality seen in each.

    Parameters
    ----------
    embedding_size
        Length of the reduced prompt embedding, 1 or more.

    Examples
    --------
    >>> history = RequestHistory(2)
    >>> history.update(np.array([1.0, 0.0]), "ann", Outcome(), Outcome(quality=1.0))
    >>> past = history.read(np.array([1.0, 0.0]), "ann")
    >>> past.similarity, past.quality > 0.5, SEGMENTS[past.segment]
    (1.0, True, 'few')
    """

    def __init__(self, embedding_size: int) -> None:
        if embedding_size < 1:
            raise InvalidInput("embedding_size", embedding_size, "1 or more")
        self.embedding_size = embedding_size
        self.used = 0
        """Clusters that exist."""
        self._sums: Matrix = np.zeros((CLUSTERS, embedding_size))
        self._centres: Matrix = np.zeros((CLUSTERS, embedding_size))
        # Of each cluster and of each bucket: requests, and the sum of their qualities.
        self._clusters: Matrix = np.zeros((CLUSTERS, 2))
        self._users: Matrix = np.zeros((USER_BUCKETS, 2))
        self._all: Vector = np.zeros(2)

    def read(self, embedding: Vector | None, user: str | None) -> Past:
        """What is known before a request is decided.

        Parameters
        ----------
        embedding
            Shape (embedding_size,); None or zeros without a prompt.
        user
            Any id of who asks, None if not told.
        """
        count, total = self._all.tolist()
        overall = (total + _PRIOR_QUALITY) / (count + 1.0)
        similarity, quality = 0.0, overall
        direction = None if embedding is None else _unit(embedding)
        if direction is not None and self.used:
            cluster, similarity = self._nearest(direction)
            quality = _shrunk(self._clusters[cluster], overall)
        if user is None:
            return Past(similarity, quality, 0.0, overall, overall, 0)
        of_user = self._users[user_bucket(user)]
        seen = float(of_user[0])
        segment = 1 + sum(seen >= edge for edge in _SEGMENT_FROM)
        return Past(similarity, quality, seen, _shrunk(of_user, overall), overall, segment)

    def update(
        self, embedding: Vector | None, user: str | None, before: Outcome, after: Outcome
    ) -> None:
        """Take in a change of what is known about one decision.

        The first quality told of a decision counts. Later corrections do not: to which cluster a
        request went is not kept.

        Parameters
        ----------
        embedding, user
            As in `read`.
        before, after
            As in `optimizer.records.Observation`.
        """
        if before.quality is not None or after.quality is None:
            return
        news = np.array((1.0, after.quality))
        self._all += news
        if user is not None:
            self._users[user_bucket(user)] += news
        direction = None if embedding is None else _unit(embedding)
        if direction is not None:
            cluster = self._cluster_for(direction)
            self._sums[cluster] += direction
            self._clusters[cluster] += news
            centre = _unit(self._sums[cluster])
            if centre is not None:  # what points both ways in equal parts keeps the centre it had
                self._centres[cluster] = centre

    def to_bytes(self) -> bytes:
        """The whole state, about 30 kB; equal states give equal bytes."""
        buffer = io.BytesIO()
        np.savez(
            buffer,
            format=np.int64(_FORMAT),
            used=np.int64(self.used),
            sums=self._sums,
            centres=self._centres,
            clusters=self._clusters,
            users=self._users,
            all=self._all,
        )
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, state: bytes) -> RequestHistory:
        """Go on from `to_bytes`.

        Raises
        ------
        IncompatibleState
            If it is something else, or of other numbers of clusters or buckets.
        """
        try:
            with np.load(io.BytesIO(state), allow_pickle=False) as archive:
                content = {name: archive[name] for name in archive.files}
            shapes = content["clusters"].shape, content["users"].shape
            kind = int(content["format"]), *shapes
            history = cls(content["sums"].shape[1])
            history.used = int(content["used"])
            history._sums, history._centres = content["sums"], content["centres"]
            history._clusters, history._users = content["clusters"], content["users"]
            history._all = content["all"]
        except (ValueError, KeyError, IndexError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise IncompatibleState(f"not a request history: {error}") from error
        expected = _FORMAT, (CLUSTERS, 2), (USER_BUCKETS, 2)
        if kind != expected:
            raise IncompatibleState(f"request history of {kind}, not {expected}; fold it again")
        return history

    def _nearest(self, direction: Vector) -> tuple[int, float]:
        cosines = self._centres[: self.used] @ direction
        cluster = int(cosines.argmax())
        return cluster, min(max(float(cosines[cluster]), -1.0), 1.0)

    def _cluster_for(self, direction: Vector) -> int:
        cluster, cosine = self._nearest(direction) if self.used else (0, -math.inf)
        if self.used == CLUSTERS or cosine >= _NEW_CLUSTER_BELOW:
            return cluster
        self.used += 1
        return self.used - 1


def user_bucket(user: str) -> int:
    """In [0, USER_BUCKETS): always the same for a user; users share one now and then.

    Examples
    --------
    >>> user_bucket("ann") == user_bucket("ann") < USER_BUCKETS
    True
    """
    digest = hashlib.blake2b(user.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % USER_BUCKETS


def _shrunk(counted: Vector, overall: float) -> float:
    count, total = counted.tolist()
    return float((total + _PRIOR_COUNT * overall) / (count + _PRIOR_COUNT))


def _unit(vector: Vector) -> Vector | None:
    length = math.sqrt(vector @ vector)
    return None if length < _LENGTH_FLOOR else vector / length
