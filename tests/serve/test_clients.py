"""The official clients, strict where their models are right, and the answers they get beside the
engine's own."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import anthropic
import numpy as np
import openai
import pytest
from served_models import QUESTION, ask, events

from lmdeploy_c import GenerationConfig
from lmdeploy_c.engine.text_engine import TextEngine
from lmdeploy_c.serve.server import Server

STORY: list[Any] = [{"role": "user", "content": "Tell me a story."}]
ASK: list[Any] = QUESTION


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="none", _strict_response_validation=True
    ) as made:
        yield made


@pytest.fixture(scope="module")
def claude(server: Server) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(
        base_url=server.url, api_key="none", _strict_response_validation=True
    ) as made:
        yield made


def own(engine: TextEngine, messages: Any, **config: Any) -> str:
    """The engine's answer, without a server."""
    return engine.ask(messages, GenerationConfig(**config)).read_all().text


# ---- OpenAI's ----


def test_models(client: openai.OpenAI, engine: TextEngine) -> None:
    (model,) = client.models.list().data
    assert model.id == engine.model_name and model.object == "model"


def test_a_chat(client: openai.OpenAI, engine: TextEngine) -> None:
    answer = client.chat.completions.create(
        model=engine.model_name, messages=ASK, temperature=0, max_completion_tokens=30
    )
    (choice,) = answer.choices
    assert choice.message.content == own(engine, ASK, max_new_tokens=30)
    assert (choice.message.role, choice.finish_reason) == ("assistant", "stop")
    usage = answer.usage
    assert usage is not None and usage.prompt_tokens == 37
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_a_seed_gives_the_same_answer_as_the_engine(
    client: openai.OpenAI, engine: TextEngine
) -> None:
    answer = client.chat.completions.create(
        model=engine.model_name,
        messages=STORY,
        seed=7,
        temperature=1.2,
        top_p=0.9,
        presence_penalty=0.5,
        frequency_penalty=0.25,
        max_tokens=24,
        extra_body={"top_k": 20, "repetition_penalty": 1.1, "min_p": 0.01},
    )
    wanted = own(
        engine,
        STORY,
        random_seed=7,
        temperature=1.2,
        top_p=0.9,
        presence_penalty=0.5,
        frequency_penalty=0.25,
        max_new_tokens=24,
        top_k=20,
        repetition_penalty=1.1,
        min_p=0.01,
        do_sample=True,
    )
    assert answer.choices[0].message.content == wanted
    assert answer.choices[0].finish_reason == "length"


def test_logit_bias_and_stop(client: openai.OpenAI, engine: TextEngine) -> None:
    (token,) = engine.tokenizer.token_ids_of(" Paris")
    banned = client.chat.completions.create(
        model=engine.model_name,
        messages=ASK,
        temperature=0,
        max_tokens=10,
        logit_bias={str(token): -100},
    )
    assert "Paris" not in (banned.choices[0].message.content or "Paris")
    cut = client.chat.completions.create(
        model=engine.model_name, messages=ASK, temperature=0, stop=["France is Par", "zzz"]
    )
    assert cut.choices[0].message.content == "The capital of "
    assert cut.choices[0].finish_reason == "stop"


