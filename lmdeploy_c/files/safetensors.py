"""Reads the headers of safetensors files: names, shapes and places of tensors, all checked.

Format: an 8-byte little-endian length, a JSON header of that length, then the data, which C maps.
Files are untrusted: every number is checked here, and once more where it is used.
"""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .._C import TensorSpec

#: JSON takes some ten times its size as Python's objects, so each kind of file has its own bound.
MAX_HEADER_BYTES = 32 << 20  # some 200,000 tensors; the format's own bound is 100 MB
MAX_INDEX_BYTES = 64 << 20  # of all shards
MAX_CONFIG_BYTES = 4 << 20  # settings; the longest known list every module and have 300 KB
MAX_DEPTH = 64  # lists and objects inside one another
MAX_NAME_BYTES = 255  # of a tensor; longer ones are passed over, for no model has any
#: The types that are read. A tensor of another one is refused where it is needed (in C).
BYTES_PER_VALUE = {"F32": 4, "F16": 2, "BF16": 2, "I32": 4, "I8": 1}
MAX_DIMS = 64  # far above any tensor's; what else there may be is C's to say
PICKLES = (
    ".bin and .pt files are pickles, which are never loaded: save the model as safetensors, as "
    "transformers' save_pretrained does"
)
INDEX = "model.safetensors.index.json"  # of a model in several files
LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def bad_file(path: Path, problem: str) -> ValueError:
    """The exception for a file with a problem: a CheckpointError."""
    from .._C import CheckpointError

    return CheckpointError(f'"{path}": {problem}')


def check_no_pointer(path: Path) -> None:
    """CheckpointError for what git-lfs leaves in place of a file that it did not fetch."""
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise bad_file(
                path, 'this is a git-lfs pointer, not the file: run "git lfs pull" in its folder'
            )


def read_json(path: Path, max_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """An object from a JSON file. CheckpointError for anything else."""
    return parse_object(path, read_bounded(path, max_bytes))


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """A file's bytes. CheckpointError for more than max_bytes, whatever its size was before."""
    check_no_pointer(path)
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise bad_file(path, f"larger than {max_bytes} bytes, which no such file needs")
    return content


def parse_object(path: Path, text: bytes) -> dict[str, Any]:
    """An object from a file's JSON, without equal keys and not too deep. CheckpointError."""
    try:
        value = json.loads(text, object_pairs_hook=_no_duplicates)
        check_depth(value)
    except RecursionError:
        raise bad_file(path, f"its JSON is wrong: {TOO_DEEP}") from None
    except ValueError as error:  # also of text that is no UTF-8, and of numbers too long to read
        raise bad_file(path, f"its JSON is wrong: {error}") from None
    if not isinstance(value, dict):
        raise bad_file(path, f"its JSON must be an object, not {type(value).__name__}")
    return value


TOO_DEEP = f"lists and objects inside one another more than {MAX_DEPTH} deep"


def check_depth(value: Any) -> None:
    """ValueError for a value of JSON that is too deep to walk through by recursion."""
    level = [value]
    for _ in range(MAX_DEPTH):
        items = (v.values() if isinstance(v, dict) else v for v in level if v)
        level = [item for each in items for item in each if isinstance(item, (dict, list))]
        if not level:
            return
    raise ValueError(TOO_DEEP)


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
        if LFS_POINTER.startswith(prefix):
            check_no_pointer(path)
        length = int.from_bytes(prefix, "little")
        if length > size - 8:
            raise bad_file(path, f"its header of {length} bytes does not fit: it is truncated")
        if length > MAX_HEADER_BYTES:
            raise bad_file(path, f"its header of {length} bytes is larger than {MAX_HEADER_BYTES}")
        return parse_object(path, file.read(length)), 8 + length


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _is_name(name: str) -> bool:
    """Whether a model may have a tensor of this name."""
    return 0 < len(name.encode(errors="replace")) <= MAX_NAME_BYTES and name.isprintable()


def _spec(path: Path, name: str, entry: Any, begin: int, size: int) -> TensorSpec:
    if not isinstance(entry, dict):
        raise bad_file(path, f'tensor "{name}": its entry is no object')
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str):
        raise bad_file(path, f'tensor "{name}" has dtype {dtype!r}')
    if not isinstance(shape, list) or len(shape) > MAX_DIMS or not all(map(_is_count, shape)):
        raise bad_file(path, f'tensor "{name}" has shape {shape!r:.80}')
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise bad_file(path, f'tensor "{name}" has data_offsets {offsets!r}')
    first, last = offsets
    n_bytes = last - first
    wanted = math.prod(shape) * BYTES_PER_VALUE.get(dtype, 0)
    if n_bytes < 0 or (dtype in BYTES_PER_VALUE and n_bytes != wanted):
        raise bad_file(path, f'tensor "{name}" has {n_bytes} bytes, its shape needs {wanted}')
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
        if name != "__metadata__" and _is_name(name)
    ]
    ordered = sorted(specs, key=lambda spec: spec[4])
    for before, after in pairwise(ordered):
        if before[4] + before[5] > after[4]:
            raise bad_file(path, f'tensors "{before[0]}" and "{after[0]}" overlap')
    return specs


def _shards(index_path: Path) -> dict[str, set[str]]:
    """File name -> the tensors that the index says it holds."""
    weight_map = read_json(index_path, MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise bad_file(index_path, 'it has no object "weight_map"')
    shards: dict[str, set[str]] = {}
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
            raise bad_file(index_path, f"{name!r} is no plain file name")
        shards.setdefault(name, set()).add(tensor)
    return shards


def shard_names(index_path: Path) -> list[str]:
    """The files that an index names, plain names all. CheckpointError."""
    return sorted(_shards(index_path))


def _read_all(files: list[Path], places: dict[str, set[str]]) -> list[TensorSpec]:
    """The tensors of several files; one that is in two of them is the index's, if it has it."""
    specs: dict[str, TensorSpec] = {}
    for file in files:
        mine = places.get(file.name, set())
        for spec in read_specs(file):
            name = spec[0]
            if name not in specs or name in mine:
                specs[name] = spec
            elif not any(name in place for place in places.values()):
                raise bad_file(file, f'tensor "{name}" is in {Path(specs[name][3]).name} too')
    return list(specs.values())


def _check_shards(index: Path, shards: dict[str, set[str]]) -> None:
    for name in shards:
        if not name.endswith(".safetensors"):
            raise bad_file(index, f'it names "{name}"; {PICKLES}')
        if not (index.parent / name).is_file():
            raise bad_file(index, f'it names "{name}", which is not there')


def read_directory(directory: Path) -> list[TensorSpec]:
    """Every tensor of a Hugging Face directory: model.safetensors, or shards by their index, or
    all safetensors files that are there."""
    index = directory / INDEX
    single = directory / "model.safetensors"
    if single.exists():
        return read_specs(single)
    if index.exists():
        shards = _shards(index)
        _check_shards(index, shards)
        specs = _read_all([directory / name for name in shards], shards)
        lost = set().union(*shards.values()) - {spec[0] for spec in specs}
        if lost:
            raise bad_file(index, f'it places tensor "{min(lost)}" in a shard that lacks it')
        return specs
    files = sorted(directory.glob("*.safetensors"))
    weights = [file for file in files if not file.name.startswith("adapter_")]
    if weights:
        return _read_all(weights, {})
    if files:
        raise bad_file(files[0], "an adapter alone is no model: merge it into its base model")
    pickled = any(file.suffix in (".bin", ".pt", ".pth") for file in directory.iterdir())
    raise bad_file(directory, f"it has no safetensors files{'; ' + PICKLES if pickled else ''}")
