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
    """A column's size: its |weights| over the largest of their groups, on average over rows."""
    n_in = weight.shape[1]
    size = n_in if group_size == -1 else group_size
    groups = np.abs(weight.reshape(len(weight), n_in // size, size))
    largest = groups.max(-1, keepdims=True)
    parts = np.divide(groups, largest, out=np.zeros_like(groups), where=largest > 0)
    scale: NDArray[np.float64] = parts.reshape(weight.shape).mean(0, dtype=np.float64)
    return scale


def _scales(
    inputs: NDArray[np.float64], weights: NDArray[np.float64], ratio: float,
    is_dead: NDArray[np.bool_],
) -> Array:  # fmt: skip
    """inputs^ratio / weights^(1 - ratio), at least LEAST, divided by the root of the largest times
    the smallest. A dead column gets 1 and counts nowhere: one that the norm before multiplies by 0
    (is_dead), that no token used, or whose weights are all 0."""
    scales = np.ones(len(inputs))
    live = ~is_dead & (inputs > 0) & (weights > 0)
    if live.any():
        over = np.maximum(weights[live] ** (1 - ratio), LEAST)
        found = np.maximum(inputs[live] ** ratio / over, LEAST)
        scales[live] = found / np.sqrt(found.max() * found.min())
    return scales.astype(np.float32)


def plain(
    weight: Array, sums: InputSums, group_size: int, is_dead: NDArray[np.bool_], alpha: float = 0.5
) -> Array:
    """The scales without a search: the largest |input| to the power alpha, over the columns' sizes
    to the power 1 - alpha. SmoothQuant has them too, with whole rows as groups. [n_in]"""
    size = _weight_scale(weight, group_size)
    return _scales(sums.largest().astype(np.float64), size, alpha, is_dead)


def searched(
    weight: Array,
    sums: InputSums,
    group_size: int,
    is_dead: NDArray[np.bool_],
    quantizer: Quantizer,
    **grid: Any,
) -> Array:
    """The scales with the least error of the linears' outputs among 1 and mean|input|^r / size^(1 -
    r), r from 0 to 0.95 in 20 steps. grid: as `Quantizer.quantize`. [n_in]"""
    size, mean = _weight_scale(weight, group_size), sums.absolute() / max(sums.n_tokens, 1)
    rows = np.ascontiguousarray(weight[:: -(-len(weight) // ROWS)])
    candidates = [np.ones(weight.shape[1], np.float32)]
    candidates += [_scales(mean, size, i / N_RATIOS, is_dead) for i in range(N_RATIOS)]

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
