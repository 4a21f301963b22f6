"""Sessions: conversations as values, whose KV is never computed twice and never wrong."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import resource
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import Answer, load_model, make_engine, read_all
from test_exactness import CODES, LONG, assert_same, prompts

import lmdeploy_c
from lmdeploy_c import (
    _C,
    GenerationConfig,
    Pipeline,
    Response,
    Session,
    TurbomindEngineConfig,
    pipeline,
)
from lmdeploy_c.engine.sizes import kv_block_bytes
from lmdeploy_c.messages import ResponseType

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


# The engine's


@pytest.fixture(scope="module", params=[LONG, CODES], ids=["bf16", "q4_1"])
def model(request: pytest.FixtureRequest) -> _C.Model:
    return load_model(request.param, num_threads=2)


def ask(engine: _C.Engine, text: list[int], session: _C.Snapshot | None = None) -> _C.Request:
    return engine.submit(
        text, max_new_tokens=6, output_logits="generation", snapshot=session, keep_snapshot=True
    )


@pytest.mark.parametrize("prefix_caching", [False, True], ids=["plain", "prefix-caching"])
@pytest.mark.parametrize("n_blocks", [400, 40], ids=["roomy", "evicting"])
def test_turns_are_exact(model: _C.Model, n_blocks: int, prefix_caching: bool) -> None:
    """Turns that go on from any earlier one, rewound anywhere, among neighbours and cancels: every
    bit is that of a request alone that computes everything."""
    random = np.random.default_rng(n_blocks)
    vocab_size = model.config["vocab_size"]
    options = {"block_len": 16, "enable_prefix_caching": prefix_caching}
    engine = make_engine(model, n_blocks=n_blocks, max_prefill_token_num=48, **options)
    known: list[tuple[list[int], _C.Snapshot]] = []
    texts: list[list[int]] = []
    answers: list[Answer] = []
    for _ in range(14):
        wave = []
        for _ in range(4):
            text, session = known[random.integers(len(known))] if known else ([], None)
            text = text[: random.integers(len(text) + 1)] if random.random() < 0.3 else text
            new = random.integers(3, vocab_size, random.integers(1, 40)).tolist()
            if len(text) + len(new) < 560:
                wave.append(([*text, *new], session))
        ask(engine, prompts(vocab_size, 1)[0]).cancel()
        requests = [ask(engine, text, session) for text, session in wave]
        for (text, _), request in zip(wave, requests, strict=True):
            answer, session = read_all(request), request.snapshot
            assert session is not None
            assert session.token_ids.tolist() == text + answer.token_ids
            assert session.n_computed == len(session.token_ids) - 1
            known = [*known[-6:], (text + answer.token_ids, session)]
            texts.append(text)
            answers.append(answer)
    stats = engine.stats()
    assert stats["n_cached_tokens"] > stats["n_prompt_tokens"] // (3 if n_blocks == 400 else 20)
    assert stats["n_active_blocks"] == 0
    engine.close()
    oracle = make_engine(model, n_blocks=100, block_len=16, enable_prefix_caching=False)
    for text, answer in zip(texts, answers, strict=True):
        assert_same(answer, read_all(ask(oracle, text)))
    oracle.close()


@pytest.mark.parametrize("bits", [(16, 16), (8, 4)], ids=["fp16", "int8-int4"])
def test_kv_goes_out_and_in(model: _C.Model, bits: tuple[int, int]) -> None:
    text = prompts(model.config["vocab_size"], 4)[3]
    first, second = (make_engine(model, block_len=16, kv_bits=bits) for _ in range(2))
    request = ask(first, text)
    answer = read_all(request)
    session = request.snapshot
    assert session is not None
    layout, n_computed, kv = session.export_kv()
    assert n_computed == session.n_computed == len(text) + 5
    assert kv.shape == (-(-n_computed // 16), kv_block_bytes(model.config, 16, bits))
    longer = [*session.token_ids.tolist(), 7, 8]
    moved = second.import_snapshot(session.token_ids, layout, n_computed, kv)
    went_on, again = ask(second, longer, moved), ask(first, longer, session)
    assert_same(read_all(went_on), read_all(again))
    assert second.stats()["n_cached_tokens"] == n_computed
    assert np.array_equal(moved.export_kv()[2][:-1], kv[:-1])
    for other in (
        second.import_snapshot(session.token_ids, "another", n_computed, kv),
        second.import_snapshot(session.token_ids, layout, n_computed, kv[:, 1:]),
        second.import_snapshot(session.token_ids, layout, 0, kv[:0]),
    ):
        assert other.n_computed == 0
    assert str(bits[1]) in layout
    assert second.import_snapshot(text, layout, 10**6, kv).n_computed == len(text)
    assert second.import_snapshot(longer * 9, layout, 10**6, kv).n_computed == 16 * len(kv)
    with pytest.raises(ValueError, match="n_blocks, block_bytes"):
        second.import_snapshot(text, layout, 5, kv[0])
    rejected = read_all_errors(second.submit(longer, snapshot=session))
    assert "another engine" in rejected
    assert answer.token_ids == session.token_ids.tolist()[len(text) :]
    first.close()
    with pytest.raises(RuntimeError, match="closed"):
        session.export_kv()
    second.close()


def read_all_errors(request: _C.Request) -> str:
    output = request.read(30)
    assert output is not None
    assert output.finish_reason == "error"
    return output.error_message or ""


def test_kv_from_outside_is_private(model: _C.Model) -> None:
    """Noise for KV spoils the session that brought it, and no other request."""
    text = prompts(model.config["vocab_size"], 4)[3] * 2
    engine = make_engine(model, block_len=16)
    request = ask(engine, text)
    expected = read_all(request)
    assert request.snapshot is not None
    layout, n_computed, kv = request.snapshot.export_kv()
    engine.close()
    engine = make_engine(model, block_len=16)
    noise = np.random.default_rng(3).integers(0, 60, kv.shape).astype(np.uint8)
    spoiled = engine.import_snapshot(request.snapshot.token_ids, layout, n_computed, noise)
    bad = ask(engine, text, spoiled)
    assert read_all(bad).token_ids != expected.token_ids
    assert bad.snapshot is not None
    read_all(ask(engine, [*bad.snapshot.token_ids.tolist(), 5] * 1, bad.snapshot))
    assert_same(read_all(ask(engine, text)), expected)
    assert engine.stats()["n_active_blocks"] == 0
    infinite = np.full(kv.shape, 0x7C, np.uint8)
    for data in (infinite, np.full(kv.shape, 0xFF, np.uint8)):
        session = engine.import_snapshot(request.snapshot.token_ids, layout, n_computed, data)
        end = ask(engine, text, session)
        while (output := end.read(30)) is not None and output.finish_reason is None:
            pass
        assert_same(read_all(ask(engine, text)), expected)
    engine.close()


def tokens_or_none(request: _C.Request) -> list[int] | None:
    """The answer; None where host memory was out."""
    tokens: list[int] = []
    while (output := request.read(30)) is not None:
        tokens += output.token_ids
        if output.finish_reason == "error":
            assert "out of host memory" in (output.error_message or "")
            return None
        if output.finish_reason is not None:
            return tokens
    pytest.fail("no answer in 30 s")


def test_memory_that_runs_out(tiny_model: _C.Model) -> None:
    """Each allocation of a turn, an export and an import fails once: an error, or lost time."""
    engine = make_engine(tiny_model, block_len=16)
    text = list(range(3, 40))
    expected = read_all(ask(engine, text)).token_ids
    failed = 0
    for n in range(1, 80):
        before = _C.alloc_count()
        _C.alloc_fail_after(n)
        try:
            request = ask(engine, text)
            got, session = tokens_or_none(request), request.snapshot
            assert got in (None, expected)
            failed += got is None
            if got is not None and session is not None:
                session = engine.import_snapshot(session.token_ids, *session.export_kv())
                tokens_or_none(ask(engine, [*text, *got, 9], session))
        except MemoryError:
            failed += 1
        finally:
            _C.alloc_fail_after(0)
        if _C.alloc_count() - before < n:
            break
    else:
        pytest.fail("the turn never passed")
    assert failed > 15
    assert read_all(ask(engine, text)).token_ids == expected
    assert engine.stats()["n_active_blocks"] == 0
    engine.close()


# The pipeline's


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
    assert gone.error_code is ResponseType.SESSION_NOT_EXIST
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
    assert gone.error_code is ResponseType.SESSION_NOT_EXIST


# Files

LOADER = """
import sys, lmdeploy_c
from lmdeploy_c import GenerationConfig, TurbomindEngineConfig
engine = TurbomindEngineConfig(session_len=1024, max_batch_size=8, cache_max_entry_count="64MB")
with lmdeploy_c.pipeline(backend_config=engine) as pipe:
    session = pipe.load_session(sys.argv[1])
    answer = session("Go on.", GenerationConfig(max_new_tokens=12), stream_response=False)
    print(answer.cached_tokens, len(session.history), answer.token_ids)
