"""Snapshots: turns of a conversation in the engine, whose KV is never computed twice and never
wrong."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import Answer, load_model, make_engine, read_all
from test_exactness import CODES, LONG, assert_same, prompts

from lmdeploy_c import _C
from lmdeploy_c.engine.sizes import kv_block_bytes


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
