"""Recorded outcomes from files, and from the set inside the wheel ``paretobandit``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec.yaml
import pandas as pd
from pydantic import TypeAdapter, ValidationError

from infra.tables import read_table
from optimizer.arm_traits import ArmTraits
from optimizer.errors import InvalidInput, InvalidRecording, UnknownName
from optimizer.recorded import RecordedOutcomes

__all__ = ["PARETOBANDIT", "load_recording", "load_traits"]

PARETOBANDIT = "paretobandit"
_FOLDS = ("val", "test_holdout")
_NUMBERS = ("quality", "cost_usd", "latency_s")


def load_recording(name_or_path: str) -> RecordedOutcomes:
    """Read recorded outcomes, one row for each (request, model).

    Parameters
    ----------
    name_or_path
        ``paretobandit``, or a ``.parquet``, ``.csv`` or ``.jsonl`` file with the columns
        ``request_id, prompt, task, model, quality, cost_usd`` and, if known, ``latency_s`` and
        ``user_id``.

    Raises
    ------
    InvalidRecording
        Naming the file, and the column or the row that is wrong.
    """
    if name_or_path == PARETOBANDIT:
        frame = _paretobandit()
    else:
        frame = read_table(Path(name_or_path), f", or the name {PARETOBANDIT}")
    for column in _NUMBERS:
        if column in frame:
            frame[column] = _numbers(name_or_path, frame[column])
    try:
        return RecordedOutcomes.from_frame(frame)
    except InvalidRecording as error:
        raise InvalidRecording(
            f"{name_or_path}: {error.field}", error.value, error.remedy
        ) from None


def load_traits(path: Path, models: Sequence[str]) -> Mapping[str, ArmTraits]:
    """Read what is known of models beforehand: a YAML file of models, each with its traits.

    Parameters
    ----------
    path
        For instance ``small: {price_in_usd: 0.2, context_tokens: 8192}``.
    models
        That may be named; those that are not count as typical.

    Raises
    ------
    InvalidInput
        Naming the file, and the model or the trait that is refused.
    """
    try:
        content = msgspec.yaml.decode(path.read_bytes())
        traits = TypeAdapter(dict[str, ArmTraits]).validate_python(content)
    except OSError as error:
        raise InvalidInput("traits", str(path), f"a file that can be read: {error}") from None
    except msgspec.DecodeError as error:
        raise InvalidInput("traits", str(path), f"YAML: {error}") from None
    except ValidationError as error:
        wrong = error.errors()[0]
        where = ".".join(map(str, ("traits", *wrong["loc"])))
        raise InvalidInput(where, wrong["input"], wrong["msg"]) from None
    for model in traits:
        if model not in models:
            raise UnknownName("traits", model, f"one of the models: {', '.join(models)}")
    return traits


def _numbers(name: str, column: pd.Series[Any]) -> pd.Series[float]:
    numbers = pd.to_numeric(column, errors="coerce")
    wrong = numbers.isna() & column.notna()
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        raise InvalidRecording(
            f"{name}: {column.name}, row {row + 1}", column.iloc[row], "a number is needed"
        )
    return numbers.astype(float)


def _paretobandit() -> pd.DataFrame:
    """The two folds of the wheel as one long table; none of its code is run."""
    spec = find_spec("pareto_bandit")
    if spec is None or not spec.submodule_search_locations:
        raise InvalidRecording(
            "file", PARETOBANDIT, "the package paretobandit is not installed: run `make setup`"
        )
    folder = Path(spec.submodule_search_locations[0]) / "data" / "examples"
    return pd.DataFrame([row for fold in _FOLDS for row in _fold_rows(folder / f"{fold}.jsonl")])


def _fold_rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            record = json.loads(line)
            for model, outcome in record["arms"].items():
                yield {
                    "request_id": f"{path.stem}-{number}",
                    "prompt": record["prompt"],
                    "task": record["source"].partition("/")[0],
                    "model": model,
                    "quality": outcome["reward"],
                    "cost_usd": outcome["cost"],
                }
