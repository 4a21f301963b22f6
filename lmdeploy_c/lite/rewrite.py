"""Rewrites a model as a Hugging Face directory of floats."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..progress import bytes_progress
from . import tokenizer_files
from .shards import MAX_SHARD_BYTES, Part, Tensor, write_json, write_shards
from .source import Source

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


# ---- values ----


def _to_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The nearest bf16, ties to even."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def as_dtype(dtype: str, name: str, values: NDArray[np.float32]) -> NDArray[Any]:
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


def kept(source: Source, name: str, dtype: str) -> Part:
    """A tensor that stays a float, as `dtype`."""
    tensor = Tensor(name, dtype, source.tensors[name].shape)
    return Part((tensor,), lambda: [as_dtype(dtype, name, source.read(name))])


def _own_dtype(source: Source) -> str:
    """What holds every value as it is stored: fp32 for GGUF's codes."""
    found = {stored.dtype for stored in source.tensors.values()}
    return found.pop() if len(found) == 1 and found <= set(DTYPES.values()) else "F32"


def stored_dtype(source: Source, dtype: str) -> str:
    if dtype == "auto":
        return _own_dtype(source)
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be auto, {', '.join(DTYPES)}, not {dtype!r}")
    return DTYPES[dtype]


def config_of(source: Source, stored: str) -> dict[str, Any]:
    """config.json of the new directory, whose floats are stored as `stored`."""
    [name] = (name for name, dtype in DTYPES.items() if dtype == stored)
    return {**source.config, "torch_dtype": name}


# ---- the directory ----


def check_work_dir(source: Source, folder: Path) -> None:
    """ValueError where the directory to write is the model itself."""
    if source.path.is_dir() and folder.exists() and folder.samefile(source.path):
        raise ValueError(f'work_dir "{folder}" is the model itself: choose another directory')


def begin(source: Source, work_dir: str | Path) -> Path:
    """The directory to write into. While it is written it has no config.json, so that nothing
    half-written can be loaded."""
    folder = Path(work_dir)
    check_work_dir(source, folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").unlink(missing_ok=True)
    for old in folder.glob("model*.safetensors*"):
        old.unlink()
    return folder


def write(
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
    stored = stored_dtype(source, dtype)
    folder = begin(source, work_dir)
    parts = [kept(source, name, stored) for name in source.tensors]
    config = config_of(source, stored)
    write(source, folder, parts, config, "exporting", max_shard_bytes)
    return folder
