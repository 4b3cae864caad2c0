"""Reading recorded outcomes: the three formats, the set in the wheel, and clear refusals."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from infra.recordings import load_recording, load_traits
from optimizer.errors import InvalidInput, InvalidRecording

ROWS = [
    # request_id, prompt, task, model, quality, cost_usd
    ("r1", "one", "chat", "big", 1.0, 0.010),
    ("r1", "one", "chat", "small", 1.0, 0.001),
    ("r2", "two", "chat", "big", 1.0, 0.010),
    ("r2", "two", "chat", "small", 0.0, 0.001),
    ("r3", "three", "code", "big", 0.0, 0.010),
    ("r3", "three", "code", "small", 0.5, 0.001),
]
COLUMNS = ["request_id", "prompt", "task", "model", "quality", "cost_usd"]


def frame() -> pd.DataFrame:
    return pd.DataFrame(ROWS, columns=COLUMNS)


def write(table: pd.DataFrame, path: Path) -> str:
    if path.suffix == ".parquet":
        table.to_parquet(path)
    elif path.suffix == ".csv":
        table.to_csv(path, index=False)
    else:
        table.to_json(path, orient="records", lines=True)
    return str(path)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_every_format_reads_the_same(tmp_path: Path, suffix: str) -> None:
    recorded = load_recording(write(frame(), tmp_path / f"file{suffix}"))

    assert recorded.request_ids == ("r1", "r2", "r3")
    assert recorded.models == ("big", "small")
    assert recorded.quality.tolist() == [[1.0, 1.0], [1.0, 0.0], [0.0, 0.5]]
    assert recorded.cost_usd.mean(axis=0).tolist() == pytest.approx([0.010, 0.001])
    assert recorded.latency_s is None


def test_wheel_holds_3609_prompts_of_nine_tasks_and_three_models() -> None:
    recorded = load_recording("paretobandit")

    assert recorded.quality.shape == (3609, 3)
    assert len(set(recorded.request_ids)) == 3609
    assert len(set(recorded.tasks)) == 9
    assert "bbh" in recorded.tasks
    dearest = recorded.models.index("google/gemini-2.5-pro")
    assert recorded.quality.mean(axis=0)[dearest] == pytest.approx(0.9335, abs=1e-4)
    assert 1000 * recorded.cost_usd.mean(axis=0)[dearest] == pytest.approx(15.10, abs=0.01)


def test_wheel_is_read_without_running_its_code() -> None:
    program = (
        "import sys; from infra.recordings import load_recording; load_recording('paretobandit'); "
        "sys.exit('pareto_bandit' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("column", COLUMNS)
def test_missing_column_is_named_with_the_file(tmp_path: Path, column: str) -> None:
    file = write(frame().drop(columns=column), tmp_path / "file.csv")

    with pytest.raises(InvalidRecording) as caught:
        load_recording(file)
    assert caught.value.field == f"{file}: {column}"


@pytest.mark.parametrize(
    ("column", "value", "named"),
    [
        ("quality", "good", "quality, row 4"),
        ("cost_usd", "free", "cost_usd, row 4"),
        ("quality", "1.5", "quality"),
        ("cost_usd", "-1", "cost_usd"),
    ],
)
def test_wrong_value_is_named(tmp_path: Path, column: str, value: str, named: str) -> None:
    table = frame().astype({column: str})
    table.loc[3, column] = value
    file = write(table, tmp_path / "file.csv")

    with pytest.raises(InvalidRecording) as caught:
        load_recording(file)
    assert caught.value.field == f"{file}: {named}"


def test_missing_row_names_request_and_model(tmp_path: Path) -> None:
    file = write(frame().drop(index=3), tmp_path / "file.csv")

    with pytest.raises(InvalidRecording, match="missing for request r2 and model small"):
        load_recording(file)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("absent.csv", None, "there is no such file"),
        ("table.xlsx", b"", "a .parquet, .csv, .jsonl file, or the name paretobandit"),
        ("broken.parquet", b"not parquet", "it cannot be read"),
        ("broken.jsonl", b"{", "it cannot be read"),
        ("empty.csv", b"", "it cannot be read"),
    ],
)
def test_unreadable_file_is_named(
    tmp_path: Path, name: str, content: bytes | None, reason: str
) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)

    with pytest.raises(InvalidRecording, match=reason) as caught:
        load_recording(str(file))
    assert caught.value.value == str(file)


def test_traits_are_read_and_the_rest_is_typical(tmp_path: Path) -> None:
    file = tmp_path / "traits.yaml"
    file.write_text("big: {price_in_usd: 10, context_tokens: 1000000}\n")
    traits = load_traits(file, ["big", "small"])
    assert list(traits) == ["big"]
    assert traits["big"].values() == pytest.approx((1.0, 0.0, 1.0, 0.0))


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("big: {price_in_usd: -1}", "traits.big.price_in_usd=-1"),
        ("big: {prize: 1}", "traits.big.prize=1"),
        ("other: {price_in_usd: 1}", "traits='other'"),
        ("big: [", "traits="),
        ("3", "traits=3"),
    ],
)
def test_traits_that_cannot_be_read_are_named(tmp_path: Path, content: str, named: str) -> None:
    file = tmp_path / "traits.yaml"
    file.write_text(content)
    with pytest.raises(InvalidInput) as refused:
        load_traits(file, ["big", "small"])
    assert named in str(refused.value)
    with pytest.raises(InvalidInput, match="a file that can be read"):
        load_traits(tmp_path / "none.yaml", [])
