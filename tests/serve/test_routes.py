"""LMDeploy's and vLLM's routes beside the engine, and the document that lists all of them."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
from jsonschema import Draft202012Validator
from served_models import QUESTION, ask, events

from lmdeploy_c import GenerationConfig
from lmdeploy_c.engine.scores import cross_entropies
from lmdeploy_c.engine.session import Session
from lmdeploy_c.engine.text_engine import TextEngine
from lmdeploy_c.serve.app import ROUTES
from lmdeploy_c.serve.server import Server

TEXTS = ["Hello, world!", "naïve 日本語 🙂 <|im_start|>", " "]


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_and_back(server: Server, engine: TextEngine, text: str) -> None:
    reply = ask(server, "/tokenize", {"prompt": text, "return_token_strs": True}).json
    assert reply["tokens"] == engine.tokenizer.encode(text)
    assert reply["count"] == len(reply["tokens"]) == len(reply["token_strs"])
    assert reply["max_model_len"] == engine.backend_config.session_len
    back = ask(server, "/detokenize", {"tokens": reply["tokens"]}).json
    assert back == {"prompt": text}
    encoded = ask(server, "/v1/encode", {"input": text}).json
    assert encoded == {"input_ids": reply["tokens"], "length": reply["count"]}


def test_a_conversations_tokens(server: Server, engine: TextEngine) -> None:
    wanted = engine.ask(QUESTION, GenerationConfig(max_new_tokens=1)).input_ids
    assert ask(server, "/tokenize", {"messages": QUESTION}).json["tokens"] == wanted
    texts = ["What is the capital of France?", "Hi"]
    encoded = ask(server, "/v1/encode", {"input": texts, "do_preprocess": True}).json
    assert encoded["input_ids"][0] == wanted and len(encoded["length"]) == 2
    assert ask(server, "/tokenize", {}).status == 400


def test_prompts_that_are_too_long_are_the_clients_mistake(
    server: Server, engine: TextEngine
) -> None:
    long = "word " * 30_000
    messages = [{"role": "user", "content": long}]
    for path, body in {
        "/tokenize": {"messages": messages},
        "/v1/encode": {"input": long, "do_preprocess": True},
        "/v1/messages/count_tokens": {
            "messages": messages,
            "model": engine.model_name,
        },
        "/get_ppl": {"input": long},
    }.items():
        reply = ask(server, path, body)
        assert reply.status == 400 and "session_len" in str(reply.json), path
    assert ask(server, "/get_ppl", {"input": [2**31 - 1, 1]}).status == 400
    assert ask(server, "/detokenize", {"tokens": [2**31 - 1]}).status == 200


def test_tokenizer_info(server: Server, engine: TextEngine) -> None:
    info = ask(server, "/tokenizer_info").json
    tokenizer = engine.tokenizer
    assert (info["bos_token"], info["eos_token"]) == (tokenizer.bos_token, tokenizer.eos_token)
    assert "<|im_start|>" in info["chat_template"]


def test_get_ppl(server: Server, engine: TextEngine) -> None:
    text, ids = "The capital of France is Paris.", [1, 2, 3, 4]
    for given, inputs in ((text, [text]), (ids, [ids]), ([text, "Hi you"], [text, "Hi you"])):
        found = ask(server, "/get_ppl", {"input": given}).json["ppl"]
        assert found == pytest.approx(cross_entropies(engine, inputs))
    assert ask(server, "/get_ppl", {"input": [1]}).status == 400
    assert ask(server, "/get_ppl", {"input": "word " * 3000}).status == 400


def test_generate(server: Server, engine: TextEngine) -> None:
    prompt = "The capital of France is"
    wanted = engine.ask(
        prompt, GenerationConfig(max_new_tokens=6, logprobs=1), do_preprocess=False
    ).read_all()
    body = {"prompt": prompt, "max_tokens": 6, "temperature": 0, "return_logprob": True}
    reply = ask(server, "/generate", body).json
    assert (reply["text"], reply["output_ids"]) == (wanted.text, wanted.token_ids)
    info = reply["meta_info"]
    assert info["finish_reason"] == {"type": "length", "length": 6}
    assert (info["prompt_tokens"], info["completion_tokens"]) == (5, 6)
    assert wanted.logprobs is not None
    pairs = zip(wanted.token_ids, wanted.logprobs, strict=True)
    assert info["output_token_logprobs"] == [[entry[i], i] for i, entry in pairs]
    ids = engine.encode(prompt)
    *pieces, done = events(
        server, "/generate", {"input_ids": ids, "max_tokens": 6, "temperature": 0, "stream": True}
    )
    assert done == "[DONE]" and "".join(p["text"] for p in pieces) == wanted.text
    assert pieces[-1]["meta_info"]["finish_reason"]["type"] == "length"
    for wrong in ({}, {"prompt": "a", "input_ids": [1]}, {"input_ids": [10**6]}, {"input_ids": []}):
        assert ask(server, "/generate", wrong).status == 400


def test_a_conversation_that_the_server_keeps(server: Server, engine: TextEngine) -> None:
    """Turn by turn as a `Session`; its KV is found again."""
    session, path = Session(engine), "/v1/chat/interactive"
    options = {"session_id": 31, "interactive_mode": True, "temperature": 0, "top_k": 1}
    config = GenerationConfig(max_new_tokens=12)
    for prompt in ("My name is Bob.", "What is my name?", "And yours?"):
        n_before = len(session.token_ids)
        wanted = session(prompt, config, stream_response=False)
        body = {"prompt": prompt, "request_output_len": 12, **options}
        if prompt.startswith("What"):
            *pieces, _ = events(server, path, {**body, "stream": True})
            reply = {**pieces[-1], "text": "".join(piece["text"] for piece in pieces)}
        else:
            reply = ask(server, path, body).json
        assert reply["text"] == wanted.text
        assert reply["history_tokens"] == n_before
        assert reply["input_tokens"] == wanted.input_token_len - n_before
        assert (reply["tokens"], reply["finish_reason"]) == (
            wanted.generate_token_len,
            wanted.finish_reason,
        )
    bye = {"prompt": "Bye", **options, "interactive_mode": False, "request_output_len": 2}
    last = ask(server, path, bye).json
    assert last["history_tokens"] == len(session.token_ids)
    again = ask(server, path, {"prompt": "Hi", **options, "request_output_len": 1}).json
    assert again["history_tokens"] == 0, "the turn before has ended the conversation"
    assert ask(server, path, {"prompt": "Hi", "interactive_mode": True}).status == 400


def test_a_session_answers_one_turn_at_a_time(server: Server) -> None:
    from served_models import Wire, request_bytes

    path, options = "/v1/chat/interactive", {"session_id": 32, "interactive_mode": True}
    long = (
        b'{"prompt":"Hi","session_id":32,"interactive_mode":true,"ignore_eos":true,"stream":true}'
    )
    with Wire(server.url) as wire:
        wire.send(request_bytes("POST", path, long)).until(b"\n\n")
        reply = ask(server, path, {"prompt": "Hi", **options})
        assert reply.status == 409 and "still answering" in reply.json["message"]
        assert ask(server, path, {"cancel": True, **options}).json["finish_reason"] is None
        assert b'"finish_reason":"length"' in wire.until(b"[DONE]\n\n")


@pytest.mark.parametrize("path", ["/v1/embeddings", "/pooling", "/v1/rerank", "/v1/score"])
def test_what_is_not_served_says_why(server: Server, path: str) -> None:
    reply = ask(server, path, {"input": "x", "anything": 1})
    assert reply.status == 400 and "embedding" in reply.json["message"]


# ---- the document ----


def test_the_document_lists_every_route(server: Server) -> None:
    document = ask(server, "/openapi.json").json
    listed = {(m.upper(), path) for path, item in document["paths"].items() for m in item}
    assert listed == {(r.method, r.path) for r in ROUTES} | {("GET", "/openapi.json")}
    for item in document["paths"].values():
        for operation in item.values():
            schemas = [_schema(response) for response in operation["responses"].values()]
            schemas.append(_schema(operation.get("requestBody", {})))
            for schema in schemas:
                Draft202012Validator.check_schema(schema)


def _schema(part: dict[str, Any]) -> Any:
    return part.get("content", {}).get("application/json", {}).get("schema", {})


#: A good request of each route that has a body.
GOOD: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": QUESTION,
        "max_tokens": 2,
        "logprobs": True,
        "n": 2,
        "return_token_ids": True,
        "return_logprob": True,
    },
    "/v1/completions": {"prompt": "Hi", "max_tokens": 2, "logprobs": 1, "return_token_ids": True},
    "/v1/messages": {"messages": QUESTION, "max_tokens": 2},
    "/v1/messages/count_tokens": {"messages": QUESTION},
    "/generate": {"prompt": "Hi", "max_tokens": 2, "return_logprob": True},
    "/v1/chat/interactive": {"prompt": "Hi", "request_output_len": 2},
    "/tokenize": {"prompt": "Hi", "return_token_strs": True},
    "/detokenize": {"tokens": [1, 2]},
    "/v1/encode": {"input": ["Hi"]},
    "/get_ppl": {"input": "Hi there"},
    "/abort_request": {"abort_all": True},
}


def test_answers_are_as_the_document_says(server: Server) -> None:
    document = ask(server, "/openapi.json").json
    schemas = document["components"]["schemas"]
    for route in ROUTES:
        operation = document["paths"][route.path][route.method.lower()]
        body = None if route.method == "GET" else GOOD.get(route.path, {})
        for sent in (body, {"no such field": 1}) if body is not None else (body,):
            reply = ask(server, route.path, sent)
            promised = operation["responses"][str(reply.status)]["content"]
            kind = reply.headers["content-type"].partition(";")[0]
            assert kind in promised, (route.path, reply)
            if kind == "application/json":
                schema = promised[kind]["schema"]
                name = schema.get("$ref", "").rpartition("/")[2]
                jsonschema.validate(reply.json, schemas[name] if name else schema)
