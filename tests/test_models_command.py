"""`llmopt models`, on a real MLflow server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from infra.cli import main
from infra.home import Home
from infra.models import first_versions
from infra.state import StackState, StateFile
from optimizer.catalogue import find
from optimizer.errors import InvalidInput, InvalidSettings, PartFailed
from optimizer.experiments.prompts import prompt_experiment
from optimizer.features import FeatureEncoder
from optimizer.records import Observation, Outcome
from optimizer.settings import Settings
from registry.description import PolicyDescription
from registry.prompts import PromptRegistry, check_prompts, read_prompts
from registry.versions import PolicyRegistry

pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning")

ENCODER = FeatureEncoder((), 0)


def publish(registry: PolicyRegistry, settings: Settings, name: str, **changes: Any) -> None:
    point = settings.decision_point(name).model_copy(update=changes)
    described = PolicyDescription(
        decision_point=point, feature_names=ENCODER.names, schema_id=ENCODER.schema_id
    )
    policy = described.policy()
    row = np.array([1.0, *[0.5] * (ENCODER.size - 1)])
    policy.learn([Observation(0, row, Outcome(), Outcome(quality=0.5))])
    registry.publish(described, policy.to_bytes(), position=1, metrics={"learned": 1.0})


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mlflow_url: str) -> Any:
    """Runs `llmopt models` with settings of its own; gives the JSON object it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLMOPT_HOME", str(tmp_path / "home"))

    def run(*arguments: str, failed: bool = False, **given: Any) -> Any:
        points = [
            {"name": "shop", "arms": [{"model": "small"}, {"model": "google/gemini-2.5-pro"}]}
        ]
        content = {"mlflow_url": mlflow_url, "decision_points": points} | given
        (tmp_path / "llmopt.yaml").write_text(json.dumps(content))
        result = CliRunner().invoke(main, ["models", *arguments, "--json"])
        assert (result.exit_code == 1) is failed, result.output
        return json.loads(result.stdout)

    return run


def test_versions_are_listed_shown_and_compared(command: Any, mlflow_url: str) -> None:
    assert command("list") == {"models": []}
    settings = Settings(
        decision_points=[{"name": "shop", "arms": [{"model": "small"}, {"model": "large"}]}]
    )
    registry = PolicyRegistry(mlflow_url)
    publish(registry, settings, "shop")
    publish(registry, settings, "shop", cost_cap_usd=0.5)
    newest, first = command("list")["models"]
    assert newest["semantic_version"] == "1.1.0" and newest["aliases"] == ["champion"]
    assert (first["decision_point"], first["version"], first["samples"]) == ("shop", 1, 1)
    assert first["metrics"] == {"learned": 1.0}
    assert command("show", "champion") == newest
    found = command("diff", "1.0.0", "champion")
    assert found["settings"] == {"cost_cap_usd": [None, 0.5]} and found["metrics"] == {}
    assert "version='7'" in command("show", "7", failed=True)["error"]["message"]
    two = [{"name": name, "arms": [{"model": "small"}]} for name in ("shop", "help")]
    refused = command("show", "champion", failed=True, decision_points=two)["error"]
    assert refused["field"] == "decision_point" and "shop, help" in refused["remedy"]
    found = command("show", "1.0.0", "--decision-point", "shop", decision_points=two)
    assert found["version"] == 1


def test_tables_are_for_people(command: Any) -> None:
    command("catalogue")
    shown = CliRunner().invoke(main, ["models", "catalogue", "gemini-2.5-pro"])
    assert shown.exit_code == 0 and shown.stdout == ""
    assert "list prices" in shown.stderr and "1.25" in shown.stderr


