"""Sessions: conversations as values, which are forked, rewound and go on by number."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator

import pytest

import lmdeploy_c
from lmdeploy_c import (
    GenerationConfig,
    Pipeline,
    Response,
    Session,
    TurbomindEngineConfig,
    pipeline,
)
from lmdeploy_c.messages import ErrorCode

ENGINE = TurbomindEngineConfig(session_len=1024, max_batch_size=8, cache_max_entry_count="64MB")
SHORT = GenerationConfig(max_new_tokens=12)
STORY = "Here is a list: " + " ".join(f"{i} cats and {i * 3} dogs;" for i in range(30))


@pytest.fixture(scope="module")
def pipe() -> Iterator[Pipeline]:
    with pipeline(backend_config=ENGINE) as made:
        yield made


def say(session: Session, prompt: str, config: GenerationConfig = SHORT) -> Response:
    answer = session(prompt, config, stream_response=False)
    assert isinstance(answer, Response)
    return answer


def test_history_is_not_computed_twice(pipe: Pipeline) -> None:
    session = pipe.session()
    say(session, STORY)
    for prompt in ("Go on.", "And then?", "Why?"):
        n, before = len(session.token_ids), pipe.stats()
        answer = say(session, prompt)
        assert answer.cached_tokens == n - 1, "the answer's last token was never read"
        computed = pipe.stats()["n_tokens_prefilled"] - before["n_tokens_prefilled"]
        assert computed == answer.input_token_len - (n - 1)
        assert session.token_ids[:n] == session.token_ids[: answer.input_token_len][:n]
    assert len(session.history) == 4
    assert pipe.stats()["n_active_blocks"] == 0


def test_a_turn_is_what_the_whole_text_gives(pipe: Pipeline) -> None:
    session = pipe.session()
    for prompt in (STORY, "How many cats?", "How many dogs?"):
        said = session.messages(prompt)
        answer = say(session, prompt)
        assert answer.text == pipe(said, SHORT).text


def test_fork(pipe: Pipeline) -> None:
    root = pipe.session()
    say(root, STORY)
    forks = [root.fork() for _ in range(3)]
    assert len({root.session_id, *(f.session_id for f in forks)}) == 4
    asked = ["Cats?", "Dogs?", "Birds?"]
    answers = [say(f, q) for f, q in zip(forks, asked, strict=True)]
    again = [say(f, "And?") for f in forks]
    for fork, answer, question in zip(forks, answers, asked, strict=True):
        assert answer.cached_tokens == len(root.token_ids) - 1
        alone = pipe.session()
        say(alone, STORY)
        assert say(alone, question).text == answer.text
        assert say(alone, "And?").token_ids == again[forks.index(fork)].token_ids
    assert len(root.history) == 1
    assert [len(f.history) for f in forks] == [3, 3, 3]


def test_rewind(pipe: Pipeline) -> None:
    session = pipe.session()
    first, second = say(session, STORY), say(session, "Cats?")
    n = len(session.token_ids)
    say(session, "Dogs?")
    session.rewind()
    assert len(session.token_ids) == n
    assert len(session.history) == 2
    session.rewind(1)
    again = say(session, "Cats?")
    assert again.token_ids == second.token_ids
    assert again.cached_tokens == again.input_token_len - 1, "all of it was asked before"
    session.rewind(tokens=5)
    assert session.history[-1] == ("Cats?", pipe.tokenizer.decode(second.token_ids[:-5]))
    assert say(session, "Go on.").cached_tokens == n - 5
    session.rewind(tokens=len(session.token_ids) - first.input_token_len + 3)
    assert session.history == [], "a cut inside a prompt takes the turn"
    assert session.token_ids == []
    assert say(session, STORY).text == first.text
    session.rewind(0)
    for wrong in ({"n_turns": 2}, {"n_turns": -1}, {"tokens": 10**6}, {"tokens": -1}):
        with pytest.raises(ValueError, match="rewind"):
            session.rewind(**wrong)
    session.rewind(tokens=0)
    assert len(session.history) == 1


def test_a_changed_history_holds(pipe: Pipeline) -> None:
    session = pipe.session()
    say(session, "My name is Bob.")
    session.history[0] = ("My name is Alice.", "Hello Alice!")
    answer = say(session, "What is my name?")
    said = [
        {"role": "user", "content": "My name is Alice."},
        {"role": "assistant", "content": "Hello Alice!"},
        {"role": "user", "content": "What is my name?"},
    ]
    assert answer.text == pipe(said, SHORT).text
    with pytest.raises(ValueError, match="0 tokens are known"):
        session.rewind(tokens=1)
    session.rewind(1)
    assert session.history == [("My name is Alice.", "Hello Alice!")]


def test_an_answer_cut_by_a_stop_word(pipe: Pipeline) -> None:
    """The engine has more tokens than the answer shows: the next turn reads what was shown."""
    session = pipe.session()
    whole = say(session, STORY).text
    session.rewind()
    word = whole[len(whole) // 2 : len(whole) // 2 + 3]
    cut = say(session, STORY, GenerationConfig(max_new_tokens=12, stop_words=[word]))
    assert cut.text == whole[: whole.index(word)]
    said = session.messages("Go on.")
    assert say(session, "Go on.").text == pipe(said, SHORT).text


def test_evicted_turns_are_computed_again() -> None:
    config = TurbomindEngineConfig(session_len=512, max_batch_size=2, cache_max_entry_count=10)
    with pipeline(backend_config=config) as small:
        session = small.session()
        say(session, STORY[:400])
        twin = session.fork()
        kept = say(session, "Go on.")
        assert kept.cached_tokens > 0
        for i in range(3):
            small(f"{i} {i} " + STORY[:700], SHORT)
        again = say(twin, "Go on.")
        assert again.cached_tokens < kept.cached_tokens
        assert again.token_ids == kept.token_ids


def test_raw_turns(pipe: Pipeline) -> None:
    session = pipe.session(SHORT)
    first = session("One two three", do_preprocess=False, stream_response=False)
    assert isinstance(first, Response)
    second = session(" and then", do_preprocess=False, stream_response=False)
    assert isinstance(second, Response)
    text = f"One two three{first.text} and then"
    assert second.text == pipe(text, SHORT, do_preprocess=False).text
    assert second.cached_tokens == first.input_token_len + first.generate_token_len - 1


def test_generate_with_a_session(pipe: Pipeline) -> None:
    async def talk(session: Session, prompt: str) -> str:
        return "".join([p.text async for p in pipe.generate(prompt, SHORT, session=session)])

    async def both() -> tuple[str, str]:
        session = pipe.session()
        return await talk(session, STORY), await talk(session, "Go on.")

    other = pipe.session()
    assert asyncio.run(both()) == (say(other, STORY).text, say(other, "Go on.").text)


def test_busy_and_closed(pipe: Pipeline) -> None:
    session = pipe.session()
    stream = session(STORY, GenerationConfig(max_new_tokens=200, ignore_eos=True))
    next(stream)  # type: ignore[arg-type]
    for call in (session.fork, session.rewind, lambda: session.save("never")):
        with pytest.raises(RuntimeError, match="still answering"):
            call()
    stream.close()  # type: ignore[union-attr]
    assert session.fork().history == session.history
    session.close()
    with pytest.raises(RuntimeError, match="closed"):
        session.fork()


# LMDeploy's older keywords


@pytest.mark.parametrize("end", [Session.reset, Session.close])
def test_a_session_ends_while_it_answers(pipe: Pipeline, end: Callable[[Session], None]) -> None:
    session = pipe.session()
    deltas = iter(session(STORY, GenerationConfig(max_new_tokens=500)))
    next(deltas)
    end(session)
    assert list(deltas)[-1].finish_reason == "abort"
    assert session.history == [] and session.prompt is None and session.response is None
    with contextlib.suppress(RuntimeError):  # a closed one
        assert say(session, "Hi").text == pipe("Hi", SHORT).text


def test_a_session_of_a_pipeline(pipe: Pipeline) -> None:
    """Made as before the text engine: by its class."""
    assert say(Session(pipe), "Hi").text == pipe("Hi", SHORT).text


def test_numbered_sessions(pipe: Pipeline) -> None:
    by_name = pipe.session()
    expected = [say(by_name, q).text for q in (STORY, "Cats?", "Dogs?")]
    n = len(by_name.token_ids)
    got = [
        pipe(STORY, SHORT, session_id=5, sequence_start=True, sequence_end=False),
        pipe("Cats?", SHORT, session_id=5, sequence_start=False, sequence_end=False),
        *pipe.stream_infer(
            "Dogs?",
            gen_config=SHORT,
            stream_response=False,
            session_id=5,
            sequence_start=False,
            sequence_end=False,
        ),
    ]
    assert [r.text for r in got] == expected
    step = got[1].input_token_len + got[1].generate_token_len
    again = pipe("Dogs?", SHORT, session_id=5, sequence_start=False, step=step)
    assert again.text == expected[2]
    assert again.cached_tokens >= step - 1
    gone = pipe("More?", SHORT, session_id=5, sequence_start=False)
    assert gone.error_code == ErrorCode.REQUEST_CONFLICT
    assert "session 5 does not exist" in (gone.error_message or "")
    pipe("Hi", SHORT, session_id=5, sequence_end=False)
    with pytest.raises(ValueError, match="step=9999"):
        pipe("Hi", SHORT, session_id=5, sequence_start=False, step=9999)
    assert n > step


def test_numbered_sessions_in_a_loop(pipe: Pipeline) -> None:
    async def ask(prompt: str, **keywords: int | bool) -> str:
        pieces = pipe.generate(prompt, SHORT, session_id=8, **keywords)
        return "".join([p.text async for p in pieces])

    async def both() -> list[str]:
        return [await ask(STORY, sequence_end=False), await ask("Cats?", sequence_start=False)]

    session = pipe.session()
    assert asyncio.run(both()) == [say(session, q).text for q in (STORY, "Cats?")]


def test_a_numbered_session_that_is_left_early_ends(pipe: Pipeline) -> None:
    async def leave() -> None:
        pieces = pipe.generate(STORY, SHORT, session_id=9)
        async with contextlib.aclosing(pieces) as left:  # type: ignore[type-var]
            async for _ in left:
                break

    asyncio.run(leave())
    gone = pipe("More?", SHORT, session_id=9, sequence_start=False)
    assert gone.error_code == ErrorCode.REQUEST_CONFLICT


def test_the_public_name() -> None:
    assert lmdeploy_c.Session is Session
