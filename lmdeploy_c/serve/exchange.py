"""One request and its response, on ASGI. In the event loop's thread.

Must not know: models, routes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any

from .config import ServeConfig
from .errors import ApiError
from .json_text import dump

Scope = Mapping[str, Any]
Message = Mapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]

JSON = b"application/json"
EVENTS = b"text/event-stream"

#: Bodies that are too large are read on so far, in sizes of a body, so that their senders come to
#: read why they are refused.
_READ_ON = 4

#: The key of a scope's extensions under which a server gives what ends a connection at once.
ABORT = "lmdeploy_c.abort"


class ClientGone(Exception):
    """The client has closed its connection."""


class Exchange:
    """A request, and the response as it is written.

    `handler` is the task that answers: it is cancelled when the client has gone, or stalls.

    Attributes:
        method, path, headers: of the request; names of headers are in small letters.
        key: the API key that it came with; "" without any.
        request_id: names it in headers, errors and logs.
        started: when it began, by time.monotonic. status: of the response, once it has begun.
        log: what the line about it says besides.
    """

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, config: ServeConfig, request_id: str
    ) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        self.client: str = (scope.get("client") or ("?",))[0]
        self.key = ""
        self.request_id = request_id
        self.started = time.monotonic()
        self.status: int | None = None
        self.log: dict[str, Any] = {}
        self.handler: asyncio.Task[None] | None = None
        self.gone = False
        #: Headers that every response of this exchange has.
        #: OpenAI's clients read one of these two names of it, Anthropic's the other.
        self.extra_headers: list[tuple[bytes, bytes]] = [
            (b"x-request-id", request_id.encode()),
            (b"request-id", request_id.encode()),
        ]
        self._receive, self._send, self._config = receive, send, config
        self._abort: Callable[[], None] | None = (scope.get("extensions") or {}).get(ABORT)
        self._watcher: asyncio.Task[None] | None = None
        self._waits_since: float | None = None  # for the client
        self._is_stream = False
        self._last_write = self.started
        self._ended = False
        #: Of the body, as far as it came.
        self.pending_bytes = 0

    # ---- the request ----

    async def read_body(self, reserve: Callable[[int], None]) -> bytes:
        """The whole body. reserve: is told of bytes that come, and raises where there are too many.

        From then on the connection is watched. ApiError 413; ClientGone.
        """
        limit = self._config.max_body_bytes
        too_large = ApiError(
            413, f"the body has more than {limit} bytes", "request_too_large", close=True
        )
        announced = self.headers.get("content-length", "")
        is_number = announced.isascii() and announced.isdigit()
        if is_number and int(announced[:20]) > _READ_ON * limit:
            raise too_large
        parts, n_read, more = [], 0, True
        while more:
            with self._waiting():
                message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            part, more = message.get("body", b""), message.get("more_body", False)
            n_read += len(part)
            if n_read > _READ_ON * limit:
                raise too_large
            if n_read <= limit:
                reserve(len(part))
                self.pending_bytes += len(part)
                parts.append(part)
        if n_read > limit:
            raise too_large
        self._watcher = asyncio.ensure_future(self._watch())
        return b"".join(parts)

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self._ended:
            self.lose()

    def lose(self) -> None:
        """The client has gone: what answers it ends."""
        self.gone = True
        if self.handler is not None:
            self.handler.cancel()

    def look(self, now: float) -> bool:
        """Ends the exchange if its client lets the server wait for too long. Whether its stream has
        been silent for so long that a comment is due."""
        since = self._waits_since
        if since is not None:
            if now - since > self._config.client_timeout:
                self.lose()
                if self._abort is not None:
                    self._abort()
            return False
        silent = now - self._last_write > self._config.heartbeat
        return self._is_stream and not self._ended and silent

    # ---- the response ----

    async def respond(
        self, status: int, body: bytes, content_type: bytes = JSON, headers: Headers = ()
    ) -> None:
        """A whole response."""
        self._is_stream = False
        head = [(b"content-length", str(len(body)).encode()), *headers]
        await self._start(status, content_type, head)
        await self._end(body)

    async def respond_json(self, value: Any, status: int = 200, headers: Headers = ()) -> None:
        await self.respond(status, dump(value), headers=headers)

    def expect_stream(self) -> None:
        """The response will be a stream of events: if nothing comes for long, it begins with a
        comment."""
        self._is_stream = True

    @property
    def begun(self) -> bool:
        return self.status is not None

    async def write(self, events: bytes) -> None:
        """Sends events, and the head of the response before the first ones. Every token passes
        here."""
        if self.status is None:
            await self._start(200, EVENTS, [(b"cache-control", b"no-cache")])
        self._waits_since = self._last_write = time.monotonic()
        await self._send({"type": "http.response.body", "body": events, "more_body": True})
        self._waits_since = None

    async def comment(self) -> None:
        """Tells a client that waits that it still is served. Events are whole: it may come between
        any two of them."""
        await self.write(b": still working\n\n")

    async def end(self) -> None:
        """Ends a stream."""
        await self._end(b"")

    def close(self) -> None:
        """The response is complete, or never will be."""
        self._ended = True
        if self._watcher is not None:
            self._watcher.cancel()

    async def _start(self, status: int, content_type: bytes, headers: Headers) -> None:
        self.status = status
        head = [(b"content-type", content_type), *headers, *self.extra_headers]
        with self._waiting():
            await self._send({"type": "http.response.start", "status": status, "headers": head})

    async def _end(self, body: bytes) -> None:
        self._ended = True
        with self._waiting():
            await self._send({"type": "http.response.body", "body": body, "more_body": False})

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        """A time in which the client is waited for."""
        self._waits_since = self._last_write = time.monotonic()
        try:
            yield
        finally:
            self._waits_since = None
