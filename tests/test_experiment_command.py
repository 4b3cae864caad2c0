"""`/v1/experiments` and `llmopt experiments`, on the real application without Ray."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
import yaml
from typer.testing import CliRunner

from feature_repo.embedding import Embedder
from infra.cli import main
from infra.experiment_view import draw, log_experiment, page
from optimizer.settings import Settings
from serving import audit, plans
from serving.api import Api
from serving.live_point import make_encoder
from serving.replica_state import ReplicaState
from serving.reward_writer import connect

DESIGN = {
    "decision_point": "chat",
    "name": "terse or not",
    "variants": [
        {"name": "old", "arms": [{"prompt_variant": "default"}]},
        {"name": "new", "arms": [{"prompt_variant": "terse"}]},
    ],
    "share": 0.5,
    "measure": "quality",
}


@pytest.fixture
def platform(settings: Callable[..., Settings], find_free_port: Callable[[], int]) -> Settings:
    return settings(
        token_keys=["00" * 16],
        ports={"fast_lane": find_free_port(), "mlflow": find_free_port()},
        decision_points=[
            {
                "name": "chat",
                "arms": [{"model": "small"}, {"model": "small", "prompt_variant": "terse"}],
            }
        ],
    )


@pytest.fixture
def url(platform: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Of the application; the command finds it by its settings, as it does for a user."""
    file = tmp_path / "llmopt.yaml"
    content = platform.model_dump(mode="json") | {"token_keys": ["00" * 16]}
    file.write_text(yaml.safe_dump(content))
    monkeypatch.setenv("LLMOPT_SETTINGS", str(file))
    with connect(platform.postgres_dsn()) as connection:
        point = platform.decision_point("chat")
        plans.ensure(connection, point, make_encoder(point, Embedder()).schema, time.time())
    state = ReplicaState(platform)
    port = platform.ports.fast_lane
    server = uvicorn.Server(
        uvicorn.Config(Api(state), port=port, log_config=None, lifespan="off", ws="none")
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()
    state.close()


def run(*arguments: str, status: int = 0) -> Any:
    result = CliRunner().invoke(main, ["experiments", *arguments, "--json"])
    assert result.exit_code == status, result.output
    return json.loads(result.stdout)


def test_the_life_of_an_experiment_at_the_command_line(url, platform, tmp_path) -> None:
    file = tmp_path / "design.yaml"
    file.write_text(yaml.safe_dump(DESIGN))
    made = run("create", str(file), "--share", "0.25", "--smallest-effect", "0.1")
    number = made["id"]
    assert made["state"] == "draft"
    assert made["design"]["share"] == 0.25
    assert made["planned"] == 394  # 0.1 at a standard deviation of 0.5, both sides, 80 % power
    assert run("start", number, "--reason", "Monday")["state"] == "running"
    assert run("pause", number)["state"] == "paused"
    assert run("start", number)["state"] == "running"
    found = run("report", number, "--folder", str(tmp_path / "report"))
    assert found["report"]["answer"] == "waiting"
    assert found["mlflow"] is None  # nobody listens there
    assert [Path(name).name for name in found["files"]] == ["report.md", "intervals_and_shares.png"]
    assert all(Path(name).stat().st_size > 100 for name in found["files"])
    refused = run("stop", number, "--promote", status=1)["error"]
    assert refused["field"] == "promote"
    assert "no variant has won" in refused["remedy"]
    assert run("stop", number)["experiment"]["state"] == "complete"
    assert [one["id"] for one in run("list")["experiments"]] == [number]
    assert run("archive", number)["state"] == "archived"
    assert run("list")["experiments"] == []
    assert len(run("list", "--all")["experiments"]) == 1
    with connect(platform.postgres_dsn()) as connection:
        trail = audit.trail(connection, "chat")
    assert {entry.actor for entry in trail} == {"http"}
    assert "Monday" in {entry.reason for entry in trail}


def test_options_alone_make_a_design(url) -> None:
    made = run(
        *("create", "--decision-point", "chat", "--name", "x", "--variant", "old=#default"),
        *("--variant", "new=small#terse", "--weights", "0.9,0.1", "--measure", "cost_usd"),
    )
    assert made["design"]["allocation"] == "weighted"
    assert made["weights"] == [0.9, 0.1]
    assert made["design"]["variants"][1]["arms"] == [
        {"model": "small", "parameters": None, "prompt_variant": "terse"}
    ]


def test_the_command_says_what_to_do_next(url, tmp_path) -> None:
    shown = CliRunner().invoke(main, ["experiments", "list"])
    assert "`llmopt experiments create`" in shown.stderr
    unknown = run("start", "nobody", status=1)["error"]
    assert (unknown["type"], unknown["field"], unknown["value"]) == (
        "UnknownName", "experiment", "nobody",
    )  # fmt: skip
    assert "llmopt experiments list" in unknown["remedy"]
    file = tmp_path / "design.yaml"
    file.write_text(yaml.safe_dump(DESIGN))
    for arguments, field in (
        (["--share", "0"], "share"),
        (["--allocation", "luck"], "allocation"),
        (["--analysis", "fixed_horizon"], "planned_samples"),
        (["--variant", "a=huge", "--variant", "b=small"], "variants[0].arms[0]"),
        (["--variant", "a"], "variant"),
        (["--variant", "a=small", "--weights", "1,2"], "weights"),
        (["--decision-point", "chit"], "decision_point"),
    ):
        error = run("create", str(file), *arguments, status=1)["error"]
        assert error["field"] == field, error
        assert error["remedy"], error
    number = run("create", str(file))["id"]
    assert "it can be: start, archive" in run("pause", number, status=1)["error"]["remedy"]


def test_without_a_platform_the_command_says_how_to_start_it(
    platform, tmp_path, monkeypatch
) -> None:
    file = tmp_path / "llmopt.yaml"
    file.write_text(yaml.safe_dump(platform.model_dump(mode="json") | {"token_keys": []}))
    monkeypatch.setenv("LLMOPT_SETTINGS", str(file))
    error = run("list", status=1)["error"]
    assert error["type"] == "PartFailed"
    assert "`llmopt up`" in error["message"]


def test_prompts_are_compared_by_one_option(url) -> None:
    made = run("create", "--prompts", "--share", "0.3")
    design = made["design"]
    assert [one["name"] for one in design["variants"]] == ["default", "terse"]
    assert (design["allocation"], design["share"]) == ("thompson", 0.3)
    assert run("start", made["id"])["state"] == "running"


def test_problems_over_http_name_field_and_value(url) -> None:
    with httpx.Client(base_url=url) as client:
        made = client.post("/v1/experiments", json=DESIGN)
        assert made.status_code == 201
        number = made.json()["id"]
        for path, body, status, field, value in (
            ("", {**DESIGN, "share": 1.5}, 422, "share", 1.5),
            ("", {**DESIGN, "speed": 1}, 422, "speed", 1),
            ("", {**DESIGN, "decision_point": "chit"}, 404, "decision_point", "chit"),
            ("", {**DESIGN, "variants": DESIGN["variants"][:1]}, 422, "variants", None),
            ("/nobody/start", {}, 404, "experiment", "nobody"),
            (f"/{number}/pause", {}, 422, "state", "draft"),
            (f"/{number}/stop", {"promote": 1}, 422, "promote", 1),
            (f"/{number}/jump", {}, 404, "path", f"/v1/experiments/{number}/jump"),
        ):
            answer = client.post(f"/v1/experiments{path}", json=body)
            assert answer.status_code == status, answer.text
            assert answer.headers["content-type"] == "application/problem+json"
            problem = answer.json()
            assert problem["field"] == field, problem
            if value is not None:
                assert problem["value"] == value, problem
        assert client.get(f"/v1/experiments/{number}/start").status_code == 405
        assert "POST" in client.get(f"/v1/experiments/{number}/start").json()["detail"]
        assert client.post(f"/v1/experiments/{number}/start").json()["state"] == "running"
        report = client.get(f"/v1/experiments/{number}").json()
        assert report["experiment"]["state"] == "running"
        assert report["report"]["variants"][0]["outcomes"] == 0
        listed = client.get("/v1/experiments").json()["experiments"]
        assert [one["id"] for one in listed] == [number]


def found_report() -> dict[str, Any]:
    """As the platform answers; figures made up."""
    interval = {"value": 0.1, "low": 0.02, "high": 0.18}
    line = {
        "weight": 0.5, "decisions": 500, "outcomes": 450, "p_value": 0.01, "e_value": 100.0,
        "p_corrected": 0.01,
    }  # fmt: skip
    baseline = dict.fromkeys(("difference", "p_value", "e_value", "p_corrected", "better"))
    looks = [
        {
            "at": 1e9 + 3600 * hour,
            "outcomes": [hour, hour],
            "shares": [0.5, 0.5] if hour else [],
            "differences": [interval if hour > 1 else None],
        }
        for hour in range(4)
    ]
    return {
        "experiment": {
            "id": "e1",
            "state": "running",
            "design": {"name": "a | b", "decision_point": "chat", "analysis": "sequential"},
        },
        "report": {
            "at": 1e9, "measure": "quality", "answer": "winner", "sentence": "new beats old",
            "winner": "new", "alpha": 0.05, "planned": None, "ran_s": 7200.0, "history": looks,
            "variants": [
                {**line, **baseline, "name": "old", "mean": 0.5},
                {**line, "name": "new", "mean": 0.6, "difference": interval, "better": True},
            ],
        },
    }  # fmt: skip


def test_page_and_plot(tmp_path) -> None:
    text = page(found_report())
    assert "**new beats old**" in text
    assert (
        "| new | 50.0 % | 500 | 450 | 0.6 | +0.1 (+0.02 to +0.18) | 0.01 | 100 | better |" in text
    )
    draw(found_report(), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_page_and_plot_go_to_mlflow(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    address = f"sqlite:///{tmp_path}/mlflow.db"
    stored = log_experiment(found_report(), address, None)
    assert stored["files"] == []
    assert stored["mlflow"] is not None
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=address)
    number = stored["mlflow"].rpartition("/")[2]
    logged = client.get_run(number)
    assert logged.data.metrics["difference_low/1"] == 0.02
    assert logged.data.params["winner"] == "new"
    assert {one.path for one in client.list_artifacts(number)} == {
        "report.md", "intervals_and_shares.png",
    }  # fmt: skip
