"""The bit-for-bit part of the numeric contract: what may not change a request."""

from collections.abc import Sequence

import numpy as np
import pytest
from conftest import GOLDEN, Answer, load_model, make_engine, read_all

from lmdeploy_c import _C

LONG = GOLDEN / "models" / "llama-long"
CODES = GOLDEN / "gguf" / "llama-q4_1.gguf"
N_NEW = 24


def prompts(vocab_size: int, n: int, seed: int = 7) -> list[list[int]]:
    """Prompts of 3 to 300 tokens: some cross the attention chunk at 256."""
    random = np.random.default_rng(seed)
    return [random.integers(3, vocab_size, random.integers(3, 300)).tolist() for _ in range(n)]


def submit(engine: _C.Engine, prompt: Sequence[int]) -> _C.Request:
    return engine.submit(prompt, max_new_tokens=N_NEW, output_logits="generation")


def assert_same(got: Answer, expected: Answer) -> None:
    assert got.token_ids == expected.token_ids
    assert got.logits is not None
    assert expected.logits is not None
    assert np.array_equal(got.logits, expected.logits), "logits differ in their bits"


@pytest.fixture(scope="module", params=[LONG, CODES], ids=["bf16", "q4_1"])
def model(request: pytest.FixtureRequest) -> _C.Model:
    return load_model(request.param, num_threads=2)


@pytest.fixture(scope="module")
def alone(model: _C.Model) -> list[tuple[list[int], Answer]]:
    """32 requests, each alone in the engine."""
    engine = make_engine(model, n_blocks=200, enable_prefix_caching=False)
    result = []
    for prompt in prompts(model.config["vocab_size"], 32):
        result.append((prompt, read_all(submit(engine, prompt))))
    engine.close()
    return result


def check_all(engine: _C.Engine, alone: list[tuple[list[int], Answer]]) -> dict[str, int | float]:
    requests = [submit(engine, prompt) for prompt, _ in alone]
    for request, (_, expected) in zip(requests, alone, strict=True):
        assert_same(read_all(request), expected)
    stats = engine.stats()
    engine.close()
    return stats


def test_among_31_others(model: _C.Model, alone: list[tuple[list[int], Answer]]) -> None:
    check_all(make_engine(model, n_blocks=400), alone)


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_chunking(model: _C.Model, alone: list[tuple[list[int], Answer]], chunk: int) -> None:
    engine = make_engine(model, n_blocks=400, max_prefill_token_num=chunk)
    check_all(engine, alone[:8])


def test_threads(model: _C.Model, alone: list[tuple[list[int], Answer]]) -> None:
    path = LONG if model.config["naming"] == "hf" else CODES
    for num_threads in (1, 3):
        engine = make_engine(load_model(path, num_threads=num_threads), n_blocks=400)
        check_all(engine, alone[:8])


def test_preempted(model: _C.Model, alone: list[tuple[list[int], Answer]]) -> None:
    """A pool smaller than what the running sequences need: some lose their slot and recompute."""
    stats = check_all(make_engine(model, n_blocks=12), alone)
    assert stats["n_preempted"] > 0


def branching_prompts(vocab_size: int, n: int) -> list[list[int]]:
    """Prompts that leave one of three trunks somewhere, some not at all."""
    random = np.random.default_rng(11)
    trunks = random.integers(3, vocab_size, (3, 290))
    result = []
    for _ in range(n):
        trunk = trunks[random.integers(3)][: random.integers(1, 290)]
        tail = random.integers(3, vocab_size, random.integers(0, 20))
        result.append([*trunk.tolist(), *tail.tolist()])
    return result


@pytest.mark.parametrize("n_blocks", [400, 24], ids=["roomy", "preempting"])
def test_prefix_caching(model: _C.Model, n_blocks: int) -> None:
    """Texts that begin alike share blocks, while others run, are cancelled, lose their slot: every
    bit is that of a request alone without a prefix cache."""
    wanted = branching_prompts(model.config["vocab_size"], 48)
    oracle = make_engine(model, block_len=16, n_blocks=200, enable_prefix_caching=False)
    expected = [read_all(submit(oracle, prompt)) for prompt in wanted]
    assert oracle.stats()["n_cached_tokens"] == 0
    oracle.close()
    for prompt, answer in list(zip(wanted, expected, strict=True))[:16]:  # answers are found, too
        wanted.append(prompt + answer.token_ids[:-4])
        expected.append(Answer([], [], None, "", None))
    engine = make_engine(model, block_len=16, n_blocks=n_blocks, max_prefill_token_num=64)
    order = np.random.default_rng(5).permutation(len(wanted) * 2) % len(wanted)
    for wave in np.array_split(order, 12):
        requests = [submit(engine, wanted[i]) for i in wave]
        submit(engine, wanted[wave[0]]).cancel()
        for i, request in zip(wave, requests, strict=True):
            got = read_all(request)
            if expected[i].logits is None:
                assert got.token_ids[:4] == expected[i - 48].token_ids[-4:]
            else:
                assert_same(got, expected[i])
    stats = engine.stats()
    assert stats["n_cached_tokens"] > stats["n_prompt_tokens"] // 4
    assert (stats["n_preempted"] > 0) == (n_blocks == 24)
    engine.close()


def test_what_scores_a_prompt_computes_it(model: _C.Model) -> None:
    engine = make_engine(model, block_len=16)
    prompt = prompts(model.config["vocab_size"], 1)[0]
    first, again = (
        read_all(engine.submit(prompt, max_new_tokens=1, output_logits="all", return_ppl=True))
        for _ in range(2)
    )
    assert_same(again, first)
    assert again.logits is not None
    assert (len(again.logits), again.ppl) == (len(prompt), first.ppl)
    assert engine.stats()["n_cached_tokens"] == 0
    engine.close()


def test_block_len_changes_only_rounding(model: _C.Model) -> None:
    prompt = prompts(model.config["vocab_size"], 1)[0]
    answers = []
    for block_len in (16, 64, 256):
        engine = make_engine(model, n_blocks=64, block_len=block_len)
        answers.append(read_all(submit(engine, prompt)).logits)
        engine.close()
    for other in answers[1:]:
        assert np.abs(other[0] - answers[0][0]).max() <= 1e-4 * np.abs(answers[0][0]).max()
