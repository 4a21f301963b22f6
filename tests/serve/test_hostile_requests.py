"""What strangers send: always a refusal in the right form, never a 500, and nobody is disturbed."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from served_models import QUESTION, Wire, ask, request_bytes

from lmdeploy_c.serve import schema
from lmdeploy_c.serve.app import ROUTES
from lmdeploy_c.serve.config import ServeConfig
from lmdeploy_c.serve.errors import ApiError
from lmdeploy_c.serve.json_text import MAX_DEPTH, parse
from lmdeploy_c.serve.openapi import ANTHROPIC_ERROR, OPENAI_ERROR
from lmdeploy_c.serve.server import Server

CHAT = "/v1/chat/completions"
POSTS = sorted(route.path for route in ROUTES if route.method == "POST")
HI = b'{"messages":"hi","max_tokens":1'


def check_error(reply: Any, path: str) -> None:
    shape = ANTHROPIC_ERROR if path.startswith("/v1/messages") else OPENAI_ERROR
    jsonschema.validate(reply.json, shape)
    assert reply.headers["content-type"] == "application/json"


BODIES = {
    "nothing": b"",
    "no JSON": b"messages",
    "half": b'{"messages": [',
    "a list": b"[1]",
    "a text": b'"hi"',
    "no UTF-8": b'{"messages":"\xff"}',
    "NaN": HI + b',"temperature":NaN}',
    "infinity": HI + b',"temperature":Infinity}',
    "too large a number": HI + b',"temperature":1e999}',
    "many digits": HI + b',"seed":' + b"9" * 5000 + b"}",
    "half a pair": b'{"messages":"\\ud800"}',
    "half a pair as a name": b'{"\\udfff":1}',
    "nested lists": b"[" * 100_000,
    "nested objects": HI + b',"chat_template_kwargs":' + b'{"a":' * 5000 + b"1" + b"}" * 5001,
    "a NUL": b'{"messages":\x00}',
    "UTF-16": '{"messages":"hi"}'.encode("utf-16"),
    "a comma too many": HI + b",}",
}


@pytest.mark.parametrize("name", BODIES)
def test_what_is_no_request(server: Server, name: str) -> None:
    reply = ask(server, CHAT, BODIES[name])
    assert reply.status == 400
    check_error(reply, CHAT)


@pytest.mark.parametrize("path", POSTS)
def test_every_route_refuses_what_is_no_object(server: Server, path: str) -> None:
    for body in (b"", b"[]", b'{"a":', b'"' + b"\\ud800" + b'"'):
        reply = ask(server, path, body)
        assert reply.status == 400
        check_error(reply, path)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"temperature": "1"}, "temperature: must be a number from 0 to 2"),
        ({"temperature": True}, "temperature: must be a number from 0 to 2"),
        ({"temperature": -0.1}, "temperature: must be a number from 0 to 2"),
        ({"n": 0}, "n: must be an integer from 1 to 128"),
        ({"n": 1.5}, "n: must be an integer from 1 to 128"),
        ({"stream": 1}, "stream: must be true or false"),
        ({"stop": [""]}, "stop[0]: must not be empty"),
        ({"stop": 1}, "stop: must be a text or a list of texts"),
        ({"messages": []}, "messages: must"),
        ({"messages": [{"content": "x"}]}, "messages[0].role: is missing"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content: must be a text or"),
        ({"messages": None}, "messages: must be a list of messages or a text"),
        ({"messages": [{"role": "user"}]}, "needs a 'content'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "text only"),
        ({"logit_bias": {"x": 1}}, "logit_bias: 'x' is no token id"),
        ({"logit_bias": {"99999999": 1}}, "is no token id"),
        ({"logit_bias": {"1": "a"}}, "logit_bias.1: must be a number"),
        ({"tools": [{}]}, "tools: must have at most 0 items"),
        ({"response_format": {"type": "json_object"}}, "response_format.type: must be 'text'"),
        ({"adapter_name": "x"}, "adapter_name: must be null"),
        ({"top_logprobs": 3}, "top_logprobs needs logprobs"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]: must be an integer"),
        ({"a": 1, "b": 2}, "a: unknown field (there is no a, b)"),
        ({"stream_options": {"x": 1}}, "stream_options.x: unknown field"),
        ({"max_tokens": -1}, "max_tokens: must be an integer from 0"),
        ({"max_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"chat_template_kwargs": {"messages": 1}}, "messages"),
        ({"logprobs": "x" * 10_000}, "logprobs: must be true or false"),
    ],
)
def test_what_is_wrong_is_named(server: Server, fields: dict[str, Any], why: str) -> None:
    reply = ask(server, CHAT, {"messages": QUESTION, "max_tokens": 1, **fields})
    assert reply.status == 400 and why in reply.json["message"], reply.json
    assert len(reply.body) < 2000
    check_error(reply, CHAT)


def test_known_fields_without_effect_are_taken(server: Server) -> None:
    """What benchmark clients and SDKs send on their own."""
    body = {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
        "max_completion_tokens": 1.0,
        "user": "x",
        "store": True,
        "metadata": {"a": "b"},
        "service_tier": "auto",
        "parallel_tool_calls": True,
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "logprobs": None,
        "repetition_penalty": 1.0,
        "spaces_between_special_tokens": True,
        "repetition_ngram_size": 0,
        "session_id": -1,
        "temperature": None,
        "stream_options": None,
        "top_k": -1,
        "logit_bias": {},
    }
    reply = ask(server, CHAT, body)
    assert reply.status == 200, reply.json
    text = {"prompt": "Hi", "max_tokens": 1, "best_of": 1, "suffix": None, "ignore_eos": True}
    assert ask(server, "/v1/completions", text).status == 200


def test_large_numbers_are_cut_to_what_there_is(server: Server) -> None:
    body = {"messages": QUESTION, "temperature": 0, "max_tokens": 2**31 - 1, "seed": -5}
    body |= {"top_k": 2**31 - 1, "no_repeat_ngram_size": 2**31 - 1}
    assert ask(server, CHAT, body).status == 200


# ---- HTTP ----


def test_content_types(server: Server) -> None:
    body = {"messages": "hi", "max_tokens": 1}
    for kind in ("text/plain", "application/x-www-form-urlencoded", "", "multipart/form-data"):
        reply = ask(server, CHAT, body, {"Content-Type": kind})
        assert reply.status == 415 and "Content-Type: application/json" in reply.json["message"]
        check_error(reply, CHAT)
    assert (
        ask(server, CHAT, body, {"Content-Type": "Application/JSON; charset=utf-8"}).status == 200
    )


def test_paths_and_methods(server: Server) -> None:
    for path in ("/", "/v1", "/v1/chat/completions/", "/..%2f", "/%ff", "/v1/models?x=1#"):
        reply = ask(server, path)
        assert reply.status == (200 if path.startswith("/v1/models") else 404), path
    reply = ask(server, CHAT)
    assert reply.status == 405 and reply.headers["allow"] == "POST"
    reply = ask(server, "/health", method="DELETE")
    assert reply.status == 405 and reply.headers["allow"] == "HEAD, GET"
    with Wire(server.url) as wire:
        head = wire.send(request_bytes("HEAD", "/metrics")).until(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200") and b"text/plain; version=0.0.4" in head


@pytest.mark.parametrize(
    "text",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS, to a server without
        b"POST /v1/models HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/models HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nHost: x\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nBad Header: x\r\n\r\n",
    ],
)
def test_what_is_no_http(server: Server, text: bytes) -> None:
    with Wire(server.url) as wire:
        reply = wire.send(text).reply()
        assert reply.status in (400, 404, 405), reply
        check_error(reply, "/")
        assert reply.status != 400 or wire.is_closed()


def test_heads_without_end(server: Server) -> None:
    with Wire(server.url) as wire:
        wire.send(b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X-Long: " + b"a" * 70_000)
        assert wire.reply().status == 400


def test_two_requests_in_one_packet(server: Server) -> None:
    body = json.dumps({"messages": "hi", "max_tokens": 1}).encode()
    with Wire(server.url) as wire:
        wire.send(request_bytes("POST", CHAT, body) + request_bytes("GET", "/health"))
        assert wire.reply().status == 200
        assert wire.reply().json == {"status": "healthy"}


def test_bodies_that_are_too_large(engine: Any) -> None:
    config = ServeConfig(port=0, max_body_bytes=1000, max_pending_bytes=1500)
    with Server(engine, config).start() as small:
        for size in (1001, 3000, 5000, 10**6):
            body = b'{"messages":"' + b"a" * size + b'"}'
            with Wire(small.url) as wire:
                head = request_bytes("POST", CHAT, b"", {"Content-Length": str(len(body))})
                reply = (
                    wire.send(head + body[:3000]).reply() if size > 4000 else ask(small, CHAT, body)
                )
            assert reply.status == 413 and "more than 1000 bytes" in reply.json["message"]
        chunked = request_bytes("POST", CHAT, None, {"Transfer-Encoding": "chunked"})
        chunked = chunked.replace(b"\r\n\r\n", b"\r\nContent-Type: application/json\r\n\r\n")
        with Wire(small.url) as wire:
            wire.send(chunked + (b"400\r\n" + b"a" * 1024 + b"\r\n") * 6)
            assert wire.reply().status == 413
        with Wire(small.url) as first:  # holds 900 of the 1500 bytes
            body = b'{"messages":"' + b"a" * 985 + b'"}'
            first.send(request_bytes("POST", CHAT, body)[:-50])
            while ask(small, CHAT, body[:700]).status != 429:
                pass
        reply = ask(small, CHAT, {"messages": "hi", "max_tokens": 1})
        assert reply.status == 200


# ---- JSON and schemas, beside their definitions ----

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.floats(-4, 4)
    | st.sampled_from(["", "a", "stop", "text"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "type", "role", "content"]), inner, max_size=3)
    ),
    max_leaves=8,
)
PROPERTIES = sorted(
    {
        json.dumps(field, sort_keys=True)
        for route in ROUTES
        if route.body is not None
        for field in route.body.get("properties", {}).values()
    }
)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(PROPERTIES), json_values)
def test_fields_are_checked_as_json_schema_says(spelled: str, value: Any) -> None:
    rule = json.loads(spelled)
    validator = jsonschema.Draft202012Validator(rule)
    try:
        schema.check(rule, value)
        fits = True
    except schema.WrongValue:
        fits = False
    assert fits == validator.is_valid(value)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60) | json_values.map(lambda v: json.dumps(v).encode()))
def test_json_is_read_as_python_reads_it(text: bytes) -> None:
    try:
        wanted = json.loads(text.decode())
    except ValueError:
        with pytest.raises(ApiError):
            parse(text)
    else:
        assert json.dumps(parse(text)) == json.dumps(wanted)


def test_nesting_is_bounded() -> None:
    deepest = b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1)
    parse(deepest)
    with pytest.raises(ApiError, match="nested too deeply"):
        parse(b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1))
