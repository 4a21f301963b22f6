"""Blocks bit by bit against the gguf package."""

from __future__ import annotations

from collections.abc import Iterator

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize, quantize

from lmdeploy_c.lite import gguf_packing
from lmdeploy_c.lite.gguf_packing import BlockCodes, pack, round_to_nearest

TYPES = ("Q4_0", "Q4_1", "Q8_0")
Q = gguf.GGMLQuantizationType
#: Sizes of weights: usual ones; scales that are subnormal in fp16, 0 in fp16, subnormal in fp32,
#: beyond fp16; weights whose scale's inverse is no fp32 number.
SIZES = (1, 1e-3, 1e4, 3e5, 1e-5, 1e-7, 1e-10, 1e-30, 1e-38, 3e-39, 1e-42, 1e-45, 1e20, 3e38)


def matrices() -> Iterator[np.ndarray]:
    rng = np.random.default_rng(5)
    for n_rows in (1, 3, 17):
        plain = rng.standard_normal((n_rows, 96)).clip(-1, 1).astype(np.float32)
        for size in SIZES:
            values = plain * np.float32(size)
            values[::2, 32:64] = 0
            values[1::2, 70:] = 0
            yield values
        yield np.full((n_rows, 64), 0.37, np.float32)
        yield np.full((n_rows, 64), -0.37, np.float32)
        yield rng.integers(-127, 128, (n_rows, 64)).astype(np.float32) / 2  # ties
        yield np.abs(plain)
        yield -np.abs(plain)


@pytest.mark.parametrize("name", TYPES)
def test_rounding_to_the_nearest(name: str) -> None:
    n = 0
    for values in matrices():
        with np.errstate(all="ignore"):
            wanted = quantize(values.copy(), Q[name])
            exact = dequantize(wanted, Q[name])
        made = round_to_nearest(name, values)
        assert np.array_equal(pack(made), wanted), np.abs(values).max()
        if made.is_finite():
            n += 1
            assert np.array_equal(gguf_packing.dequantized(made), exact)
        else:
            assert np.abs(values).max() > 1e5
    assert n > 40


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_seen(name: str, bad: float) -> None:
    values = np.ones((4, 64), np.float32)
    values[2, 40] = bad
    made = round_to_nearest(name, values)
    assert not made.is_finite()
    assert round_to_nearest(name, values[:2]).is_finite()


@pytest.mark.parametrize("name", TYPES)
def test_codes_of_any_kind(name: str) -> None:
    """Every code, with scales of either sign: what the gguf package makes of the bytes."""
    rng = np.random.default_rng(1)
    n_rows, n_groups = 24, 5
    low, high = (-128, 128) if name == "Q8_0" else (0, 16)
    codes = rng.integers(low, high, (n_rows, 32 * n_groups))
    codes = codes.astype(np.int8 if name == "Q8_0" else np.uint8)
    scales = rng.normal(size=(n_rows, n_groups)).astype(np.float16)
    scales[0] = [0, 6e-8, 65504, -65504, 1]
    mins = rng.normal(size=(n_rows, n_groups)).astype(np.float16) if name == "Q4_1" else None
    made = BlockCodes(codes, scales, mins)
    groups = codes.reshape(n_rows, n_groups, 32).astype(np.float32)
    wanted = scales[..., None].astype(np.float32) * (groups - 8 * (name == "Q4_0"))
    if mins is not None:
        wanted = wanted + mins[..., None].astype(np.float32)
    wanted = wanted.reshape(n_rows, -1)
    assert set(np.unique(codes)) == set(range(low, high))
    assert np.array_equal(dequantize(pack(made), Q[name]), wanted)
    assert np.array_equal(gguf_packing.dequantized(made), wanted)
    which = rng.permutation(n_rows)[:7]
    assert np.array_equal(pack(made.rows(which)), pack(made)[which])


def test_parts_that_are_rounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(2).normal(size=(37, 64)).astype(np.float32)
    for name in TYPES:
        whole = pack(round_to_nearest(name, values))
        for part in (1, 64, 640, 1 << 20):
            monkeypatch.setattr(gguf_packing, "PART_LEN", part)
            assert np.array_equal(pack(round_to_nearest(name, values)), whole)
