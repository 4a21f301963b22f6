"""What a server is told: where it listens, who may ask, how much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: A server's port by default: LMDeploy's.
DEFAULT_PORT = 23333


@dataclass(frozen=True)
class ServeConfig:
    """How a server behaves. Raises ValueError for a value out of range.

    Attributes:
        host: the address to listen on.
        port: 0 takes a free one.
        api_keys: who asks needs one of them; none: everybody may ask.
        ssl_keyfile, ssl_certfile: PEM files; with both the server speaks TLS.
        allow_origins: the web pages that may ask from a browser, such as "https://chat.example",
            or "*" for all. None are allowed by default.
        max_concurrent_requests: requests at once; others get a 429.
        max_body_bytes: of one request's body.
        max_pending_bytes: of all bodies that are held at once.
        max_answers: answers that one request may ask for: prompts times n.
        max_sessions: conversations of /v1/chat/interactive that are kept; of more, the one that was
            used least recently is forgotten.
        client_timeout: seconds that the server waits for a client that neither sends the rest of
            its request nor reads its answer; then the request is aborted.
        heartbeat: seconds of silence after which a stream gets a comment.
        drain_timeout: seconds that answers may take once the server is told to end.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    api_keys: Sequence[str] = ()
    ssl_keyfile: str | None = None
    ssl_certfile: str | None = None
    allow_origins: Sequence[str] = ()
    max_concurrent_requests: int = 2048
    max_body_bytes: int = 16 << 20
    max_pending_bytes: int = 256 << 20
    max_answers: int = 1024
    max_sessions: int = 1024
    client_timeout: float = 30.0
    heartbeat: float = 15.0
    drain_timeout: float = 30.0

    def __post_init__(self) -> None:
        if isinstance(self.api_keys, str) or not all(self.api_keys):
            raise ValueError("api_keys: a list of texts that are not empty")
        if isinstance(self.allow_origins, str):
            raise ValueError("allow_origins: a list of texts")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port: 0 to 65535, not {self.port}")
        for name in (
            "max_concurrent_requests",
            "max_body_bytes",
            "max_pending_bytes",
            "max_answers",
            "max_sessions",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: at least 1, not {getattr(self, name)}")
        for name in ("client_timeout", "heartbeat", "drain_timeout"):
            if not 0 < getattr(self, name) < 1e9:
                raise ValueError(f"{name}: seconds above 0, not {getattr(self, name)}")
        if (self.ssl_keyfile is None) != (self.ssl_certfile is None):
            raise ValueError("TLS needs both: ssl_keyfile and ssl_certfile")