def test_mlflow_that_is_away(command: Any, find_free_port: Any, tmp_path: Path) -> None:
    away = f"http://127.0.0.1:{find_free_port()}"
    for arguments in (["list"], ["show", "champion"], ["diff", "1.0.0", "1.0.1"]):
        message = command(*arguments, failed=True, mlflow_url=away)["error"]["message"]
        assert away in message and "mlflow_url" in message
    ours = {"mlflow_url": None, "ports": {"mlflow": find_free_port()}}
    message = command("list", failed=True, **ours)["error"]["message"]
    assert "`llmopt up` starts the platform" in message


def test_only_a_platform_that_starts_is_waited_for(find_free_port: Any, tmp_path: Path) -> None:
    port = find_free_port()
    settings = Settings(
        home=tmp_path,
        ports={"mlflow": port},
        decision_points=[{"name": "chat", "arms": [{"model": "small"}]}],
    )
    state = StateFile(Home(tmp_path).folder)
    said: list[str] = []
    with pytest.raises(PartFailed, match="llmopt up"):
        first_versions(settings, ["chat"], said.append)
    assert said == []
    assert state.acquire()
    try:
        state.write(StackState("id", 1, ready=True, complete=False))
        with pytest.raises(PartFailed, match="llmopt status"):
            first_versions(settings, ["chat"], said.append, wait_s=0.5)
    finally:
        state.release()
    assert len(said) == 1 and "waiting" in said[0]


def test_traits_come_from_the_catalogue_unless_they_are_given() -> None:
    arms = [
        {"model": "mistralai/mistral-large-2512"},
        {"model": "mistralai/mistral-large-2512", "prompt_variant": "brief", "traits": {}},
        {"model": "mine"},
        {"model": "nobody-knows-it"},
    ]
    settings = Settings(
        catalogue={"mine": {"price_in_usd": 0.3, "speed_tokens_s": 90}},
        decision_points=[{"name": "chat", "arms": arms}],
    )
    known, emptied, mine, unknown = (arm.traits for arm in settings.decision_points[0].arms)
    listed = find("mistralai/mistral-large-2512")
    assert listed is not None and known == listed.traits() and known.price_out_usd is not None
    assert emptied == unknown == type(known)()
    assert (mine.price_in_usd, mine.speed_tokens_s, mine.context_tokens) == (0.3, 90, None)
    again = Settings(
        catalogue={"mine": {"price_in_usd": 9}}, decision_points=settings.decision_points
    )
    assert again.decision_points == settings.decision_points


def test_every_model_of_the_catalogue_can_be_an_arm() -> None:
    from optimizer.catalogue import search

    entries = list(search(""))
    assert len(entries) > 1000
    assert all(isinstance(one.traits().values(), tuple) for one in entries)


def test_the_catalogue_can_be_asked(command: Any) -> None:
    own = {"small": {"price_in_usd": 0.1}, "google/gemini-2.5-pro": {"price_in_usd": 7}}
    small, gemini = command("catalogue", catalogue=own)["models"]
    assert (small["name"], small["provider"], small["price_in_usd"]) == ("small", "settings", 0.1)
    assert (gemini["provider"], gemini["price_in_usd"]) == ("google", 7)
    assert gemini["context_tokens"] > 1_000_000 and "prompt caching" in gemini["capabilities"]
    many = command("catalogue", "mixtral")["models"]
    assert len(many) > 1 and all("mixtral" in one["model"].lower() for one in many)
    refused = command("catalogue", "gpt-4oo-mini-x", failed=True)["error"]
    assert "gpt-4o-mini" in refused["remedy"] and "`catalogue`" in refused["remedy"]


PROMPTS = [
    {"model": "small"},
    {"model": "small", "prompt_variant": "brief"},
    {"model": "large"},
    {"model": "large", "prompt_variant": "brief"},
    {"model": "large", "prompt_variant": "steps"},
    {"model": "other"},
]


