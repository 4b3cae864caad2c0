"""The settings file that is found, the home folder, and what children are told."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from infra.environment import stack_environment
from infra.home import Home, find_settings
from infra.parts import make_parts
from optimizer.errors import InvalidSettings
from optimizer.settings import Settings, load_settings

POINTS = [{"name": "a", "arms": [{"model": "m"}]}]


@pytest.fixture(autouse=True)
def nothing_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("LLMOPT_")]:
        monkeypatch.delenv(name)


def test_packaged_settings_where_there_are_no_others() -> None:
    settings, file = find_settings()

    assert [point.name for point in settings.decision_points] == ["chat"]
    assert file.is_absolute()
    assert (file.parent.name, file.name) == ("infra", "llmopt.yaml")


def test_file_here_wins_over_the_packaged_one(tmp_path: Path) -> None:
    (tmp_path / "llmopt.yaml").write_text(json.dumps({"decision_points": POINTS}))
    settings, file = find_settings()

    assert settings.decision_points[0].name == "a"
    assert file == tmp_path / "llmopt.yaml"


def test_named_file_wins_over_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "llmopt.yaml").write_text("not: used")
    (tmp_path / "mine.yaml").write_text(json.dumps({"decision_points": POINTS}))
    monkeypatch.setenv("LLMOPT_SETTINGS", "mine.yaml")

    assert find_settings()[1] == tmp_path / "mine.yaml"


def test_token_key_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.make()
    keys = home.token_keys()

    assert len(keys) == 1
    assert len(bytes.fromhex(keys[0])) == 32
    assert home.token_keys() == keys
    assert stat.S_IMODE((home.folder / "token_keys").stat().st_mode) == 0o600


def test_empty_key_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "token_keys").touch()
    with pytest.raises(InvalidSettings, match="token_keys is empty"):
        Home(tmp_path).token_keys()


def test_home_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidSettings, match="LLMOPT_HOME"):
        Home(tmp_path / "file" / "home").make()


def test_children_read_the_same_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "example.org")
    settings, file = find_settings()
    home = Home(tmp_path / "home")
    home.make()
    environment = stack_environment(settings, file, home, "id")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    theirs = load_settings(environment=os.environ)

    assert theirs.home == home.folder
    assert [key.get_secret_value() for key in theirs.token_keys] == home.token_keys()
    assert theirs.decision_points == settings.decision_points
    assert environment["NO_PROXY"].startswith("example.org,127.0.0.1,localhost")


def test_users_keys_are_handed_on(tmp_path: Path) -> None:
    settings = Settings(decision_points=POINTS, token_keys=["aa", "bb"])
    environment = stack_environment(settings, tmp_path / "x.yaml", Home(tmp_path), "id")

    assert json.loads(environment["LLMOPT_TOKEN_KEYS"]) == ["aa", "bb"]
    assert not (tmp_path / "token_keys").exists()


def test_users_servers_are_not_started_and_their_passwords_not_shown(tmp_path: Path) -> None:
    settings = Settings(
        decision_points=POINTS,
        postgres_url="postgresql://me:secret@db.example:5432/llmopt",
        valkey_url="redis://:secret@cache.example:6379/0",
        mlflow_url="https://mlflow.example",
        prefect_url="https://prefect.example/api",
    )
    parts = {part.name: part for part in make_parts(settings, Home(tmp_path))}

    own = {name for name, part in parts.items() if part.start is None}
    assert own == {"postgres", "valkey", "mlflow", "prefect"}
    assert all(not part.ports for name, part in parts.items() if name in own)
    addresses = [parts[name].endpoint.address for name in sorted(own)]
    assert addresses == [
        "https://mlflow.example",
        "postgresql://me:***@db.example:5432/llmopt",
        "https://prefect.example",
        "redis://:***@cache.example:6379/0",
    ]


def test_every_port_of_the_settings_belongs_to_a_part(tmp_path: Path) -> None:
    settings = Settings(decision_points=POINTS)
    ports = [port for part in make_parts(settings, Home(tmp_path)) for port in part.ports]

    assert {port.setting: port.number for port in ports} == settings.ports.model_dump()


def test_parts_stand_after_what_they_need(tmp_path: Path) -> None:
    seen: set[str] = set()
    for part in make_parts(Settings(decision_points=POINTS), Home(tmp_path)):
        assert set(part.needs) <= seen
        seen.add(part.name)
