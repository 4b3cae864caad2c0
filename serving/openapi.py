"""The OpenAPI document, made from the types that validate, and a page that shows it.

The page is one self-contained HTML text: a browser that opens it asks nobody else.
"""

from __future__ import annotations

from functools import cache
from html import escape
from importlib.metadata import version
from typing import Any

import msgspec

from optimizer.experiments.experiment import Design, Experiment
from serving.arm_features import FeaturesResponse
from serving.cloud_events import BATCHED, STRUCTURED, CloudEvent, RewardData, refine
from serving.experiment_routes import ActionBody, ReportResponse, StopBody
from serving.feature_health import FeaturesHealthResponse
from serving.schema import (
    ContextBody,
    DecisionBody,
    DecisionResponse,
    QualityBody,
    QualityResponse,
    RewardBody,
    RewardResponse,
)

__all__ = ["document", "page"]

_COMPONENTS = (
    ContextBody,
    DecisionBody,
    DecisionResponse,
    RewardBody,
    RewardResponse,
    CloudEvent,
    RewardData,
    Design,
    Experiment,
    ActionBody,
    StopBody,
    ReportResponse,
    FeaturesResponse,
    FeaturesHealthResponse,
    QualityBody,
    QualityResponse,
)


def _reference(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _content(schema: dict[str, Any], kind: str = "application/json") -> dict[str, Any]:
    return {kind: {"schema": schema}}


_PROBLEM_RESPONSE = {
    "description": "Refused: the problem document (RFC 9457) names field and value",
    "content": _content(_reference("Problem"), "application/problem+json"),
}


def _operation(
    summary: str,
    status: int,
    answer: dict[str, Any] | None = None,
    body: dict[str, Any] | None = None,
) -> dict[str, Any]:
    done: dict[str, Any] = {"description": "Done"}
    if answer is not None:
        done["content"] = _content(answer)
    operation: dict[str, Any] = {"summary": summary, "responses": {str(status): done}}
    if body is not None:
        operation["requestBody"] = {"required": True, "content": _content(body)}
        operation["responses"]["4XX"] = _PROBLEM_RESPONSE
    return operation


def _batch(name: str, size: int = 1000) -> dict[str, Any]:
    items = {"type": "array", "items": _reference(name), "minItems": 1, "maxItems": size}
    return {"type": "object", "required": ["items"], "properties": {"items": items}}


def _answers(name: str) -> dict[str, Any]:
    either = {"anyOf": [_reference(name), _reference("Problem")]}
    return {"type": "object", "properties": {"items": {"type": "array", "items": either}}}


def _in_path(name: str) -> list[dict[str, Any]]:
    return [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}}]


def _experiment_paths() -> dict[str, Any]:
    experiment, report = _reference("Experiment"), _reference("ReportResponse")
    several = {
        "type": "object",
        "properties": {"experiments": {"type": "array", "items": experiment}},
    }
    paths: dict[str, Any] = {
        "/v1/experiments": {
            "get": _operation("The newest experiments", 200, several),
            "post": _operation("Create an experiment", 201, experiment, _reference("Design")),
        },
        "/v1/experiments/{id}": {
            "get": _operation("An experiment and what it has found", 200, report)
        },
    }
    for action, summary, answer, body in (
        ("start", "Give an experiment units, also after a pause", experiment, "ActionBody"),
        ("pause", "Serve its units as all others for now", experiment, "ActionBody"),
        ("stop", "End an experiment", report, "StopBody"),
        ("archive", "Put an experiment away", experiment, "ActionBody"),
    ):
        operation = _operation(summary, 200, answer, _reference(body))
        operation["requestBody"]["required"] = False
        paths[f"/v1/experiments/{{id}}/{action}"] = {"post": operation}
    for path, methods in paths.items():
        for operation in methods.values():
            operation["responses"]["503"] = _PROBLEM_RESPONSE
            if "{id}" in path:
                operation["parameters"] = _in_path("id")
                operation["responses"]["4XX"] = _PROBLEM_RESPONSE
    return paths


