"""Reads the settings of packed weights: where they stand, what they mean, and what is refused.

Settings say which packing the words have and what else happens to weights and activations. How
many bits and columns a group has is read from the tensors' shapes (csrc/quant/packed_weight.h), so
that each module may have its own. A matrix that has no packed tensors is read as floats.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..messages import unsupported
from .safetensors import bad_file, read_json

if TYPE_CHECKING:
    from .._C import TensorSpec

Settings = Mapping[str, Any]

#: Where settings are looked for: keys of config.json, then files beside it.
KEYS = ("quantization_config", "compression_config")
FILES = ("quantize_config.json", "quant_config.json", "quantization_config.json")
#: Older name of a setting -> its name.
OLDER_NAMES = {"w_bit": "bits", "wbits": "bits", "q_group_size": "group_size",
               "method": "quant_method"}  # fmt: skip
#: Bits that are served, by method; of auto-round those of the packing that it names.
BITS = {"awq": (4,), "gptq": (3, 4, 8), "compressed-tensors": (3, 4, 8)}
#: Columns of a group that stay packed in any number of rows; -1: whole rows. Of the others,
#: multiples of 32 are cut into such ones, and the rest become fp32 when they are loaded.
GROUP_SIZES = (32, 64, 128, -1)
#: Settings that change what a model computes, by name: refused where they say anything.
ARITHMETIC = re.compile(
    r"rotation|hadamard|spinquant|quarot|^transforms?$|^transform_config$|^adapter$|^lora"
    r"|^activation$|^kv_cache_scheme$|^static_kv_dtype$|^static_attention_dtype$|^(in|out)put_activations$"
)
PACKED_SUFFIXES = ("qweight", "qzeros", "scales", "g_idx")
WORDS = ("qweight", "weight_packed")  # the tensor that every packed matrix has; else one of I8
#: modules_to_not_convert: every packed tensor's name is searched for each of its names.
MAX_NAMES, MAX_SEARCHES = 10_000, 1 << 24
#: compressed-tensors: format -> names of presets that stand in place of a group's settings.
PRESETS = {
    "pack-quantized": ("W3A16", "W4A16", "W4A16_ASYM", "W8A16"),
    "int-quantized": ("W8A8", "INT8", "W4A8", "W3A8"),
}
#: What int-quantized may say of activations, which the engine has in finer steps than that.
ACTIVATIONS = {"type": ("int",), "num_bits": (8,), "strategy": ("token",), "dynamic": (True,)}


def _get(source: Settings, key: str, kind: type, default: Any = None) -> Any:
    """The value of a key, checked to be of a type; the default where it is missing or null."""
    value = source.get(key)
    value = default if value is None else value
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"quantization_config: {key} must be {kind.__name__}, not {value!r:.60}")
    return value


def _refuse(found: str, served: str) -> ValueError:
    return unsupported(f"quantization_config: {found} is not served; served: {served}")


def _named(source: Any) -> dict[str, Any]:
    """Settings under the names of today."""
    if not isinstance(source, Mapping):
        raise ValueError(f"quantization_config must be an object, not {source!r:.60}")
    older = {new: source[old] for old, new in OLDER_NAMES.items() if old in source}
    return {**older, **{key: value for key, value in source.items() if value is not None}}


# ---- where settings stand ----


def is_packed(specs: Sequence[TensorSpec]) -> bool:
    return any(spec[0].rpartition(".")[2] in WORDS or spec[1] == "I8" for spec in specs)


def with_settings(
    hf: Mapping[str, Any], directory: Path, specs: Sequence[TensorSpec]
) -> dict[str, Any]:
    """config.json with the settings of packed weights as quantization_config.

    Files beside it give what config.json leaves out. CheckpointError where weights are packed and
    nothing says how.
    """
    found = [hf[key] for key in KEYS if hf.get(key) is not None]
    if not is_packed(specs):
        return {**hf, "quantization_config": found[0]} if found else dict(hf)
    beside = [read_json(directory / name) for name in FILES if (directory / name).is_file()]
    if not found and not beside:
        raise bad_file(
            directory,
            "its weights are packed, but nothing says how: config.json has no "
            f"{KEYS[0]}, and there is no {' or '.join(FILES[:2])}",
        )
    merged: dict[str, Any] = {}
    for settings in [*reversed(beside), *reversed(found)]:
        merged.update(_named(settings))
    _check_order(merged, specs)
    return {**hf, "quantization_config": merged}


def without_unconverted(hf: Mapping[str, Any], specs: Sequence[TensorSpec]) -> list[TensorSpec]:
    """The tensors to load: packed ones of modules_to_not_convert are left out."""
    names = _get(hf.get("quantization_config") or {}, "modules_to_not_convert", list, [])
    if len(names) > MAX_NAMES or not all(isinstance(name, str) for name in names):
        wanted = f"a list of at most {MAX_NAMES} names"
        raise ValueError(f"quantization_config: modules_to_not_convert must be {wanted}")

    packed = [spec[0] for spec in specs if spec[0].rpartition(".")[2] in PACKED_SUFFIXES]
    if len(names) * len(packed) > MAX_SEARCHES:
        raise ValueError(
            f"quantization_config: modules_to_not_convert has {len(names)} names for {len(packed)} "
            "packed tensors, which are too many to search; name modules by their parents"
        )
    inner = {tensor: f".{tensor.rpartition('.')[0]}." for tensor in packed}
    left_out = {t for t, module in inner.items() if any(f".{name}." in module for name in names)}
    return [spec for spec in specs if spec[0] not in left_out]


# ---- what settings mean ----


def _check_bits(source: Settings, method: str, where: str = "") -> None:
    served = BITS[method]
    bits = _get(source, "bits", int, served[0])
    _get(source, "group_size", int, 128)
    if bits not in served:
        raise _refuse(f"{where}{method} with {bits} bits", ", ".join(map(str, served)))


def _check_arithmetic(source: Settings, where: str = "") -> None:
    """Refuses what makes a model compute anything but x W^T with the weights as stored."""
    for key, value in source.items():
        if value and ARITHMETIC.search(str(key)):
            raise _refuse(f"{where}{key} {value!r:.60}", "weights that are used as they are stored")
    act_bits = _get(source, "act_bits", int, 16)
    if act_bits < 16:
        raise _refuse(f"{where}act_bits {act_bits}", "activations of 16 bits")
    data_type = _get(source, "data_type", str, "int")
    if not data_type.startswith("int"):
        raise _refuse(f"{where}data_type {data_type!r:.40}", "int")


def _check_modules(source: Settings, key: str, method: str) -> None:
    """Checks settings by module, given by a pattern or a name."""
    for name, rule in _get(source, key, Mapping, {}).items():
        if str(name).startswith("-:"):  # leaves modules unquantised
            continue
        if not isinstance(rule, Mapping):
            raise ValueError(f"quantization_config: {key} {name!r:.60} must be an object")
        where = f"{key} {name!r:.60}: "
        rule = _named(rule)
        if _get(rule, "bits", int, 0) >= 16:  # left as they were
            continue
        _check_arithmetic(rule, where)
        _check_bits(rule, method, where)
        for same in ("quant_method", "format", "checkpoint_format", "pack_dtype"):
            if rule.get(same) not in (None, source.get(same)):
                raise _refuse(f"{where}{same} {rule[same]!r:.40}", f"one {same} for all")


def _check_words(source: Settings) -> None:
    if _get(source, "pack_dtype", str, "int32") not in ("int32", "torch.int32"):
        raise _refuse(f"pack_dtype {source['pack_dtype']!r:.40}", "int32")


def _read_awq(source: Settings) -> str:
    format_ = _get(source, "checkpoint_format", str, _get(source, "format", str, "gemm"))
    version = _get(source, "version", str, format_)
    if version.lower() != "gemm":
        raise _refuse(f"version {version!r:.40}", "gemm")
    _get(source, "zero_point", bool, True)  # the file has zeros either way
    _check_words(source)
    _check_bits(source, "awq")
    _check_modules(source, "dynamic", "awq")
    return "awq"


def _writers(source: Settings) -> list[str]:
    """The tools that wrote a file, such as "gptqmodel:7.7.0": a name, or a list of them."""
    meta = _get(source, "meta", Mapping, {})
    found = [meta.get(key) for key in ("quantizer", "packer")]
    names = [name for value in found for name in (value if isinstance(value, list) else [value])]
    return [name for name in names if isinstance(name, str)]


def _read_gptq(source: Settings) -> str:
    form: str = _get(source, "checkpoint_format", str, _get(source, "format", str, "gptq"))
    if form not in ("gptq", "gptq_v2") or _get(source, "is_marlin_format", bool, False):
        found = "is_marlin_format" if form in ("gptq", "gptq_v2") else f"format {form!r:.40}"
        raise _refuse(found, "gptq, gptq_v2")
    _get(source, "desc_act", bool, False)  # g_idx says the order
    _get(source, "sym", bool, True)  # the file has zeros either way
    _check_words(source)
    _check_bits(source, "gptq")
    _check_modules(source, "dynamic", "gptq")
    borrows = any(name.startswith("gptqmodel") for name in _writers(source))
    return "gptq_borrow" if form == "gptq" and borrows else form


def _read_auto_round(source: Settings) -> str:
    """auto-round 0.16: packing_format "auto_round:auto_gptq", "auto_round:auto_awq" and
    "auto_round", whose zeros are as they are; older ones call it backend, and name a kernel too.
    """
    packing = _get(source, "packing_format", str, _get(source, "backend", str, "auto"))
    words = set(packing.replace("auto_round", "auto-round").split(":"))
    kernels = {"auto-round", "exllamav2", "tritonv2", "triton", "torch", "gptqmodel"}
    packings = {"auto_awq": "awq", "awq": "awq", "auto_gptq": "gptq", "gptq": "gptq",
                "auto": "gptq"}  # fmt: skip
    named = {packings[word] for word in words & packings.keys()}
    if words - kernels - packings.keys() or len(named) > 1:
        served = "auto_round:auto_gptq, auto_round:auto_awq, auto_round"
        raise _refuse(f"packing_format {packing!r:.40}", served)
    method = named.pop() if named else "gptq_v2"
    _check_bits(source, method.removesuffix("_v2"))
    _check_modules(source, "extra_config", method.removesuffix("_v2"))
    return method


def _check_order(source: Settings, specs: Sequence[TensorSpec]) -> None:
    """Refuses columns in an order that the file does not tell."""
    for name, group in _get(source, "config_groups", Mapping, {}).items():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        order = weights.get("actorder") if isinstance(weights, Mapping) else None
        if order not in (None, False, "static", "weight") and not any(
            spec[0].endswith(".weight_g_idx") for spec in specs
        ):
            found = f"config_groups {name!r:.40}: actorder {order!r:.40} without g_idx"
            raise _refuse(found, "static, weight, null")


def _check_args(args: Settings, served: Mapping[str, tuple[Any, ...]], where: str) -> None:
    """Checks the settings of a group's weights or activations."""
    for key, values in served.items():
        if args.get(key) not in values:
            text = ", ".join(str(value) for value in values if value)
            raise _refuse(f"{where}{key} {args.get(key)!r:.40}", text or "none")


