"""Reads the headers of safetensors files: names, shapes and places of tensors, all checked.

Format: an 8-byte little-endian length, a JSON header of that length, then the data, which C maps.
Files are untrusted: every number is checked here, and once more where it is used.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .._C import TensorSpec

MAX_HEADER_BYTES = 100_000_000  # the format's own bound
BYTES_PER_VALUE = {"F32": 4, "F16": 2, "BF16": 2, "I32": 4}


def bad_file(path: Path, problem: str) -> ValueError:
    """The exception for a file with a problem: a CheckpointError."""
    from .._C import CheckpointError

    return CheckpointError(f'"{path}": {problem}')


def read_json(path: Path, max_bytes: int = MAX_HEADER_BYTES) -> dict[str, Any]:
    """An object from a JSON file. CheckpointError for anything else."""
    if path.stat().st_size > max_bytes:
        raise bad_file(path, f"larger than {max_bytes} bytes")
    return _parse_object(path, path.read_bytes())


def _parse_object(path: Path, text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise bad_file(path, f"its JSON is wrong: {error}") from None
    if not isinstance(value, dict):
        raise bad_file(path, f"its JSON must be an object, not {type(value).__name__}")
    return value


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key is there twice")
    return result


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header, and the offset in bytes at which the data begins."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise bad_file(path, f"{size} bytes are too few for a safetensors file")
        length = int.from_bytes(prefix, "little")
        if length > MAX_HEADER_BYTES or length > size - 8:
            raise bad_file(path, f"its header of {length} bytes does not fit: it is truncated")
        return _parse_object(path, file.read(length)), 8 + length


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _spec(path: Path, name: str, entry: Any, begin: int, size: int) -> TensorSpec:
    if not isinstance(entry, dict):
        raise bad_file(path, f'tensor "{name}": its entry is no object')
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if dtype not in BYTES_PER_VALUE:
        served = ", ".join(BYTES_PER_VALUE)
        raise bad_file(path, f'tensor "{name}" has dtype {dtype!r}; served: {served}')
    if not isinstance(shape, list) or not all(_is_count(d) for d in shape):
        raise bad_file(path, f'tensor "{name}" has shape {shape!r}')
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise bad_file(path, f'tensor "{name}" has data_offsets {offsets!r}')
    n_bytes = BYTES_PER_VALUE[dtype]
    for dim in shape:
        n_bytes *= dim
    first, last = offsets
    if last - first != n_bytes:
        raise bad_file(path, f'tensor "{name}" has {last - first} bytes, its shape needs {n_bytes}')
    if begin + last > size:
        raise bad_file(path, f'tensor "{name}" ends after the end of the file: it is truncated')
    return (name, dtype, tuple(shape), str(path), begin + first, n_bytes)


def read_specs(path: Path) -> list[TensorSpec]:
    """The tensors of one file. CheckpointError names what is wrong."""
    header, begin = _read_header(path)
    size = path.stat().st_size
    specs = [
        _spec(path, name, entry, begin, size)
        for name, entry in header.items()
        if name != "__metadata__"
    ]
    ordered = sorted(specs, key=lambda spec: spec[4])
    for before, after in pairwise(ordered):
        if before[4] + before[5] > after[4]:
            raise bad_file(path, f'tensors "{before[0]}" and "{after[0]}" overlap')
    return specs


def _shards(index_path: Path) -> dict[str, set[str]]:
    """File name -> the tensors that the index says it holds."""
    weight_map = read_json(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise bad_file(index_path, 'it has no object "weight_map"')
    shards: dict[str, set[str]] = {}
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
            raise bad_file(index_path, f"{name!r} is no plain file name")
        shards.setdefault(name, set()).add(tensor)
    return shards


def read_directory(directory: Path) -> list[TensorSpec]:
    """Every tensor of a Hugging Face directory: model.safetensors, or shards by their index."""
    index = directory / "model.safetensors.index.json"
    single = directory / "model.safetensors"
    if single.exists():
        return read_specs(single)
    if not index.exists():
        pickled = any(directory.glob("*.bin")) or any(directory.glob("*.pt"))
        why = "; .bin and .pt files are pickles, which are never loaded" if pickled else ""
        raise bad_file(directory, f"it has no model.safetensors and no index of shards{why}")
    specs: dict[str, TensorSpec] = {}
    for name, expected in _shards(index).items():
        shard = directory / name
        if not shard.is_file():
            raise bad_file(index, f'it names "{name}", which is not there')
        found = {spec[0]: spec for spec in read_specs(shard)}
        missing = expected - found.keys()
        if missing:
            raise bad_file(shard, f'it lacks tensor "{min(missing)}", which the index places there')
        twice = specs.keys() & found.keys()
        if twice:
            raise bad_file(shard, f'tensor "{min(twice)}" is in another shard too')
        specs.update(found)
    return list(specs.values())
