"""Clients that leave, or do nothing: by raw sockets, for clients' libraries hide what they do."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any

import pytest
from served_models import LONG, QUESTION, Wire, ask, is_idle, request_bytes, wait_for

from lmdeploy_c.engine.text_engine import TextEngine
from lmdeploy_c.serve.config import ServeConfig
from lmdeploy_c.serve.exchange import Exchange
from lmdeploy_c.serve.server import Server

#: Steps that may begin between a client's leaving and the server's noticing it.
FEW_STEPS = 12

_LONG_TEXT = {"ignore_eos": True, "max_tokens": 900}
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", LONG),
    "chat stream": ("/v1/chat/completions", {**LONG, "stream": True}),
    "chat of three": ("/v1/chat/completions", {**LONG, "n": 3}),
    "chat stream of three": ("/v1/chat/completions", {**LONG, "n": 3, "stream": True}),
    "text": ("/v1/completions", {"prompt": ["Once", "Then"], **_LONG_TEXT}),
    "text stream": ("/v1/completions", {"prompt": "Once", **_LONG_TEXT, "stream": True}),
    "message": ("/v1/messages", LONG),
    "message stream": ("/v1/messages", {**LONG, "stream": True}),
    "generate": ("/generate", {"prompt": "Once", **_LONG_TEXT}),
    "generate stream": ("/generate", {"prompt": "Once", **_LONG_TEXT, "stream": True}),
    "turn": (
        "/v1/chat/interactive",
        {"prompt": "Hi", "ignore_eos": True, "session_id": 1, "interactive_mode": True},
    ),
    "turn stream": (
        "/v1/chat/interactive",
        {"prompt": "Hi", "ignore_eos": True, "session_id": 2, "stream": True},
    ),
}


def post(path: str, body: Any) -> bytes:
    return request_bytes("POST", path, json.dumps(body).encode())


def reset(wire: Wire) -> None:
    """Closes a connection as a process does that is killed: with what was not read yet."""
    wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wire.close()


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("leave", [Wire.close, reset], ids=["close", "reset"])
def test_who_leaves_is_not_computed_for(
    server: Server, engine: TextEngine, name: str, leave: Any
) -> None:
    wait_for(lambda: is_idle(engine))
    path, body = REQUESTS[name]
    wire = Wire(server.url).send(post(path, body))
    if body.get("stream"):
        wire.until(b"\n\n")
    before = engine.stats()["n_tokens_generated"]
    wait_for(lambda: engine.stats()["n_tokens_generated"] > before + 3)
    leave(wire)
    n_steps = engine.stats()["n_steps"]
    wait_for(lambda: is_idle(engine))
    assert engine.stats()["n_steps"] - n_steps <= FEW_STEPS
    assert ask(server, "/slots").json["slots"] == []


def test_who_leaves_while_the_prompt_is_computed(server: Server, engine: TextEngine) -> None:
    wait_for(lambda: is_idle(engine))
    text = " ".join(f"{i} {i * 7}" for i in range(100))
    wire = Wire(server.url).send(post("/v1/completions", {"prompt": text, **_LONG_TEXT}))
    wait_for(lambda: engine.stats()["n_running"] > 0)
    wire.close()
    wait_for(lambda: is_idle(engine))


def test_who_leaves_anywhere_in_a_request_disturbs_nobody(
    server: Server, engine: TextEngine
) -> None:
    """Closes after every so many bytes of a request, and after all of it."""
    whole = post("/v1/chat/completions", LONG)
    for n in [*range(0, len(whole), 7), len(whole)]:
        Wire(server.url).send(whole[:n]).close()
    reply = ask(server, "/v1/chat/completions", {"messages": QUESTION, "max_tokens": 2})
    assert reply.status == 200
    wait_for(lambda: is_idle(engine))
    assert ask(server, "/slots").json["slots"] == []


def test_a_session_goes_on_after_its_client_left(server: Server, engine: TextEngine) -> None:
    turn = {"session_id": 77, "interactive_mode": True, "temperature": 0}
    cut = {"prompt": "Count to a thousand.", **turn, "ignore_eos": True, "stream": True}
    wire = Wire(server.url).send(post("/v1/chat/interactive", cut))
    for _ in range(3):
        wire.until(b"\n\n")
    wire.close()
    wait_for(lambda: is_idle(engine))
    next_turn = {"prompt": "Hello", **turn, "request_output_len": 3}
    reply = ask(server, "/v1/chat/interactive", next_turn)
    assert reply.status == 200 and reply.json["history_tokens"] > 30


# ---- clients that do nothing ----


@pytest.fixture(scope="module")
def impatient(engine: TextEngine) -> Iterator[Server]:
    config = ServeConfig(port=0, client_timeout=0.6, heartbeat=0.2)
    with Server(engine, config).start() as made:
        yield made


def test_who_does_not_read_is_ended(impatient: Server, engine: TextEngine) -> None:
    """Many long answers on one connection that reads nothing: what the kernel and the server hold
    of them is bounded, so that the writing stalls."""
    wait_for(lambda: is_idle(engine))
    wire = Wire(impatient.url, receive_buffer=4096)
    body = {**LONG, "stream": True, "n": 8, "logprobs": True, "top_logprobs": 20}
    wire.send(post("/v1/chat/completions", body))
    wait_for(lambda: engine.stats()["n_running"] == 8)
    wait_for(lambda: is_idle(engine), seconds=60)
    seconds_per_answer = 900 * 8  # tokens that would have been computed
    assert engine.stats()["n_tokens_generated"] < seconds_per_answer
    assert ask(impatient, "/slots").json["slots"] == []
    wire.close()


def test_half_a_body_is_not_waited_for(impatient: Server) -> None:
    whole = post("/v1/chat/completions", LONG)
    with Wire(impatient.url) as wire:
        wire.send(whole[:-10])
        started = time.monotonic()
        assert wire.is_closed()
        assert time.monotonic() - started < 10


def test_comments_come_only_in_silence(impatient: Server, engine: TextEngine) -> None:
    """A client that waits for its first token is told that it is served."""
    wait_for(lambda: is_idle(engine))
    busy = [Wire(impatient.url).send(post("/v1/completions", _waiting(i))) for i in range(20)]
    wait_for(lambda: engine.stats()["n_waiting"] > 0)
    body = {"messages": QUESTION, "stream": True, "max_tokens": 5, "temperature": 0}
    with Wire(impatient.url) as wire:
        wire.send(post("/v1/chat/completions", body))
        first = wire.until(b"\n\n")
        assert b"200 OK" in first and first.endswith(b": still working\n\n")
        for other in busy:
            other.close()
        rest = wire.until(b"[DONE]\n\n")
    assert b'"content":"The"' in rest and rest.count(b"role") == 1
    wait_for(lambda: is_idle(engine))


def test_a_comment_is_due_only_in_silence() -> None:
    """Whatever the clock says: after an event, and while one is being written, none is due."""
    config = ServeConfig(heartbeat=10, client_timeout=50)
    sent: list[dict[str, Any]] = []
    due: list[bool] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)
        due.append(exchange.look(time.monotonic() + 20))  # the client does not take it

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    scope = {"method": "POST", "path": "/", "headers": []}
    exchange = Exchange(scope, receive, send, config, "id")
    now = time.monotonic()
    assert not exchange.look(now + 20), "the response may be no stream"
    exchange.expect_stream()
    assert not exchange.look(now + 5) and exchange.look(now + 20)

    async def stream() -> None:
        for _ in range(3):
            await exchange.write(b"data: x\n\n")
            written = time.monotonic()
            assert not exchange.look(written + 5) and exchange.look(written + 20)
        await exchange.end()

    asyncio.run(stream())
    assert not exchange.look(time.monotonic() + 20), "the stream has ended"
    assert len(sent) == 5 and due == [False] * 5


def _waiting(i: int) -> dict[str, Any]:
    """More of these than the engine has slots keep it busy."""
    return {"prompt": f"Once {i}", "ignore_eos": True, "max_tokens": 900}
