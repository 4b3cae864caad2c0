"""What a semantic cache saves under several policies: ``python -m benchmarks.cache FILE ...``.

Files are those of CLINC150 (``data_full.json``) and BANKING77 (CSV with the columns text and
category). The texts and their intents are real. The stream is simulated: when requests come, which
intent is popular (Zipf), how long an intent's answer stays right. A hit whose intent is another one
is wrong; a hit whose intent's answer has changed since is stale.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter

import numpy as np

from benchmarks.processor import processor
from feature_repo.embedding import WordVectors
from optimizer.cache_policy import CachePolicy, CachePrices, CacheRequest
from optimizer.records import Matrix, Vector

__all__ = ["Counted", "Stream", "serve", "stream"]

ALIKE = 0.9
PLACES = (50, 300)
PRICES = CachePrices(saving_usd=0.002, stale_usd=0.006, memory_usd_per_hour=0.00004)
WRONG_USD = 0.006
_SECONDS_BETWEEN = 20.0
_TOLERANCES_S = (900.0, 14_400.0, 604_800.0)
_HOUR_S = 3600.0

Lifetime = Callable[[CacheRequest], float]


@dataclass(frozen=True)
class Stream:
    """Requests in time order.

    Attributes
    ----------
    vectors
        Shape (n, 64), of length 1.
    intents, at, tolerance_s, characters
        Shape (n,).
    answers
        Shape (n,): how often the answer of the request's intent had changed by then.
    """

    vectors: Matrix
    intents: Vector
    at: Vector
    tolerance_s: Vector
    characters: Vector
    answers: Vector


@dataclass
class Counted:
    """What came of a stream, warm-up left out."""

    requests: int = 0
    hits: int = 0
    wrong: int = 0
    stale: int = 0
    memory_usd: float = 0.0

    @property
    def net_usd(self) -> float:
        """Saved, minus what wrong and stale hits and memory cost."""
        lost = self.wrong * WRONG_USD + self.stale * PRICES.stale_usd + self.memory_usd
        return self.hits * PRICES.saving_usd - lost


def read(path: Path) -> list[tuple[str, str]]:
    """Texts and intents of a file, in scope."""
    if path.suffix == ".json":
        parts = json.loads(path.read_text(encoding="utf-8"))
        return [tuple(row) for name in ("train", "val", "test") for row in parts[name]]
    with path.open(encoding="utf-8", newline="") as file:
        return [(row["text"], row["category"]) for row in csv.DictReader(file)]


def stream(rows: Sequence[tuple[str, str]], words: WordVectors, number: int, seed: int) -> Stream:
    """Draw a stream; popularity of intents and of the texts within each falls as 1 / rank."""
    random = np.random.default_rng(seed)
    names = sorted({intent for _, intent in rows})
    texts = [[text for text, intent in rows if intent == name] for name in names]
    order = random.permutation(len(names))
    popular = 1.0 / (1.0 + np.arange(len(names)))
    intents = order[random.choice(len(names), size=number, p=popular / popular.sum())]
    tolerance = random.choice(_TOLERANCES_S, size=len(names))
    at = np.cumsum(random.exponential(_SECONDS_BETWEEN, number))
    changes = [
        np.cumsum(random.exponential(mean, int(3 * at[-1] / mean) + 20)) for mean in tolerance
    ]
    said, vectors = [], {}
    for intent in intents.tolist():
        own = texts[intent]
        weights = 1.0 / (1.0 + np.arange(len(own)))
        text = own[int(random.choice(len(own), p=weights / weights.sum()))]
        if text not in vectors:
            mean = words.mean(text)
            vectors[text] = mean / np.linalg.norm(mean)
        said.append(text)
    return Stream(
        np.array([vectors[text] for text in said]),
        intents,
        at,
        tolerance[intents],
        np.array([len(text) for text in said]),
        np.array(
            [np.searchsorted(changes[i], t) for i, t in zip(intents.tolist(), at, strict=True)]
        ),
    )


def serve(given: Stream, lifetime: Lifetime | None, places: int, warm: int) -> Counted:
    """Run a cache with least recently used eviction over a stream.

    Parameters
    ----------
    lifetime
        Seconds to keep an answer, 0 for not at all; None for no cache. It sees every request.
    warm
        Requests at the start that are not counted.
    places
        Answers that the cache holds at most.
    """
    counted = Counted()
    stored = np.zeros((places, given.vectors.shape[1]))
    until, since = np.full(places, -np.inf), np.zeros(places)
    entry = np.zeros((places, 2), dtype=np.int64)
    held_s = 0.0
    used: OrderedDict[int, None] = OrderedDict((place, None) for place in range(places))
    for row, at in enumerate(given.at.tolist()):
        request = CacheRequest(
            given.vectors[row], at, int(given.characters[row]), float(given.tolerance_s[row])
        )
        ttl_s = 0.0 if lifetime is None else lifetime(request)
        counting = row >= warm
        counted.requests += counting
        similarity = np.where(until > at, stored @ given.vectors[row], -1.0)
        place = int(similarity.argmax())
        if similarity[place] >= ALIKE:
            used.move_to_end(place)
            if counting:
                counted.hits += 1
                wrong = entry[place, 0] != given.intents[row]
                counted.wrong += bool(wrong)
                counted.stale += bool(not wrong and entry[place, 1] != given.answers[row])
            continue
        if ttl_s <= 0:
            continue
        over = np.flatnonzero(until <= at)
        place = int(over[0]) if len(over) else next(iter(used))
        held_s += _held(since[place], until[place], given.at[warm], at)
        used.move_to_end(place)
        stored[place], until[place], since[place] = given.vectors[row], at + ttl_s, at
        entry[place] = given.intents[row], given.answers[row]
    held_s += sum(
        _held(begin, end, given.at[warm], given.at[-1])
        for begin, end in zip(since, until, strict=True)
    )
    counted.memory_usd = held_s / _HOUR_S * PRICES.memory_usd_per_hour
    return counted


def _held(since: float, until: float, start: float, now: float) -> float:
    """Seconds that a place was taken, of those that count: to its end, or given to another."""
    return max(min(until, now) - max(since, start), 0.0)


def _learned() -> Lifetime:
    policy = CachePolicy(64, PRICES, alike=ALIKE)
    return lambda request: policy.observe(request).ttl_s


WAYS: dict[str, Callable[[], Lifetime | None]] = {
    "never": lambda: None,
    "everything, least recently used": lambda: lambda request: 1e9,
    "everything, 1 hour": lambda: lambda request: _HOUR_S,
    "everything, what the caller tolerates": lambda: lambda request: request.tolerance_s,
    "everything, a third of what the caller tolerates": lambda: (
        lambda request: request.tolerance_s / 3
    ),
    "learned (ours)": _learned,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run every policy on streams of every file, and write the report."""
    parser = argparse.ArgumentParser(prog="benchmarks.cache", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, help="see above")
    parser.add_argument("--seeds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--requests", type=int, default=12_000, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cache.md"))
    asked = parser.parse_args(arguments)
    words, tables = WordVectors(), []
    for file in asked.files:
        rows = read(file)
        streams = [stream(rows, words, asked.requests, seed) for seed in range(asked.seeds)]
        intents = len({intent for _, intent in rows})
        tables += [f"## {file.stem}", "", f"{len(rows):,} texts of {intents} intents.", ""]
        for places in PLACES:
            tables += [f"{places} places:", "", _HEAD, "|---|---:|---:|---:|---:|---:|---:|"]
            for name, make in WAYS.items():
                began = perf_counter()
                found = [serve(one, make(), places, asked.requests // 4) for one in streams]
                tables.append(_row(name, found))
                print(f"{tables[-1]} {perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
            tables.append("")
    asked.out.write_text(_report(asked.seeds, asked.requests, tables), encoding="utf-8")


_HEAD = (
    "| kept | hit rate | wrong, of hits | stale, of hits | saved USD | memory USD | "
    "net USD per 1,000 requests (least, most of the seeds) |"
)


def _row(name: str, found: Sequence[Counted]) -> str:
    hits = sum(one.hits for one in found)
    requests = sum(one.requests for one in found)
    thousand = 1000 / requests
    net = [1000 * one.net_usd / one.requests for one in found]
    cells = [
        name,
        f"{hits / requests:.1%}",
        f"{sum(one.wrong for one in found) / max(hits, 1):.1%}",
        f"{sum(one.stale for one in found) / max(hits, 1):.1%}",
        f"{hits * PRICES.saving_usd * thousand:.3f}",
        f"{sum(one.memory_usd for one in found) * thousand:.3f}",
        f"{sum(net) / len(net):.3f} ({min(net):.3f}, {max(net):.3f})",
    ]
    return "| " + " | ".join(cells) + " |"


def _report(seeds: int, requests: int, tables: Sequence[str]) -> str:
    return "\n".join(
        [
            "# What a semantic cache keeps",
            "",
            f"{datetime.now(UTC):%Y-%m-%d}, `python -m benchmarks.cache FILE ... --seeds {seeds} "
            f"--requests {requests}`, {processor()}.",
            "",
            "Texts and intents are those of CLINC150 and BANKING77. **The order of the stream is "
            f"simulated**: {requests:,} requests, one each {_SECONDS_BETWEEN:.0f} s in the mean, "
            "intents and the texts of each drawn by Zipf's law (1 / rank), so the same text comes "
            "again; the answer of an intent stays right for 15 minutes, 4 hours or a week in the "
            "mean (drawn for each intent, told to the policy as tolerance). The first quarter "
            f"warms up and is not counted. Wordllama vectors of 64 numbers, a hit "
            f"from a cosine of {ALIKE}. Stated prices: a request {PRICES.saving_usd} USD, a stale "
            f"hit loses {PRICES.stale_usd}, a wrong one {WRONG_USD}, an answer kept "
            f"{PRICES.memory_usd_per_hour} an hour. Net is saved minus all of these. A third "
            "of what the caller tolerates is about where, at these prices, one more minute of life "
            "loses as much as it saves: a rule that was chosen knowing them.",
            "",
            *tables,
        ]
    )


if __name__ == "__main__":
    main()
