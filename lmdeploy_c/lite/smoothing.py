"""AWQ's and SmoothQuant's scales: columns of a linear are multiplied by them, and what comes before
the linear is divided, so that the model stays the same and its codes lie better.

AWQ: arXiv 2306.00978, as LMDeploy 0.18 computes it. SmoothQuant: arXiv 2211.10438.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .._C import InputSums, Quantizer

Array = NDArray[np.float32]

#: Input -> the module of the same layer whose outputs it is, so that its rows can be divided.
SOURCES = {
    "qkv": re.compile(r"input_layernorm|attention_norm"),
    "o": re.compile(r"self_attn\.v_proj"),
    "gate_up": re.compile(r"post_attention_layernorm|ffn_norm"),
    "down": re.compile(r"mlp\.up_proj|feed_forward\.w3"),
}
LEAST = 1e-4
N_RATIOS = 20
ROWS = 256  # of a weight, at most, by which ratios are compared


def can_fold(read: str, config: Mapping[str, Any]) -> bool:
    """Whether an input's scales can be divided out of what makes it. A value head that several
    query heads share has no column of its own, and InternLM2's wqkv is one matrix."""
    return read != "o" or (config["n_head"] == config["n_kv_head"] and not config["packed_qkv"])


def _weight_scale(weight: Array, group_size: int) -> NDArray[np.float64]:
    """How large a column's weights are in their groups, on average over rows."""
    n_in = weight.shape[1]
    size = n_in if group_size == -1 else group_size
    groups = np.abs(weight.reshape(len(weight), n_in // size, size))
    largest = groups.max(-1, keepdims=True)
    parts = np.divide(groups, largest, out=np.zeros_like(groups), where=largest > 0)
    scale: NDArray[np.float64] = parts.reshape(weight.shape).mean(0, dtype=np.float64)
    return scale


def _normalised(scales: NDArray[np.float64], is_dead: NDArray[np.bool_]) -> Array:
    """Around 1; 1 for what is 0 in the norm before, and where nothing was read."""
    scales = np.where(np.isfinite(scales) & ~is_dead, np.maximum(scales, LEAST), np.nan)
    if np.isnan(scales).all():
        return np.ones(len(scales), np.float32)
    scales = scales / np.sqrt(np.nanmax(scales) * np.nanmin(scales))
    return np.where(np.isnan(scales), 1.0, scales).astype(np.float32)


def _power(x: NDArray[np.float64], exponent: float) -> NDArray[np.float64]:
    return np.power(np.maximum(x, LEAST), exponent)


def plain(
    weight: Array, sums: InputSums, group_size: int, is_dead: NDArray[np.bool_], alpha: float = 0.5
) -> Array:
    """LMDeploy's scales without a search, which are SmoothQuant's too: the root of the largest
    |input| over that of the weights. [n_in]"""
    size = _weight_scale(weight, group_size)
    largest = sums.largest().astype(np.float64)
    return _normalised(_power(largest, alpha) / _power(size, 1 - alpha), is_dead)


def searched(
    weight: Array,
    sums: InputSums,
    group_size: int,
    is_dead: NDArray[np.bool_],
    quantizer: Quantizer,
    **grid: Any,
) -> Array:
    """The scales with the least error of outputs among 1 and mean|input|^r / |weight|^(1 - r), r
    from 0 to 0.95 in 20 steps. grid: as `Quantizer.quantize`. [n_in]"""
    size, mean = _weight_scale(weight, group_size), sums.absolute() / max(sums.n_tokens, 1)
    rows = np.ascontiguousarray(weight[:: -(-len(weight) // ROWS)])
    candidates = [np.ones(weight.shape[1], np.float32)]
    for i in range(N_RATIOS):
        ratio = i / N_RATIOS
        candidates.append(_normalised(_power(mean, ratio) / _power(size, 1 - ratio), is_dead))

    def error(scales: Array) -> float:
        made = quantizer.quantize(rows * scales, group_size=group_size, search=False, **grid)
        return float(quantizer.output_errors(sums, values_of(*made) / scales - rows).sum())

    return min(candidates, key=error)


def values_of(codes: NDArray[np.uint8], scales: NDArray[np.float16], zeros: NDArray[Any]) -> Array:
    """scale * (code - zero), or of zeros in fp16, which are minima, scale * code + min: [n_out,
    n_in]."""
    size = codes.shape[1] // scales.shape[1]
    shape = (len(codes), -1, size)
    values: Array = codes.reshape(shape).astype(np.float32)
    are_minima = zeros.dtype == np.float16
    values -= 0 if are_minima else zeros[..., None]
    values *= scales[..., None].astype(np.float32)
    values += zeros[..., None] if are_minima else 0
    return values.reshape(codes.shape)
