"""/openapi.json: what the routes are, from the tables that requests are checked by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..version import __version__
from .exchange import Exchange
from .routing import Route
from .schema import Schema, any_value, fields, integer, mapping, nullable, one_of, text
from .service import Service

OPENAI_ERROR = fields(
    {
        "object": one_of("error"),
        "message": text(),
        "type": text(),
        "code": integer(400, 599),
        "param": nullable(text()),
        "request_id": text(),
        "error": fields(
            {
                "message": text(),
                "type": text(),
                "param": nullable(text()),
                "code": text(),
            },
            required=("message", "type", "param", "code"),
        ),
    },
    required=("object", "message", "type", "code", "error"),
)
ANTHROPIC_ERROR = fields(
    {
        "type": one_of("error"),
        "error": fields({"type": text(), "message": text()}, required=("type", "message")),
        "request_id": text(),
    },
    required=("type", "error"),
)
#: Status -> when it comes. Those of requests with a body, and those of all.
_OF_BODIES = {
    400: "The request is wrong; the message says what.",
    409: "The session is answering another request.",
    413: "The body is too large.",
    415: "The body is no JSON by its Content-Type.",
    429: "Too many requests; Retry-After says when to come again.",
    503: "The server is shutting down.",
}
_OF_ALL = {
    401: "The API key is missing or wrong.",
    404: "There is no such model, session or request.",
    500: "A fault of the server.",
}


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """The OpenAPI document of the routes."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "lmdeploy_c", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": {"OpenAIError": OPENAI_ERROR, "AnthropicError": ANTHROPIC_ERROR},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def _operation(route: Route) -> dict[str, Any]:
    name = "AnthropicError" if route.errors == "anthropic" else "OpenAIError"
    error: Schema = {"$ref": f"#/components/schemas/{name}"}
    statuses = {**(_OF_BODIES if route.body is not None else {}), **_OF_ALL}
    if route.path == "/health":
        statuses[503] = _OF_BODIES[503]
    responses = {
        str(status): {"description": about, "content": _json(error)}
        for status, about in sorted(statuses.items())
    }
    answer = {route.content_type: {"schema": route.answer or {"type": "string"}}}
    if route.streams:
        answer["text/event-stream"] = {"schema": {"type": "string"}}
    found: dict[str, Any] = {
        "summary": route.about,
        "security": [] if route.open else [{}, {"bearer": []}, {"x-api-key": []}],
        "responses": {"200": {"description": route.about, "content": answer}, **responses},
    }
    if route.body is not None:
        found["requestBody"] = {"required": True, "content": _json(route.body)}
    return found


def _json(schema: Schema) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def route(others: Sequence[Route]) -> Route:
    """The route that shows the others, and itself."""

    async def show(service: Service, exchange: Exchange, body: dict[str, Any]) -> None:
        await exchange.respond_json(shown)

    own = Route(
        "GET",
        "/openapi.json",
        show,
        "This document.",
        answer=mapping("", any_value()),
        open=True,
    )
    shown = document([*others, own])
    return own