def test_logprobs_are_the_models_own(client: openai.OpenAI, engine: TextEngine) -> None:
    answer = client.chat.completions.create(
        model=engine.model_name,
        messages=ASK,
        temperature=0,
        max_tokens=6,
        logprobs=True,
        top_logprobs=5,
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    ids = engine.ask(ASK, GenerationConfig(max_new_tokens=6)).read_all().token_ids
    prompt = engine.encode(engine.render(ASK), add_bos=engine.adds_bos(True))
    config = GenerationConfig(max_new_tokens=1, output_logits="all")
    logits = engine.submit([*prompt, *ids], config).read_all().logits
    assert logits is not None
    rows = logits[len(prompt) - 1 : len(prompt) - 1 + len(ids)].astype("f8")
    assert len(rows) == len(logprobs.content) == 6
    for token_id, row, entry in zip(ids, rows, logprobs.content, strict=True):
        wanted = row - math.log(sum(map(math.exp, row - row.max()))) - row.max()
        assert entry.logprob == pytest.approx(wanted[token_id], abs=1e-4)
        best = sorted(wanted, reverse=True)[:5]
        assert [top.logprob for top in entry.top_logprobs] == pytest.approx(best, abs=1e-4)
        assert bytes(entry.bytes or ()).decode() == entry.token
    assert "".join(entry.token for entry in logprobs.content) == answer.choices[0].message.content


@pytest.mark.parametrize("n", [1, 3])
def test_a_stream_by_the_clients_helper(client: openai.OpenAI, engine: TextEngine, n: int) -> None:
    with client.chat.completions.stream(
        model=engine.model_name,
        messages=STORY,
        n=n,
        seed=3,
        max_tokens=12,
        logprobs=True,
        stream_options={"include_usage": True},
    ) as stream:
        stream.until_done()
        final = stream.current_completion_snapshot
    whole = client.chat.completions.create(
        model=engine.model_name, messages=STORY, n=n, seed=3, max_tokens=12, logprobs=True
    )
    assert [c.index for c in final.choices] == list(range(n))
    for streamed, choice in zip(final.choices, whole.choices, strict=True):
        assert streamed.message.content == choice.message.content
        assert streamed.message.role == "assistant"
        assert streamed.finish_reason == choice.finish_reason
        assert streamed.logprobs is not None and choice.logprobs is not None
        assert streamed.logprobs.content == choice.logprobs.content
    assert len({choice.message.content for choice in whole.choices}) == n
    assert final.usage is not None and whole.usage is not None
    assert final.usage.prompt_tokens == whole.usage.prompt_tokens
    assert final.usage.completion_tokens == whole.usage.completion_tokens == 12 * n


def test_the_events_of_a_chat(server: Server) -> None:
    body = {"messages": ASK, "temperature": 0, "stream": True, "n": 2}
    *chunks, done = events(server, "/v1/chat/completions", body)
    assert done == "[DONE]"
    first = chunks[0]["choices"]
    assert [c["index"] for c in first] == [0, 1]
    assert all(c["delta"] == {"role": "assistant", "content": ""} for c in first)
    assert len({chunk["id"] for chunk in chunks}) == 1
    for chunk in chunks[1:]:
        (choice,) = chunk["choices"]
        assert "usage" not in chunk and "role" not in choice["delta"]
    last = {c["choices"][0]["index"]: c["choices"][0]["finish_reason"] for c in chunks[1:]}
    assert last == {0: "stop", 1: "stop"}


def test_usage_comes_when_asked_for(server: Server) -> None:
    body = {"messages": ASK, "temperature": 0, "stream": True, "max_tokens": 3}
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, last, _ = events(
        server, "/v1/chat/completions", {**body, "stream_options": {"include_usage": True}}
    )
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == 3
    *chunks, last, _ = events(server, "/v1/chat/completions", {**body, "stream_options": options})
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts) and counts[-1] == 3 and last["choices"] == []


def test_text_completions(client: openai.OpenAI, engine: TextEngine) -> None:
    prompts = ["The capital of France is", "One, two, three,"]
    answer = client.completions.create(
        model=engine.model_name, prompt=prompts, n=2, temperature=0, max_tokens=5, logprobs=2
    )
    config = GenerationConfig(max_new_tokens=5)
    wanted = [engine.ask(p, config, do_preprocess=False).read_all().text for p in prompts]
    assert [c.text for c in answer.choices] == [wanted[0]] * 2 + [wanted[1]] * 2
    assert [c.index for c in answer.choices] == [0, 1, 2, 3]
    for choice in answer.choices:
        logprobs = choice.logprobs
        assert logprobs is not None and logprobs.tokens is not None
        assert "".join(logprobs.tokens) == choice.text
        assert logprobs.top_logprobs is not None and logprobs.token_logprobs is not None
        for token, value, top in zip(
            logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True
        ):
            assert top[token] == value == max(top.values()) and len(top) == 2
    ids = [engine.encode(p) for p in prompts]
    by_ids = client.completions.create(
        model=engine.model_name, prompt=ids, temperature=0, max_tokens=5
    )
    assert [c.text for c in by_ids.choices] == wanted
    one = client.completions.create(
        model=engine.model_name, prompt=ids[0], temperature=0, max_tokens=5
    )
    assert one.choices[0].text == wanted[0]


