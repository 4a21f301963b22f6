"""Rewrites a model as a Hugging Face directory: exactly, or with its linears quantised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..messages import unsupported
from ..progress import bytes_progress
from . import packing, tokenizer_files
from .calibration import Calibration, calibrate
from .shards import MAX_SHARD_BYTES, Part, Tensor, write_json, write_shards
from .source import Source

GROUP_SIZES = (128, 64, 32)
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


# ---- values ----


def _to_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The nearest bf16, ties to even."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def _as(dtype: str, name: str, values: NDArray[np.float32]) -> NDArray[Any]:
    if dtype == "F32":
        return values
    if dtype == "BF16":
        return _to_bf16(values)
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    if not np.isfinite(halves).all():
        raise ValueError(
            f'tensor "{name}" has values that float16 cannot hold (or that are not finite): '
            "choose dtype bfloat16 or float32"
        )
    return halves


def _kept(source: Source, name: str, dtype: str) -> Part:
    """A tensor that stays a float, as `dtype`."""
    tensor = Tensor(name, dtype, source.tensors[name].shape)
    return Part((tensor,), lambda: [_as(dtype, name, source.read(name))])


def _stored_dtype(source: Source) -> str:
    """What holds every value as it is stored: fp32 for GGUF's codes."""
    found = {stored.dtype for stored in source.tensors.values()}
    return found.pop() if len(found) == 1 and found <= set(DTYPES.values()) else "F32"


def _dtype(source: Source, dtype: str) -> str:
    if dtype == "auto":
        return _stored_dtype(source)
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be auto, {', '.join(DTYPES)}, not {dtype!r}")
    return DTYPES[dtype]


def _config(source: Source, stored: str) -> dict[str, Any]:
    """config.json of the new directory, whose floats are stored as `stored`."""
    [name] = (name for name, dtype in DTYPES.items() if dtype == stored)
    return {**source.config, "torch_dtype": name}


# ---- the directory ----


def _begin(source: Source, work_dir: str | Path) -> Path:
    """The directory to write into. While it is written it has no config.json, so that nothing
    half-written can be loaded."""
    folder = Path(work_dir)
    if source.path.is_dir() and folder.exists() and folder.samefile(source.path):
        raise ValueError(f'work_dir "{folder}" is the model itself: choose another directory')
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").unlink(missing_ok=True)
    for old in folder.glob("model*.safetensors*"):
        old.unlink()
    return folder


def _write(
    source: Source,
    folder: Path,
    parts: Sequence[Part],
    config: dict[str, Any],
    what: str,
    max_shard_bytes: int,
) -> None:
    total, written = sum(part.n_bytes for part in parts), 0
    with bytes_progress(what) as progress:

        def done(n_bytes: int) -> None:
            nonlocal written
            written += n_bytes
            if progress:
                progress(written, total)

        write_shards(folder, parts, done, max_shard_bytes)
    tokenizer_files.write(source, folder)
    write_json(folder / "config.json", config)


