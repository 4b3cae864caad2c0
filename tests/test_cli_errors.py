"""Errors at the command line: one clear message, exit status 1, never a traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infra.cli import main
from optimizer.errors import InvalidInput, LlmoptError, PartFailed


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LLMOPT_SETTINGS", raising=False)
    monkeypatch.setenv("LLMOPT_HOME", str(tmp_path / "home"))


CASES = [
    (["replay", "absent.csv"], "absent.csv"),
    (["replay", "paretobandit", "--policy", "luck"], "luck"),
    (["replay", "paretobandit", "--weights", "beauty=1"], "beauty=1"),
    (["replay", "paretobandit", "--weights", "quality=0,cost=0,latency=0"], "weights"),
    (["replay", "paretobandit", "--policy", "linear+luck"], "linear+luck"),
    (["replay", "paretobandit", "--policy", "random", "--policy", "random"], "policy='random'"),
    (["replay", "paretobandit", "--seeds", "0"], "seeds=0"),
    (["replay", "paretobandit", "--delay", "exp:-1"], "delay='exp:-1'"),
    (["replay", "paretobandit", "--delay", "1.5"], "delay='1.5'"),
    (["replay", "paretobandit", "--delay", "inf"], "delay='inf'"),
    (["replay", "paretobandit", "--missing", "1.5"], "missing=1.5"),
    (["replay", "paretobandit", "--missing", "nan"], "missing=nan"),
    (["replay", "paretobandit", "--shift", "absent.csv"], "absent.csv"),
    (["replay", "paretobandit", "--new-arm", "nobody/knows"], "new_arm='nobody/knows'"),
    (["replay", "paretobandit", "--budget", "0.01"], "budget=0.01"),
    (["replay", "paretobandit", "--budget", "-1"], "budget=-1.0"),
    (["replay", "paretobandit", "--budget", "5", "--quality-floor", "0.9"], "budget=5.0"),
    (["replay", "paretobandit", "--quality-floor", "1.2"], "quality_floor=1.2"),
    (["replay", "paretobandit", "--quality-price", "0"], "quality_price_usd=0.0"),
    (["replay", "paretobandit", "--frozen-after", "-1"], "frozen_after=-1"),
    (["replay", "paretobandit", "--report", "/dev/null"], "report='/dev/null'"),
]


@pytest.mark.parametrize(("arguments", "named"), CASES)
def test_error_is_one_line_on_standard_error(arguments: list[str], named: str) -> None:
    result = CliRunner().invoke(main, arguments)

    assert result.exit_code == 1
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1
    assert lines[0].startswith("llmopt: ")
    assert named in lines[0]


@pytest.mark.parametrize(("arguments", "named"), CASES)
def test_error_is_one_object_with_json(arguments: list[str], named: str) -> None:
    result = CliRunner().invoke(main, [*arguments, "--json"])

    assert result.exit_code == 1
    error = json.loads(result.stdout)["error"]
    assert named in error["message"]
    assert error["field"]
    assert error["remedy"]


def test_unknown_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMOPT_HOMES", "x")
    result = CliRunner().invoke(main, ["status"])

    assert result.exit_code == 1
    assert "LLMOPT_HOMES" in result.stderr
    assert "LLMOPT_HOME?" in result.stderr


def test_settings_file_that_is_named_but_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMOPT_SETTINGS", "mine.yaml")
    result = CliRunner().invoke(main, ["status", "--json"])

    assert result.exit_code == 1
    assert "mine.yaml" in json.loads(result.stdout)["error"]["message"]


def test_status_of_nothing(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["status", "--json"])

    assert result.exit_code == 0
    assert json.loads(result.stdout) == {
        "running": False,
        "ready": False,
        "home": str(tmp_path / "home"),
        "parts": {},
    }


def test_down_of_nothing_is_fine() -> None:
    result = CliRunner().invoke(main, ["down", "--json"])

    assert result.exit_code == 0
    assert json.loads(result.stdout) == {"stopped": False}


def test_help_loads_nothing_heavy() -> None:
    program = (
        "import sys; import infra.cli; "
        "heavy = {'numpy', 'pandas', 'ray', 'mlflow', 'prefect', 'feast', 'httpx'}; "
        "print(heavy & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert result.stdout == b"set()\n"


@pytest.mark.parametrize("command", ["up", "down", "status", "demo", "replay", "evaluate"])
def test_every_command_has_help_and_json(command: str) -> None:
    result = CliRunner().invoke(main, [command, "--help"])
    assert result.exit_code == 0
    assert "--json" in result.stdout


def test_what_is_not_ours_keeps_its_traceback() -> None:
    from infra.terminal import errors_shown

    with pytest.raises(ZeroDivisionError), errors_shown(as_json=False):
        _ = 1 / 0


@pytest.mark.parametrize(
    "error", [PartFailed("a part"), InvalidInput("field", {1: "x"}, "remedy"), LlmoptError("any")]
)
def test_every_error_of_ours_ends_the_command(error: LlmoptError) -> None:
    from infra.terminal import errors_shown

    with pytest.raises(SystemExit) as caught, errors_shown(as_json=True):
        raise error
    assert caught.value.code == 1
