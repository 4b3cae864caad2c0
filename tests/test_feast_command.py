"""The `feast` command on the platform's own registry, as a user of Feast calls it."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
import yaml

from feature_repo.aggregates import ArmFeatures
from feature_repo.connections import offline_store, online_store, registry_url
from feature_repo.definitions import OBJECTS
from feature_repo.store import FeatureStoreClient
from feature_repo.windows import WINDOWS_MIN, WindowFeatures
from optimizer.settings import Settings

FOLDER = Path(__file__).parents[1] / "feature_repo"
SMALL = ArmFeatures(quality=0.5, cost_usd=0.001, latency_s=0.2, error_rate=0.1, count=12.5)
WINDOW = WindowFeatures(3.0, 0.5, 0.001, 0.003, 0.2, 0.4, 0.25)


@pytest.fixture
def client(settings: Callable[..., Settings]) -> Iterator[FeatureStoreClient]:
    client = FeatureStoreClient(settings())
    client.apply()
    yield client
    client.close()


@pytest.fixture
def repository(settings: Callable[..., Settings], tmp_path: Path) -> Path:
    """The room `feature_repo`, with the shipped file on this test's servers."""
    made = settings()
    for name in (".feastignore", *(path.name for path in FOLDER.glob("*.py"))):
        (tmp_path / name).write_bytes((FOLDER / name).read_bytes())
    config = yaml.safe_load((FOLDER / "feature_store.yaml").read_text())
    config["registry"]["path"] = registry_url(made.postgres_dsn()).replace(
        "search_path%3Dfeast", "search_path%3Dfeast,public"
    )
    config["online_store"]["connection_string"] = online_store(made.valkey_address)[
        "connection_string"
    ]
    config["offline_store"] = offline_store(made.postgres_dsn())
    (tmp_path / "feature_store.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


COMMANDS = """
import json, sys
from feature_repo import quick_feast
from click.testing import CliRunner
from feast.cli.cli import cli

for arguments in json.load(sys.stdin):
    result = CliRunner().invoke(cli, arguments)
    print(json.dumps([result.exit_code, result.output + repr(result.exception or "")]))
"""


def feast(repository: Path, *commands: Sequence[str]) -> list[str]:
    """What some commands print, called in turn in one process: Feast takes seconds to import."""
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS],
        input=json.dumps(commands),
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert [code for code, _ in results] == [0] * len(commands), results
    return [printed for _, printed in results]


def names(kind: str) -> list[str]:
    return [thing.name for thing in OBJECTS if type(thing).__name__ == kind]


def test_the_command_lists_what_the_platform_applied_and_materializes_its_log(
    client, repository
) -> None:
    now = time.time()
    windows = dict.fromkeys(WINDOWS_MIN, WINDOW)
    client.log("chat", {"small": SMALL}, now - 60)
    client.log_windows("chat", {"small": windows}, now - 60)
    assert client.read("chat", ["small"]) == client.read_windows("chat", ["small"]) == {}
    start, end = (
        (datetime.fromtimestamp(now, UTC) + timedelta(hours=hours)).strftime("%Y-%m-%dT%H:%M:%S")
        for hours in (-1, 1)
    )
    lists = {
        "entities": "Entity",
        "feature-views": "FeatureView",
        "on-demand-feature-views": "OnDemandFeatureView",
        "feature-services": "FeatureService",
        "data-sources": "PushSource",
    }
    *listed, described, _ = feast(
        repository,
        *([command, "list"] for command in lists),
        ["feature-views", "describe", "arm_statistics"],
        ["materialize", start, end],
    )
    for kind, printed in zip(lists.values(), listed, strict=True):
        assert names(kind)
        assert all(name in printed for name in names(kind)), (kind, printed)
    assert "half-life 5 minutes" in described
    assert client.read("chat", ["small"]) == {"small": SMALL}
    assert client.read_windows("chat", ["small"])["small"].features == windows


def test_the_page_of_feast_ui_shows_the_registry(
    client, repository, find_free_port: Callable[[], int]
) -> None:
    port = find_free_port()
    url = f"http://127.0.0.1:{port}"
    log = repository / "ui.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [Path(sys.executable).with_name("feast"), "ui", "-h", "127.0.0.1", "-p", str(port)],
            cwd=repository,
            stdout=output,
            stderr=output,
        )
        try:
            page = first_answer(url, process, log)
            assert page.status_code == 200
            assert "<title>Feast" in page.text
            projects = httpx.get(f"{url}/projects-list.json").json()["projects"]
            assert [project["id"] for project in projects] == ["llmopt"]
            views = httpx.get(f"{url}/api/v1/feature_views", params={"project": "llmopt"})
            assert views.status_code == 200
            assert all(name in views.text for name in names("FeatureView"))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)


def first_answer(url: str, process: subprocess.Popen[bytes], log: Path) -> httpx.Response:
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        try:
            return httpx.get(url, follow_redirects=True)
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError(f"feast ui does not answer: {log.read_text()[-2000:]}")
