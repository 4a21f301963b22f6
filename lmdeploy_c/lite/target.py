"""What `lite quantize` writes: a Hugging Face directory or a GGUF file, and what it can hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..messages import unsupported
from . import gguf_model, gguf_packing, packing, rewrite
from .layers import layer_of
from .report_values import LayerReport, LinearReport
from .shards import Part, Tensor, header_bytes
from .source import Source

GROUP_SIZES = (128, 64, 32)
WIDE_BITS, WIDE_TYPE = 8, "Q8_0"  # of linears that get more bits than the others


def group_size_for(source: Source, wanted: int | None) -> int:
    """The group size to use: the wanted one where it divides every linear's columns (-1: rows),
    or the largest of GROUP_SIZES that does. ValueError, also for linears that no word packs."""
    shapes = {name: source.tensors[name].shape for name in source.linears()}
    for name, shape in shapes.items():
        if len(shape) != 2 or shape[0] % 8 or shape[1] % 32:
            raise ValueError(
                f"{name} has shape {shape}; packed are matrices whose rows are a multiple of 8 and "
                "whose columns are one of 32"
            )
    widths = {name: shape[1] for name, shape in shapes.items()}
    if wanted == -1:
        return -1
    for size in GROUP_SIZES if wanted is None else (wanted,):
        odd = next((name for name, n in widths.items() if size < 1 or n % size), None)
        if odd is None:
            return size
    fitting = [size for size in GROUP_SIZES if all(n % size == 0 for n in widths.values())]
    raise ValueError(
        f"groups of {size} do not divide the {widths[str(odd)]} columns of {odd}; "
        + (f"w_group_size may be {', '.join(map(str, fitting))} or -1" if fitting else "use -1")
    )


def _check_form(form: str, scheme: packing.Scheme, source: Source) -> packing.Format:
    if form not in packing.FORMATS:
        raise ValueError(f"format must be {', '.join(packing.FORMATS)}, not {form!r}")
    found = packing.FORMATS[form]
    if scheme.bits not in found.bits:
        served = " or ".join(map(str, found.bits))
        raise unsupported(f"w_bits of {form} must be {served}, not {scheme.bits}")
    if found.by_row and (scheme.group_size != -1 or not scheme.symmetric):
        raise unsupported(
            f"{form} has one scale for each row and no zeros: it needs w_group_size -1 and w_sym"
        )
    for name in source.linears():
        try:
            found.shapes(scheme, *source.tensors[name].shape)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    if scheme.desc_act and not found.desc_act:
        raise unsupported(f"{form} has no groups in another order: desc_act is for gptq")
    return found


def _wider(scheme: packing.Scheme) -> packing.Scheme:
    if scheme.bits >= WIDE_BITS:
        raise ValueError(f"mixed chooses between w_bits and {WIDE_BITS}: w_bits must be fewer")
    return replace(scheme, bits=WIDE_BITS)


class Directory:
    """A Hugging Face directory. key: what its contents depend on. scheme, form: of the linears;
    stored: the type of the floats."""

    def __init__(
        self, source: Source, form: str, scheme: packing.Scheme, dtype: str, max_shard_bytes: int
    ) -> None:
        self.form, self.scheme = _check_form(form, scheme, source), scheme
        self.stored = rewrite.stored_dtype(source, dtype)
        self.linears = source.linears()
        self.key: list[Any] = [form, vars(scheme), self.stored]
        self._source, self._max_shard_bytes = source, max_shard_bytes
        self._config = rewrite.config_of(source, self.stored)
        self._name = form

    def wide(self) -> packing.Scheme:
        """What linears get that need more bits than the others. UnsupportedError, ValueError."""
        if self.form.mixed_config is None:
            able = " or ".join(k for k, f in packing.FORMATS.items() if f.mixed_config)
            raise unsupported(
                f"mixed bits in format {self._name}, whose readers take one number of bits for all "
                f"linears: use format {able} or gguf"
            )
        return _wider(self.scheme)

    def n_bytes(self) -> int:
        """What the file takes, without mixed bits."""
        tensors = [
            Tensor(name, self.stored, stored.shape)
            for name, stored in self._source.tensors.items()
            if name not in set(self.linears)
        ]
        for name in self.linears:
            shapes = self.form.shapes(self.scheme, *self._source.tensors[name].shape)
            stem = name.removesuffix("weight")
            tensors += [Tensor(stem + suffix, *what) for suffix, what in shapes.items()]
        return sum(tensor.n_bytes for tensor in tensors) + header_bytes(tensors)

    def _settings(self, reports: Sequence[LayerReport]) -> dict[str, Any]:
        linears = [linear for report in reports for linear in report.linears]
        if self.form.mixed_config is None or all(x.bits == self.scheme.bits for x in linears):
            return self.form.config(self.scheme)
        return self.form.mixed_config({
            x.name.removesuffix(".weight"): replace(self.scheme, bits=x.bits) for x in linears
        })  # fmt: skip

    def write(
        self, folder: Path, layers: Sequence[Part], reports: Sequence[LayerReport]
    ) -> list[LinearReport]:
        """layers: the tensors of layers, whose linears have the bits of the reports; what is
        outside of them is the source's. Gives reports on linears that were made of floats while it
        wrote: none."""
        outside = [name for name in self._source.tensors if layer_of(name) < 0]
        parts = [rewrite.kept(self._source, name, self.stored) for name in outside]
        rewrite.begin(self._source, folder)
        config = {**self._config, "quantization_config": self._settings(reports)}
        rewrite.write(
            self._source, folder, [*parts, *layers], config, "writing", self._max_shard_bytes
        )
        return []


class GgufFile:
    """A GGUF file; the fields are those of `Directory`. Linears of one type are solved, other
    blocks are rounded, and what else layers have is fp32 until the file is written."""

    form, stored = gguf_packing.FORMAT, "F32"

    def __init__(self, source: Source, w_type: str | Mapping[str, str], dtype: str) -> None:
        self._source = source
        self._types = gguf_model.types_of(source, w_type, rewrite.stored_dtype(source, dtype))
        self._rounded = _Rounded(source)
        self._ready: dict[str, Part] = {}
        self._file = self._model(self._types)

    def _model(self, types: Mapping[str, str]) -> gguf_model.GgufModel:
        return gguf_model.GgufModel(self._source, types, self._rounded, self._ready)

    def wide(self) -> packing.Scheme:
        """What linears get that need more bits than the others. ValueError."""
        return gguf_packing.scheme_of(WIDE_TYPE) if _wider(self.scheme) else self.scheme

    def n_bytes(self) -> int:
        """What the file takes, without mixed bits."""
        return self._file.n_bytes

    @property
    def key(self) -> list[Any]:
        return ["gguf", self._types, vars(self.scheme)]

    @cached_property
    def scheme(self) -> packing.Scheme:
        return gguf_packing.scheme_of(self._solved_type)

    @cached_property
    def _solved_type(self) -> str:
        return gguf_model.solved_type({n: self._types[n] for n in self._source.linears()})

    @property
    def linears(self) -> list[str]:
        return [n for n in self._source.linears() if self._types[n] == self._solved_type]

    def write(
        self, folder: Path, layers: Sequence[Part], reports: Sequence[LayerReport]
    ) -> list[LinearReport]:
        """Without layers all blocks are rounded."""
        self._ready |= {part.tensors[0].name: part for part in layers}
        wide = {
            linear.name: WIDE_TYPE
            for report in reports
            for linear in report.linears
            if linear.bits != self.scheme.bits
        }
        file = self._model({**self._types, **wide}) if wide else self._file
        file.write(rewrite.begin(self._source, folder), "writing")
        return self._rounded.reports


class _Rounded:
    """Rounds matrices to the nearest code, and reports on linears, by their weights."""

    def __init__(self, source: Source) -> None:
        self._source, self._linears = source, set(source.linears())
        self.reports: list[LinearReport] = []

    def __call__(
        self, name: str, dtype: str, values: NDArray[np.float32]
    ) -> gguf_packing.BlockCodes:
        made = gguf_model.rounded(name, dtype, values)
        if name in self._linears:
            squares = float(np.square(values, dtype=np.float64).sum()) or 1.0
            misses = gguf_packing.dequantized(made) - values
            error = float(np.square(misses, dtype=np.float64).sum()) / squares
            rows, cols = values.shape
            self.reports.append(
                LinearReport(
                    name,
                    error,
                    error,
                    shape=(rows, cols),
                    bits=gguf_packing.scheme_of(dtype).bits,
                    group_size=gguf_packing.BLOCK_LEN,
                    after_bytes=Tensor(name, dtype, (rows, cols)).n_bytes,
                )
            )
        return made


def target_of(
    source: Source, format: str, w_bits: int, w_group_size: int | None, w_sym: bool,
    w_type: str | Mapping[str, str] | None, desc_act: bool, dtype: str, max_shard_bytes: int,
) -> Directory | GgufFile:  # fmt: skip
    """What `quantize` was asked for. ValueError, UnsupportedError for what does not fit."""
    if format == "gguf":
        if w_group_size not in (None, gguf_packing.BLOCK_LEN):
            raise ValueError(f"w_group_size of gguf must be 32, not {w_group_size}")
        if desc_act:
            raise unsupported("gguf has no groups in another order: desc_act is for gptq")
        return GgufFile(source, w_type or gguf_model.type_named(w_bits, w_sym), dtype)
    if w_type is not None:
        raise ValueError(f"w_type is of format gguf, not {format}")
    scheme = packing.Scheme(w_bits, group_size_for(source, w_group_size), w_sym, desc_act=desc_act)
    return Directory(source, format, scheme, dtype, max_shard_bytes)