def test_the_best_of_several(client: openai.OpenAI, engine: TextEngine) -> None:
    options: dict[str, Any] = {"seed": 11, "max_tokens": 4, "logprobs": 1, "prompt": "Once"}
    best = client.completions.create(model=engine.model_name, n=1, best_of=4, **options)
    every = client.completions.create(model=engine.model_name, n=4, **options)

    def likelihood(choice: Any) -> float:
        return sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs)

    assert len(best.choices) == 1 and len({likelihood(c) for c in every.choices}) == 4
    assert best.choices[0].text == max(every.choices, key=likelihood).text


def test_a_streamed_text_completion(server: Server, engine: TextEngine) -> None:
    prompts = ["The capital of France is", "One, two, three,"]
    body = {"prompt": prompts, "temperature": 0, "max_tokens": 5, "stream": True}
    *chunks, done = events(server, "/v1/completions", body)
    assert done == "[DONE]"
    texts = ["", ""]
    for chunk in chunks:
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["text"]
    config = GenerationConfig(max_new_tokens=5)
    wanted = [engine.ask(p, config, do_preprocess=False).read_all().text for p in prompts]
    assert texts == wanted


@pytest.mark.parametrize(
    ("status", "kind", "body"),
    [
        (400, openai.BadRequestError, {"temperature": 9}),
        (400, openai.BadRequestError, {"no_such_field": 1}),
        (404, openai.NotFoundError, {"model": "nobody"}),
    ],
)
def test_errors_as_openais_client_sees_them(
    client: openai.OpenAI, engine: TextEngine, status: int, kind: Any, body: dict[str, Any]
) -> None:
    options = {"model": engine.model_name, "messages": ASK, **body}
    for stream in (False, True):
        with pytest.raises(kind) as caught:
            client.with_options(max_retries=0).chat.completions.create(
                model=options["model"],
                messages=ASK,
                stream=stream,
                extra_body=body,
            )
        assert caught.value.status_code == status
        assert caught.value.param == next(iter(body))
        assert caught.value.request_id


# ---- Anthropic's ----


def test_a_message(claude: anthropic.Anthropic, engine: TextEngine) -> None:
    answer = claude.messages.create(
        model=engine.model_name,
        max_tokens=30,
        messages=ASK,
        extra_body={"temperature": 0},
    )
    assert [block.to_dict() for block in answer.content] == [
        {"type": "text", "text": own(engine, ASK, max_new_tokens=30)}
    ]
    assert (answer.stop_reason, answer.stop_sequence) == ("end_turn", None)
    usage = answer.usage
    assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == 37
    counted = claude.messages.count_tokens(model=engine.model_name, messages=ASK)
    assert counted.input_tokens == 37


@pytest.mark.parametrize(
    ("options", "reason", "sequence", "text"),
    [
        ({"stop_sequences": ["zzz", " Par"]}, "stop_sequence", " Par", "The capital of France is"),
        ({"max_tokens": 3}, "max_tokens", None, "The capital of"),
        ({}, "end_turn", None, "The capital of France is Paris."),
    ],
)
def test_why_a_message_ends(
    claude: anthropic.Anthropic,
    engine: TextEngine,
    options: dict[str, Any],
    reason: str,
    sequence: str | None,
    text: str,
) -> None:
    asked: dict[str, Any] = {
        "model": engine.model_name,
        "max_tokens": 30,
        "messages": ASK,
        "extra_body": {"temperature": 0},
        **options,
    }
    whole = claude.messages.create(**asked)
    with claude.messages.stream(**asked) as stream:
        pieces = list(stream.text_stream)
        streamed = stream.get_final_message()
    for answer in (whole, streamed):
        assert (answer.stop_reason, answer.stop_sequence) == (reason, sequence)
        assert [block.to_dict()["text"] for block in answer.content] == [text]
    assert "".join(pieces) == text and len(pieces) > 1
    assert streamed.usage.output_tokens == whole.usage.output_tokens


def test_a_system_text_and_blocks(claude: anthropic.Anthropic, engine: TextEngine) -> None:
    answer = claude.messages.create(
        model=engine.model_name,
        max_tokens=8,
        system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        messages=[{"role": "user", "content": [{"type": "text", "text": "Hello"}]}],
        extra_body={"temperature": 0},
    )
    conversation = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
    ]
    (block,) = answer.content
    assert block.to_dict()["text"] == own(engine, conversation, max_new_tokens=8)


def test_models_as_anthropics_client_sees_them(
    claude: anthropic.Anthropic, engine: TextEngine
) -> None:
    (model,) = claude.models.list().data
    assert (model.id, model.type) == (engine.model_name, "model")


