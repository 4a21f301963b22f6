"""The pipeline end to end: every call on the embedded model, and what must not disturb it."""

import asyncio
import gc
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import lmdeploy_c
from lmdeploy_c import (
    GenerationConfig,
    Pipeline,
    Response,
    TurbomindEngineConfig,
    UnsupportedError,
    pipeline,
)
from lmdeploy_c.tokenizer import Tokenizer

ENGINE = TurbomindEngineConfig(session_len=1024, max_batch_size=16, cache_max_entry_count="128MB")
PROMPTS = ["What is the capital of France?", "Name a colour.", "Count to five."]
SHORT = GenerationConfig(max_new_tokens=8)
LONG = GenerationConfig(max_new_tokens=900, ignore_eos=True)


@pytest.fixture(scope="module")
def pipe() -> Iterator[Pipeline]:
    with pipeline(backend_config=ENGINE) as made:
        yield made


def texts(responses: list[Response]) -> list[str]:
    return [r.text for r in responses]


def wait_idle(pipe: Pipeline, seconds: float = 10) -> None:
    """Waits until nothing runs and every block is back."""
    deadline = time.monotonic() + seconds
    while True:
        stats = pipe.stats()
        if not (stats["n_running"] or stats["n_waiting"] or stats["n_active_blocks"]):
            return
        assert time.monotonic() < deadline, stats
        time.sleep(0.01)


# Calls and forms


def test_one_prompt_gives_one_response(pipe: Pipeline) -> None:
    response = pipe(PROMPTS[0])
    assert "Paris" in response.text
    assert response.finish_reason == "stop"
    assert response.generate_token_len == len(response.token_ids) > 0
    assert response.input_token_len > 10
    assert isinstance(response.random_seed, int)
    assert pipe.tokenizer.decode(response.token_ids) == response.text


def test_every_form_of_a_prompt_is_the_same_prompt(pipe: Pipeline) -> None:
    conversation = [{"role": "user", "content": PROMPTS[0]}]
    parts = [{"role": "user", "content": [{"type": "text", "text": PROMPTS[0]}]}]
    raw = pipe.chat_template.messages2prompt(conversation)
    wanted = pipe(PROMPTS[0], SHORT).text
    assert pipe(conversation, SHORT).text == wanted
    assert texts(pipe([conversation, PROMPTS[0], parts], SHORT)) == [wanted] * 3
    assert pipe(raw, SHORT, do_preprocess=False).text == wanted
    assert pipe(list[str](), SHORT) == []


def test_results_come_in_order_with_a_config_each(pipe: Pipeline) -> None:
    configs = [GenerationConfig(max_new_tokens=n) for n in (9, 1, 5)]
    together = pipe(PROMPTS, configs)
    alone = [pipe(p, c) for p, c in zip(PROMPTS, configs, strict=True)]
    assert texts(together) == texts(alone)
    assert [r.index for r in together] == [0, 1, 2]
    assert [r.generate_token_len for r in together][1:] == [1, 5]


def test_many_prompts_share_the_batch(pipe: Pipeline) -> None:
    steps = pipe.stats()["n_steps"]
    responses = pipe([f"Say {i}." for i in range(40)], SHORT)
    assert len(responses) == 40
    assert all(r.finish_reason in ("stop", "length") for r in responses)
    assert pipe.stats()["n_steps"] - steps < 40 * 4
    wait_idle(pipe)


def test_stream_interleaves_and_adds_up(pipe: Pipeline) -> None:
    parts = ["", "", ""]
    order = []
    for delta in pipe.stream_infer(PROMPTS, gen_config=SHORT):
        parts[delta.index] += delta.text
        order.append(delta.index)
    assert parts == texts(pipe(PROMPTS, SHORT))
    assert order != sorted(order)
    whole = list(pipe.stream_infer(PROMPTS, gen_config=SHORT, stream_response=False))
    assert sorted(texts(whole)) == sorted(parts)


def test_leaving_a_stream_cancels_it(pipe: Pipeline) -> None:
    stream = pipe.stream_infer(PROMPTS, gen_config=LONG)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    wait_idle(pipe)


