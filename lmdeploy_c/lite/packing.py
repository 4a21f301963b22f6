"""Codes, scales and zeros as the tensors of AWQ, GPTQ and compressed-tensors.

csrc/quant/packed_weight.h says what lies where. Codes are [n_out, n_in], scales and zeros [n_out,
n_in / group]; value = scale * (code - zero).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .shards import Tensor

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
    minima: bool = False  # value = scale * code + min, where the solver gives it; GGUF's Q4_1 alone
    desc_act: bool = False  # groups are of columns that carry as much, instead of neighbours

    def n_groups(self, n_in: int) -> int:
        return 1 if self.group_size == -1 else n_in // self.group_size


@dataclass(frozen=True)
class Codes:
    """A quantised matrix."""

    scheme: Scheme
    codes: NDArray[np.uint8]  # [n_out, n_in]
    scales: NDArray[np.float16]  # [n_out, n_groups]
    zeros: NDArray[Any]  # [n_out, n_groups] uint8; or minima, fp16
    g_idx: NDArray[np.int32] | None = None  # [n_in] each column's group; None: neighbours'


def _n_words(n: int, bits: int) -> int:
    """Words that n codes fill; the last one may have bits to spare."""
    return -(-n * bits // 32)


def _words(values: NDArray[np.uint8], bits: int, axis: int) -> NDArray[np.int32]:
    """Packs neighbours along an axis into words, one after another from the lowest bits on; a code
    may begin in one word and end in the next."""
    lines = np.moveaxis(values, axis, -1)
    n, ahead = lines.shape[-1], lines.shape[:-1]
    lines = np.pad(lines, [(0, 0)] * len(ahead) + [(0, -n % 32)])
    runs = lines.reshape(*ahead, -1, 8)  # of 8 codes, which are `bits` bytes
    packed = np.zeros(runs.shape[:-1], "<u8")
    for i in range(8):
        packed |= runs[..., i].astype("<u8") << np.uint64(bits * i)
    of_run = packed.view(np.uint8).reshape(*ahead, -1, 8)[..., :bits]
    words = of_run.reshape(*ahead, -1).view("<i4")[..., : _n_words(n, bits)]
    return np.ascontiguousarray(np.moveaxis(words, -1, axis))


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
    n_in, bits, g_idx = made.codes.shape[1], made.scheme.bits, made.g_idx
    if g_idx is None:
        g_idx = (np.arange(n_in) // (n_in // made.scales.shape[1])).astype(np.int32)
    return {
        "qweight": _words(made.codes.T, bits, 0),
        "qzeros": _words(made.zeros.T - np.uint8(made.scheme.symmetric), bits, 1),
        "scales": np.ascontiguousarray(made.scales.T),
        "g_idx": g_idx,
    }


def _gptq_shapes(scheme: Scheme, n_out: int, n_in: int) -> Shapes:
    n_groups, bits = scheme.n_groups(n_in), scheme.bits
    if n_out * bits % 32:
        raise ValueError(f"gptq packs {bits}-bit zeros of 32 rows at a time, not of {n_out}")
    return {
        "qweight": ("I32", (_n_words(n_in, bits), n_out)),
        "qzeros": ("I32", (n_groups, _n_words(n_out, bits))),
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
        "desc_act": scheme.desc_act,
        "lm_head": False,
    }


# ---- compressed-tensors: codes in words, or as bytes beside 8-bit activations (W8A8) ----


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
        "weight_packed": ("I32", (n_out, _n_words(n_in, bits))),
        "weight_scale": ("F16", (n_out, n_groups)),
        "weight_shape": ("I64", (2,)),
    }
    if not scheme.symmetric:
        shapes["weight_zero_point"] = ("I32", (_n_words(n_out, bits), n_groups))
    return shapes


def _int_quantized(made: Codes) -> Arrays:
    return {
        "weight": (made.codes ^ np.uint8(0x80)).view(np.int8),  # code - 128
        "weight_scale": np.ascontiguousarray(made.scales),
    }


def _int_quantized_shapes(scheme: Scheme, n_out: int, n_in: int) -> Shapes:
    return {
        "weight": ("I8", (n_out, n_in)),
        "weight_scale": ("F16", (n_out, scheme.n_groups(n_in))),
    }


def _group(
    scheme: Scheme, form: str, activations: dict[str, Any] | None, targets: Sequence[str]
) -> dict[str, Any]:
    """Modules of one scheme, in the settings of compressed-tensors."""
    of_rows = scheme.group_size == -1
    weights = {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": scheme.symmetric,
        "strategy": "channel" if of_rows else "group",
        "group_size": None if of_rows else scheme.group_size,
        "dynamic": False,
    }
    return {
        "targets": list(targets),
        "weights": weights,
        "input_activations": activations,
        "output_activations": None,
        "format": form,
    }


def _settings(form: str, groups: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """quantization_config of a format of compressed-tensors."""
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {f"group_{i}": group for i, group in enumerate(groups)},
        "ignore": ["lm_head"],
    }


def _compressed_config(scheme: Scheme) -> dict[str, Any]:
    return _settings("pack-quantized", [_group(scheme, "pack-quantized", None, ["Linear"])])


def _compressed_mixed_config(schemes: Mapping[str, Scheme]) -> dict[str, Any]:
    """Every module is named: where one group is of all "Linear", vLLM takes it for q, k and v that
    another group names."""
    modules: dict[Scheme, list[str]] = {}
    for module, scheme in schemes.items():
        modules.setdefault(scheme, []).append(module)
    form = "pack-quantized"
    return _settings(form, [_group(s, form, None, names) for s, names in modules.items()])


def _int_quantized_config(scheme: Scheme) -> dict[str, Any]:
    """The engine that runs the model quantises activations, each token by its largest value."""
    activations = {
        "num_bits": 8,
        "type": "int",
        "symmetric": True,
        "strategy": "token",
        "dynamic": True,
    }
    return _settings("int-quantized", [_group(scheme, "int-quantized", activations, ["Linear"])])


@dataclass(frozen=True)
class Format:
    """A checkpoint format."""

    bits: tuple[int, ...]
    pack: Callable[[Codes], Arrays]  # with the keys of `shapes`, in their order
    shapes: Callable[[Scheme, int, int], Shapes]  # of a matrix [n_out, n_in]; ValueError
    config: Callable[[Scheme], dict[str, Any]]  # config.json's quantization_config
    by_row: bool = False  # its schemes are symmetric, with one scale for each row
    desc_act: bool = False  # whether it has schemes of that kind
    #: `config` of modules with schemes of their own; None: it cannot be said.
    mixed_config: Callable[[Mapping[str, Scheme]], dict[str, Any]] | None = None

    def n_bytes(self, scheme: Scheme, n_out: int, n_in: int) -> int:
        """What the tensors of a matrix take."""
        shapes = self.shapes(scheme, n_out, n_in).items()
        return sum(Tensor(suffix, *what).n_bytes for suffix, what in shapes)


FORMATS = {
    "awq": Format((4,), _awq, _awq_shapes, _awq_config),
    "gptq": Format((3, 4, 8), _gptq, _gptq_shapes, _gptq_config, desc_act=True),
    "compressed-tensors": Format(
        (3, 4, 8),
        _compressed,
        _compressed_shapes,
        _compressed_config,
        mixed_config=_compressed_mixed_config,
    ),
    "int-quantized": Format(
        (8,), _int_quantized, _int_quantized_shapes, _int_quantized_config, by_row=True
    ),
}
