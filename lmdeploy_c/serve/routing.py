"""What a route is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from .schema import Schema

if TYPE_CHECKING:
    from .exchange import Exchange
    from .service import Service

#: Answers a request: `body` has the fields that were sent and are not null.
Handler = Callable[["Service", "Exchange", dict[str, Any]], Awaitable[None]]


@dataclass(frozen=True)
class Route:
    """A method and a path, and what answers there.

    about: a line for the documents. body: the schema of the request's JSON; None where it has
    none. answer: of the answer's. content_type: of an answer that is no JSON. streams: whether
    `stream` asks for events. open: whether it needs no API key. errors: whose clients ask.
    """

    method: Literal["GET", "POST"]
    path: str
    handler: Handler
    about: str
    body: Schema | None = None
    answer: Schema | None = None
    content_type: str = "application/json"
    streams: bool = False
    open: bool = False
    errors: Literal["openai", "anthropic"] = "openai"
