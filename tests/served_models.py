"""A server on the embedded model, and HTTP as it is on the wire."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from lmdeploy_c import TurbomindEngineConfig
from lmdeploy_c.engine.text_engine import TextEngine

if TYPE_CHECKING:
    from lmdeploy_c.serve.server import Server

ENGINE = TurbomindEngineConfig(session_len=1024, max_batch_size=16, cache_max_entry_count="128MB")
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
#: An answer that goes on until its request ends.
LONG = {"messages": QUESTION, "ignore_eos": True, "max_tokens": 900}


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Wire:
    """A connection of bytes."""

    def __init__(self, url: str, timeout: float = 30, receive_buffer: int | None = None) -> None:
        where = urlsplit(url)
        assert where.hostname is not None and where.port is not None
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(timeout)
        self.socket.connect((where.hostname, where.port))
        self.read = b""

    def send(self, data: bytes) -> Wire:
        self.socket.sendall(data)
        return self

    def until(self, mark: bytes) -> bytes:
        """What comes up to a mark, which is kept out of what comes later."""
        while mark not in self.read:
            part = self.socket.recv(65536)
            assert part, f"the connection ended before {mark!r}: {self.read!r}"
            self.read += part
        found, self.read = self.read.split(mark, 1)
        return found + mark

    def reply(self) -> Reply:
        """A response with a Content-Length."""
        lines = self.until(b"\r\n\r\n").decode().split("\r\n")
        pairs = [line.split(": ", 1) for line in lines[1:] if line]
        headers = {name.lower(): value for name, value in pairs}
        n = int(headers["content-length"])
        while len(self.read) < n:
            part = self.socket.recv(65536)
            assert part, "the connection ended inside a body"
            self.read += part
        body, self.read = self.read[:n], self.read[n:]
        return Reply(int(lines[0].split()[1]), headers, body)

    def is_closed(self) -> bool:
        """Whether the server has ended the connection, also by a reset."""
        try:
            while self.socket.recv(65536):
                pass
        except ConnectionError:
            return True
        return True

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def request_bytes(
    method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> bytes:
    head = {"Host": "server", **(headers or {})}
    if body is not None:
        head.setdefault("Content-Type", "application/json")
        head.setdefault("Content-Length", str(len(body)))
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {text}" for name, text in head.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


def ask(
    server: Server,
    path: str,
    body: Any = None,
    headers: dict[str, str] | None = None,
    method: str | None = None,
) -> Reply:
    """One request with a whole response. body: bytes as they are, anything else as JSON."""
    data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
    method = method or ("GET" if data is None else "POST")
    with Wire(server.url) as wire:
        return wire.send(request_bytes(method, path, data, headers)).reply()


def events(
    server: Server, path: str, body: Any, headers: dict[str, str] | None = None
) -> list[Any]:
    """The events of a stream, [DONE] included; the stream must end as HTTP wants it."""
    with Wire(server.url) as wire:
        wire.send(request_bytes("POST", path, json.dumps(body).encode(), headers))
        head = wire.until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200") and b"text/event-stream" in head, head
        text = b""
        while True:
            size = int(wire.until(b"\r\n"), 16)
            while len(wire.read) < size + 2:
                wire.read += wire.socket.recv(65536)
            text += wire.read[:size]
            wire.read = wire.read[size + 2 :]
            if size == 0:
                break
    assert b"\r" not in text and text.endswith(b"\n\n")
    found = []
    for block in text.decode().split("\n\n")[:-1]:
        if block.startswith(":"):
            continue
        data = block.split("data: ", 1)[1]
        found.append(data if data == "[DONE]" else json.loads(data))
    return found


def wait_for(what: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def is_idle(engine: TextEngine) -> bool:
    """Whether nothing runs and every block is back."""
    stats = engine.stats()
    return not (stats["n_running"] or stats["n_waiting"] or stats["n_active_blocks"])


@pytest.fixture(scope="session")
def engine() -> Iterator[TextEngine]:
    made = TextEngine(None, ENGINE)
    yield made
    made.close()


@pytest.fixture(scope="session")
def tiny_text_engine() -> Iterator[TextEngine]:
    """A model that takes no time: random weights."""
    from conftest import GOLDEN

    config = TurbomindEngineConfig(session_len=256, max_batch_size=64, num_threads=1)
    made = TextEngine(GOLDEN / "gguf" / "llama-float.gguf", config)
    yield made
    made.close()


@pytest.fixture(scope="session")
def server(engine: TextEngine) -> Iterator[Server]:
    from lmdeploy_c.serve.config import ServeConfig
    from lmdeploy_c.serve.server import Server

    with Server(engine, ServeConfig(port=0)).start() as made:
        yield made
