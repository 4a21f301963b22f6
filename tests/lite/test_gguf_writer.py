"""GGUF files byte by byte: what the gguf package and our own reader find in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import gguf_bytes as gb
import numpy as np
import pytest

from lmdeploy_c import _C
from lmdeploy_c.lite.gguf_writer import write_gguf
from lmdeploy_c.lite.shards import Part, Tensor

METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "a.flag": True,
    "a.count": 7,
    "a.large": 1 << 40,
    "a.negative": -5,
    "a.very.negative": -(1 << 40),
    "a.single": 0.5,
    "a.double": 0.1,
    "a.float": np.float32(0.1),
    "a.signed": np.int32(20),
    "a.text": "naïve 東京 \x00 end",
    "a.bytes": b"\xff\xfe".decode("utf-8", "surrogateescape"),
    "a.words": ["one", "", "drei"],
    "a.no.words": [],
    "a.numbers": np.arange(3, dtype=np.int32),
    "a.scores": np.array([0.5, -1e6], np.float32),
    "a.flags": np.array([True, False]),
    "a.nothing": np.zeros(0, np.float32),
}
TYPES = {"a.flag": "BOOL", "a.count": "UINT32", "a.large": "UINT64", "a.negative": "INT32",
         "a.very.negative": "INT64", "a.single": "FLOAT32", "a.double": "FLOAT64",
         "a.float": "FLOAT32", "a.signed": "INT32", "a.text": "STRING", "a.bytes": "STRING",
         "a.words": "ARRAY STRING", "a.no.words": "ARRAY STRING", "a.numbers": "ARRAY INT32",
         "a.scores": "ARRAY FLOAT32", "a.flags": "ARRAY BOOL",
         "a.nothing": "ARRAY FLOAT32"}  # fmt: skip


def parts() -> tuple[list[Part], dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    arrays = {
        "odd": rng.normal(size=(3, 5)).astype(np.float32),
        "halves": rng.normal(size=(7,)).astype(np.float16),
        "blocks": rng.integers(0, 256, (4, 2 * 20), np.uint8),
        "bytes": rng.integers(0, 256, (3, 34), np.uint8),
        "brains": rng.integers(0, 1 << 15, (2, 3, 4)).astype(np.uint16),
    }
    tensors = [Tensor("odd", "F32", (3, 5)), Tensor("halves", "F16", (7,)),
               Tensor("blocks", "Q4_1", (4, 64)), Tensor("bytes", "Q8_0", (3, 32)),
               Tensor("brains", "BF16", (2, 3, 4))]  # fmt: skip
    together = Part(tuple(tensors[1:3]), lambda: [arrays["halves"], arrays["blocks"]])
    alone = [
        Part((t,), lambda t=t: [arrays[t.name]])
        for t in tensors
        if t.name not in ("halves", "blocks")
    ]
    return [alone[0], together, *alone[1:]], arrays


def test_what_readers_find(tmp_path: Path) -> None:
    made, arrays = parts()
    sizes: list[int] = []
    write_gguf(tmp_path / "x.gguf", METADATA, made, sizes.append)
    reader = gguf.GGUFReader(tmp_path / "x.gguf")
    for key, field in reader.fields.items():
        if key.startswith("a."):
            kinds = " ".join(kind.name for kind in field.types)
            empty = key in ("a.no.words", "a.nothing")  # the package does not say of what
            assert kinds == (TYPES[key].split()[0] if empty else TYPES[key]), key
    ours = _C.Gguf(tmp_path / "x.gguf")
    assert list(ours.metadata) == list(METADATA)
    for key, value in METADATA.items():
        assert np.array_equal(np.asarray(ours.metadata[key]), np.asarray(value)), key
        assert ours.metadata[key] is True or not isinstance(value, bool)
    assert [t.name for t in reader.tensors] == ["odd", "halves", "blocks", "bytes", "brains"]
    for tensor in reader.tensors:
        assert tensor.data.tobytes() == arrays[tensor.name].tobytes()
        assert tensor.data_offset % gguf.GGUF_DEFAULT_ALIGNMENT == 0
    assert ours.tensors == {"odd": ("F32", (3, 5)), "halves": ("F16", (7,)),
                            "blocks": ("Q4_1", (4, 64)), "bytes": ("Q8_0", (3, 32)),
                            "brains": ("BF16", (2, 3, 4))}  # fmt: skip
    assert sum(sizes) == sum(a.nbytes for a in arrays.values()) and len(sizes) == 4


def test_the_bytes_are_those_of_a_file_made_by_hand(tmp_path: Path) -> None:
    pairs = [
        gb.pair("general.architecture", gb.STRING, gb.string("llama")),
        gb.number("a.flag", gb.BOOL, 1),
        gb.number("a.float", gb.F32, 0.5),
        gb.array("a.words", gb.STRING, 3, gb.string("one") + gb.string("") + gb.string("drei")),
        gb.array("a.numbers", gb.I32, 3, np.arange(3, dtype="<i4").tobytes()),
    ]
    tensors = [gb.tensor("floats", [2, 3], gb.F32_TENSOR, 0),
               gb.tensor("blocks", [32, 2], gb.Q4_0_TENSOR, 32)]  # fmt: skip
    floats, blocks = np.arange(6, dtype=np.float32), np.arange(36, dtype=np.uint8)
    data = floats.tobytes().ljust(32, b"\0") + blocks.tobytes().ljust(64, b"\0")
    metadata = {"general.architecture": "llama", "a.flag": True, "a.float": 0.5,
                "a.words": ["one", "", "drei"],
                "a.numbers": np.arange(3, dtype=np.int32)}  # fmt: skip
    made = [
        Part((Tensor("floats", "F32", (3, 2)),), lambda: [floats.reshape(3, 2)]),
        Part((Tensor("blocks", "Q4_0", (2, 32)),), lambda: [blocks.reshape(2, 18)]),
    ]
    write_gguf(tmp_path / "x.gguf", metadata, made)
    assert (tmp_path / "x.gguf").read_bytes() == gb.gguf_file(pairs, tensors, data)


def test_a_file_is_there_when_it_is_whole(tmp_path: Path) -> None:
    made, _ = parts()
    seen: list[list[str]] = []

    def fail() -> Any:
        seen.append(sorted(p.name for p in tmp_path.iterdir()))
        raise RuntimeError("no values")

    broken = Part((Tensor("more", "F32", (2,)),), fail)
    with pytest.raises(RuntimeError, match="no values"):
        write_gguf(tmp_path / "x.gguf", METADATA, [*made, broken])
    assert seen == [["x.gguf.partial"]]
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="no number of GGUF's holds"):
        write_gguf(tmp_path / "x.gguf", {"a": 1 << 64}, made)
    assert list(tmp_path.iterdir()) == []
