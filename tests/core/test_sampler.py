"""Sampling: a NumPy reference of the whole definition, compared token by token with the engine."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from conftest import make_engine, read_all

from lmdeploy_c import _C

MASK = 0xFFFFFFFF


def philox4x32_10(counter: tuple[int, int, int, int], key: tuple[int, int]) -> list[int]:
    """Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011)."""
    c, (k0, k1) = list(counter), key
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k0, b & MASK, (a >> 32) ^ c[3] ^ k1, a & MASK]
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return c


def random_fraction(seed: int, position: int) -> int:
    """A multiple of 2^-64."""
    words = philox4x32_10((position, 0, 0, 0), (seed & MASK, seed >> 32))
    return words[0] << 32 | words[1]


def fixed(x: float, bits: int) -> int:
    """A float32 as a multiple of 2^-bits, rounded down."""
    return math.floor(Fraction(float(np.float32(x))) * 2**bits)


def fma(a: np.ndarray, b: np.ndarray | float, c: np.ndarray | float) -> np.ndarray:
    """a * b + c in float32, rounded once: in float64 the product is exact, and the sum is rounded
    to odd, which a second rounding does not notice."""
    a, b, c = (np.asarray(x, np.float32).astype(np.float64) for x in (a, b, c))
    product = a * b
    total = product + c
    back = total - product
    error = (product - (total - back)) + (c - back)
    is_even = (np.ascontiguousarray(total).view(np.int64) & 1) == 0
    odd = np.nextafter(total, np.copysign(np.inf, error))
    return np.where((error != 0) & is_even, odd, total).astype(np.float32)


def weights(values: np.ndarray, temperature: float) -> list[int]:
    """exp((value - max) / temperature) of each float32 value, as a multiple of 2^-40."""
    with np.errstate(over="ignore"):
        x = (values - values.max()) / np.float32(temperature)
    x = np.maximum(x, np.float32(-87))
    n = np.rint(x * np.float32(1.442695041))
    r = fma(n, 2.12194440e-4, fma(n, -0.693359375, x))
    y = np.full_like(r, 1.9875691500e-4)
    for term in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1,
                 5.0000001201e-1):  # fmt: skip
        y = fma(y, r, term)
    y = fma(y, r * r, r + np.float32(1))
    return [int(w) for w in np.floor(np.ldexp(y.astype(np.float64), n.astype(int) + 40))]


def processed(logits: np.ndarray, prompt: list[int], output: list[int], **p: Any) -> np.ndarray:
    values = logits.astype(np.float32).copy()
    for token, bias in (p.get("logit_bias") or {}).items():
        values[token] += np.float32(bias)
    r = np.float32(p.get("repetition_penalty", 1.0))
    for token in sorted({*prompt, *output}):
        v = values[token]
        values[token] = v / r if v > 0 else v * r
        n = output.count(token)
        if n:
            values[token] -= np.float32(p.get("presence_penalty", 0.0)) + np.float32(
                p.get("frequency_penalty", 0.0)
            ) * np.float32(n)
    for word in p.get("bad_words") or []:
        so_far = prompt + output
        if len(word) == 1 or so_far[-(len(word) - 1) :] == word[:-1]:
            values[word[-1]] = -np.inf
    return values


def filtered(values: np.ndarray, **p: Any) -> dict[int, int]:
    """The weights of the tokens that may be drawn, in ascending id."""
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    order = [i for i in order if values[i] > -np.inf]
    if p.get("top_k"):
        order = order[: p["top_k"]]
    w = weights(values, p.get("temperature", 1.0))
    if p.get("top_p", 1.0) < 1.0:
        wanted = sum(w[i] for i in order) * fixed(p["top_p"], 64) >> 64
        sums = itertools.accumulate(w[i] for i in order)
        order = order[: 1 + next(n for n, total in enumerate(sums) if total >= wanted)]
    least = fixed(p.get("min_p", 0.0), 40)
    return {i: w[i] for i in sorted(order) if w[i] >= least}


def reference(logits: np.ndarray, prompt: list[int], output: list[int], seed: int, **p: Any) -> int:
    values = processed(logits, prompt, output, **p)
    if not p.get("do_sample"):
        return int(values.argmax())
    kept = filtered(values, **p)
    wanted = sum(kept.values()) * random_fraction(seed, len(prompt) + len(output)) >> 64
    sums = itertools.accumulate(kept.values())
    return next(i for i, total in zip(kept, sums, strict=True) if total > wanted)


def test_philox_known_answers() -> None:
    """The vectors published with Random123."""
    assert philox4x32_10((0, 0, 0, 0), (0, 0)) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    ones = philox4x32_10((MASK,) * 4, (MASK,) * 2)
    assert ones == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    pi = philox4x32_10((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0))
    assert pi == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


PARAMS: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 1.3},
    {"presence_penalty": 1.5, "frequency_penalty": 0.7},
    {"repetition_penalty": 0.7, "frequency_penalty": -0.4},
    {"logit_bias": {5: 8.0, 7: -3.0}},
    {"bad_words": [[3], [4, 5], [9, 9, 9]]},
    {"do_sample": True},
    {"do_sample": True, "temperature": 0.3},
    {"do_sample": True, "temperature": 5.0, "top_k": 5},
    {"do_sample": True, "temperature": 5.0, "top_p": 0.6},
    {"do_sample": True, "temperature": 5.0, "top_p": 0.0},
    {"do_sample": True, "temperature": 5.0, "min_p": 0.3},
    {"do_sample": True, "temperature": 100.0, "top_p": 0.999},
    {"do_sample": True, "temperature": 4.0, "top_k": 40, "top_p": 0.9, "min_p": 0.05,
     "repetition_penalty": 1.2, "presence_penalty": 0.3, "frequency_penalty": 0.2,
     "logit_bias": {1: 2.0}, "bad_words": [[2], [3, 4]]},
]  # fmt: skip


@pytest.mark.parametrize("params", PARAMS, ids=lambda p: "+".join(p) or "greedy")
def test_every_token_is_the_reference(tiny_engine: _C.Engine, params: dict[str, Any]) -> None:
    for seed in range(1, 4):
        prompt = [(seed * 13 + i * 7) % 90 + 3 for i in range(20)]
        answer = read_all(
            tiny_engine.submit(prompt, max_new_tokens=40, output_logits="generation",
                               random_seed=seed * 2**40 + seed, **params)
        )  # fmt: skip
        assert answer.logits is not None
        assert len(answer.token_ids) == len(answer.logits) == 40
        for i, token in enumerate(answer.token_ids):
            assert token == reference(
                answer.logits[i], prompt, answer.token_ids[:i], seed * 2**40 + seed, **params
            )


@pytest.mark.parametrize(
    "filters", [{}, {"top_k": 9}, {"top_p": 0.7}, {"min_p": 0.2}], ids=lambda f: "".join(f) or "all"
)
def test_distribution(tiny_engine: _C.Engine, filters: dict[str, Any]) -> None:
    """4,000 seeds: the chi-square statistic of the first token against softmax."""
    prompt = [5, 9, 12]
    first = read_all(tiny_engine.submit(prompt, max_new_tokens=1, output_logits="generation"))
    assert first.logits is not None
    z = first.logits[0].astype(np.float64) / 3.0
    kept = list(filtered(first.logits[0], temperature=3.0, **filters))
    expected = np.zeros(len(z))
    expected[kept] = np.exp(z[kept] - z.max())
    expected /= expected.sum()
    n = 4000
    counts = np.zeros(len(expected))
    for start in range(0, n, 500):
        requests = [
            tiny_engine.submit(prompt, max_new_tokens=1, do_sample=True, temperature=3.0,
                               random_seed=seed, **filters)
            for seed in range(start, start + 500)
        ]  # fmt: skip
        for request in requests:
            counts[read_all(request).token_ids[0]] += 1
    assert counts[expected == 0].sum() == 0
    big = expected * n >= 5
    observed = np.append(counts[big], counts[~big].sum())
    wanted = np.append(expected[big], expected[~big].sum()) * n
    chi2 = ((observed - wanted) ** 2 / np.maximum(wanted, 1e-9)).sum()
    freedom = len(observed) - 1
    assert chi2 < freedom + 5 * np.sqrt(2 * freedom)


def test_seeds(tiny_engine: _C.Engine) -> None:
    def draw(seed: int | None) -> tuple[list[int], int]:
        request = tiny_engine.submit([5, 6], max_new_tokens=20, do_sample=True, temperature=9.0,
                                     random_seed=seed)  # fmt: skip
        return read_all(request).token_ids, request.random_seed

    assert draw(7) == draw(7)
    assert draw(7)[0] != draw(8)[0]
    tokens, drawn = draw(None)
    assert draw(drawn)[0] == tokens
    assert draw(None)[1] != drawn


def test_logprobs_are_of_the_raw_logits(tiny_engine: _C.Engine) -> None:
    answer = read_all(
        tiny_engine.submit([5, 6, 7], max_new_tokens=10, output_logits="generation", logprobs=4,
                           repetition_penalty=1.5)
    )  # fmt: skip
    assert answer.logits is not None
    for token, row, logprobs in zip(answer.token_ids, answer.logits, answer.logprobs, strict=True):
        z = row.astype(np.float64)
        exact = z - z.max() - np.log(np.exp(z - z.max()).sum())
        top = np.argsort(-exact, kind="stable")[:4].tolist()
        assert set(logprobs) == {token, *top} or set(logprobs) == {token, *top[:4]}
        for i, value in logprobs.items():
            assert value == pytest.approx(exact[i], abs=1e-4)


def test_min_new_tokens_and_stop_tokens(tiny_engine: _C.Engine) -> None:
    free = read_all(tiny_engine.submit([5, 6, 7], max_new_tokens=30)).token_ids
    stop = free[4]
    stopped = read_all(tiny_engine.submit([5, 6, 7], max_new_tokens=30, stop_token_ids=[stop]))
    assert stopped.token_ids == free[: free.index(stop)]
    assert stopped.finish_reason == "stop"
    later = read_all(
        tiny_engine.submit([5, 6, 7], max_new_tokens=30, stop_token_ids=[stop], min_new_tokens=12)
    )
    assert len(later.token_ids) >= 12
    assert stop not in later.token_ids


def test_stop_words_of_many_tokens_are_held_back(tiny_engine: _C.Engine) -> None:
    free = read_all(tiny_engine.submit([5, 6, 7], max_new_tokens=30)).token_ids
    word = free[6:9]
    n = next(i for i in range(30) if free[i : i + 3] == word)
    request = tiny_engine.submit([5, 6, 7], max_new_tokens=30, stop_words=[word, [1, 1, 1, 1]])
    shown: list[int] = []
    while True:
        output = request.read(30)
        assert output is not None
        shown += output.token_ids
        assert shown == free[: len(shown)]
        assert len(shown) <= n, "a beginning of the stop word was shown"
        if output.finish_reason:
            break
    assert (shown, output.finish_reason) == (free[:n], "stop")


def test_everything_banned_is_an_error(tiny_model: _C.Model) -> None:
    engine = make_engine(tiny_model)
    vocab_size = tiny_model.config["vocab_size"]
    output = engine.submit([5], bad_words=[[i] for i in range(vocab_size)]).read(30)
    assert output is not None
    assert output.finish_reason == "error"
    assert "ban every token" in (output.error_message or "")
    assert len(read_all(engine.submit([5], max_new_tokens=3)).token_ids) == 3
    engine.close()


def repeats(tokens: list[int], n: int) -> set[int]:
    """The tokens that would repeat an n-gram, as transformers' NoRepeatNGramLogitsProcessor bans
    them: by a dictionary of all n-grams so far."""
    followers: dict[tuple[int, ...], set[int]] = {}
    for i in range(len(tokens) - n + 1):
        *begin, last = tokens[i : i + n]
        followers.setdefault(tuple(begin), set()).add(last)
    return followers.get(tuple(tokens[len(tokens) - n + 1 :]), set()) if len(tokens) >= n else set()


@pytest.mark.parametrize("n", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("do_sample", [False, True])
def test_no_ngram_comes_twice(tiny_model: _C.Model, n: int, do_sample: bool) -> None:
    engine = make_engine(tiny_model, num_speculative_tokens=4)
    prompt = [5, 6, 7, 5, 6, 8, 9, 5, 6]
    answer = read_all(
        engine.submit(
            prompt,
            max_new_tokens=40,
            no_repeat_ngram_size=n,
            do_sample=do_sample,
            random_seed=3,
            output_logits="generation",
        )
    )
    assert answer.logits is not None and len(answer.token_ids) == 40
    tokens, some_banned = list(prompt), 0
    for token, logits in zip(answer.token_ids, answer.logits, strict=True):
        banned = repeats(tokens, n)
        some_banned += bool(banned)
        assert token not in banned
        if not do_sample:
            values = logits.copy()
            values[list(banned)] = -np.inf
            assert token == int(values.argmax())
        tokens.append(token)
    assert some_banned or n > 3
    assert engine.stats()["n_draft_tokens"] == 0
    engine.close()