def test_generate_in_an_event_loop(pipe: Pipeline) -> None:
    async def ask(prompt: str) -> str:
        return "".join([r.text async for r in pipe.generate(prompt, SHORT)])

    async def main() -> list[str]:
        answers = await asyncio.gather(*(ask(p) for p in PROMPTS))
        whole = [r async for r in pipe.generate(PROMPTS[0], SHORT, stream_response=False)]
        assert texts(whole) == [answers[0]]
        assert texts(pipe(PROMPTS, SHORT)) == answers, "synchronous calls work inside a loop"
        failed = [r async for r in pipe.generate([{"role": "user"}], SHORT)]
        assert [r.finish_reason for r in failed] == ["error"]
        return answers

    assert asyncio.run(main()) == texts(pipe(PROMPTS, SHORT))


def test_a_cancelled_task_cancels_its_request(pipe: Pipeline) -> None:
    async def main() -> None:
        async def ask() -> None:
            async for _ in pipe.generate(PROMPTS[0], LONG):
                pass

        task = asyncio.create_task(ask())
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    wait_idle(pipe)


def test_calls_from_many_threads(pipe: Pipeline) -> None:
    wanted, found = texts(pipe(PROMPTS, SHORT)), {}

    def ask(i: int) -> None:
        found[i] = pipe(PROMPTS[i % 3], SHORT).text

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(9)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert found == {i: wanted[i % 3] for i in range(9)}


def test_batch_infer_is_deprecated(pipe: Pipeline) -> None:
    with pytest.warns(DeprecationWarning, match="infer"):
        assert texts(pipe.batch_infer(PROMPTS[:1], SHORT)) == texts(pipe(PROMPTS[:1], SHORT))


