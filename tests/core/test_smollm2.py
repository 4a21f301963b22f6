"""SmolLM2 end to end: the embedded model against transformers on its exact dequantised weights."""

import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import GOLDEN, NEAR_TIE, SLOWER, greedy, load_model, make_engine, read_all

from lmdeploy_c import _C

DATA = np.load(GOLDEN / "smollm2" / "golden.npz")


def ragged(name: str) -> list[np.ndarray]:
    offsets = DATA[f"{name}_offsets"]
    return [DATA[name][a:b] for a, b in pairwise(offsets)]


@pytest.fixture(scope="module")
def engine(smollm2: _C.Model) -> Iterator[_C.Engine]:
    engine = make_engine(smollm2, session_len=1024, n_blocks=128)
    yield engine
    engine.close()


def test_greedy_answers(engine: _C.Engine) -> None:
    """Equal up to the first near-tie."""
    stop = int(DATA["stop_id"])
    requests = [engine.submit(ids, max_new_tokens=48) for ids in ragged("prompt_ids")]
    compared = 0
    for request, expected, gaps in zip(
        requests, ragged("answer_ids"), ragged("answer_gaps"), strict=True
    ):
        ties = np.flatnonzero(gaps < NEAR_TIE)
        n = int(ties[0]) if len(ties) else len(expected)
        assert read_all(request).token_ids[:n] == expected[:n].tolist()
        compared += n
    assert compared > 200
    first = ragged("answer_ids")[0]
    answer = read_all(
        engine.submit(ragged("prompt_ids")[0], max_new_tokens=48, stop_token_ids=[stop])
    )
    assert answer.finish_reason == ("stop" if first[-1] == stop else "length")


def test_first_logits(engine: _C.Engine) -> None:
    for i, ids in enumerate(ragged("prompt_ids")):
        answer = read_all(engine.submit(ids, max_new_tokens=1, output_logits="generation"))
        assert answer.logits is not None
        got = answer.logits[0][DATA["logit_ids"]]
        assert np.abs(got - DATA["first_logits"][i]).max() <= 2e-3 * DATA["first_logit_absmax"][i]


def test_cross_entropy(engine: _C.Engine) -> None:
    """Within 0.1 % of the exact weights."""
    for ids, expected in zip(ragged("text_ids"), DATA["cross_entropy"], strict=True):
        answer = read_all(engine.submit(ids, max_new_tokens=0, return_ppl=True))
        assert answer.ppl == pytest.approx(expected, rel=1e-3)


def test_fast_activations(smollm2: _C.Model) -> None:
    """Within 0.5 % of the exact weights; not the exact engine's bits, and the same bits however
    requests come together."""
    fast = make_engine(smollm2, session_len=1024, n_blocks=128, fast_activations=True)
    losses = []
    for ids, expected in zip(ragged("text_ids"), DATA["cross_entropy"], strict=True):
        answer = read_all(fast.submit(ids, max_new_tokens=0, return_ppl=True))
        losses.append(answer.ppl)
        assert answer.ppl == pytest.approx(expected, rel=5e-3)
    assert losses != DATA["cross_entropy"].tolist()
    prompts = ragged("prompt_ids")
    alone = [greedy(fast, ids, 16) for ids in prompts]
    together = [fast.submit(ids, max_new_tokens=16) for ids in prompts]
    assert [read_all(request).token_ids for request in together] == alone
    fast.close()


def test_one_token_at_a_time_is_the_same(smollm2: _C.Model, engine: _C.Engine) -> None:
    ids = ragged("prompt_ids")[0]
    small = make_engine(smollm2, session_len=256, n_blocks=8, max_prefill_token_num=1)
    assert greedy(small, ids, 8) == greedy(engine, ids, 8)
    small.close()


def test_load_time(smollm2_path: Path) -> None:
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        load_model(smollm2_path)
        best = min(best, time.perf_counter() - start)
    assert best < 1.0 * SLOWER
