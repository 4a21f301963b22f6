"""Writes a GGUF file (version 3): metadata, the directory of tensors, their data.

Tensors are made one after another and written as they come. The file takes its name only when it is
whole (`shards.whole_file`). Must not know: what keys and tensors mean.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .shards import Part, Tensor, whole_file, write_parts

VERSION = 3
ALIGNMENT = 32  # bytes; the format's default, for files without general.alignment
#: Types of values, by their numbers in the file.
U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = 4, 5, 6, 7, 8, 9, 10, 11, 12
#: NumPy's types, of scalars and of arrays.
_NUMBERS = {
    "uint8": 0, "int8": 1, "uint16": 2, "int16": 3, "uint32": U32, "int32": I32, "float32": F32,
    "bool": BOOL, "uint64": U64, "int64": I64, "float64": F64,
}  # fmt: skip
#: Types of tensors, by their numbers in the file.
TENSOR_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 8, "BF16": 30}


def _string(text: str) -> bytes:
    """Bytes that are no UTF-8 are surrogates in the text, as `_C.Gguf` gives them."""
    data = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(data)) + data


def _number(value: int | float) -> np.generic:
    """In the type that llama.cpp expects: 32 bits where they hold the value, and no sign where it
    has none."""
    if isinstance(value, bool):
        return np.bool_(value)
    if isinstance(value, float):
        single = np.float32(value)
        return single if float(single) == value or value != value else np.float64(value)
    for dtype in (np.uint32, np.int32, np.uint64, np.int64):
        if np.iinfo(dtype).min <= value <= np.iinfo(dtype).max:
            return dtype(value)
    raise ValueError(f"no number of GGUF's holds {value}")


def _value(value: Any) -> bytes:
    """A value's type and its bytes."""
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _string(value)
    if isinstance(value, list):
        head = struct.pack("<IIQ", ARRAY, STRING, len(value))
        return head + b"".join(map(_string, value))
    if isinstance(value, np.ndarray):
        head = struct.pack("<IIQ", ARRAY, _NUMBERS[value.dtype.name], value.size)
        return head + value.astype(value.dtype.newbyteorder("<")).tobytes()
    number = value if isinstance(value, np.generic) else _number(value)
    little = np.asarray(number).astype(number.dtype.newbyteorder("<"))
    return struct.pack("<I", _NUMBERS[number.dtype.name]) + little.tobytes()


def _directory(tensors: Sequence[Tensor]) -> bytes:
    entries, at = [], 0
    for tensor in tensors:
        n_dims = len(tensor.shape)
        dims = struct.pack(f"<I{n_dims}Q", n_dims, *reversed(tensor.shape))
        place = struct.pack("<IQ", TENSOR_TYPES[tensor.dtype], at)
        entries.append(_string(tensor.name) + dims + place)
        at += tensor.n_bytes + -tensor.n_bytes % ALIGNMENT
    return b"".join(entries)


def _head(metadata: Mapping[str, Any], parts: Sequence[Part]) -> bytes:
    """What stands before the tensors."""
    tensors = [tensor for part in parts for tensor in part.tensors]
    head = b"GGUF" + struct.pack("<IQQ", VERSION, len(tensors), len(metadata))
    head += b"".join(_string(key) + _value(value) for key, value in metadata.items())
    head += _directory(tensors)
    return head + bytes(-len(head) % ALIGNMENT)


def file_bytes(metadata: Mapping[str, Any], parts: Sequence[Part]) -> int:
    """What `write_gguf` would write."""
    sizes = (tensor.n_bytes for part in parts for tensor in part.tensors)
    return len(_head(metadata, parts)) + sum(size + -size % ALIGNMENT for size in sizes)


def write_gguf(
    path: Path,
    metadata: Mapping[str, Any],
    parts: Sequence[Part],
    done: Callable[[int], object] = lambda n_bytes: None,
) -> None:
    """Writes a file. Raises OSError and whatever a part raises; then there is no file.

    metadata: key -> bool, int, float, str, a list of str, a NumPy scalar or a NumPy array of one
    dimension. Of Python's numbers each gets the smallest type that llama.cpp expects: U32 before
    I32 before U64 before I64, F32 where it holds the value exactly. parts: tensors of the types of
    TENSOR_TYPES, shapes rows first; the columns of blocks are a multiple of 32. done: is called
    with the bytes of each part that was written.
    """
    head = _head(metadata, parts)
    with whole_file(path) as file:
        file.write(head)
        write_parts(file, parts, done, ALIGNMENT)
