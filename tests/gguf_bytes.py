"""Builds GGUF files byte by byte, right ones and those that no writer would write."""

import struct
from collections.abc import Sequence

import numpy as np

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
#: Value type -> NumPy type of the fixed-size ones.
NUMBERS = {
    U8: "u1", I8: "i1", U16: "<u2", I16: "<i2", U32: "<u4", I32: "<i4", F32: "<f4", BOOL: "?",
    U64: "<u8", I64: "<i8", F64: "<f8",
}  # fmt: skip
F32_TENSOR, F16_TENSOR, Q4_0_TENSOR, Q4_K_TENSOR = 0, 1, 2, 12


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def pair(key: str | bytes, value_type: int, payload: bytes) -> bytes:
    return string(key) + struct.pack("<I", value_type) + payload


def number(key: str, value_type: int, value: float) -> bytes:
    return pair(key, value_type, np.array(value, NUMBERS[value_type]).tobytes())


def array(key: str, item_type: int, n: int, items: bytes) -> bytes:
    return pair(key, ARRAY, struct.pack("<IQ", item_type, n) + items)


def tensor(name: str | bytes, file_dims: Sequence[int], tensor_type: int, offset: int) -> bytes:
    """A directory entry; file_dims has the row's length first."""
    dims = struct.pack(f"<I{len(file_dims)}Q", len(file_dims), *file_dims)
    return string(name) + dims + struct.pack("<IQ", tensor_type, offset)


def gguf_file(
    pairs: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    n_pairs: int | None = None,
    n_tensors: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A whole file. n_pairs and n_tensors: the counts in its header, when they shall be wrong."""
    counts = (
        len(tensors) if n_tensors is None else n_tensors,
        len(pairs) if n_pairs is None else n_pairs,
    )
    head = magic + struct.pack("<IQQ", version, *counts) + b"".join([*pairs, *tensors])
    return head + bytes(-len(head) % alignment) + data if data else head


def with_type(file: bytes, name: str, tensor_type: int) -> bytes:
    """A file whose directory gives a tensor another type."""
    at = file.index(string(name)) + len(string(name))
    at += 4 + 8 * int(struct.unpack_from("<I", file, at)[0])
    return file[:at] + struct.pack("<I", tensor_type) + file[at + 4 :]


def small_file() -> bytes:
    """A right file with every kind of value, two tensors, and no byte after the last one's data."""
    pairs = [
        pair("general.architecture", STRING, string("llama")),
        number("general.alignment", U32, 32),
        number("a.flag", BOOL, 1),
        number("a.float", F32, 0.5),
        array("a.words", STRING, 3, string("one") + string("") + string("drei")),
        array("a.numbers", I32, 3, np.arange(3, dtype="<i4").tobytes()),
        array("a.nothing", F32, 0, b""),
    ]
    tensors = [
        tensor("floats", [2, 3], F32_TENSOR, 0),
        tensor("blocks", [32, 2], Q4_0_TENSOR, 32),
    ]
    floats = np.arange(6, dtype="<f4").tobytes()
    blocks = bytes(range(16, 52))
    return gguf_file(pairs, tensors, floats.ljust(32, b"\0") + blocks)
