"""What operators ask: /v1/models, /health, /metrics, /slots, /abort_request; and the routes that
this release knows and does not serve."""

from __future__ import annotations

import time
from typing import Any

from ..messages import ErrorCode
from ..metrics import CONTENT_TYPE, prometheus_text
from .errors import ApiError
from .exchange import Exchange
from .routing import Handler, Route
from .schema import any_value, fields, flag, integer, list_of, mapping, number, text
from .service import Job, Service

_COUNT = integer(0, 2**53)


async def models(service: Service, exchange: Exchange, body: dict[str, Any]) -> None:
    """One entry for OpenAI's clients and Anthropic's: each reads its own fields."""
    name = service.engine.model_name
    entry = {
        "id": name,
        "object": "model",
        "created": service.created,
        "owned_by": "lmdeploy_c",
        "root": name,
        "parent": None,
        "permission": [],
        "max_model_len": service.engine.sizes.kv.session_len,
        "type": "model",
        "display_name": name,
        "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(service.created)),
        "lifecycle": "active",
    }
    await exchange.respond_json(
        {
            "object": "list",
            "data": [entry],
            "has_more": False,
            "first_id": name,
            "last_id": name,
        }
    )


async def health(service: Service, exchange: Exchange, body: dict[str, Any]) -> None:
    if service.draining:
        raise ApiError(
            503,
            "the server is shutting down",
            ErrorCode.ENGINE_UNAVAILABLE.value,
            retry=True,
        )
    await exchange.respond_json({"status": "healthy"})


async def metrics(service: Service, exchange: Exchange, body: dict[str, Any]) -> None:
    try:
        text = prometheus_text(service.engine)
    except RuntimeError as error:
        raise ApiError(404, str(error), ErrorCode.UNSUPPORTED_FEATURE.value) from None
    await exchange.respond(200, text.encode(), CONTENT_TYPE.encode())


async def slots(service: Service, exchange: Exchange, body: dict[str, Any]) -> None:
    """Who is answered at this moment. A key sees its own requests alone."""
    now = time.monotonic()
    mine = [job for job in service.jobs if job.key == exchange.key]
    await exchange.respond_json(
        {
            "slots": [_slot(job, now) for job in mine],
            "max_batch_size": service.engine.sizes.max_batch_size,
        }
    )


def _slot(job: Job, now: float) -> dict[str, Any]:
    n_prompt, n_cached, n_generated = job.count()
    decoding = now - job.first_token if job.first_token is not None else 0.0
    return {
        "request_id": job.request_id,
        "session_id": job.session_id,
        "path": job.path,
        "model": job.model,
        "state": "prefill" if job.first_token is None else "decode",
        "n_answers": len(job.answers),
        "prompt_tokens": n_prompt,
        "cached_tokens": n_cached,
        "completion_tokens": n_generated,
        "seconds": round(now - job.started, 3),
        "tokens_per_second": round(n_generated / decoding, 2) if decoding > 0 else 0.0,
    }


async def abort_request(service: Service, exchange: Exchange, body: dict[str, Any]) -> None:
    """Ends requests of the same key with what they have."""
    request_id, session_id = body.get("request_id"), body.get("session_id", -1)
    everything = body.get("abort_all", False)
    if request_id is None and session_id == -1 and not everything:
        raise ApiError(400, "one of request_id, session_id and abort_all: true is needed")
    aborted = []
    for job in service.jobs:
        named = job.request_id == request_id or (session_id != -1 and job.session_id == session_id)
        if job.key == exchange.key and (everything or named):
            job.cut("abort")
            aborted.append(job.request_id)
    if not aborted and not everything:
        raise ApiError(404, "no such request is running", "request_not_found")
    await exchange.respond_json({"aborted": aborted})


def _not_served(needs: str) -> Handler:
    async def refuse(service: Service, exchange: Exchange, body: dict[str, Any]) -> None:
        raise ApiError(400, f"{exchange.path}: {needs}", ErrorCode.UNSUPPORTED_FEATURE.value)

    return refuse


_EMBEDDING = "this release serves no embedding or reward model, and gives no hidden states"
_ANY = mapping("", any_value())
_SLOT = fields(
    {
        "request_id": text(),
        "session_id": integer(-1, 2**53),
        "path": text(),
        "model": text(),
        "state": text(),
        "n_answers": _COUNT,
        "prompt_tokens": _COUNT,
        "cached_tokens": _COUNT,
        "completion_tokens": _COUNT,
        "seconds": number(0, 1e12),
        "tokens_per_second": number(0, 1e12),
    }
)
ROUTES = [
    Route("GET", "/v1/models", models, "The models that are served.", answer=_ANY),
    Route(
        "GET",
        "/health",
        health,
        "Whether new requests are taken.",
        answer=fields({"status": text()}, required=("status",)),
        open=True,
    ),
    Route(
        "GET",
        "/metrics",
        metrics,
        "Prometheus' text format, under LMDeploy's names.",
        content_type="text/plain",
    ),
    Route(
        "GET",
        "/slots",
        slots,
        "Who is answered, and how far.",
        answer=fields(
            {"slots": list_of(_SLOT), "max_batch_size": _COUNT},
            required=("slots", "max_batch_size"),
        ),
    ),
    Route(
        "POST",
        "/abort_request",
        abort_request,
        "Ends running requests with what they have.",
        body=fields(
            {
                "request_id": text("The X-Request-ID of a response."),
                "session_id": integer(-1, 2**31 - 1, "The session_id of a request."),
                "abort_all": flag("Every request of this API key."),
            }
        ),
        answer=fields({"aborted": list_of(text())}, required=("aborted",)),
    ),
    *(
        Route("POST", path, _not_served(_EMBEDDING), "Not served: 400 says why.", body=_ANY)
        for path in ("/v1/embeddings", "/pooling", "/v1/rerank", "/v1/score")
    ),
]
