"""Rewrites a model as a Hugging Face directory, or a GGUF file, of floats."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..progress import adding_bytes
from . import gguf_model, report, tokenizer_files
from .floats import DTYPES, as_dtype, check_finite
from .layers import layer_of
from .shards import MAX_SHARD_BYTES, Part, Tensor, write_json, write_shards
from .source import Source

#: Files of weights as they are written here, and what a kill leaves of one.
WEIGHTS = re.compile(r"model((-\d+-of-\d+)?\.safetensors(\.index\.json)?|\.gguf)(\.partial)?")


def kept(source: Source, name: str, dtype: str) -> Part:
    """A tensor that stays a float, as `dtype`."""
    tensor = Tensor(name, dtype, source.tensors[name].shape)
    return Part((tensor,), lambda: [as_dtype(dtype, name, source.read(name))])


def check_outside(source: Source) -> None:
    """ValueError for a NaN or an infinity in embedding, final norm or head, before hours are spent
    on the layers."""
    for name in source.tensors:
        if layer_of(name) < 0:
            check_finite(name, source.read(name))


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
    """ValueError where the directory to write is, or has, the model itself, or is no directory."""
    for path in (folder, folder / gguf_model.FILE):
        if path.exists() and path.samefile(source.path):
            raise ValueError(f'"{path}" is the model itself: choose another work_dir')
    if folder.exists() and not folder.is_dir():
        raise ValueError(f'work_dir must be a directory, and "{folder}" is a file')


def weights_of(folder: Path) -> list[Path]:
    """The files of weights that were written into a directory."""
    found = (path for path in folder.iterdir() if WEIGHTS.fullmatch(path.name))
    return [path for path in found if path.suffix in (".safetensors", ".gguf")]


def begin(source: Source, work_dir: str | Path) -> Path:
    """The directory to write into. While it is written it has no config.json and no GGUF file, so
    that nothing half-written can be loaded."""
    folder = Path(work_dir)
    check_work_dir(source, folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", report.FILE):
        (folder / name).unlink(missing_ok=True)
    for old in [path for path in folder.iterdir() if WEIGHTS.fullmatch(path.name)]:
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
    with adding_bytes(what, sum(part.n_bytes for part in parts)) as done:
        write_shards(folder, parts, done, max_shard_bytes)
    tokenizer_files.write(source, folder)
    write_json(folder / "config.json", config)


def export(
    model: str | Path | None = None,
    work_dir: str | Path = "./work_dir",
    *,
    format: str = "hf",
    dtype: str = "auto",
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    """Writes a model's floats: as a Hugging Face directory, which is returned, or as model.gguf in
    the directory, whose path is returned.

    model: a path, a model id, or None for the embedded model. format: "hf" or "gguf". dtype: "auto"
    keeps every value exactly (fp32 for the codes of a GGUF file), or "float32", "float16",
    "bfloat16". max_shard_bytes: of a directory's files.

    Raises what `pipeline` raises for a model that cannot be opened; UnsupportedError for a model
    that is quantised for another engine, or that the format cannot express; ValueError for a value
    that dtype cannot hold; OSError.
    """
    if format not in ("hf", "gguf"):
        raise ValueError(f"format must be hf or gguf, not {format!r}")
    source = Source(model)
    stored = stored_dtype(source, dtype)
    if format == "gguf":
        file = gguf_model.GgufModel(source, gguf_model.float_types(source, DTYPES.get(dtype)))
        return file.write(begin(source, work_dir), "exporting")
    config = config_of(source, stored)
    folder = begin(source, work_dir)
    parts = [kept(source, name, stored) for name in source.tensors]
    write(source, folder, parts, config, "exporting", max_shard_bytes)
    return folder