def test_prompt_variants_have_versions(command: Any, mlflow_url: str, tmp_path: Path) -> None:
    folder = tmp_path / "prompts" / "shop"
    folder.mkdir(parents=True)
    brief = folder / "brief.md"
    brief.write_text("---\nauthor: me\n---\nAnswer {{question}} in one line.\n")
    (folder / "default.md").write_text("Answer {{question}}.")
    arms = [{"model": "small"}, {"model": "small", "prompt_variant": "brief"}]
    given = {"prompts": "prompts", "decision_points": [{"name": "shop", "arms": arms}]}
    listed = command("prompts", **given)["prompts"]
    assert [(one["variant"], one["number"]) for one in listed] == [
        ("brief", None),
        ("default", None),
    ]
    assert (listed[0]["head"], listed[0]["models"]) == ({"author": "me"}, ["small"])
    stored = command("prompts", "--register", **given)["prompts"]
    assert [one["number"] for one in stored] == [1, 1]
    first = read_prompts(tmp_path / "prompts", "shop")[0]
    brief.write_text("Answer {{question}} in two lines.")
    changed = command("prompts", "--register", **given)["prompts"][0]
    assert changed["number"] == 2 and changed["version"] != stored[0]["version"]
    brief.write_text("Answer {{question}} in one line.")
    assert command("prompts", "--register", **given)["prompts"] == [
        {**stored[0], "head": {}},
        stored[1],
    ]
    registry = PromptRegistry(mlflow_url)
    assert registry.text("shop", "brief", first.version) == "Answer {{question}} in one line."
    assert registry.text("shop", "brief", "0" * 12) is None
    assert registry.text("shop", "nobody", first.version) is None
    assert all(
        one.decision_point != "prompt.shop.brief" for one in PolicyRegistry(mlflow_url).list()
    )
    assert "no folder of prompts" in command("prompts", failed=True)["error"]["message"]


def test_a_variant_without_a_file_is_refused_where_there_is_a_folder(tmp_path: Path) -> None:
    points = [{"name": "chat", "arms": PROMPTS[:2]}]
    check_prompts(Settings(decision_points=points))
    settings = Settings(decision_points=points, prompts=tmp_path)
    with pytest.raises(InvalidSettings, match=r"prompt_variant='brief'.*chat/brief\.md"):
        check_prompts(settings)
    (tmp_path / "chat").mkdir()
    (tmp_path / "chat" / "brief.md").write_text("Be brief.")
    check_prompts(settings)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("two words.md", b"text", "rename"),
        ("empty.md", b"---\na: 1\n---\n", "characters"),
        ("head.md", b"---\n- a\n---\ntext", "keys and values"),
        ("yaml.md", b"---\na: [\n---\ntext", "not YAML"),
        ("bytes.md", b"\xff\xfe", "cannot be read"),
    ],
)
def test_a_file_that_is_no_prompt_is_named(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    (tmp_path / "chat").mkdir()
    (tmp_path / "chat" / name).write_bytes(content)
    with pytest.raises(InvalidSettings, match=f"{name}.*{said}"):
        read_prompts(tmp_path, "chat")


def test_an_experiment_over_prompts_differs_in_prompts_only() -> None:
    point = Settings(decision_points=[{"name": "chat", "arms": PROMPTS}]).decision_points[0]
    found = prompt_experiment(point, "small")
    assert [one["name"] for one in found["variants"]] == ["default", "brief"]
    both = prompt_experiment(point)
    assert [one["name"] for one in both["variants"]] == ["default", "brief", "steps"]
    assert json.loads(json.dumps(both)) == both
    for variant in both["variants"]:
        assert [arm["model"] for arm in variant["arms"]] == ["large"]
        assert {arm["prompt_variant"] for arm in variant["arms"]} == {variant["name"]}
    with pytest.raises(InvalidInput, match="differ in prompt_variant"):
        prompt_experiment(point, "other")
    with pytest.raises(InvalidInput, match="model='none'"):
        prompt_experiment(point, "none")
    with pytest.raises(InvalidInput, match="share=0"):
        prompt_experiment(point, share=0.0)