def test_progress_bar(pipe: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    pipe(PROMPTS, SHORT)
    assert capsys.readouterr().err == ""
    pipe(PROMPTS, SHORT, use_tqdm=True)
    assert "3/3" in capsys.readouterr().err


# Parameters


def test_stop_words_across_tokens(pipe: Pipeline) -> None:
    config = GenerationConfig(max_new_tokens=20, stop_words=["tal of F"])
    cut = pipe(PROMPTS[0], config)
    assert (cut.text, cut.finish_reason) == ("The capi", "stop")
    assert cut.generate_token_len == len(cut.token_ids)
    config.include_stop_str_in_output = True
    assert pipe(PROMPTS[0], config).text == "The capital of F"
    assert "".join(d.text for d in pipe.stream_infer(PROMPTS[0], gen_config=config)) == (
        "The capital of F"
    )
    wait_idle(pipe)


def test_stop_token_ids_and_end_tokens(pipe: Pipeline) -> None:
    free = pipe(PROMPTS[0])
    third = free.token_ids[2]
    stopped = pipe(PROMPTS[0], GenerationConfig(stop_token_ids=[third]))
    assert (stopped.token_ids, stopped.finish_reason) == (free.token_ids[:2], "stop")
    longer = pipe(PROMPTS[0], GenerationConfig(max_new_tokens=12, ignore_eos=True))
    assert (longer.generate_token_len, longer.finish_reason) == (12, "length")
    late = pipe(PROMPTS[0], GenerationConfig(max_new_tokens=12, min_new_tokens=10))
    assert late.generate_token_len >= 10


def test_bad_words(pipe: Pipeline) -> None:
    response = pipe(PROMPTS[0], GenerationConfig(max_new_tokens=16, bad_words=["Paris"]))
    assert "Paris" not in response.text
    banned = pipe(PROMPTS[0], SHORT).token_ids[0]
    first = pipe(PROMPTS[0], GenerationConfig(max_new_tokens=1, bad_token_ids=[banned]))
    assert first.token_ids != [banned]


def test_special_tokens_in_the_text(pipe: Pipeline) -> None:
    config = GenerationConfig(
        max_new_tokens=20, skip_special_tokens=False, ignore_eos=True, stop_words=["<|im_end|>"]
    )
    assert "<|im_end|>" not in pipe(PROMPTS[0], config).text
    config.include_stop_str_in_output = True
    assert pipe(PROMPTS[0], config).text.endswith("<|im_end|>")


def test_logprobs_logits_and_ppl(pipe: Pipeline) -> None:
    config = GenerationConfig(
        max_new_tokens=4, logprobs=2, output_logits="generation", return_ppl=True
    )
    response = pipe(PROMPTS[0], config)
    assert response.logits is not None and response.logprobs is not None
    assert response.logits.shape == (4, pipe.tokenizer.vocab_size)
    np.testing.assert_array_equal(response.logits.argmax(-1), response.token_ids)
    logits = response.logits.astype(np.float64)
    top = logits.max(-1) - np.log(np.exp(logits).sum(-1))
    got = [p[t] for p, t in zip(response.logprobs, response.token_ids, strict=True)]
    np.testing.assert_allclose(got, top, atol=1e-4)
    assert response.ppl is not None and response.ppl > 0


def test_seeds(pipe: Pipeline) -> None:
    config = GenerationConfig(max_new_tokens=16, do_sample=True, temperature=1.5, top_k=0)
    first = pipe("Tell me a story.", config)
    config.random_seed = first.random_seed
    again = pipe("Tell me a story.", config)
    assert (again.text, again.random_seed) == (first.text, first.random_seed)
    config.random_seed = None
    assert len({pipe("Tell me a story.", config).text for _ in range(4)}) > 1


def test_temperature_zero_is_greedy(pipe: Pipeline) -> None:
    zero = GenerationConfig(max_new_tokens=8, do_sample=True, temperature=0.0)
    assert pipe(PROMPTS[0], zero).text == pipe(PROMPTS[0], SHORT).text


def test_get_ppl(pipe: Pipeline) -> None:
    ids = pipe.tokenizer.encode("The capital of France is Paris, and it lies on the Seine.")
    noise = ids[::-1]
    good, bad = pipe.get_ppl([ids, noise])
    assert 0 < good < bad
    assert pipe.get_ppl(ids) == [good]
    with pytest.raises(ValueError, match="at least 2 tokens"):
        pipe.get_ppl([5])
    with pytest.raises(ValueError, match="10000000"):
        pipe.get_ppl([1, 10_000_000])


def test_get_ppl_takes_texts_lists_and_arrays(pipe: Pipeline) -> None:
    texts = ["The capital of France is Paris.", "Paris is the capital of France."]
    ids = [pipe.tokenizer.encode(text) for text in texts]
    n = min(map(len, ids))
    both = pipe.get_ppl(ids)
    assert pipe.get_ppl(texts) == both
    assert pipe.get_ppl(texts[0]) == pipe.get_ppl(np.array(ids[0])) == both[:1]
    assert pipe.get_ppl([np.array(ids[0], np.int32), texts[1]]) == both
    assert pipe.get_ppl(list(np.array(ids[0]))) == pipe.get_ppl(tuple(ids[0])) == both[:1]
    rows = np.array([row[:n] for row in ids])
    assert pipe.get_ppl(rows) == pipe.get_ppl([row[:n] for row in ids])


# What is wrong, and what it must not disturb


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        ("word " * 3000, "context length is 1024"),
        ([{"role": "user"}], "content"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "text only"),
        ([{"role": 1, "content": "x"}], "role"),
    ],
)
def test_a_bad_prompt_is_an_error_response(pipe: Pipeline, prompt: Any, why: str) -> None:
    bad, good = pipe([prompt, PROMPTS[0]], SHORT)
    assert bad.finish_reason == "error" and bad.error_message and why in bad.error_message
    assert bad.error_code is not None
    assert good.text == pipe(PROMPTS[0], SHORT).text
    deltas = list(pipe.stream_infer([prompt, PROMPTS[0]], gen_config=SHORT))
    assert [d.finish_reason for d in deltas if d.index == 0] == ["error"]


def test_a_bad_parameter_is_an_error_response(pipe: Pipeline) -> None:
    late, out_of_range = GenerationConfig(), GenerationConfig(logit_bias={10**8: 1.0})
    late.top_p = 7
    first, second, good = pipe(PROMPTS, [late, out_of_range, SHORT])
    assert first.error_message is not None and "top_p" in first.error_message
    assert second.finish_reason == "error"
    assert good.finish_reason in ("stop", "length")