@cache
def document() -> dict[str, Any]:
    """The OpenAPI 3.1 document of every route."""
    _, schemas = msgspec.json.schema_components(
        _COMPONENTS, ref_template="#/components/schemas/{name}"
    )
    schemas["ContextBody"]["additionalProperties"] = {
        "type": ["string", "number", "boolean", "null"]
    }
    refine(schemas)
    schemas["Problem"] = {
        "type": "object",
        "required": ["title", "status", "detail"],
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "field": {"type": "string"},
            "value": {},
        },
    }
    anything = {"type": "object"}
    point = _operation("Arms, policy versions, recent reward and counts", 200, anything)
    point["parameters"] = _in_path("name")
    point["responses"]["404"] = _PROBLEM_RESPONSE
    features = _operation(
        "Recent statistics and windows of an arm: <decision point>/<model>",
        200,
        _reference("FeaturesResponse"),
    )
    features["parameters"] = _in_path("entity")
    features["responses"] |= {"404": _PROBLEM_RESPONSE, "503": _PROBLEM_RESPONSE}
    ready = _operation("It can decide", 200)
    ready["responses"]["503"] = _PROBLEM_RESPONSE
    rewards = _operation(
        "Tell what happened", 202, _reference("RewardResponse"), _reference("RewardBody")
    )
    rewards["responses"]["503"] = _PROBLEM_RESPONSE
    rewards["requestBody"]["content"] |= {
        **_content(_reference("CloudEvent"), STRUCTURED.decode()),
        **_content(_batch("CloudEvent")["properties"]["items"], BATCHED.decode()),
    }
    quality = _operation(
        "Predict the quality of a response, and whether to ask a better model",
        200,
        _reference("QualityResponse"),
        _reference("QualityBody"),
    )
    quality["responses"]["503"] = _PROBLEM_RESPONSE
    many_rewards = _operation(
        "Tell what happened, up to 1,000 times",
        202,
        _answers("RewardResponse"),
        _batch("RewardBody"),
    )
    many_rewards["responses"]["503"] = _PROBLEM_RESPONSE
    paths = {
        "/v1/decisions": {
            "post": _operation(
                "Pick the arm of a request",
                200,
                _reference("DecisionResponse"),
                _reference("DecisionBody"),
            )
        },
        "/v1/decisions/batch": {
            "post": _operation(
                "Pick the arms of up to 1,000 requests",
                200,
                _answers("DecisionResponse"),
                _batch("DecisionBody"),
            )
        },
        "/v1/rewards": {"post": rewards},
        "/v1/rewards/batch": {"post": many_rewards},
        "/v1/schemas/reward.json": {
            "get": _operation("JSON Schema of a reward as a CloudEvent", 200, anything)
        },
        "/v1/decision-points": {"get": _operation("The decision points there are", 200, anything)},
        "/v1/decision-points/{name}": {"get": point},
        "/v1/quality": {"post": quality},
        "/v1/features": {
            "get": _operation(
                "Health of the feature views: ages, missing, out of range, alerts",
                200,
                _reference("FeaturesHealthResponse"),
            )
        },
        "/v1/features/{entity}": {"get": features},
        **_experiment_paths(),
        "/healthz": {"get": _operation("The process lives", 200)},
        "/readyz": {"get": ready},
        "/metrics": {"get": _operation("Prometheus metrics", 200)},
        "/openapi.json": {"get": _operation("This document", 200, anything)},
        "/docs": {"get": _operation("This document, as a page", 200)},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "LLM Auto-Optimizer", "version": version("llm-auto-optimizer")},
        "paths": paths,
        "components": {"schemas": schemas},
    }


@cache
def page() -> str:
    """The document as HTML."""
    content = document()
    sections = []
    for path, methods in content["paths"].items():
        for method, operation in methods.items():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json")
            shown = f"<pre>{_pretty(body['schema'])}</pre>" if body else ""
            statuses = ", ".join(operation["responses"])
            sections.append(
                f"<h3><code>{method.upper()} {escape(path)}</code></h3>"
                f"<p>{escape(operation['summary'])} ({statuses})</p>{shown}"
            )
    schemas = "".join(
        f"<h3 id='{name}'>{name}</h3><p>{escape(schema.get('description', ''))}</p>"
        f"<pre>{_pretty(schema.get('properties', {}))}</pre>"
        for name, schema in content["components"]["schemas"].items()
    )
    return (
        "<!doctype html><meta charset='utf-8'><title>LLM Auto-Optimizer API</title>"
        "<style>body{font:16px/1.5 system-ui;max-width:52rem;margin:2rem auto;padding:0 1rem}"
        "pre{background:#f4f4f6;padding:.75rem;overflow:auto;font-size:13px}</style>"
        f"<h1>LLM Auto-Optimizer API</h1><p>Version {content['info']['version']}, "
        "<a href='/openapi.json'>openapi.json</a></p>"
        + "".join(sections)
        + f"<h2>Types</h2>{schemas}"
    )


def _pretty(value: Any) -> str:
    return escape(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
