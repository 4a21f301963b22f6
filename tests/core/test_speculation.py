"""Drafts from a sequence's own n-grams: no answer changes by a bit, and the index by itself."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import GOLDEN, Answer, load_model, make_engine, read_all

from lmdeploy_c import _C, UnsupportedError, pipeline
from lmdeploy_c.messages import (
    GenerationConfig,
    Response,
    SpeculativeConfig,
    TurbomindEngineConfig,
)

CSRC = Path(__file__).parents[2] / "csrc"
MODELS = {"bf16": GOLDEN / "models" / "llama-long", "q4_1": GOLDEN / "gguf" / "llama-q4_1.gguf"}


# ---- the index, and the choice of how many, compiled by themselves ----


def compiled(folder: Path, name: str, sources: list[str]) -> ctypes.CDLL:
    """Some of the engine's files as a library of their own."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    library = folder / f"{name}.so"
    files = [str(CSRC / source) for source in sources]
    command = [compiler, "-std=c11", "-O1", "-shared", "-fPIC", f"-I{CSRC}", *files]
    subprocess.run([*command, "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    sources = ["engine/ngram.c", "engine/speculation.c", "base/memory.c", "base/status.c"]
    return compiled(tmp_path_factory.mktemp("ngram"), "ngram", sources)


def naive_match(tokens: list[int]) -> tuple[int, int]:
    """The longest n of 4, 3, 2 whose last n tokens occurred before, and where the latest ended."""
    for n in (4, 3, 2):
        for end in range(len(tokens) - 1, n - 1, -1):
            if tokens[end - n : end] == tokens[-n:]:
                return n, end
    return 0, 0


def naive_draft(tokens: list[int], n: int) -> list[int]:
    """The n tokens after that place, going on with themselves."""
    length, end = naive_match(tokens)
    text = list(tokens)
    for i in range(n if length else 0):
        text.append(text[end + i])
    return text[len(tokens) :]


@pytest.mark.parametrize("n_symbols", [2, 5, 60])
def test_index_against_a_naive_search(parts: ctypes.CDLL, n_symbols: int) -> None:
    random = np.random.default_rng(n_symbols)
    for length in (1, 2, 3, 17, 400):
        index = ctypes.c_void_p()
        err = ctypes.create_string_buffer(4096)
        assert parts.lmd_ngram_new(length, ctypes.byref(index), err) == 0
        tokens: list[int] = []
        for token in random.integers(0, n_symbols, length).tolist():
            parts.lmd_ngram_push(index, token)
            tokens.append(token)
            assert parts.lmd_ngram_match_len(index) == naive_match(tokens)[0]
            n = int(random.integers(1, 33))
            out = (ctypes.c_int32 * 32)()
            n_out = parts.lmd_ngram_propose(index, n, out)
            assert list(out[:n_out]) == naive_draft(tokens, n)
        parts.lmd_ngram_free(index)


class Speculation:
    """lmd_speculation and lmd_acceptance, driven with made-up step times."""

    def __init__(self, parts: ctypes.CDLL, n_max: int, cost: Callable[[int], float]) -> None:
        self.parts, self.n_max, self.cost = parts, n_max, cost
        self.random = np.random.default_rng(5)
        parts.lmd_speculation_note.argtypes = (ctypes.c_void_p, ctypes.c_int32, ctypes.c_double)
        parts.lmd_speculation_init.argtypes = (ctypes.c_void_p, ctypes.c_int32, ctypes.c_bool)
        parts.lmd_acceptance_note.argtypes = (ctypes.c_void_p, ctypes.c_int32, ctypes.c_bool)
        self.state = ctypes.create_string_buffer(4096)
        self.acceptance = ctypes.create_string_buffer(64)
        parts.lmd_speculation_init(self.state, n_max, True)
        parts.lmd_acceptance_init(self.acceptance)

    def step(self, n_seqs: int, right: float) -> tuple[int, float]:
        """Drafts for n_seqs sequences of one kind; returns rows and the expected tokens."""
        self.parts.lmd_speculation_begin(self.state, n_seqs)
        drafts = [
            self.parts.lmd_speculation_choose(self.state, self.acceptance, 4, self.n_max)
            for _ in range(n_seqs)
        ]
        rows = n_seqs + sum(drafts)
        self.parts.lmd_speculation_note(self.state, rows, self.cost(rows))
        for _ in range(n_seqs):
            self.parts.lmd_acceptance_note(self.acceptance, 4, bool(self.random.random() < right))
        return rows, sum(1 + sum(right**i for i in range(1, n + 1)) for n in drafts)

    def speed(self, n_seqs: int, right: float, n_steps: int = 600) -> float:
        """Expected tokens a second over many steps, relative to no drafts."""
        tokens = seconds = 0.0
        for _ in range(n_steps):
            rows, expected = self.step(n_seqs, right)
            tokens += expected
            seconds += self.cost(rows)
        return tokens / seconds * self.cost(n_seqs) / n_seqs


def test_drafts_where_rows_are_cheap_and_drafts_right(parts: ctypes.CDLL) -> None:
    assert Speculation(parts, 7, lambda rows: 1 + 0.05 * rows).speed(1, 0.9) > 3


@pytest.mark.parametrize("right", [0.0, 0.2, 0.5, 0.8])
@pytest.mark.parametrize("n_seqs", [1, 4, 16])
@pytest.mark.parametrize("row_cost", [0.05, 0.3, 1.0, 3.0])
def test_never_loses_much(parts: ctypes.CDLL, right: float, n_seqs: int, row_cost: float) -> None:
    """Whatever a row costs and however rarely drafts are right."""
    assert Speculation(parts, 7, lambda rows: 1 + row_cost * rows).speed(n_seqs, right) > 0.97


def test_a_step_that_was_interrupted_does_not_end_drafting(parts: ctypes.CDLL) -> None:
    times = iter([0.1] * 2 + [9.0] + [0.1] * 10000)
    speculation = Speculation(parts, 7, lambda rows: next(times))
    speculation.step(1, 1.0)
    rows = [speculation.step(1, 1.0)[0] for _ in range(60)]
    assert min(rows[-20:]) > 4


# ---- the engine: the same bits ----


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> _C.Model:
    return load_model(MODELS[request.param], num_threads=2)


Asked = tuple[list[int], dict[str, Any]]


def random_requests(vocab_size: int, n: int, seed: int) -> list[Asked]:
    """Prompts that repeat themselves, so that there is something to draft, with parameters of every
    kind."""
    random = np.random.default_rng(seed)
    result: list[Asked] = []
    for i in range(n):
        phrase = random.integers(3, vocab_size, random.integers(2, 24)).tolist()
        prompt = phrase * int(random.integers(1, 6)) + phrase[: random.integers(1, 3)]
        params: dict[str, Any] = {"max_new_tokens": int(random.integers(1, 70)), "random_seed": i}
        if random.random() < 0.7:  # the model favours what it has just seen: drafts come true
            bias = dict.fromkeys(phrase[:6], float(random.choice([2.0, 6.0, 30.0])))
            params["logit_bias"] = bias
        if random.random() < 0.5:
            params.update(do_sample=True, temperature=float(random.choice([0.2, 1.0])), top_k=8)
        if random.random() < 0.3:
            params["logprobs"] = int(random.integers(1, 5))
        if random.random() < 0.6:
            params["output_logits"] = str(random.choice(["generation", "all"]))
        if random.random() < 0.4:
            params["stop_words"] = [phrase[:2], [phrase[-1]]][: random.integers(1, 3)]
            params["min_new_tokens"] = int(random.choice([0, 0, 5, 30]))
        if random.random() < 0.2:
            params["bad_words"] = [phrase[:1], phrase[1:3]][: random.integers(1, 3)]
        if random.random() < 0.2:
            params["repetition_penalty"] = float(random.choice([1.1, 3.0]))
        if random.random() < 0.2:
            params["return_ppl"] = True
        result.append((prompt, params))
    return result


def assert_same(got: Answer, expected: Answer) -> None:
    assert (got.token_ids, got.finish_reason) == (expected.token_ids, expected.finish_reason)
    assert got.logprobs == expected.logprobs
    assert got.ppl == expected.ppl
    assert (got.logits is None) == (expected.logits is None)
    if got.logits is not None:
        assert np.array_equal(got.logits, expected.logits), "logits differ in their bits"


@pytest.fixture(scope="module")
def asked(model: _C.Model) -> list[tuple[Asked, Answer]]:
    """Requests, each alone in an engine that drafts nothing."""
    engine = make_engine(model, block_len=16, n_blocks=200, enable_prefix_caching=False)
    requests = random_requests(model.config["vocab_size"], 48, seed=3)
    result = [((ids, p), read_all(engine.submit(ids, **p))) for ids, p in requests]
    assert engine.stats()["n_draft_tokens"] == 0
    engine.close()
    return result


ENGINES: dict[str, dict[str, Any]] = {
    "one": {"num_speculative_tokens": 1},
    "seven": {"num_speculative_tokens": 7},
    "most": {"num_speculative_tokens": 32},
    "adaptive": {"num_speculative_tokens": 7, "adaptive_speculation": True},
    "small steps": {"num_speculative_tokens": 7, "max_prefill_token_num": 9},
    "preempting": {"num_speculative_tokens": 7, "n_blocks": 20},
    "no prefix cache": {"num_speculative_tokens": 5, "enable_prefix_caching": False},
}


@pytest.mark.parametrize("name", ENGINES)
def test_same_answers(model: _C.Model, asked: list[tuple[Asked, Answer]], name: str) -> None:
    """All at once, some cancelled on the way, then half of them one by one."""
    options = {"n_blocks": 400, "adaptive_speculation": False, **ENGINES[name]}
    engine = make_engine(model, block_len=16, **options)
    requests = [engine.submit(ids, **params) for (ids, params), _ in asked]
    cancelled = [engine.submit(ids, max_new_tokens=150) for (ids, _), _ in asked[:8]]
    for request in cancelled:
        time.sleep(0.002)
        request.cancel()
    for request, (_, expected) in zip(requests, asked, strict=True):
        assert_same(read_all(request), expected)
    assert all(read_all(request).finish_reason in ("abort", "length") for request in cancelled)
    for (ids, params), expected in asked[::2]:
        assert_same(read_all(engine.submit(ids, **params)), expected)
    stats = engine.stats()
    n_accepted, n_drafts = stats["n_accepted_tokens"], stats["n_draft_tokens"]
    if name == "adaptive":  # what it drafts depends on how long its steps took
        assert 0 <= n_accepted <= n_drafts
    else:
        assert 0 < n_accepted < n_drafts
    assert (stats["n_preempted"] > 0) == (name == "preempting")
    assert stats["n_active_blocks"] == 0
    engine.close()


def test_what_was_rejected_is_not_in_the_prefix_cache(model: _C.Model) -> None:
    """A prompt that goes on as an answer did finds all of it; one that goes on as a wrong draft did
    finds nothing wrong."""
    random = np.random.default_rng(8)
    plain = make_engine(model, block_len=16, enable_prefix_caching=False)
    drafts = {"num_speculative_tokens": 32, "adaptive_speculation": False}
    engine = make_engine(model, block_len=16, n_blocks=400, **drafts)
    for _ in range(8):
        phrase = random.integers(3, model.config["vocab_size"], 20).tolist()
        prompt = [*phrase, *phrase, *phrase[:5]]
        answer = read_all(engine.submit(prompt, max_new_tokens=60)).token_ids
        text = prompt + answer
        found = engine.submit([*text, 5], max_new_tokens=1, output_logits="generation")
        output = found.read(30)
        assert output is not None and output.cached_tokens == (len(text) - 1) // 16 * 16
        for n in range(len(prompt) + 1, len(text), 7):
            wrong = [*text[:n], *naive_draft(text[:n], 32), 7, 8]
            asks = {"max_new_tokens": 4, "output_logits": "generation"}
            assert_same(
                read_all(engine.submit(wrong, **asks)), read_all(plain.submit(wrong, **asks))
            )
    stats = engine.stats()
    assert stats["n_draft_tokens"] > stats["n_accepted_tokens"]
    for each in (plain, engine):
        each.close()


def test_no_draft_counts_after_a_stop_word(model: _C.Model) -> None:
    """An answer ends with its stop word, though drafts after it would be right."""
    plain = make_engine(model)
    engine = make_engine(model, num_speculative_tokens=32, adaptive_speculation=False)
    random = np.random.default_rng(4)
    for _ in range(8):
        start = random.integers(3, model.config["vocab_size"], 4).tolist() * 8
        bias = dict.fromkeys(start[:3], 20.0)  # its answer repeats itself soon
        looped = read_all(plain.submit(start, max_new_tokens=160, logit_bias=bias)).token_ids
        prompt, word = start + looped[:100], looped[103 : 103 + int(random.integers(1, 4))]
        counts = []
        for each in (plain, engine):
            before = each.stats()["n_tokens_generated"]
            asks = {"max_new_tokens": 60, "logit_bias": bias, "stop_words": [word]}
            assert read_all(each.submit(prompt, **asks)).finish_reason == "stop"
            counts.append(each.stats()["n_tokens_generated"] - before)
        assert counts[0] == counts[1]
    for each in (plain, engine):
        each.close()


def test_a_step_allocates_nothing_for_drafts(tiny_model: _C.Model) -> None:
    engine = make_engine(
        tiny_model, session_len=4096, num_speculative_tokens=7, adaptive_speculation=False
    )
    request = engine.submit([5, 6, 7] * 10, max_new_tokens=3000)
    for _ in range(10):
        request.read(30)
    before = engine.stats()
    for _ in range(50):
        request.read(30)
    after = engine.stats()
    assert after["n_steps"] > before["n_steps"]
    assert after["n_draft_tokens"] > before["n_draft_tokens"]
    assert after["n_allocs"] == before["n_allocs"]
    engine.close()


DRAFTS_NONE = [
    {"repetition_penalty": 1.2},
    {"presence_penalty": 0.1},
    {"frequency_penalty": 0.1},
    {"bad_words": [[5, 6]]},
    {"min_new_tokens": 40, "stop_words": [[7]]},
    {"max_new_tokens": 1},
]


@pytest.mark.parametrize("params", DRAFTS_NONE, ids=lambda p: next(iter(p)))
def test_what_depends_on_the_tokens_before_drafts_nothing(
    tiny_model: _C.Model, params: dict[str, Any]
) -> None:
    engine = make_engine(tiny_model, num_speculative_tokens=7, adaptive_speculation=False)
    read_all(engine.submit([5, 6, 7] * 10, **{"max_new_tokens": 40, **params}))
    assert engine.stats()["n_draft_tokens"] == 0
    engine.close()


@pytest.mark.parametrize("n", [-1, 33])
def test_wrong_numbers(tiny_model: _C.Model, n: int) -> None:
    with pytest.raises(ValueError, match="num_speculative_tokens must be 0 to 32"):
        make_engine(tiny_model, num_speculative_tokens=n)


# ---- the pipeline ----


def test_pipeline_gives_the_same_answers(smollm2_path: Path) -> None:
    """Text stop words, sampling and streams included; the counters say that drafts were right."""
    code = "def area(width, height):\n    return width * height\n"
    prompts = [f"Repeat this code twice:\n```python\n{code}```", "Count from 1 to 20."]
    configs = [
        GenerationConfig(max_new_tokens=60, stop_words=["height\n"]),
        GenerationConfig(max_new_tokens=60, do_sample=True, temperature=0.3, random_seed=5),
    ]
    engine = TurbomindEngineConfig(session_len=512, max_batch_size=4)
    answers: list[list[Response]] = []
    for drafts in (None, SpeculativeConfig("ngram", num_speculative_tokens=4, adaptive=False)):
        with pipeline(smollm2_path, engine, speculative_config=drafts) as pipe:
            answers.append(pipe(prompts, configs))
            streamed = list(pipe.stream_infer(prompts, gen_config=configs))
            for i, answer in enumerate(answers[-1]):
                assert "".join(r.text for r in streamed if r.index == i) == answer.text
            stats = pipe.stats()
            assert (stats["n_accepted_tokens"] > 0) == (drafts is not None)
    for plain, drafted in zip(*answers, strict=True):
        assert (plain.text, plain.token_ids) == (drafted.text, drafted.token_ids)
        assert plain.finish_reason == drafted.finish_reason


@pytest.mark.parametrize(
    ("arguments", "error", "why"),
    [
        ({"method": "eagle3"}, UnsupportedError, "method='eagle3' is not served"),
        ({"method": "ngram", "model": "a/draft"}, UnsupportedError, "n-grams need none"),
        ({"method": "ngram", "num_speculative_tokens": 0}, ValueError, "at least 1"),
        ({"method": "ngram", "num_speculative_tokens": 33}, ValueError, "at most 32"),
        ({"method": "ngram", "num_speculative_tokens": True}, ValueError, "an integer"),
        ({"method": "ngram", "adaptive": 1}, ValueError, "True or False"),
    ],
)
def test_what_a_config_refuses(arguments: dict[str, Any], error: type[Exception], why: str) -> None:
    with pytest.raises(error, match=why):
        SpeculativeConfig(**arguments)
