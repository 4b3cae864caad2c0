"""Semantic versions, aliases and promotions, on a real MLflow server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.errors import IncompatibleState, InvalidInput, Unavailable, UnknownName
from optimizer.features import FeatureEncoder
from optimizer.records import Observation, Outcome
from optimizer.rollout.versioning import Configuration, Variant, configuration, next_version
from optimizer.settings import DecisionPoint
from registry.description import PolicyDescription
from registry.versions import PolicyRegistry

pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning")

ENCODER = FeatureEncoder(("math",), 2)


def description(name: str, **changes: Any) -> PolicyDescription:
    given: dict[str, Any] = {"arms": [{"model": "small"}, {"model": "large"}]}
    return PolicyDescription(
        decision_point=DecisionPoint(name=name, **(given | changes)),
        feature_names=ENCODER.names,
        schema_id=ENCODER.schema_id,
    )


def learned(described: PolicyDescription, rows: int = 3) -> bytes:
    policy = described.policy()
    row = np.array([1.0, *[0.5] * (ENCODER.size - 1)])
    arms = len(described.arm_names)
    policy.learn(
        Observation(index % arms, row, Outcome(), Outcome(quality=index % 2))
        for index in range(rows)
    )
    return policy.to_bytes()


def publish(registry: PolicyRegistry, described: PolicyDescription, **more: Any) -> int:
    arguments: dict[str, Any] = {"position": 3, "metrics": {"reward": 0.5}} | more
    return registry.publish(described, learned(described), **arguments)


CONFIGURATIONS = st.builds(Configuration, st.sampled_from("AB"), st.sampled_from("abc"))


@given(st.lists(CONFIGURATIONS, min_size=1, max_size=30))
def test_no_version_is_given_twice_and_a_variant_is_one_configuration(
    published: list[Configuration],
) -> None:
    known: dict[str, Variant] = {}
    given_out: list[str] = []
    for now in published:
        coming = next_version(known.values(), now)
        assert coming.parent in (None, *given_out)
        known[coming.variant.name] = coming.variant
        given_out.append(coming.variant.newest)
    assert len(set(given_out)) == len(given_out) and given_out[0] == "1.0.0"
    assert len({one.configuration for one in known.values()}) == len(known)
    assert len(known) == len(set(published))


@pytest.mark.parametrize(
    ("changes", "version"),
    [
        ({"policy": {"alpha": 2.0}}, "1.1.0"),
        ({"weights": {"quality": 1.0}}, "1.1.0"),
        ({"arms": [{"model": "small"}]}, "1.1.0"),
        (
            {"arms": [{"model": "small", "traits": {"price_in_usd": 1}}, {"model": "large"}]},
            "1.1.0",
        ),
        ({"policy": {"name": "thompson"}}, "2.0.0"),
        ({"policy": {"name": "linear+randucb"}}, "1.0.1"),
        ({"control_share": 0.2, "guardrails": {"quality_drop": 0.1}}, "1.0.1"),
    ],
)
def test_what_changes_the_version(changes: dict[str, Any], version: str) -> None:
    before = description("chat").decision_point
    first = next_version([], configuration(before, 1)).variant
    after = configuration(description("chat", **changes).decision_point, 1)
    assert next_version([first], after).variant.newest == version
    assert next_version([first], configuration(before, 2)).variant.newest == "2.0.0"


def test_a_named_variant_is_one_configuration() -> None:
    old, new = Configuration("A", "a"), Configuration("A", "b")
    first = next_version([], old).variant
    assert next_version([first], old, "1.0").variant.newest == "1.0.1"
    assert next_version([first], new, "4.2").variant.newest == "4.2.0"
    for wrong in ("1.0", "one", "1.0.0"):
        with pytest.raises(InvalidInput, match=f"variant='{wrong}'"):
            next_version([first], new, wrong)


def test_what_a_version_tells(mlflow_url: str) -> None:
    registry = PolicyRegistry(mlflow_url)
    described = description("told")
    publish(registry, described, position=7)
    changed = description("told", policy={"alpha": 2.0})
    publish(registry, changed, position=9, alias="challenger", metrics={"reward": 0.75})
    newest, first = registry.list("told")
    assert (first.semantic_version, first.aliases, first.parent) == ("1.0.0", ("champion",), None)
    assert (first.position, first.samples, first.algorithm) == (7, 3, "randucb")
    assert (first.feature_schema, first.code_version) == (str(ENCODER.schema_id), "0.1.0")
    assert first.lineage == described.policy().lineage
    assert (newest.semantic_version, newest.aliases) == ("1.1.0", ("challenger",))
    assert (newest.parent, newest.metrics) == ("1.0.0", {"reward": 0.75})
    assert registry.get("told", "champion") == registry.get("told", 1) == first
    assert registry.get("told", "1.1.0") == registry.get("told", "2") == newest
    assert {"told"} <= {one.decision_point for one in registry.list()}
    assert registry.description("told", "1.1.0") == changed
    found = registry.load("told", "1.1.0")
    assert (found.state, found.variant) == (learned(changed), "1.1")
    with pytest.raises(UnknownName, match=r"version='9.9.9': told: one of 1.1.0, 1.0.0"):
        registry.get("told", "9.9.9")
    with pytest.raises(UnknownName, match="no version is registered"):
        registry.get("nobody", "champion")
    differing = registry.diff("told", "1.0.0", "1.1.0")
    assert differing.settings == {"policy.alpha": (1.0, 2.0)}
    assert differing.metrics == {"reward": (0.5, 0.75)}


def test_a_configuration_that_comes_back_goes_on_with_its_variant(mlflow_url: str) -> None:
    registry = PolicyRegistry(mlflow_url)
    one, other = description("back"), description("back", arms=[{"model": "small"}])
    for described in (one, other, other, one, other):
        publish(registry, described, kept=1)
    only = registry.list("back")
    assert [version.semantic_version for version in only] == ["1.1.2"]
    publish(registry, one, alias=None)
    assert registry.get("back", "1.0.2").aliases == ()
    assert registry.get("back", "champion").semantic_version == "1.1.2"
    with pytest.raises(InvalidInput, match=r"variant='1.1'"):
        publish(registry, one, variant="1.1")
    differing = registry.diff("back", "1.1.2", "1.0.2").settings
    assert differing["arms[large].model"] == (None, "large")
    assert all(key.startswith("arms[large].") for key in differing)


def test_roles_and_tags(mlflow_url: str) -> None:
    registry = PolicyRegistry(mlflow_url)
    for _ in range(2):
        publish(registry, description("roles"))
    registry.set_alias("roles", "shadow", "1.0.0")
    assert registry.get("roles", 1).aliases == ("shadow",)
    registry.remove_alias("roles", "shadow")
    registry.remove_alias("roles", "shadow")
    assert registry.get("roles", 1).aliases == ()
    with pytest.raises(InvalidInput, match="alias='king'"):
        registry.set_alias("roles", "king", 1)
    registry.tag("roles", "1.0.0", {"canary.0.05": "continue: 0.01 (-0.01 to 0.03)"})
    assert registry.get("roles", 1).tags == {"canary.0.05": "continue: 0.01 (-0.01 to 0.03)"}
    with pytest.raises(InvalidInput, match="tags='lineage'"):
        registry.tag("roles", 1, {"lineage": "another"})


def test_a_file_that_was_changed_is_refused(mlflow_url: str) -> None:
    registry = PolicyRegistry(mlflow_url)
    described = description("changed")
    publish(registry, described)
    api = f"{mlflow_url}/api/2.0"
    version = httpx.get(
        f"{api}/mlflow/model-versions/get", params={"name": "changed", "version": "1"}
    ).json()["model_version"]
    path = version["source"].removeprefix("mlflow-artifacts:/")
    file = f"{api}/mlflow-artifacts/artifacts/{path}/artifacts/state.msgpack"
    httpx.put(file, content=learned(described, 9)).raise_for_status()
    with pytest.raises(IncompatibleState, match="changed after it was stored"):
        registry.load("changed", 1)


def roles(registry: PolicyRegistry, name: str) -> dict[str, str]:
    return {
        alias: version.semantic_version
        for version in registry.list(name)
        for alias in version.aliases
    }


@contextmanager
def forwarding(target: str, lose: Callable[[int], str]) -> Iterator[str]:
    """A door before a server that may lose writes.

    ``lose`` is told the number of each write, 1 first, and says whether its "request" or its
    "answer" is lost, or "nothing".
    """
    number = iter(range(1, 100))

    class Door(BaseHTTPRequestHandler):
        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.close_connection = True
            lost = "nothing" if self.command == "GET" else lose(next(number))
            if lost == "request":
                return
            headers = {"content-type": self.headers.get("Content-Type", "application/json")}
            answer = httpx.request(self.command, target + self.path, content=body, headers=headers)
            if lost == "answer":
                return
            self.send_response(answer.status_code)
            self.send_header("content-type", answer.headers["content-type"])
            self.end_headers()
            self.wfile.write(answer.content)

        do_GET = do_POST = do_PATCH = do_DELETE = forward  # noqa: N815

        def log_message(self, format: str, *arguments: Any) -> None:
            """Tests are quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Door)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_promotion_that_is_cut_off_anywhere_can_be_repeated(mlflow_url: str) -> None:
    registry = PolicyRegistry(mlflow_url)
    publish(registry, description("cut"))
    publish(registry, description("cut", policy={"alpha": 2.0}), alias="challenger")
    before = {"champion": "1.0.0", "challenger": "1.1.0"}
    remembered = before | {"previous": "1.0.0"}
    moved = remembered | {"champion": "1.1.0"}
    promoted = {"champion": "1.1.0", "previous": "1.0.0"}
    steps = [before, remembered, moved, promoted]
    for write in (1, 2, 3):
        for lost in ("request", "answer"):
            for alias, version in before.items():
                registry.set_alias("cut", alias, version)
            registry.remove_alias("cut", "previous")
            with (
                forwarding(
                    mlflow_url,
                    lambda number, at=write, what=lost: what if number == at else "nothing",
                ) as url,
                pytest.raises(Unavailable, match="MLflow"),
            ):
                PolicyRegistry(url).promote_alias("cut", "1.1.0")
            assert roles(registry, "cut") == steps[write - (lost == "request")]
            assert registry.promote_alias("cut", "1.1.0").aliases == ("champion",)
            assert roles(registry, "cut") == promoted
    assert registry.promote_alias("cut", "previous").semantic_version == "1.0.0"
    assert roles(registry, "cut") == {"champion": "1.0.0", "previous": "1.1.0"}


def test_mlflow_that_is_killed_in_the_middle_of_a_promotion(mlflow_server: Any) -> None:
    registry = PolicyRegistry(mlflow_server.url)
    publish(registry, description("killed"))
    publish(registry, description("killed", policy={"alpha": 2.0}), alias="challenger")

    def kill_before_the_champion_moves(number: int) -> str:
        if number == 2:
            mlflow_server.kill()
            return "request"
        return "nothing"

    try:
        with forwarding(mlflow_server.url, kill_before_the_champion_moves) as url:
            away = PolicyRegistry(url)
            with pytest.raises(Unavailable, match="MLflow"):
                away.promote_alias("killed", "challenger")
        with pytest.raises(Unavailable, match="MLflow"):
            registry.get("killed", "champion")
    finally:
        mlflow_server.kill()
        mlflow_server.start()
    assert roles(registry, "killed") == {
        "champion": "1.0.0",
        "previous": "1.0.0",
        "challenger": "1.1.0",
    }
    assert registry.promote_alias("killed", "challenger").semantic_version == "1.1.0"
    assert roles(registry, "killed") == {"champion": "1.1.0", "previous": "1.0.0"}
