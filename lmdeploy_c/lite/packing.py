"""Codes, scales and zeros as the tensors of AWQ, GPTQ and compressed-tensors.

csrc/quant/packed_codec.h says what lies where. Codes are [n_out, n_in], scales and zeros [n_out,
n_in / group]; value = scale * (code - zero).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
#: Suffix of a tensor's name -> its type in the file and its shape.
Shapes = dict[str, tuple[str, tuple[int, ...]]]

#: Which row of a run of 8 a nibble of AWQ's words has, from the lowest on.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class Scheme:
    """How linears are quantised."""

    bits: int
    group_size: int  # columns; -1: the whole row
    symmetric: bool

    def n_groups(self, n_in: int) -> int:
        return 1 if self.group_size == -1 else n_in // self.group_size


@dataclass(frozen=True)
class Codes:
    """A quantised matrix."""

    scheme: Scheme
    codes: NDArray[np.uint8]  # [n_out, n_in]
    scales: NDArray[np.float16]  # [n_out, n_groups]
    zeros: NDArray[np.uint8]  # [n_out, n_groups]


def _words(values: NDArray[np.uint8], bits: int, axis: int) -> NDArray[np.int32]:
    """Packs neighbours along an axis into words, the first in the lowest bits."""
    per_word = 32 // bits
    values = np.moveaxis(values, axis, -1)
    parts = values.reshape(*values.shape[:-1], -1, per_word)
    words = np.zeros(parts.shape[:-1], np.uint32)
    for i in range(per_word):
        words |= parts[..., i].astype(np.uint32) << np.uint32(bits * i)
    return np.ascontiguousarray(np.moveaxis(words, -1, axis)).view(np.int32)


# ---- AWQ ----


def _awq(made: Codes) -> Arrays:
    def pack(values: NDArray[np.uint8]) -> NDArray[np.int32]:
        runs = values.reshape(-1, 8, values.shape[1])[:, AWQ_ORDER]
        return _words(runs.reshape(values.shape).T, 4, 1)

    return {
        "qweight": pack(made.codes),
        "qzeros": pack(made.zeros),
        "scales": np.ascontiguousarray(made.scales.T),
    }


def _awq_shapes(scheme: Scheme, n_out: int, n_in: int) -> Shapes:
    n_groups = scheme.n_groups(n_in)
    return {
        "qweight": ("I32", (n_in, n_out // 8)),
        "qzeros": ("I32", (n_groups, n_out // 8)),
        "scales": ("F16", (n_groups, n_out)),
    }


def _awq_config(scheme: Scheme) -> dict[str, Any]:
    return {
        "quant_method": "awq",
        "version": "gemm",
        "bits": scheme.bits,
        "group_size": scheme.group_size,
        "zero_point": not scheme.symmetric,
        "modules_to_not_convert": ["lm_head"],
    }


# ---- GPTQ. Symmetric: version 1, whose zeros are stored minus 1; else version 2, because tools
# disagree on a zero of 0 in version 1 ----


def _gptq(made: Codes) -> Arrays:
    n_in, bits = made.codes.shape[1], made.scheme.bits
    return {
        "qweight": _words(made.codes.T, bits, 0),
        "qzeros": _words(made.zeros.T - np.uint8(made.scheme.symmetric), bits, 1),
        "scales": np.ascontiguousarray(made.scales.T),
        "g_idx": (np.arange(n_in) // (n_in // made.scales.shape[1])).astype(np.int32),
    }


def _gptq_shapes(scheme: Scheme, n_out: int, n_in: int) -> Shapes:
    n_groups, bits = scheme.n_groups(n_in), scheme.bits
    return {
        "qweight": ("I32", (n_in * bits // 32, n_out)),
        "qzeros": ("I32", (n_groups, n_out * bits // 32)),
        "scales": ("F16", (n_groups, n_out)),
        "g_idx": ("I32", (n_in,)),
    }


def _gptq_config(scheme: Scheme) -> dict[str, Any]:
    return {
        "quant_method": "gptq",
        "checkpoint_format": "gptq" if scheme.symmetric else "gptq_v2",
        "bits": scheme.bits,
        "group_size": scheme.group_size,
        "sym": scheme.symmetric,
        "desc_act": False,
        "lm_head": False,
    }


# ---- compressed-tensors ----


def _compressed(made: Codes) -> Arrays:
    arrays: Arrays = {
        "weight_packed": _words(made.codes, made.scheme.bits, 1),
        "weight_scale": np.ascontiguousarray(made.scales),
        "weight_shape": np.array(made.codes.shape, np.int64),
    }
    if not made.scheme.symmetric:
        arrays["weight_zero_point"] = _words(made.zeros, made.scheme.bits, 0)
    return arrays


def _compressed_shapes(scheme: Scheme, n_out: int, n_in: int) -> Shapes:
    n_groups, bits = scheme.n_groups(n_in), scheme.bits
    shapes: Shapes = {
        "weight_packed": ("I32", (n_out, n_in * bits // 32)),
        "weight_scale": ("F16", (n_out, n_groups)),
        "weight_shape": ("I64", (2,)),
    }
    if not scheme.symmetric:
        shapes["weight_zero_point"] = ("I32", (n_out * bits // 32, n_groups))
    return shapes


def _compressed_config(scheme: Scheme) -> dict[str, Any]:
    of_rows = scheme.group_size == -1
    weights = {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": scheme.symmetric,
        "strategy": "channel" if of_rows else "group",
        "group_size": None if of_rows else scheme.group_size,
        "dynamic": False,
    }
    group = {
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": None,
        "output_activations": None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


@dataclass(frozen=True)
class Format:
    """A checkpoint format."""

    bits: tuple[int, ...]
    pack: Callable[[Codes], Arrays]  # with the keys of `shapes`, in their order
    shapes: Callable[[Scheme, int, int], Shapes]  # of a matrix [n_out, n_in]
    config: Callable[[Scheme], dict[str, Any]]  # config.json's quantization_config


FORMATS = {
    "awq": Format((4,), _awq, _awq_shapes, _awq_config),
    "gptq": Format((4, 8), _gptq, _gptq_shapes, _gptq_config),
    "compressed-tensors": Format((4, 8), _compressed, _compressed_shapes, _compressed_config),
}