def export(
    model: str | Path | None = None,
    work_dir: str | Path = "./work_dir",
    *,
    dtype: str = "auto",
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    """Writes a model as a Hugging Face directory of floats, and returns the directory.

    model: a path, a model id, or None for the embedded model. dtype: "auto" keeps every value
    exactly (fp32 for the codes of a GGUF file), or "float32", "float16", "bfloat16".

    Raises what `pipeline` raises for a model that cannot be opened; UnsupportedError for a model
    that is quantised for another engine; ValueError for a value that dtype cannot hold; OSError.
    """
    source = Source(model)
    stored = _dtype(source, dtype)
    folder = _begin(source, work_dir)
    parts = [_kept(source, name, stored) for name in source.tensors]
    config = _config(source, stored)
    _write(source, folder, parts, config, "exporting", max_shard_bytes)
    return folder


# ---- quantised ----


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


def _quantised(
    name: str, shape: tuple[int, ...], form: packing.Format, scheme: packing.Scheme,
    quantise: Callable[[str], packing.Codes],
) -> Part:  # fmt: skip
    """The tensors that take the place of a linear's weight."""
    stem = name.removesuffix("weight")
    shapes = form.shapes(scheme, shape[0], shape[1])
    tensors = tuple(Tensor(stem + suffix, *what) for suffix, what in shapes.items())

    def make() -> list[NDArray[Any]]:
        arrays = form.pack(quantise(name))
        return [arrays[suffix] for suffix in shapes]

    return Part(tensors, make)


@dataclass(frozen=True)
class LinearReport:
    """What quantisation did to one linear: the squared error of its weights as a part of their
    squares, on grids from the smallest to the largest weight, and as written."""

    name: str
    min_max_error: float
    error: float


class _Linears:
    """Quantises linears on the best grid of each group."""

    def __init__(
        self,
        source: Source,
        scheme: packing.Scheme,
        calibration: Calibration | None,
        num_threads: int | None,
    ) -> None:
        from .._C import Quantizer

        self._source, self._scheme, self._calibration = source, scheme, calibration
        self._quantizer = Quantizer(num_threads)
        self.reports: list[LinearReport] = []

    def __call__(self, name: str) -> packing.Codes:
        weight = self._source.read(name)
        try:
            plain, best = self._run(name, weight, False), self._run(name, weight, True)
        except ValueError as error:
            raise ValueError(f'tensor "{name}": {error}') from None
        squares = float(np.square(weight, dtype=np.float64).sum()) or 1.0
        errors = [self._squared_error(made, weight) / squares for made in (plain, best)]
        self.reports.append(LinearReport(name, *errors))
        return best

    def _run(self, name: str, weight: NDArray[np.float32], search: bool) -> packing.Codes:
        scheme, calibration = self._scheme, self._calibration
        made = self._quantizer.quantize(
            weight,
            bits=scheme.bits,
            group_size=scheme.group_size,
            symmetric=scheme.symmetric,
            search=search,
            importance=calibration.importance(name) if search and calibration else None,
        )
        return packing.Codes(scheme, *made)

    def _squared_error(self, made: packing.Codes, weight: NDArray[np.float32]) -> float:
        shape = (len(weight), made.scales.shape[1], -1)
        values = made.codes.reshape(shape) - made.zeros[..., None].astype(np.float32)
        values *= made.scales[..., None].astype(np.float32)
        return float(np.square(values - weight.reshape(shape), dtype=np.float64).sum())


def _check_form(form: str, scheme: packing.Scheme) -> packing.Format:
    if form not in packing.FORMATS:
        raise ValueError(f"format must be {', '.join(packing.FORMATS)}, not {form!r}")
    found = packing.FORMATS[form]
    if scheme.bits not in found.bits:
        served = " or ".join(map(str, found.bits))
        raise unsupported(f"w_bits of {form} must be {served}, not {scheme.bits}")
    return found


def quantize(
    model: str | Path | None = None,
    work_dir: str | Path = "./work_dir",
    *,
    format: str = "awq",
    w_bits: int = 4,
    w_group_size: int | None = None,
    w_sym: bool = False,
    dtype: str = "float16",
    calib_dataset: str | Path | None = "self",
    calib_samples: int | None = None,
    calib_seqlen: int = 512,
    num_threads: int | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> list[LinearReport]:
    """Writes a model with the linears of its layers quantised: each group of weights on the grid
    with the least squared error. Embedding, norms and lm_head stay floats.

    model: a path, a model id, or None for the embedded model. format: "awq", "gptq" or
    "compressed-tensors". w_bits: 4, or 8 of the latter two. w_group_size: columns that share a
    scale; -1: a whole row; None: the largest of 128, 64 and 32 that fits the model. w_sym: zero is
    the middle code. dtype: of what stays a float. num_threads: None: all usable ones.

    calib_dataset: what the model reads first, so that an error counts what its column carries:
    "self", its own samples, or a text file. None: no calibration; large weights count more.
    calib_samples: windows of it, at most; None: 24 of the model's own, 128 of a file.
    calib_seqlen: tokens of a window.

    Returns what was done to each linear. Raises what `export` raises, and ValueError for a group
    size that does not fit and for a weight that is not finite, by its tensor.
    """
    source = Source(model)
    scheme = packing.Scheme(w_bits, group_size_for(source, w_group_size), w_sym)
    form, stored = _check_form(format, scheme), _dtype(source, dtype)
    calibration = None
    if calib_dataset is not None:
        calibration = calibrate(
            source,
            calib_dataset,
            samples=calib_samples,
            seqlen=calib_seqlen,
            num_threads=num_threads,
        )
    folder = _begin(source, work_dir)
    quantise = _Linears(source, scheme, calibration, num_threads)
    linears = set(source.linears())
    parts = [
        _quantised(name, tensor.shape, form, scheme, quantise)
        if name in linears
        else _kept(source, name, stored)
        for name, tensor in source.tensors.items()
    ]
    config = _config(source, stored)
    config["quantization_config"] = form.config(scheme)
    _write(source, folder, parts, config, "quantising", max_shard_bytes)
    return quantise.reports
