"""The text engine by itself: what pipeline and sessions stand on, and a server will."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator

import pytest

from lmdeploy_c import GenerationConfig, Pipeline, Response, TurbomindEngineConfig
from lmdeploy_c.engine.answer import interleave
from lmdeploy_c.engine.session import Session
from lmdeploy_c.engine.text_engine import History, TextEngine
from lmdeploy_c.messages import ErrorCode
from lmdeploy_c.metrics import prometheus_text

CONFIG = TurbomindEngineConfig(session_len=512, max_batch_size=4, cache_max_entry_count="64MB")
SHORT = GenerationConfig(max_new_tokens=8)
LONG = GenerationConfig(max_new_tokens=400, ignore_eos=True)
QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def engine() -> Iterator[TextEngine]:
    made = TextEngine(None, CONFIG)
    yield made
    made.close()


def test_ask_is_render_encode_and_submit(engine: TextEngine) -> None:
    text = engine.render(QUESTION)
    assert text == engine.chat_template.messages2prompt(QUESTION)
    ids = engine.encode(text, add_bos=not engine.chat_template.adds_bos)
    steps = engine.submit(ids, SHORT, stop_words=engine.chat_template.stop_words)
    asked = engine.ask(QUESTION, SHORT, index=3)
    assert (asked.prompt_text, asked.input_ids) == (text, ids)
    assert asked.read_all().token_ids == steps.read_all().token_ids
    assert (asked.response.index, asked.response.input_token_len) == (3, len(ids))


def test_a_history_is_gone_on_from(engine: TextEngine) -> None:
    """What a session brings, by hand: text, tokens and KV of the turns before."""
    first = engine.ask(QUESTION, SHORT, keep_snapshot=True)
    said = first.read_all()
    ids = first.input_ids + said.token_ids
    history = History(
        [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": said.text}],
        ids,
        first.prompt_text + said.text,
        first.request.snapshot,
    )
    second = engine.ask("And of Italy?", SHORT, history=history)
    assert second.input_ids[: len(ids)] == ids
    assert second.read_all().cached_tokens >= len(ids) - 1
    session = Session(engine)
    for question in (QUESTION, "And of Italy?"):
        answer = session(question, SHORT, stream_response=False)
    assert isinstance(answer, Response) and answer.token_ids == second.response.token_ids


def test_whatever_is_wrong_becomes_the_answer(
    engine: TextEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad_config = GenerationConfig()
    bad_config.top_p = 7
    unencodable = GenerationConfig(max_new_tokens=1, stop_token_ids=[1 << 70])

    def fail(*args: object, **kwargs: object) -> str:
        raise RuntimeError

    before = engine.metrics()
    answers = [
        engine.ask([{"role": "user"}], SHORT, index=0),
        engine.ask(QUESTION, bad_config, index=1),
        engine.ask(QUESTION, unencodable, index=2),
        engine.ask([], SHORT, do_preprocess=False, index=3),
    ]
    monkeypatch.setattr(type(engine.chat_template), "messages2prompt", fail)
    answers.append(engine.ask(QUESTION, SHORT, index=4))
    monkeypatch.undo()
    responses = [answer.read_all() for answer in answers]
    assert [r.index for r in responses] == list(range(5))
    assert {r.finish_reason for r in responses} == {"error"}
    codes = [ErrorCode.INVALID_REQUEST] * 4 + [ErrorCode.PREPROCESS_FAILED]
    assert [r.error_code for r in responses] == codes
    words = ["a message needs a 'content'", "top_p", "stop_token_ids", "takes a text", "RuntimeErr"]
    for response, word in zip(responses, words, strict=True):
        assert word in (response.error_message or "")
    after = engine.metrics()
    assert after["n_submitted"] == before["n_submitted"] + 5
    assert after["n_ended"]["error"] == before["n_ended"]["error"] + 5


def test_a_rejected_request_is_an_answer_like_any_other(engine: TextEngine) -> None:
    message = "wrong: " + "é" * 4000 + "\0\ud800 end"
    code = ErrorCode.REQUEST_CONFLICT
    rejected = engine.reject(message, index=1, code=code)
    expected = Response("", 0, 0, "error", index=1, error_code=code, error_message=message)
    assert rejected.read_all() == expected
    deltas = list(
        interleave(lambda i: engine.reject("no", index=i) if i else engine.ask("Hi", SHORT), 2)
    )
    assert [d.error_message for d in deltas if d.index == 1] == ["no"]
    assert "".join(d.text for d in deltas if d.index == 0)

    async def read() -> list[Response]:
        return [delta async for delta in engine.reject("no").deltas()]

    (delta,) = asyncio.run(read())
    assert (delta.finish_reason, delta.error_message) == ("error", "no")


def test_close_ends_an_answer_and_says_so_once(engine: TextEngine) -> None:
    ended = []
    answer = engine.ask(QUESTION, LONG)
    answer.on_close = ended.append
    while answer.read() is None:
        pass
    answer.close()
    answer.close()
    assert ended == [answer]
    while not answer.request.done:
        answer.request.read()
    whole = engine.ask(QUESTION, SHORT)
    whole.read_all()
    whole.close()
    assert whole.response.finish_reason == "stop"


def test_a_stream_that_cannot_start_leaves_nothing_running(engine: TextEngine) -> None:
    def start(i: int) -> object:
        if i == 2:
            raise KeyError("no third")
        return engine.ask(QUESTION, LONG)

    before = engine.metrics()["n_ended"]["abort"]
    with pytest.raises(KeyError, match="no third"):
        list(interleave(start, 3))  # type: ignore[arg-type]
    gc.collect()
    while engine.stats()["n_running"] + engine.stats()["n_waiting"]:
        pass
    assert engine.metrics()["n_ended"]["abort"] == before + 2


def test_what_it_says_of_itself(engine: TextEngine) -> None:
    assert engine.backend_config.session_len == engine.sizes.kv.session_len == 512
    assert engine.arch == "llama" and engine.num_threads == engine.backend_config.num_threads
    tags = engine.session_tags()
    assert tags["tokenizer"] == engine.tokenizer.fingerprint()
    assert tags["kv_bits"] == [16, 16] and tags["block_len"] == 64
    assert "lmdeploy:num_requests_running" in prometheus_text(engine)


def test_closed() -> None:
    engine = TextEngine(None, CONFIG)
    session = Session(engine)
    engine.close()
    engine.close()
    for call in (
        lambda: engine.ask(QUESTION),
        lambda: engine.ask([{"role": "user"}]),
        engine.stats,
        lambda: session(QUESTION),
    ):
        with pytest.raises(RuntimeError, match="closed"):
            call()
    with pytest.raises(RuntimeError, match="closed"):
        session.start(QUESTION)
    with pytest.raises(RuntimeError, match="closed"):
        session.start(QUESTION)  # and not: still answering


def test_a_pipeline_stands_on_it() -> None:
    with Pipeline(None, CONFIG, model_name="mine") as pipe:
        assert pipe.tokenizer is pipe.engine.tokenizer
        assert pipe.model_name == pipe.engine.model_name == "mine"
        assert pipe.plan.kv_blocks == pipe.engine.sizes.kv.n_blocks
        assert pipe.async_engine.backend_config is pipe.engine.backend_config
        assert pipe.plan.arch == "llama" and "scratch" in str(pipe.plan)
