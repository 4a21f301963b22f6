"""Groups of 32 columns as the blocks of a GGUF file: Q4_0, Q4_1 and Q8_0. Pure functions of arrays.

A row's blocks stand one after another. A block has its scale (fp16), in Q4_1 its minimum (fp16),
and its codes: bytes in Q8_0; else byte i has code i in its low half, code i + 16 in its high one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import packing

BLOCK_LEN = 32  # columns
PART_LEN = 1 << 17  # values that are rounded together: they stay in the cache

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class BlockCodes:
    """A matrix in groups of 32 columns.

    codes: [n_out, n_in]; Q4_0 and Q4_1: uint8, 0 to 15; Q8_0: int8. scales: [n_out, n_in / 32].
    mins: the same of Q4_1, else None. value = scale * code + min (Q4_1), scale * (code - 8) (Q4_0),
    scale * code (Q8_0).
    """

    codes: NDArray[Any]
    scales: NDArray[np.float16]
    mins: NDArray[np.float16] | None = None

    def rows(self, which: NDArray[np.intp]) -> BlockCodes:
        """The rows of these numbers, in their order."""
        mins = None if self.mins is None else self.mins[which]
        return BlockCodes(self.codes[which], self.scales[which], mins)

    def is_finite(self) -> bool:
        """Whether every value is a number: a scale or minimum may be too large for fp16."""
        return bool(np.isfinite(self.scales).all()) and (
            self.mins is None or bool(np.isfinite(self.mins).all())
        )


# ---- packing ----


def _bytes_of(halves: NDArray[np.float16]) -> NDArray[np.uint8]:
    """[n_out, n_groups, 2]"""
    little = np.ascontiguousarray(halves, "<f2")
    return little.view(np.uint8).reshape(*halves.shape, 2)


def _nibbles(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[n_out, n_groups, 16]"""
    halves = codes.reshape(len(codes), -1, 2, BLOCK_LEN // 2)
    packed: NDArray[np.uint8] = halves[:, :, 0] | halves[:, :, 1] << np.uint8(4)
    return packed


def pack(made: BlockCodes) -> NDArray[np.uint8]:
    """The rows as bytes: [n_out, bytes of a row]. Of codes in int8 the blocks of Q8_0, of others
    with minima those of Q4_1, without those of Q4_0."""
    halves = [made.scales] if made.mins is None else [made.scales, made.mins]
    codes: NDArray[np.uint8] = made.codes.view(np.uint8)
    if made.codes.dtype == np.int8:
        codes = codes.reshape(len(codes), -1, BLOCK_LEN)
    else:
        codes = _nibbles(codes)
    blocks = np.concatenate([*map(_bytes_of, halves), codes], axis=-1)
    return blocks.reshape(len(blocks), -1)


# ---- codes of the quantizer ----


def scheme_of(dtype: str) -> packing.Scheme:
    """How the quantizer makes codes for a type of ROUND."""
    return packing.Scheme(8 if dtype == "Q8_0" else 4, BLOCK_LEN, dtype != "Q4_1", dtype == "Q4_1")


def of_codes(made: packing.Codes) -> BlockCodes:
    """The quantizer's codes. A whole zero becomes the minimum that it stands for."""
    codes, scales, zeros = made.codes, made.scales, made.zeros
    if made.scheme.bits == 8:
        return BlockCodes((codes ^ np.uint8(128)).view(np.int8), scales)
    if made.scheme.symmetric:
        return BlockCodes(codes, scales)
    if zeros.dtype == np.float16:
        return BlockCodes(codes, scales, zeros)
    minima = -scales.astype(np.float32) * zeros
    return BlockCodes(codes, scales, minima.astype(np.float16))


def _shapes(scheme: packing.Scheme, n_out: int, n_in: int) -> packing.Shapes:
    n_bytes = BLOCK_LEN if scheme.bits == 8 else BLOCK_LEN // 2
    n_bytes += 4 if scheme.minima else 2
    return {"weight": ("U8", (n_out, n_in // BLOCK_LEN * n_bytes))}


#: Linears as the bytes of their rows.
FORMAT = packing.Format((4, 8), lambda made: {"weight": pack(of_codes(made))}, _shapes, vars)


# ---- rounding to the nearest, with the bits of the gguf package ----


def _groups(values: Floats) -> Floats:
    """[n_out, n_groups, 32]"""
    return values.reshape(len(values), -1, BLOCK_LEN)


def _inverse(scale: Floats) -> Floats:
    """1 / scale, and 0 of 0."""
    with np.errstate(divide="ignore", over="ignore"):
        return np.where(scale == 0, np.float32(0), np.float32(1) / scale)


def _whole(codes: Floats, low: int, high: int, dtype: Any) -> NDArray[Any]:
    """Codes as integers. Those of a scale whose inverse is no number are 0: the scale is it too."""
    codes = np.nan_to_num(codes, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    return codes.clip(low, high).astype(dtype).reshape(len(codes), -1)


def _halves(values: Floats) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        return values[..., 0].astype(np.float16)


def _round_q4_0(values: Floats) -> BlockCodes:
    """The value with the largest magnitude has code 0."""
    groups = _groups(values)
    at = np.abs(groups).argmax(-1, keepdims=True)
    scale = np.take_along_axis(groups, at, -1) / np.float32(-8)
    with np.errstate(over="ignore", invalid="ignore"):
        codes = np.trunc(groups * _inverse(scale) + np.float32(8.5))
    return BlockCodes(_whole(codes, 0, 15, np.uint8), _halves(scale))


def _round_q4_1(values: Floats) -> BlockCodes:
    groups = _groups(values)
    low = groups.min(-1, keepdims=True)
    with np.errstate(over="ignore", invalid="ignore"):
        scale = (groups.max(-1, keepdims=True) - low) / np.float32(15)
        codes = np.trunc((groups - low) * _inverse(scale) + np.float32(0.5))
    return BlockCodes(_whole(codes, 0, 15, np.uint8), _halves(scale), _halves(low))


def _round_q8_0(values: Floats) -> BlockCodes:
    """Ties go away from 0."""
    groups = _groups(values)
    scale = np.abs(groups).max(-1, keepdims=True) / np.float32(127)
    with np.errstate(over="ignore", invalid="ignore"):
        exact = groups * _inverse(scale)
        magnitude = np.abs(exact)
        below = np.floor(magnitude)
        codes = np.sign(exact) * (below + np.floor(2 * (magnitude - below)))
    return BlockCodes(_whole(codes, -127, 127, np.int8), _halves(scale))


#: A type of a GGUF file -> a matrix [n_out, n_in] of it, whose columns are a multiple of 32.
ROUND: dict[str, Callable[[Floats], BlockCodes]] = {
    "Q4_0": _round_q4_0,
    "Q4_1": _round_q4_1,
    "Q8_0": _round_q8_0,
}


def round_to_nearest(dtype: str, values: Floats) -> BlockCodes:
    """A matrix on the plain grid of each group. dtype: a key of ROUND. Values that are not finite,
    and scales beyond fp16, give scales that are not (`BlockCodes.is_finite`)."""
    step = max(PART_LEN // values.shape[1], 1)
    parts = [ROUND[dtype](values[i : i + step]) for i in range(0, len(values), step)]
    mins = [part.mins for part in parts if part.mins is not None]
    return BlockCodes(
        np.concatenate([part.codes for part in parts]),
        np.concatenate([part.scales for part in parts]),
        np.concatenate(mins) if mins else None,
    )


def dequantized(made: BlockCodes) -> Floats:
    """The values that codes stand for, in fp32: [n_out, n_in]."""
    codes = _groups(made.codes.astype(np.float32))
    if made.mins is None and made.codes.dtype != np.int8:
        codes = codes - np.float32(8)
    values = codes * made.scales[..., None].astype(np.float32)
    if made.mins is not None:
        values += made.mins[..., None].astype(np.float32)
    result: Floats = values.reshape(made.codes.shape)
    return result