def test_a_prompt_that_is_too_long_has_its_own_code(pipe: Pipeline) -> None:
    assert pipe("word " * 3000).error_code == "context_length_exceeded"


def test_a_prompt_that_cannot_fit_is_not_tokenised(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bytes say that it is too long; what may fit is tokenised."""
    tokenised: list[str] = []
    encode = Tokenizer.encode

    def counted(self: Tokenizer, text: str, **options: Any) -> list[int]:
        tokenised.append(text)
        return encode(self, text, **options)

    monkeypatch.setattr(Tokenizer, "encode", counted)
    long, short = "word " * 100_000, "word " * 3000
    for preprocess in (True, False):
        tokenised.clear()
        response = pipe(long, do_preprocess=preprocess)
        assert response.error_code == "context_length_exceeded"
        assert response.finish_reason == "error"
        assert "has at least" in (response.error_message or "") and not tokenised
        assert pipe(short, do_preprocess=preprocess).error_code == "context_length_exceeded"
        assert tokenised


def test_an_answer_ends_where_the_context_does(pipe: Pipeline) -> None:
    prompt = "word " * 960
    response = pipe(prompt, LONG)
    assert response.finish_reason == "length"
    assert response.input_token_len + response.generate_token_len == 1024


@pytest.mark.parametrize(
    ("arguments", "error", "why"),
    [
        ({"sequence_start": False}, ValueError, "need a session_id"),
        ({"step": 3}, ValueError, "need a session_id"),
        ({"session_id": 1}, ValueError, "one prompt"),
        ({"session_id": "a"}, TypeError, "session_id: an integer"),
        ({"session_id": 1, "step": -1}, TypeError, "step: an integer"),
        ({"adapter_name": "a"}, UnsupportedError, "adapter_name='a'"),
        ({"mm_processor_kwargs": {"fps": 1}}, UnsupportedError, "mm_processor_kwargs"),
        ({"gen_config": [SHORT]}, ValueError, "gen_config has 1 items for 3 prompts"),
        ({"gen_config": {"top_k": 1}}, TypeError, "a GenerationConfig, not dict"),
    ],
)
def test_wrong_arguments_raise(
    pipe: Pipeline, arguments: dict[str, Any], error: type[Exception], why: str
) -> None:
    with pytest.raises(error, match=why):
        pipe(PROMPTS, **arguments)


def test_unknown_keywords_are_ignored_with_one_warning(pipe: Pipeline) -> None:
    wanted = pipe(PROMPTS[0], SHORT)
    with pytest.warns(UserWarning, match="ignores the unknown keyword 'max_log_len'") as warned:
        given = pipe(PROMPTS[0], SHORT, max_log_len=10, media_io_kwargs=None)
    assert len(warned) == 1
    assert given.text == wanted.text
    with warnings.catch_warnings(record=True) as again:
        warnings.simplefilter("default")
        for _ in range(3):
            pipe(PROMPTS[0], SHORT, log_level="INFO")
    assert len(again) == 1


def test_stateless_keywords_are_fine(pipe: Pipeline) -> None:
    response = pipe(PROMPTS[0], SHORT, sequence_start=True, sequence_end=True, step=0)
    assert response.text == pipe(PROMPTS[0], SHORT).text


def test_get_reward_score_is_refused(pipe: Pipeline) -> None:
    with pytest.raises(UnsupportedError, match="reward model"):
        pipe.get_reward_score([1, 2])


# Sessions


def test_chat_remembers(pipe: Pipeline) -> None:
    session = pipe.chat("My name is Bob.", gen_config=SHORT)
    assert isinstance(session, lmdeploy_c.Session)
    assert session.response is not None and session.response.text == session.history[0][1]
    n = session.response.input_token_len
    pipe.chat("What is my name?", session)
    assert session.response.input_token_len > n + 8
    assert len(session.history) == 2
    assert session.gen_config is SHORT, "it holds for the next turns"
    used = session.response.input_token_len + session.response.generate_token_len
    assert len(session.token_ids) == used
    messages = session.messages("Bye")
    assert [m["role"] for m in messages] == ["user", "assistant"] * 2 + ["user"]
    stateless = pipe(messages[:3], SHORT)
    assert stateless.text == session.response.text
    session.reset()
    assert not session.history and not session.token_ids and session.response is None


def test_what_was_read_before_is_found_again(pipe: Pipeline) -> None:
    """A prompt asked twice, and a second turn of a conversation: no answer changes."""
    prompt = "Sum up: " + " ".join(f"item {i} weighs {i * 7} grams." for i in range(40))
    first, again = pipe(prompt, SHORT), pipe(prompt, SHORT)
    assert first.cached_tokens < 64
    assert again.cached_tokens >= again.input_token_len - 64
    assert again.text == first.text
    session = pipe.chat(prompt, gen_config=SHORT)
    assert isinstance(session, lmdeploy_c.Session)
    n = len(session.token_ids)
    pipe.chat("And the heaviest?", session)
    assert session.response is not None and session.response.cached_tokens >= n - 64


def test_chat_streams(pipe: Pipeline) -> None:
    with pipe.session(SHORT) as session:
        streamed = "".join(d.text for d in session(PROMPTS[0]))  # type: ignore[union-attr]
        assert session.history == [(PROMPTS[0], streamed)]
        whole = session(PROMPTS[0], stream_response=False)
        assert isinstance(whole, Response) and whole is session.response
    with pytest.raises(RuntimeError, match="closed"):
        pipe.chat("hi", session)


def test_session_ids_never_collide(pipe: Pipeline) -> None:
    assert len({pipe.session().session_id for _ in range(100)}) == 100


def test_a_failed_turn_is_not_remembered(pipe: Pipeline) -> None:
    session = pipe.chat("hello", gen_config=SHORT)
    assert isinstance(session, lmdeploy_c.Session)
    pipe.chat("word " * 3000, session)
    assert session.response is not None and session.response.finish_reason == "error"
    pipe.chat([{"role": "user", "content": [{"type": "image_url"}]}], session)
    assert session.response.finish_reason == "error"
    assert len(session.history) == 1
    pipe.chat("hello again", session)
    assert len(session.history) == 2


def test_a_stream_started_later_knows_the_turns_before(pipe: Pipeline) -> None:
    session = pipe.session(SHORT)
    first = pipe.chat("My name is Bob.", session, stream_response=True)
    second = pipe.chat("Who am I?", session, stream_response=True)
    for stream in (first, second):
        list(stream)
    assert len(session.history) == 2
    assert session.response is not None
    assert session.response.text == pipe(session.messages("")[:3], SHORT).text


def test_abort_and_busy(pipe: Pipeline) -> None:
    session = pipe.session(LONG)
    stream = pipe.chat("Tell me everything.", session, stream_response=True)
    next(stream)
    with pytest.raises(RuntimeError, match="still answering"):
        pipe.chat("And?", session)
    threading.Timer(0.1, session.abort).start()
    *_, last = stream
    assert last.finish_reason == "abort"
    assert session.history[0][1] == session.response.text != ""  # type: ignore[union-attr]
    pipe.chat("And?", session, SHORT)
    assert len(session.history) == 2


def test_a_stream_keeps_its_pipeline() -> None:
    """Nobody else needs to hold it, and once closed it says so."""
    stream = pipeline(backend_config=ENGINE).stream_infer(PROMPTS, gen_config=SHORT)
    gc.collect()
    assert {delta.index for delta in stream} == {0, 1, 2}
    with pipeline(backend_config=ENGINE) as closed:
        stream = closed.stream_infer(PROMPTS, gen_config=SHORT)
    with pytest.raises(RuntimeError, match="this pipeline is closed"):
        next(stream)


def test_stream_infer_with_sessions_to_abort(pipe: Pipeline) -> None:
    sessions = [pipe.session() for _ in PROMPTS]
    ends = {}
    for delta in pipe.stream_infer(PROMPTS, sessions, GenerationConfig(max_new_tokens=60)):
        sessions[1].abort()
        if delta.finish_reason:
            ends[delta.index] = delta.finish_reason
    assert ends[1] == "abort"
    assert ends[0] != "abort"