def test_errors_as_anthropics_client_sees_them(
    claude: anthropic.Anthropic, engine: TextEngine
) -> None:
    with pytest.raises(anthropic.BadRequestError) as caught:
        claude.messages.create(
            model=engine.model_name, max_tokens=5, messages=ASK, extra_body={"wrong": 1}
        )
    assert caught.value.body == {
        "type": "error",
        "error": {
            "type": "invalid_request_error",
            "message": "wrong: unknown field (there is no wrong)",
        },
        "request_id": caught.value.request_id,
    }
    with pytest.raises(anthropic.BadRequestError, match="context length"):
        claude.messages.create(
            model=engine.model_name,
            max_tokens=5,
            messages=[{"role": "user", "content": "word " * 2000}],
        )


# ---- scores of a prompt, as lm-eval asks for them ----


def _wanted_scores(engine: TextEngine, ids: list[int]) -> list[float]:
    """The log-probability of each token after the first, from the model's logits."""
    config = GenerationConfig(max_new_tokens=1, output_logits="all")
    logits = engine.submit(ids, config).read_all().logits
    assert logits is not None
    rows = logits[: len(ids) - 1].astype("f8")
    top = rows.max(axis=1, keepdims=True)
    rows = rows - top - np.log(np.exp(rows - top).sum(axis=1, keepdims=True))
    return [float(row[token_id]) for row, token_id in zip(rows, ids[1:], strict=True)]


@pytest.mark.parametrize("max_tokens", [0, 1, 3])
def test_echo_scores_the_prompt(server: Server, engine: TextEngine, max_tokens: int) -> None:
    prompts = [engine.encode(text) for text in ("The capital of France is Paris.", "naïve 日本")]
    body = {"prompt": prompts, "echo": True, "logprobs": 2, "temperature": 0}
    n_each = 2 if max_tokens else 1
    body |= {"max_tokens": max_tokens, "n": n_each}
    reply = ask(server, "/v1/completions", body).json
    assert [c["index"] for c in reply["choices"]] == list(range(2 * n_each))
    asked = [ids for ids in prompts for _ in range(n_each)]
    for choice, ids in zip(reply["choices"], asked, strict=True):
        logprobs, n = choice["logprobs"], len(ids)
        assert logprobs["token_logprobs"][0] is logprobs["top_logprobs"][0] is None
        assert len(logprobs["tokens"]) == len(logprobs["text_offset"]) == n + max_tokens
        scores = logprobs["token_logprobs"][1:n]
        assert scores == pytest.approx(_wanted_scores(engine, ids), abs=1e-4)
        pairs = zip(logprobs["tokens"][1:], logprobs["top_logprobs"][1:], strict=True)
        for i, (token, top) in enumerate(pairs, 1):
            assert len(top) == 2 and max(top.values()) >= logprobs["token_logprobs"][i]
            assert token not in top or top[token] == logprobs["token_logprobs"][i]
        assert choice["text"].startswith(engine.tokenizer.decode(ids))


def test_echo_lists_a_token_that_ends_the_answer(server: Server, engine: TextEngine) -> None:
    """A score that is cut off with it would be wrong, and nobody would notice."""
    ids = engine.ask(QUESTION, GenerationConfig(max_new_tokens=1)).input_ids
    ids += engine.ask(QUESTION, GenerationConfig(max_new_tokens=30)).read_all().token_ids
    body = {"prompt": ids, "echo": True, "logprobs": 1, "temperature": 0, "max_tokens": 1}
    (choice,) = ask(server, "/v1/completions", body).json["choices"]
    assert len(choice["logprobs"]["tokens"]) == len(ids) + 1
    assert choice["logprobs"]["tokens"][-1] == engine.tokenizer.eos_token == "<|im_end|>"


def test_echo_without_scores(server: Server) -> None:
    body = {"prompt": ["One, two,", "Once"], "echo": True, "max_tokens": 4, "temperature": 0}
    whole = [c["text"] for c in ask(server, "/v1/completions", body).json["choices"]]
    assert [text.startswith(p) for text, p in zip(whole, body["prompt"], strict=True)] == [True] * 2
    texts = ["", ""]
    for chunk in events(server, "/v1/completions", {**body, "stream": True})[:-1]:
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert texts == whole
    assert ask(server, "/v1/completions", {**body, "stream": True, "logprobs": 1}).status == 400