def _check_group(name: str, group: Any, form: str) -> None:
    """Checks the settings of a group of modules; a list of modules is for the preset `name`."""
    where = f"config_groups {name!r:.40}: "
    if isinstance(group, list):
        if name not in PRESETS[form]:
            raise _refuse(f"{where}a preset of that name", ", ".join(PRESETS[form]))
        return
    if not isinstance(group, Mapping):
        raise ValueError(f"quantization_config: {where}must be an object, not {group!r:.40}")
    form = _get(group, "format", str, form)
    if form not in PRESETS:
        raise _refuse(f"{where}format {form!r:.40}", ", ".join(PRESETS))
    activations = _get(group, "input_activations", Mapping, {})
    if form == "int-quantized" and activations:
        _check_args(activations, ACTIVATIONS, f"{where}input_activations: ")
        group = {key: value for key, value in group.items() if key != "input_activations"}
    _check_arithmetic(group, where)
    served = {"type": ("int",), "num_bits": BITS["compressed-tensors"],
              "strategy": ("group", "channel", None), "dynamic": (False, None)}  # fmt: skip
    _check_args(_get(group, "weights", Mapping), served, where)


def _read_compressed(source: Settings) -> str:
    form = _get(source, "format", str, "pack-quantized")
    if form not in (*PRESETS, "mixed-precision"):
        raise _refuse(f"format {form!r:.40}", ", ".join(PRESETS))
    sparsity = _get(source, "sparsity_config", Mapping, {}).get("format")
    if sparsity not in (None, "dense"):
        raise _refuse(f"sparsity_config with format {sparsity!r:.40}", "dense")
    for name, group in _get(source, "config_groups", Mapping).items():
        _check_group(name, group, form if form in PRESETS else "pack-quantized")
    return "compressed-tensors"


#: quant_method -> its reader, which gives the packing's name in csrc/model/model_config.h.
METHODS: dict[str, Callable[[Settings], str]] = {
    "awq": _read_awq,
    "gptq": _read_gptq,
    "auto-round": _read_auto_round,
    "intel/auto-round": _read_auto_round,
    "compressed-tensors": _read_compressed,
}
#: Settings by which a method is known where quant_method is missing, as in older files.
SIGNS = {"config_groups": "compressed-tensors", "packing_format": "auto-round",
         "zero_point": "awq", "desc_act": "gptq"}  # fmt: skip


def read(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The quant_method of a normalised config: the packing. UnsupportedError, ValueError."""
    source = hf.get("quantization_config")
    if source is None or source == {}:
        return {"quant_method": "none"}
    source = _named(source)
    known = [method for sign, method in SIGNS.items() if sign in source]
    method = source.get("quant_method", known[0] if known else None)
    reader = METHODS.get(method.lower().replace("_", "-")) if isinstance(method, str) else None
    if reader is None:
        raise _refuse(
            f"quant_method {method!r:.40}",
            f"{', '.join(METHODS)}, besides plain safetensors and quantised GGUF files",
        )
    _check_arithmetic(source)
    return {"quant_method": reader(source)}