"""


@pytest.fixture
def saved(pipe: Pipeline, tmp_path: Path) -> tuple[Session, Path]:
    session = pipe.session()
    say(session, STORY)
    say(session, "Cats?")
    session.save(tmp_path / "talk.session")
    return session, tmp_path / "talk.session"


def test_a_session_outlives_its_process(saved: tuple[Session, Path]) -> None:
    session, path = saved
    done = subprocess.run(
        [sys.executable, "-c", LOADER, str(path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    n = len(session.token_ids) - 1
    assert done.stdout.strip() == f"{n} 3 {say(session, 'Go on.').token_ids}"


def test_load_and_save(pipe: Pipeline, saved: tuple[Session, Path], tmp_path: Path) -> None:
    session, path = saved
    session.save(tmp_path / "text", kv=False)
    assert (tmp_path / "text").stat().st_size < path.stat().st_size // 20
    loaded, bare = pipe.load_session(path), pipe.load_session(str(tmp_path / "text"))
    for one in (loaded, bare):
        assert one.history == session.history
        assert one.token_ids == session.token_ids
        assert one.session_id != session.session_id
    assert sorted(p.name for p in tmp_path.iterdir()) == ["talk.session", "text"]
    answers = [say(s, "Go on.") for s in (session, loaded, bare)]
    assert answers[0].token_ids == answers[1].token_ids == answers[2].token_ids
    assert answers[1].cached_tokens == answers[0].cached_tokens
    loaded.rewind(2)
    assert len(loaded.history) == 1
    loaded.save(path)
    assert pipe.load_session(path).history == loaded.history
    pipe.session().save(path)
    assert pipe.load_session(path).history == []


def test_kv_of_another_engine_is_computed_again(
    saved: tuple[Session, Path], caplog: pytest.LogCaptureFixture
) -> None:
    session, path = saved
    config = TurbomindEngineConfig(
        session_len=1024, cache_block_seq_len=32, cache_max_entry_count="64MB"
    )
    with pipeline(backend_config=config) as other:
        loaded = other.load_session(path)
        assert "other block_len" in caplog.text
        answer = say(loaded, "Go on.")
        assert answer.cached_tokens == 0
    assert answer.token_ids == say(session, "Go on.").token_ids


def with_header(data: bytes, **changes: object) -> bytes:
    """A session file with another header, and the right checksum."""
    n = struct.unpack_from("<Q", data, 8)[0]
    header = {**json.loads(data[16 : 16 + n]), **changes}
    text = json.dumps(header).encode()
    body = data[:8] + struct.pack("<Q", len(text)) + text + data[16 + n : -32]
    return body + hashlib.blake2b(body, digest_size=32).digest()


def test_damaged_files(pipe: Pipeline, saved: tuple[Session, Path], tmp_path: Path) -> None:
    session, path = saved
    data, bad = path.read_bytes(), tmp_path / "bad"
    header = json.loads(data[16 : 16 + struct.unpack_from("<Q", data, 8)[0]])
    hostile = {
        "empty": b"",
        "foreign": b"GGUF" + data[4:],
        "magic alone": data[:8],
        "header beyond the file": data[:8] + struct.pack("<Q", 1 << 60) + data[16:],
        "header too short": data[:8] + struct.pack("<Q", 10) + data[16:],
        "bytes too many": data + b"x",
        "no dict": data[:8] + struct.pack("<Q", 2) + b"[]",
        "not JSON": data[:8] + struct.pack("<Q", 2) + b"{{",
        "deep": data[:8] + struct.pack("<Q", 200000) + b"[" * 200000,
        "lengths": with_header(data, n_tokens=1 << 40),
        "a length that is none": with_header(data, n_tokens=-4),
        "a length that is a bool": with_header(data, n_tokens=True),
        "tokens": with_header(data, n_tokens=header["n_tokens"] + 1),
        "shape": with_header(data, kv={**header["kv"], "shape": [1, 2, 3]}),
        "turns": with_header(data, turns=[[5, 3, None]] * 2),
        "turns behind the end": with_header(data, turns=[[5, 10**7, None]] * 2),
        "text": with_header(data, turns=[[5, 9, 3]] * 2),
        "history": with_header(data, history=[[3, 4]]),
        "no tags": with_header(data, tags=None),
        "tokenizer": with_header(data, tags={**header["tags"], "tokenizer": "x"}),
        "kv tokens": with_header(data, kv={**header["kv"], "tokens": ["a"]}),
        "kv tokens of 80 bits": with_header(data, kv={**header["kv"], "tokens": [1 << 80]}),
    }
    for at in range(0, len(data), len(data) // 37):
        hostile[f"cut at {at}"] = data[:at]
        hostile[f"flipped at {at}"] = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    hostile["a token of no model"] = data[:-32]
    for name, content in hostile.items():
        bad.write_bytes(content)
        why = "another model's tokenizer" if name == "tokenizer" else "bad: "
        with pytest.raises(ValueError, match=why):
            pipe.load_session(bad)
            pytest.fail(f"{name} was read")
    with pytest.raises(FileNotFoundError):
        pipe.load_session(tmp_path / "none")
    assert say(session, "Go on.").finish_reason in ("stop", "length")


def test_a_full_disk(saved: tuple[Session, Path]) -> None:
    """A write that fails leaves the file that was there, and nothing else."""
    session, path = saved
    before = path.read_bytes()
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            session.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert say(session, "Go on.").text


def test_a_prompt_that_json_does_not_know(pipe: Pipeline, tmp_path: Path) -> None:
    session = pipe.session()
    pipe.chat([{"role": "user", "content": "Hi", "at": {1, 2}}], session, SHORT)
    assert len(session.history) == 1
    with pytest.raises(TypeError, match="set"):
        session.save(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_the_public_name() -> None:
    assert lmdeploy_c.Session is Session
