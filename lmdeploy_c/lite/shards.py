"""Writes tensors as safetensors, shard by shard, so that nothing half-written can be loaded.

Format: see files/safetensors.py. A file is written under another name and renamed when it is
whole; the index comes after the shards.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

MAX_SHARD_BYTES = 4 << 30
#: A type's name as GGUF writes it -> the values of a block, and its bytes.
BLOCKS = {
    "F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "I32": (1, 4), "I64": (1, 8),
    "I8": (1, 1), "U8": (1, 1), "Q4_0": (32, 18), "Q4_1": (32, 20), "Q8_0": (32, 34),
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """A tensor to write."""

    name: str
    dtype: str  # a key of BLOCKS
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        block_len, block_bytes = BLOCKS[self.dtype]
        return math.prod(self.shape) // block_len * block_bytes


@dataclass(frozen=True)
class Part:
    """Tensors that are made together, when their turn comes."""

    tensors: tuple[Tensor, ...]
    #: Of those shapes; BF16: bits as uint16, blocks: the bytes of each row.
    make: Callable[[], Sequence[NDArray[Any]]]

    @property
    def n_bytes(self) -> int:
        return sum(tensor.n_bytes for tensor in self.tensors)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a file that takes its name only when it is written whole and on the disk."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    with whole_file(path) as file:
        file.write((json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def _header(tensors: Sequence[Tensor]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in tensors:
        end = at + tensor.n_bytes
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [at, end],
        }
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def header_bytes(tensors: Sequence[Tensor]) -> int:
    """What a file of these tensors takes besides them."""
    return len(_header(tensors))


def write_parts(
    file: BinaryIO, parts: Sequence[Part], done: Callable[[int], object], alignment: int = 1
) -> None:
    """Writes the tensors one after another, each followed by zeros up to the alignment (bytes)."""
    for part in parts:
        for tensor, array in zip(part.tensors, part.make(), strict=True):
            is_same = array.shape == tensor.shape or BLOCKS[tensor.dtype][0] > 1
            if not is_same or array.nbytes != tensor.n_bytes:
                raise AssertionError(f"{tensor}, but it was made as {array.shape}")
            file.write(np.ascontiguousarray(array).data)
            file.write(bytes(-tensor.n_bytes % alignment))
        done(part.n_bytes)


def write_shard(
    path: Path, parts: Sequence[Part], done: Callable[[int], object] = lambda n_bytes: None
) -> None:
    """Writes one file of tensors. Raises OSError and whatever a part raises."""
    with whole_file(path) as file:
        file.write(_header([tensor for part in parts for tensor in part.tensors]))
        write_parts(file, parts, done)


def _cut(parts: Sequence[Part], max_bytes: int) -> list[list[Part]]:
    shards: list[list[Part]] = [[]]
    room = max_bytes
    for part in parts:
        if shards[-1] and part.n_bytes > room:
            shards.append([])
            room = max_bytes
        shards[-1].append(part)
        room -= part.n_bytes
    return shards


def write_shards(
    folder: Path,
    parts: Sequence[Part],
    done: Callable[[int], object] = lambda n_bytes: None,
    max_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes model.safetensors, or shards of about max_bytes with their index. done: is called
    with the bytes of each part that was written. Raises OSError and whatever a part raises."""
    shards = _cut(parts, max_bytes)
    if len(shards) == 1:
        write_shard(folder / "model.safetensors", shards[0], done)
        return
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards, 1):
        name = f"model-{i:05}-of-{len(shards):05}.safetensors"
        write_shard(folder / name, shard, done)
        weight_map |= {tensor.name: name for part in shard for tensor in part.tensors}
    index = {"metadata": {"total_size": sum(p.n_bytes for p in parts)}, "weight_map": weight_map}
    write_json(folder / "model.safetensors.index.json", index)
