"""What a replica knows of the arms, read from the feature store and kept for an hour at most."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from msgspec import Struct

from feature_repo.aggregates import ArmFeatures
from feature_repo.arm_rows import Dated, arm_key
from feature_repo.report import FeatureReport, ReportBoard
from feature_repo.windows import WindowFeatures
from optimizer.errors import Unavailable, UnknownName
from optimizer.settings import Settings

if TYPE_CHECKING:
    from feature_repo.store import FeatureStoreClient

__all__ = ["ArmFeatureReader", "FeaturesResponse"]

_LOG = logging.getLogger(__name__)
_EVERY_S = 0.2
_LAST_S = 3600.0

_T = TypeVar("_T")


class FeaturesResponse(Struct, frozen=True):
    """What this replica knows of an arm; null where nothing is.

    Ages are in seconds: `read_age_s` since the feature store was last read, the others since the
    values were true. The keys of `windows` are "1m", "5m", "15m" and "60m".
    """

    entity: str
    decision_point: str
    model: str
    read_age_s: float
    statistics: ArmFeatures | None
    statistics_age_s: float | None
    windows: dict[str, WindowFeatures] | None
    windows_age_s: float | None


class ArmFeatureReader:
    """Reads statistics and windows of every arm, in a thread of its own.

    Parameters
    ----------
    settings
        Say where the feature store is.
    models
        Of each decision point.
    on_statistics
        Called with a decision point's name and its models' statistics, each time they were read,
        and with nothing ``last_s`` after the last time.
    on_import
        Called once Feast has been imported, or not at all.
    on_round
        Called after each attempt to read.
    last_s
        How long what was read last is good for while the feature store is away, seconds.

    Attributes
    ----------
    models
        As given.
    report
        The learner's, read before the values; None without one.
    violations
        Values that were read out of range or not finite, by view and feature, each once.
    violated_at
        When the last one was, by view and decision point (Unix time, seconds).
    statistics, windows
        By decision point and model, as last read; replaced as a whole.
    """

    def __init__(
        self,
        settings: Settings,
        models: Mapping[str, Sequence[str]],
        on_statistics: Callable[[str, dict[str, ArmFeatures]], None],
        on_import: Callable[[], None],
        on_round: Callable[[], None] = lambda: None,
        last_s: float = _LAST_S,
    ) -> None:
        self._settings = settings
        self.models = models
        self._on_round = on_round
        self._board = ReportBoard(settings.valkey_address)
        self.report: FeatureReport | None = None
        self.violations: dict[str, Counter[str]] = {
            "arm_statistics": Counter(),
            "arm_windows": Counter(),
        }
        self.violated_at: dict[tuple[str, str], float] = {}
        self._on_statistics = on_statistics
        self._on_import = on_import
        self._last_s = last_s
        self.statistics: dict[str, dict[str, Dated[ArmFeatures]]] = {name: {} for name in models}
        self.windows: dict[str, dict[str, Dated[dict[int, WindowFeatures]]]] = {
            name: {} for name in models
        }
        self._read_at = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="follow_statistics", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Stop."""
        self._stop.set()
        self._thread.join(timeout_s)

    def age_s(self) -> float:
        """Seconds since everything was read from the feature store; infinite before."""
        return time.time() - self._read_at if self._read_at else float("inf")

    def windows_age_s(self) -> float:
        """Seconds since the newest windows that were read were pushed.

        Of the decision point where it is longest; infinite while one has none.
        """
        newest = [
            max((dated.at_s for dated in found.values()), default=float("-inf"))
            for found in self.windows.values()
        ]
        return time.time() - min(newest)

    def recent(self, decision_point: str, model: str) -> ArmFeatures | None:
        """A model's statistics as last read, None where there are none."""
        found = self.statistics[decision_point].get(model)
        return found.features if found else None

    def times(self, view: str, decision_point: str) -> dict[str, float] | None:
        """When the values of a view that were read were true, by model; None if it never is."""
        if view == "arm_statistics":
            return {one: found.at_s for one, found in self.statistics[decision_point].items()}
        if view == "arm_windows":
            return {one: found.at_s for one, found in self.windows[decision_point].items()}
        return None

    def entity(self, entity: str) -> FeaturesResponse:
        """What is known of ``<decision point>/<model>`` now, for people.

        Raises
        ------
        UnknownName
            If no such arm is configured.
        Unavailable
            If the feature store could not be read for an hour, or not yet.
        """
        name, _, model = entity.partition("/")
        if model not in self.models.get(name, ()):
            known = [arm_key(name, model) for name, all_ in self.models.items() for model in all_]
            raise UnknownName("entity", entity, f"use one of {', '.join(known)}")
        read_age_s = self.age_s()
        if read_age_s > self._last_s:
            raise Unavailable("the feature store")
        now = time.time()
        statistics = self.statistics[name].get(model)
        windows = self.windows[name].get(model)
        return FeaturesResponse(
            entity=entity,
            decision_point=name,
            model=model,
            read_age_s=read_age_s,
            statistics=statistics.features if statistics else None,
            statistics_age_s=max(now - statistics.at_s, 0.0) if statistics else None,
            windows={f"{minutes}m": one for minutes, one in windows.features.items()}
            if windows
            else None,
            windows_age_s=max(now - windows.at_s, 0.0) if windows else None,
        )

    def _follow(self) -> None:
        store: FeatureStoreClient | None = None
        away = ""
        while not self._stop.wait(_EVERY_S):
            try:
                if store is None:
                    # Feast takes seconds to import. It is imported here, since CPython 3.11 fails
                    # now and then while another thread parses ("AST constructor recursion depth").
                    from feature_repo.store import FeatureStoreClient

                    store = FeatureStoreClient(self._settings)
                    self._on_import()
                report = self._board.read()
                for name, models in self.models.items():
                    found = store.read_dated(name, models)
                    self._count("arm_statistics", name, self.statistics[name], found)
                    self.statistics[name] = found
                    self._on_statistics(name, {one: it.features for one, it in found.items()})
                    windows = store.read_windows(name, models)
                    self._count("arm_windows", name, self.windows[name], windows)
                    self.windows[name] = windows
                self.report, self._read_at = report, time.time()
                away = ""
            except Unavailable as error:
                if str(error) != away:
                    _LOG.warning("arm features are %.0f s old: %s", self.age_s(), error)
                away = str(error)
            except Exception:
                _LOG.exception("arm features could not be read")
            if self.age_s() > self._last_s:
                self.report = None
                for name in self.models:
                    self.statistics[name], self.windows[name] = {}, {}
                    self._on_statistics(name, {})
            self._on_round()
        self._board.close()
        if store is not None:
            store.close()

    def _count(
        self,
        view: str,
        decision_point: str,
        before: Mapping[str, Dated[_T]],
        found: Mapping[str, Dated[_T]],
    ) -> None:
        """Count violations of values that were not there at the last reading."""
        for model, dated in found.items():
            seen = before.get(model)
            if dated.violations and (seen is None or seen[1:] != dated[1:]):
                self.violations[view].update(dated.violations)
                self.violated_at[view, decision_point] = time.time()
