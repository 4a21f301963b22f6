"""The ASGI application: who may ask, which route answers, and what happens when a client leaves.

It runs under any ASGI server. In the event loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import re
import time
import uuid
from collections.abc import Iterator
from typing import Any

from ..messages import ErrorCode
from ..text.conversation import present
from . import anthropic, chat, completions, generate, interactive, openapi, operation, tokens
from .config import ServeConfig
from .errors import ApiError, anthropic_body, openai_body
from .exchange import ClientGone, Exchange, Receive, Scope, Send
from .json_text import parse
from .openai_parts import DONE, event
from .routing import Route
from .schema import WrongValue, check
from .service import Service

logger = logging.getLogger("lmdeploy_c.serve")
access_logger = logging.getLogger("lmdeploy_c.access")

ROUTES: list[Route] = [
    *chat.ROUTES,
    *completions.ROUTES,
    *anthropic.ROUTES,
    *generate.ROUTES,
    *interactive.ROUTES,
    *tokens.ROUTES,
    *operation.ROUTES,
]

#: Bodies above this size are read as JSON in another thread.
_LARGE = 1 << 16
#: Seconds between two looks at what waits.
_TICK = 1.0
#: What a client may name its request.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


class App:
    """The application, on a `Service`."""

    def __init__(self, service: Service) -> None:
        self.service, self._config = service, service.config
        self._routes: dict[str, dict[str, Route]] = {}
        for route in [*ROUTES, openapi.route(ROUTES)]:
            self._routes.setdefault(route.path, {})[route.method] = route
        self._keys = [key.encode() for key in service.config.api_keys]
        self._open: set[Exchange] = set()
        self._pending_bytes = 0
        self._keeper: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] == "http":
            await self._exchange(scope, receive, send)

    async def _exchange(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send, self._config, _request_id(scope))
        if self._keeper is None or self._keeper.done():
            self._keeper = asyncio.ensure_future(self._keep())
        self._open.add(exchange)
        handler = exchange.handler = asyncio.ensure_future(self._handle(exchange))
        try:
            await asyncio.wait([handler])
        except asyncio.CancelledError:  # the server stops at once
            exchange.lose()
            raise
        finally:
            exchange.close()
            self._open.discard(exchange)
            self._pending_bytes -= exchange.pending_bytes
            self._note(exchange, handler)

    async def _handle(self, exchange: Exchange) -> None:
        route = self._routes.get(exchange.path, {}).get(_method(exchange.method))
        try:
            with self._cors(exchange):
                if exchange.method == "OPTIONS" and exchange.path in self._routes:
                    await self._preflight(exchange)
                    return
                if route is None:
                    raise self._no_route(exchange)
                body = await self._admit(exchange, route)
                await route.handler(self.service, exchange, body)
        except (ApiError, WrongValue) as error:
            await self._refuse(exchange, route, error)
        except ClientGone:
            exchange.gone = True
        except Exception:
            logger.exception("request %s failed", exchange.request_id)
            fault = ApiError(
                500, "the server has a fault; its log says more", ErrorCode.INTERNAL_ERROR.value
            )
            await self._refuse(exchange, route, fault)

    # ---- before a handler ----

    async def _admit(self, exchange: Exchange, route: Route) -> dict[str, Any]:
        """The fields of a request that may be served. ApiError, WrongValue, ClientGone."""
        self._check_key(exchange, route)
        if route.method == "POST":
            self._check_load()
            _check_content_type(exchange)
        text = await exchange.read_body(self._reserve)
        if route.body is None:
            return {}
        if len(text) > _LARGE:
            return await self.service.in_thread(lambda: _fields(text, route))
        return _fields(text, route)

    def _check_key(self, exchange: Exchange, route: Route) -> None:
        """Compares with every key, each in constant time."""
        if not self._keys:
            return
        scheme, _, given = exchange.headers.get("authorization", "").partition(" ")
        candidates = [exchange.headers.get("x-api-key", "")]
        if scheme.lower() == "bearer":
            candidates.append(given.strip())
        found = ""
        for candidate in candidates:
            spelled = candidate.encode("latin-1", "replace")
            for key in self._keys:
                if hmac.compare_digest(spelled, key):
                    found = candidate
        exchange.key = found
        if not found and not route.open:
            raise ApiError(
                401,
                "an API key is needed: Authorization: Bearer KEY, or x-api-key: KEY",
                ErrorCode.UNAUTHORIZED.value,
            )

    def _check_load(self) -> None:
        if self.service.draining:
            raise ApiError(
                503,
                "the server is shutting down",
                ErrorCode.ENGINE_UNAVAILABLE.value,
                retry=True,
                close=True,
            )
        most = self._config.max_concurrent_requests
        if len(self._open) > most:
            raise ApiError(
                429,
                f"{most} requests are being served; try again later",
                ErrorCode.ENGINE_UNAVAILABLE.value,
                retry=True,
            )

    def _reserve(self, n_bytes: int) -> None:
        """Counts bytes of a body that come."""
        if self._pending_bytes + n_bytes > self._config.max_pending_bytes:
            raise ApiError(
                429,
                "too many large requests are being served; try again later",
                ErrorCode.ENGINE_UNAVAILABLE.value,
                retry=True,
                close=True,
            )
        self._pending_bytes += n_bytes

    def _no_route(self, exchange: Exchange) -> ApiError:
        methods = sorted(self._routes.get(exchange.path, ()))
        if methods:
            allowed = ", ".join(["HEAD"] * ("GET" in methods) + methods)
            exchange.extra_headers.append((b"allow", allowed.encode()))
            return ApiError(405, f"{exchange.path} is asked with {allowed}", "method_not_allowed")
        return ApiError(404, f"there is no {exchange.path:.200}", "not_found")

    # ---- pages of other origins ----

    @contextlib.contextmanager
    def _cors(self, exchange: Exchange) -> Iterator[None]:
        """Lets a page of an allowed origin read the response."""
        origin, allowed = exchange.headers.get("origin"), self._config.allow_origins
        if origin and _printable(origin) and ("*" in allowed or origin in allowed):
            shown = "*" if "*" in allowed else origin
            exchange.extra_headers += [
                (b"access-control-allow-origin", shown.encode("latin-1")),
                (b"access-control-expose-headers", b"x-request-id, retry-after"),
                (b"vary", b"Origin"),
            ]
        yield

    async def _preflight(self, exchange: Exchange) -> None:
        asked = exchange.headers.get("access-control-request-headers", "")
        exchange.extra_headers += [
            (b"access-control-allow-methods", b"GET, POST"),
            (b"access-control-max-age", b"600"),
        ]
        if _printable(asked):
            names = asked.encode("latin-1") or b"*"
            exchange.extra_headers.append((b"access-control-allow-headers", names))
        await exchange.respond(200, b"", b"text/plain")

    # ---- after it ----

    async def _refuse(
        self, exchange: Exchange, route: Route | None, error: ApiError | WrongValue
    ) -> None:
        """Says why a request is not served: as a response, or as the last event of a stream."""
        if isinstance(error, WrongValue):
            param = re.split(r"[.\[]", error.path)[0] or None
            error = ApiError(400, str(error), param=param)
        is_anthropic = route is not None and route.errors == "anthropic"
        make = anthropic_body if is_anthropic else openai_body
        body = make(error, exchange.request_id)
        exchange.log["error"] = error.message[:500]
        if not exchange.begun:
            await exchange.respond_json(body, error.status, error.headers())
        elif is_anthropic:
            await exchange.write(anthropic.named_event("error", body))
            await exchange.end()
        else:
            inner = {**body["error"], "request_id": exchange.request_id, "status": error.status}
            await exchange.write(event({"error": inner}) + DONE)
            await exchange.end()

    def _note(self, exchange: Exchange, handler: asyncio.Task[None]) -> None:
        """A line about the request, as JSON."""
        if not handler.cancelled() and handler.done() and handler.exception() is not None:
            logger.error("request %s", exchange.request_id, exc_info=handler.exception())
        if access_logger.isEnabledFor(logging.INFO):
            line = {
                "request_id": exchange.request_id,
                "client": exchange.client,
                "method": exchange.method,
                "path": exchange.path,
                "status": exchange.status,
                "seconds": round(time.monotonic() - exchange.started, 6),
                **({"client_gone": True} if exchange.gone else {}),
                **exchange.log,
            }
            access_logger.info(json.dumps(line))

    # ---- clients that are slow ----

    async def _keep(self) -> None:
        """Looks at the open exchanges now and then: one that has been silent for long gets a
        comment, and one whose client does nothing is ended."""
        tick = min(_TICK, self._config.heartbeat / 4, self._config.client_timeout / 4)
        comments: set[asyncio.Task[None]] = set()
        while self._open:
            await asyncio.sleep(tick)
            now = time.monotonic()
            for exchange in list(self._open):
                if exchange.look(now):
                    task = asyncio.ensure_future(exchange.comment())
                    comments.add(task)
                    task.add_done_callback(comments.discard)

    async def drain(self) -> None:
        """Takes no new work, and returns when the requests that run have ended; those that take
        longer than drain_timeout end with what they have."""
        self.service.draining = True
        deadline = time.monotonic() + self._config.drain_timeout
        while self._open:
            if time.monotonic() > deadline:
                for job in list(self.service.jobs):
                    job.cut("drain")
            if time.monotonic() > deadline + self._config.client_timeout:
                for exchange in list(self._open):
                    exchange.lose()
                break
            await asyncio.sleep(0.02)
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


def _method(name: str) -> str:
    return "GET" if name == "HEAD" else name


def _printable(text: str) -> bool:
    return text.isascii() and text.isprintable()


def _request_id(scope: Scope) -> str:
    """The client's name for its request, if it is a good one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            given: str = value.decode("latin-1")
            if _REQUEST_ID.fullmatch(given):
                return given
    return f"req_{uuid.uuid4().hex}"


def _check_content_type(exchange: Exchange) -> None:
    """A page of another site may send a browser's forms and plain texts here, but no JSON."""
    given = exchange.headers.get("content-type", "")
    if given.partition(";")[0].strip().lower() != "application/json":
        raise ApiError(
            415,
            f"Content-Type: application/json is needed, not {given[:100] or 'none'}",
            "unsupported_media_type",
        )


def _fields(text: bytes, route: Route) -> dict[str, Any]:
    """The fields of a body that fit the route's schema, without those that are null."""
    value = parse(text)
    if not isinstance(value, dict):
        raise ApiError(400, "the body must be a JSON object")
    assert route.body is not None
    return present(check(route.body, value))


def make_app(engine: Any, config: ServeConfig | None = None) -> App:
    """The application of a `TextEngine`, for an ASGI server of one's own."""
    return App(Service(engine, config or ServeConfig()))
