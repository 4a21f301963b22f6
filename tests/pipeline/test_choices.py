"""Several answers to one prompt, and answers that go to the end of the context."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest

from lmdeploy_c import GenerationConfig, Pipeline, Response, TurbomindEngineConfig, pipeline

PROMPT = "Tell me a story about a fox."
SAMPLED = GenerationConfig(do_sample=True, temperature=1.0, max_new_tokens=4, random_seed=5)
THREE = dataclasses.replace(SAMPLED, n=3)


#: What each of the three answers is alone.
SEEDED = [dataclasses.replace(SAMPLED, random_seed=seed) for seed in (5, 6, 7)]


def alone(pipe: Pipeline) -> list[list[int]]:
    return [pipe(PROMPT, config).token_ids for config in SEEDED]


@pytest.fixture(scope="module")
def pipe() -> Iterator[Pipeline]:
    config = TurbomindEngineConfig(session_len=80, max_batch_size=8, cache_max_entry_count="64MB")
    with pipeline(backend_config=config, log_level="ERROR") as made:
        yield made


@pytest.mark.parametrize("caching", [True, False])
def test_the_prompt_is_computed_once(caching: bool) -> None:
    config = TurbomindEngineConfig(
        session_len=80, cache_max_entry_count="64MB", enable_prefix_caching=caching
    )
    with pipeline(backend_config=config, log_level="ERROR") as pipe:
        response = pipe(PROMPT, THREE, do_preprocess=False)
        stats = pipe.stats()
        assert stats["n_tokens_prefilled"] == response.input_token_len < 64  # less than a block
        cached = [choice.cached_tokens for choice in response.choices]
        assert cached == [0, response.input_token_len - 1, response.input_token_len - 1]
        single = [pipe(PROMPT, c, do_preprocess=False).token_ids for c in SEEDED]
        assert [choice.token_ids for choice in response.choices] == single


def test_choices_of_a_response(pipe: Pipeline) -> None:
    shared, single = pipe([PROMPT, "Hi"], [THREE, SAMPLED])
    choices = shared.choices
    assert [c.token_ids for c in choices] == alone(pipe)
    assert len({c.text for c in choices}) == 3
    assert shared.text == choices[0].text and shared.token_ids == choices[0].token_ids
    assert [(c.index, c.choice, c.random_seed) for c in choices] == [
        (0, 0, 5),
        (0, 1, 6),
        (0, 2, 7),
    ]
    assert (single.index, single.choices) == (1, [])
    seeds = {c.random_seed for c in pipe(PROMPT, GenerationConfig(3, 1, True)).choices}
    assert len(seeds) == 3  # drawn


def whole(pieces: list[Response], index: int, choice: int) -> Response:
    own = [p for p in pieces if (p.index, p.choice) == (index, choice)]
    assert [p.finish_reason for p in own] == [None] * (len(own) - 1) + ["length"]
    assert (own[-1].text, own[-1].token_ids) == ("", [])
    first = own[0]
    for piece in own[1:]:
        first.extend(piece)
    return first


def test_choices_in_a_stream(pipe: Pipeline) -> None:
    wanted = alone(pipe)
    pieces = list(pipe.stream_infer(["Hi", PROMPT], gen_config=[SAMPLED, THREE]))
    assert [whole(pieces, 1, c).token_ids for c in range(3)] == wanted
    assert len(whole(pieces, 0, 0).token_ids) == 4
    complete = list(pipe.stream_infer([PROMPT], gen_config=THREE, stream_response=False))
    assert [c.token_ids for c in complete[0].choices] == wanted and len(complete) == 1

    async def generate(stream_response: bool) -> list[Response]:
        answer = pipe.generate(PROMPT, THREE, stream_response=stream_response)
        return [piece async for piece in answer]

    pieces = asyncio.run(generate(True))
    assert [whole(pieces, 0, c).token_ids for c in range(3)] == wanted
    (complete_one,) = asyncio.run(generate(False))
    assert [c.token_ids for c in complete_one.choices] == wanted


def test_leaving_a_stream_cancels_every_choice(pipe: Pipeline) -> None:
    long = GenerationConfig(4, max_new_tokens=None, ignore_eos=True)

    async def leave() -> None:
        answer: Any = pipe.generate(PROMPT, long)
        async for _ in answer:
            break
        await answer.aclose()

    before = pipe.metrics()["n_ended"]["abort"]
    asyncio.run(leave())
    stream = pipe.stream_infer(PROMPT, gen_config=long)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert pipe("Hi", SAMPLED).token_ids  # comes after what was cancelled
    assert pipe.metrics()["n_ended"]["abort"] == before + 8


def test_every_choice_of_a_bad_prompt_says_why(pipe: Pipeline) -> None:
    for prompt, code in (("word " * 90, "context_length_exceeded"), ([{}], "invalid_request")):
        bad = pipe(prompt, THREE)
        assert len(bad.choices) == 3
        assert {c.error_code for c in bad.choices} == {bad.error_code} == {code}
        assert {c.finish_reason for c in bad.choices} == {"error"}
        pieces = list(pipe.stream_infer([prompt], gen_config=THREE))
        assert sorted((p.choice, p.error_code) for p in pieces) == [(c, code) for c in range(3)]
    late = dataclasses.replace(SAMPLED)
    late.n = "x"  # type: ignore[assignment]
    assert "GenerationConfig.n must be" in (pipe(PROMPT, late).error_message or "")


def test_a_conversation_has_one_answer_a_turn(pipe: Pipeline) -> None:
    session = pipe.session()
    with pytest.raises(ValueError, match="n=3: a turn of a conversation has one answer"):
        pipe.chat(PROMPT, session, THREE)
    with pytest.raises(ValueError, match="n=3"):
        pipe(PROMPT, THREE, session_id=1)
    with pytest.raises(ValueError, match="n > 1 goes without"):
        pipe.stream_infer(PROMPT, pipe.session(), THREE)
    session.gen_config = None
    assert pipe.chat("Hi", session, SAMPLED).history[0][1]


def test_no_bound_but_the_context(pipe: Pipeline) -> None:
    to_the_end = GenerationConfig(max_new_tokens=None, ignore_eos=True)
    response = pipe(PROMPT, to_the_end)
    assert response.input_token_len + response.generate_token_len == 80
    assert response.finish_reason == "length"
    assert pipe("Hi", GenerationConfig(max_new_tokens=None)).finish_reason == "stop"
    assert pipe("word " * 90, to_the_end).error_code == "context_length_exceeded"
    none = pipe("Hi", GenerationConfig(max_new_tokens=0))
    # LMDeploy's own test compares the whole message.
    assert none.error_message == "max_new_tokens must be at least 1, got 0."
    assert (none.error_code, none.generate_token_len) == ("invalid_request", 0)
