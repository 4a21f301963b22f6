"""Reads config.json's quantization_config: how packed weights are stored, and what is refused.

Served: AWQ (gemm, with zero points) and GPTQ (v1 and v2, without desc_act). The tensors themselves
are checked in C. A matrix that has no packed tensors is read as floats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..messages import unsupported

if TYPE_CHECKING:
    from .._C import TensorSpec

#: quant_method -> bits that are served.
BITS = {"awq": (4,), "gptq": (4, 8)}
GROUP_SIZES = (32, 64, 128, -1)
MAX_NAMES = 10_000  # in modules_to_not_convert; every tensor's name is searched for each of them
PACKED_SUFFIXES = ("qweight", "qzeros", "scales", "g_idx")


def _get(source: Mapping[str, Any], key: str, kind: type, default: Any = None) -> Any:
    """The value of a key, checked to be of a type; the default where it is missing or null."""
    value = source.get(key)
    value = default if value is None else value
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"quantization_config: {key} must be {kind.__name__}, not {value!r:.60}")
    return value


def _refuse(found: str, served: str) -> ValueError:
    return unsupported(f"quantization_config: {found} is not served; served: {served}")


def _read_awq(source: Mapping[str, Any]) -> str:
    version = _get(source, "version", str, "gemm")
    if version.lower() != "gemm":
        raise _refuse(f"version {version!r:.40}", "gemm")
    if not _get(source, "zero_point", bool, True):
        raise _refuse("zero_point false", "zero_point true")
    return "awq"


def _read_gptq(source: Mapping[str, Any], bits: int) -> str:
    form: str = _get(source, "checkpoint_format", str, _get(source, "format", str, "gptq"))
    if form not in ("gptq", "gptq_v2") or _get(source, "is_marlin_format", bool, False):
        found = "is_marlin_format" if form in ("gptq", "gptq_v2") else f"format {form!r:.40}"
        raise _refuse(found, "gptq, gptq_v2")
    if _get(source, "desc_act", bool, False):
        raise _refuse("desc_act true", "desc_act false")
    if bits == 8 and not _get(source, "sym", bool, True):
        raise _refuse("sym false with 8 bits", "sym true")
    if _get(source, "pack_dtype", str, "int32") != "int32":
        raise _refuse(f"pack_dtype {source['pack_dtype']!r:.40}", "int32")
    for pattern in _get(source, "dynamic", Mapping, {}):
        if not str(pattern).startswith("-:"):  # "-:" leaves modules unquantised
            raise _refuse(f"dynamic {pattern!r:.60}, settings by module,", "one for all")
    return form


def read(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The quant_* keys of a normalised config. UnsupportedError, ValueError."""
    source = hf.get("quantization_config")
    if source is None:
        return {"quant_method": "none", "quant_bits": 0, "quant_group_size": 0}
    if not isinstance(source, Mapping):
        raise ValueError(f"quantization_config must be an object, not {source!r:.60}")
    method = source.get("quant_method")
    if not isinstance(method, str) or method not in BITS:
        raise _refuse(
            f"quant_method {method!r:.40}",
            f"{', '.join(BITS)}, besides plain safetensors and quantised GGUF files",
        )
    bits = _get(source, "bits", int, 4 if method == "awq" else None)
    if bits not in BITS[method]:
        raise _refuse(f"{method} with {bits} bits", ", ".join(map(str, BITS[method])))
    group_size = _get(source, "group_size", int, 128)
    if group_size not in GROUP_SIZES:
        raise _refuse(f"group_size {group_size}", ", ".join(map(str, GROUP_SIZES)))
    return {
        "quant_method": _read_awq(source) if method == "awq" else _read_gptq(source, bits),
        "quant_bits": bits,
        "quant_group_size": group_size,
    }


def without_unconverted(hf: Mapping[str, Any], specs: Sequence[TensorSpec]) -> list[TensorSpec]:
    """The tensors to load: packed ones of modules_to_not_convert are left out."""
    names = _get(hf.get("quantization_config") or {}, "modules_to_not_convert", list, [])
    if len(names) > MAX_NAMES or not all(isinstance(name, str) for name in names):
        wanted = f"a list of at most {MAX_NAMES} names"
        raise ValueError(f"quantization_config: modules_to_not_convert must be {wanted}")

    def kept(tensor: str) -> bool:
        module, _, suffix = tensor.rpartition(".")
        named = any(f".{name}." in f".{module}." for name in names)
        return not (named and suffix in PACKED_SUFFIXES)

    return [spec for spec in specs if kept(spec[0])]
