"""Keys, limits, metrics, logs, and a server's end."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from served_models import LONG, QUESTION, Wire, ask, events, is_idle, request_bytes, wait_for

from lmdeploy_c import GenerationConfig, Pipeline, pipeline
from lmdeploy_c.engine.text_engine import TextEngine
from lmdeploy_c.metrics import PREFIX
from lmdeploy_c.serve.app import ROUTES
from lmdeploy_c.serve.config import ServeConfig
from lmdeploy_c.serve.server import Server

CHAT = "/v1/chat/completions"
SHORT: dict[str, Any] = {"messages": QUESTION, "max_tokens": 2, "temperature": 0}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


# ---- who may ask ----


def test_every_route_but_health_asks_for_a_key(engine: TextEngine) -> None:
    with Server(engine, ServeConfig(port=0, api_keys=["one", "two"])).start() as guarded:
        for route in ROUTES:
            body = None if route.method == "GET" else b"{}"
            reply = ask(guarded, route.path, body)
            assert (reply.status == 401) != route.open, route.path
            for wrong in (
                {"x-api-key": "on"},
                bearer("three"),
                {"Authorization": "one"},
                bearer(""),
            ):
                assert (ask(guarded, route.path, body, wrong).status == 401) != route.open
            for right in ({"x-api-key": "one"}, bearer("two"), {"Authorization": "bearer one"}):
                assert ask(guarded, route.path, body, right).status != 401, route.path
        assert ask(guarded, "/v1/models").headers["www-authenticate"] == "Bearer"
        assert ask(guarded, "/nowhere").status == 404


def test_a_session_belongs_to_its_key(engine: TextEngine) -> None:
    turn = {"session_id": 5, "interactive_mode": True, "temperature": 0, "request_output_len": 3}
    path = "/v1/chat/interactive"
    with Server(engine, ServeConfig(port=0, api_keys=["one", "two"])).start() as guarded:
        first = ask(guarded, path, {"prompt": "My name is Bob.", **turn}, bearer("one")).json
        stolen = ask(guarded, path, {"prompt": "Who am I?", **turn}, bearer("two")).json
        again = ask(guarded, path, {"prompt": "Who am I?", **turn}, bearer("one")).json
        assert first["history_tokens"] == stolen["history_tokens"] == 0
        assert again["history_tokens"] == first["input_tokens"] + first["tokens"]
        cancel = {"session_id": 5, "cancel": True}
        assert ask(guarded, path, cancel, bearer("two")).status == 200  # the second one's own
        assert ask(guarded, path, {**cancel, "session_id": 6}, bearer("two")).status == 404
        with Wire(guarded.url) as wire:  # a running request is seen and aborted by its key alone
            body = json.dumps({**LONG, "session_id": 9}).encode()
            wire.send(request_bytes("POST", CHAT, body, bearer("one")))
            wait_for(lambda: bool(ask(guarded, "/slots", headers=bearer("one")).json["slots"]))
            assert ask(guarded, "/slots", headers=bearer("two")).json["slots"] == []
            for abort in ({"session_id": 9}, {"abort_all": True}):
                ask(guarded, "/abort_request", abort, bearer("two"))
            assert ask(guarded, "/slots", headers=bearer("one")).json["slots"]
            reply = ask(guarded, "/abort_request", {"session_id": 9}, bearer("one"))
            assert reply.status == 200 and len(reply.json["aborted"]) == 1
            choice = wire.reply().json["choices"][0]
            assert (choice["finish_reason"], choice["finish_detail"]) == ("length", "abort")


def test_pages_of_other_origins(engine: TextEngine, server: Server) -> None:
    page = {"Origin": "https://chat.example"}
    asked = {**page, "Access-Control-Request-Headers": "content-type, authorization"}
    assert "access-control-allow-origin" not in ask(server, "/health", headers=page).headers
    config = ServeConfig(port=0, allow_origins=["https://chat.example"], api_keys=["k"])
    with Server(engine, config).start() as open_to_one:
        reply = ask(open_to_one, CHAT, headers=asked, method="OPTIONS")
        assert reply.status == 200
        assert reply.headers["access-control-allow-origin"] == "https://chat.example"
        assert "authorization" in reply.headers["access-control-allow-headers"]
        refused = ask(open_to_one, CHAT, SHORT, page)
        assert refused.status == 401 and "access-control-allow-origin" in refused.headers
        other = {"Origin": "https://evil.example"}
        assert "access-control-allow-origin" not in ask(open_to_one, CHAT, SHORT, other).headers


# ---- limits ----


def test_too_many_requests(engine: TextEngine) -> None:
    wait_for(lambda: is_idle(engine))
    with Server(engine, ServeConfig(port=0, max_concurrent_requests=2)).start() as small:
        wires = [Wire(small.url).send(_post(LONG)) for _ in range(2)]
        wait_for(lambda: len(ask(small, "/slots").json["slots"]) == 2)
        reply = ask(small, CHAT, SHORT)
        assert reply.status == 429 and 1 <= int(reply.headers["retry-after"]) <= 30
        assert ask(small, "/health").status == 200
        for wire in wires:
            wire.close()
        wait_for(lambda: is_idle(engine))
        assert ask(small, CHAT, SHORT).status == 200


def test_too_many_answers(engine: TextEngine) -> None:
    with Server(engine, ServeConfig(port=0, max_answers=3)).start() as small:
        reply = ask(small, "/v1/completions", {"prompt": ["a", "b"], "n": 2})
        assert reply.status == 400 and "one request may have 3 answers" in reply.json["message"]


def test_the_oldest_session_is_forgotten(engine: TextEngine) -> None:
    turn = {"prompt": "Hi", "interactive_mode": True, "request_output_len": 1}
    with Server(engine, ServeConfig(port=0, max_sessions=2)).start() as small:
        histories = [
            ask(small, "/v1/chat/interactive", {**turn, "session_id": i}).json["history_tokens"]
            for i in (1, 2, 1, 3, 1, 2)
        ]
    assert [n > 0 for n in histories] == [False, False, True, False, True, False]


def _post(body: Any, path: str = CHAT) -> bytes:
    return request_bytes("POST", path, json.dumps(body).encode())


# ---- what is seen of it ----


def test_metrics_as_prometheus_reads_them(server: Server, engine: TextEngine) -> None:
    assert ask(server, CHAT, SHORT).status == 200
    reply = ask(server, "/metrics", headers={"Accept": "application/openmetrics-text"})
    assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    names = {family.name for family in text_string_to_metric_families(reply.body.decode())}
    for name in ("num_requests_running", "time_to_first_token_seconds", "kv_blocks"):
        assert PREFIX + name in names
    assert f'model_name="{engine.model_name}"'.encode() in reply.body


def test_slots_show_who_is_answered(server: Server, engine: TextEngine) -> None:
    wait_for(lambda: is_idle(engine))
    with Wire(server.url) as wire:
        body = json.dumps({**LONG, "stream": True}).encode()
        wire.send(request_bytes("POST", CHAT, body, {"X-Request-ID": "mine-1"}))
        for _ in range(5):
            head = wire.until(b"\n\n")
        (slot,) = ask(server, "/slots").json["slots"]
        assert slot["request_id"] == "mine-1" and slot["state"] == "decode"
        assert slot["prompt_tokens"] == 37 and slot["completion_tokens"] >= 4
        reply = ask(server, "/abort_request", {"request_id": "mine-1"})
        assert reply.json == {"aborted": ["mine-1"]}
        rest = wire.until(b"[DONE]\n\n")
        assert b'"finish_reason":"length","finish_detail":"abort"' in rest + head
    assert ask(server, "/abort_request", {"request_id": "mine-1"}).status == 404
    assert ask(server, "/abort_request", {}).status == 400


def test_a_line_for_each_request(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "lmdeploy_c.access"):
        reply = ask(server, CHAT, SHORT, {"X-Request-ID": "abc"})
        bad = ask(server, CHAT, {"x": 1}, {"X-Request-ID": 'no "good" one'})
        ids = ["abc", bad.headers["x-request-id"]]

        def lines() -> list[dict[str, Any]]:  # without those of requests before
            found = [r.message for r in caplog.records if r.name == "lmdeploy_c.access"]
            return [line for line in map(json.loads, found) if line["request_id"] in ids]

        wait_for(lambda: len(lines()) == 2)
    first, second = lines()
    assert reply.headers["x-request-id"] == reply.headers["request-id"] == "abc"
    assert (first["request_id"], first["status"], first["path"]) == ("abc", 200, CHAT)
    assert (first["prompt_tokens"], first["completion_tokens"]) == (37, 2)
    assert second["request_id"] == bad.json["request_id"] == bad.headers["x-request-id"]
    assert second["status"] == 400 and "unknown field" in second["error"]
    assert second["request_id"].startswith("req_")


# ---- its end ----


def test_a_drain_lets_answers_end(engine: TextEngine) -> None:
    wait_for(lambda: is_idle(engine))
    server = Server(engine, ServeConfig(port=0, drain_timeout=60)).start()
    body = {**LONG, "max_tokens": 60, "stream": True}
    with Wire(server.url) as wire, Wire(server.url) as idle:
        wire.send(_post(body))
        wire.until(b"\n\n")
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        wait_for(lambda: ask(server, "/health").status == 503)
        reply = ask(server, CHAT, SHORT)
        assert reply.status == 503 and reply.headers["retry-after"] == "1"
        assert wire.until(b"[DONE]\n\n").count(b'"finish_reason":"length"') == 1
        stopping.join(20)
        assert not stopping.is_alive() and idle.is_closed()
    server.stop()  # again
    with pytest.raises(ConnectionError):
        Wire(server.url)
    assert is_idle(engine)


def test_a_drain_cuts_what_takes_too_long(engine: TextEngine) -> None:
    wait_for(lambda: is_idle(engine))
    server = Server(engine, ServeConfig(port=0, drain_timeout=0.2)).start()
    wires = [Wire(server.url).send(_post({**LONG, "stream": stream})) for stream in (True, False)]
    wait_for(lambda: engine.stats()["n_running"] == 2)
    server.stop()
    end = wires[0].until(b"0\r\n\r\n")
    assert b'"finish_reason":"length","finish_detail":"abort"' in end and b"[DONE]" in end
    (choice,) = wires[1].reply().json["choices"]
    assert (choice["finish_reason"], choice["finish_detail"]) == ("length", "abort")
    for wire in wires:
        wire.close()
    assert is_idle(engine)


def test_a_notebooks_server() -> None:
    with pipeline() as pipe, pipe.serve(port=0) as server:
        assert isinstance(pipe, Pipeline)
        wanted = pipe("What is the capital of France?").text
        body = {"messages": QUESTION, "temperature": 0, "stream": True}
        chunks = events(server, CHAT, body)[1:-1]
        assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == wanted
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1 port {server.port}"):
            pipe.serve(port=server.port)


def test_where_it_listens_wider_it_says_so(
    engine: TextEngine, caplog: pytest.LogCaptureFixture
) -> None:
    for host, keys, warned in (("0.0.0.0", [], 1), ("0.0.0.0", ["k"], 0), ("127.0.0.1", [], 0)):
        caplog.clear()
        with Server(engine, ServeConfig(host=host, port=0, api_keys=keys)).start():
            pass
        assert sum("WITHOUT API KEYS" in record.message for record in caplog.records) == warned


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_the_command(signal_number: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lmdeploy_c", "serve", "api_server", "--server-port", "0"]
    process = subprocess.Popen(
        [*command, "--model-name", "small", "--session-len", "512", "--log-level", "INFO"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stderr is not None
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "answers at" in line:
                break
        url = lines[-1].split("answers at ")[1].strip().removesuffix("/v1")

        class Started:
            def __init__(self) -> None:
                self.url = url

        started: Any = Started()
        assert ask(started, CHAT, {**SHORT, "model": "small"}).status == 200
        with Wire(url) as wire:
            wire.send(_post({**LONG, "max_tokens": 40, "stream": True}))
            wire.until(b"\n\n")
            process.send_signal(signal_number)
            assert b'"finish_reason":"length"' in wire.until(b"[DONE]\n\n")
        assert process.wait(20) == 0
        log = process.stderr.read()
        assert "Traceback" not in log
        assert [json.loads(line)["status"] for line in log.splitlines() if line.startswith("{")]
    finally:
        process.kill()
        process.wait()


def test_a_thousand_connections(tiny_text_engine: TextEngine) -> None:
    """Most of them wait; each gets its own answer."""
    body = {"max_tokens": 3, "temperature": 0, "logprobs": 0}
    with Server(tiny_text_engine, ServeConfig(port=0)).start() as server:
        wires = [Wire(server.url, timeout=120) for _ in range(1000)]
        for i, wire in enumerate(wires):
            wire.send(_post({**body, "prompt": [i % 50 + 3, i // 50 + 3]}, "/v1/completions"))
        found = [wire.reply() for wire in wires]
        for wire in wires:
            wire.close()
        wanted = {}
        for i in range(0, 1000, 97):
            config = GenerationConfig(max_new_tokens=3)
            answer = tiny_text_engine.submit([i % 50 + 3, i // 50 + 3], config).read_all()
            wanted[i] = answer.text
    assert {reply.status for reply in found} == {200}
    assert {i: found[i].json["choices"][0]["text"] for i in wanted} == wanted
    wait_for(lambda: is_idle(tiny_text_engine))


# ---- connections ----


def test_tls(engine: TextEngine, tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command, *files], check=True, capture_output=True)
    trusted = ssl.create_default_context(cafile=certificate)
    config = ServeConfig(port=0, ssl_keyfile=str(key), ssl_certfile=str(certificate))
    with Server(engine, config).start() as server:
        assert server.url.startswith("https://")
        with urllib.request.urlopen(f"{server.url}/health", context=trusted) as response:
            assert json.load(response) == {"status": "healthy"}
        with Wire(server.url) as plain:
            assert plain.send(request_bytes("GET", "/health")).is_closed()
    with pytest.raises(ValueError, match="both"):
        ServeConfig(ssl_keyfile=str(key))
    with pytest.raises(OSError):
        Server(engine, ServeConfig(port=0, ssl_keyfile="/no", ssl_certfile="/no")).start()


@pytest.mark.parametrize("head", [b"", b"POST /v1/chat/completions HTTP/1.1\r\nHost"])
def test_half_a_head_is_not_waited_for(
    engine: TextEngine, monkeypatch: pytest.MonkeyPatch, head: bytes
) -> None:
    monkeypatch.setattr("lmdeploy_c.serve.protocol._HEAD_TIMEOUT", 0.3)
    with Server(engine, ServeConfig(port=0)).start() as server, Wire(server.url) as wire:
        assert wire.send(head).is_closed()
        assert ask(server, "/health").status == 200
