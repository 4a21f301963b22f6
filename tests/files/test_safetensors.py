"""Hugging Face directories: safetensors against the library, hostile headers, refused configs."""

from __future__ import annotations

import json
import random
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import GOLDEN
from safetensors.numpy import load_file, save_file

from lmdeploy_c import _C
from lmdeploy_c.files import quantization, safetensors
from lmdeploy_c.files.checkpoint import open_checkpoint, resolve_model
from lmdeploy_c.files.model_config import from_gguf, from_hf

MODEL = GOLDEN / "models" / "llama-mha"
ALLOWED = (ValueError, MemoryError)  # CheckpointError and UnsupportedError are ValueErrors


def test_specs_are_the_librarys(tmp_path: Path) -> None:
    arrays = {
        "a": np.arange(12, dtype=np.float32).reshape(3, 4),
        "b.c": np.ones((2, 2, 2), np.float16),
        "scalar": np.array(3.0, np.float32),
    }
    save_file(arrays, tmp_path / "model.safetensors", metadata={"format": "np"})
    data = (tmp_path / "model.safetensors").read_bytes()
    specs = {spec[0]: spec for spec in safetensors.read_directory(tmp_path)}
    assert specs.keys() == arrays.keys()
    for name, array in arrays.items():
        _, dtype, shape, _, offset, n_bytes = specs[name]
        assert shape == array.shape
        assert dtype == {np.float32: "F32", np.float16: "F16"}[array.dtype.type]
        assert data[offset : offset + n_bytes] == array.tobytes()


def with_header(path: Path, header: Any, data: bytes = b"\0" * 64) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(dtype: Any = "F32", shape: Any = (4,), offsets: Any = (0, 16)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


BAD_HEADERS: list[tuple[Any, str]] = [
    (b"{", "JSON"),
    (b"[]", "must be an object"),
    (b'{"a": 1, "a": 2}', "twice"),
    (b"[" * 100_000, "JSON"),
    (b'{"a": ' + b"[" * 65 + b"]" * 65 + b"}", "64 deep"),
    (b'{"a": ' + b'{"b": ' * 64 + b"1" + b"}" * 65, "64 deep"),
    (b'{"a": ' + b"9" * 5000 + b"}", "JSON.*digits"),
    (b'{"\xff": 1}', "JSON"),
    ({"a": 5}, "no object"),
    ({"a": entry(5)}, "dtype 5"),
    ({"a": entry("F64", offsets=[16, 0])}, "bytes"),
    ({"a": entry("F64", offsets=[64, 96])}, "truncated"),
    ({"a": entry(shape=[1] * 65)}, "shape"),
    ({"a": entry(shape=[-1])}, "shape"),
    ({"a": entry(shape=[1.5])}, "shape"),
    ({"a": entry(shape=[True])}, "shape"),
    ({"a": entry(shape=[2**61])}, "needs"),
    ({"a": entry(offsets=[0, 8])}, "needs 16"),
    ({"a": entry(offsets=[16, 0])}, "needs 16"),
    ({"a": entry(offsets=[0])}, "data_offsets"),
    ({"a": entry(offsets=["0", "16"])}, "data_offsets"),
    ({"a": entry(offsets=[64, 80])}, "truncated"),
    ({"a": entry(), "b": entry(offsets=[8, 24])}, "overlap"),
]


@pytest.mark.parametrize(("header", "message"), BAD_HEADERS, ids=lambda v: str(v)[:30])
def test_a_bad_header_is_named(tmp_path: Path, header: Any, message: str) -> None:
    path = with_header(tmp_path / "model.safetensors", header)
    with pytest.raises(_C.CheckpointError, match=message):
        safetensors.read_specs(path)


@pytest.mark.parametrize("n", [0, 4, 8, 12])
def test_a_short_file_is_truncated(tmp_path: Path, n: int) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<QQ", 100, 0)[:n])
    with pytest.raises(_C.CheckpointError):
        safetensors.read_specs(path)


def test_each_kind_of_file_has_its_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small bounds in their place: what is one byte more is refused before it is parsed."""
    header = json.dumps({"a": entry()}).encode()
    path = with_header(tmp_path / "model.safetensors", header)
    monkeypatch.setattr(safetensors, "MAX_HEADER_BYTES", len(header))
    assert len(safetensors.read_specs(path)) == 1
    monkeypatch.setattr(safetensors, "MAX_HEADER_BYTES", len(header) - 1)
    with pytest.raises(_C.CheckpointError, match=f"{len(header)} bytes is larger than"):
        safetensors.read_specs(path)
    config = tmp_path / "config.json"
    config.write_text('{"a": 1}')
    assert safetensors.read_json(config, 8) == {"a": 1}
    with pytest.raises(_C.CheckpointError, match=r"config.json.*larger than 7 bytes"):
        safetensors.read_json(config, 7)


def test_json_may_be_as_deep_as_any_file_needs(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text('{"a": ' + "[" * 63 + "]" * 63 + "}")
    assert safetensors.read_json(config)["a"]


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "Infinity", "9" * 400, "1e400", "0"])
def test_numbers_out_of_range_are_named(tmp_path: Path, number: str) -> None:
    shutil.copytree(MODEL, tmp_path / "m")
    config = json.loads((MODEL / "config.json").read_text())
    path = tmp_path / "m" / "config.json"
    for key in ("hidden_size", "num_attention_heads", "max_position_embeddings", "rope_theta"):
        if key == "rope_theta" and number == "0":
            continue  # the core's to refuse
        path.write_text(json.dumps({**config, key: "HERE"}).replace('"HERE"', number))
        with pytest.raises(ValueError, match=key):
            open_checkpoint(tmp_path / "m")


def test_modules_are_not_searched_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"layers.{i}" for i in range(4)]
    settings = {"quantization_config": {"modules_to_not_convert": names}}
    specs: list[Any] = [(f"model.layers.{i}.qweight", "I32", (1,), "f", 0, 4) for i in range(6)]
    specs += [("model.layers.1.weight", "F32", (1,), "f", 0, 4)]
    monkeypatch.setattr(quantization, "MAX_SEARCHES", 24)
    assert quantization.without_unconverted(settings, specs) == specs[4:]
    monkeypatch.setattr(quantization, "MAX_SEARCHES", 23)
    with pytest.raises(ValueError, match="4 names for 6 packed tensors"):
        quantization.without_unconverted(settings, specs)


def test_shards(tmp_path: Path) -> None:
    source = GOLDEN / "models" / "llama-gqa-tied"
    assert len(list(source.glob("*.safetensors"))) == 2
    shutil.copytree(source, tmp_path / "m")
    index = tmp_path / "m" / "model.safetensors.index.json"
    written = json.loads(index.read_text())
    first = next(iter(written["weight_map"]))
    for name, message in (("../evil", "plain file name"), ("gone.safetensors", "not there")):
        changed = {**written["weight_map"], first: name}
        index.write_text(json.dumps({"weight_map": changed}))
        with pytest.raises(_C.CheckpointError, match=message):
            open_checkpoint(tmp_path / "m")
    index.write_text(json.dumps({"weight_map": {**written["weight_map"], "extra": "x"}}))
    with pytest.raises(_C.CheckpointError):
        open_checkpoint(tmp_path / "m")


UNREAD = {
    "scalar": entry("I64", (), (0, 8)),
    "nothing": entry("F32", (0, 4), (8, 8)),
    "five": entry("F32", (1, 1, 1, 1, 1), (8, 12)),
    "bytes": entry("U8", (2, 2), (12, 16)),
    "half a byte": entry("F4", (3,), (16, 18)),
    "of the future": entry("X9", (7,), (18, 21)),
    "n" * 300: entry("F32", (1,), (24, 28)),
}


def test_tensors_that_nobody_needs_are_passed_over(tmp_path: Path) -> None:
    shutil.copytree(MODEL, tmp_path / "m")
    with_header(tmp_path / "unread", UNREAD)
    specs = safetensors.read_specs(tmp_path / "unread")
    assert {spec[0] for spec in specs} == {name for name in UNREAD if len(name) < 256}
    checkpoint = open_checkpoint(tmp_path / "m")
    _C.Model(checkpoint.config, [*checkpoint.source, *specs])  # type: ignore[misc]
    by_name = {spec[0]: spec for spec in specs}
    for name, called in (("of the future", "X9"), ("bytes", "U8"), ("five", "a shape")):
        norm = ("model.norm.weight", *by_name[name][1:])
        others = [spec for spec in checkpoint.source if spec[0] != norm[0]]
        with pytest.raises(ValueError, match=f"model.norm.weight.* {called}"):
            _C.Model(checkpoint.config, [*others, norm])


@pytest.mark.parametrize(
    "names", [["awq_model_w4_g128.safetensors"], ["model-00001.safetensors", "rest.safetensors"]]
)
def test_files_of_other_names(tmp_path: Path, names: list[str]) -> None:
    path = tmp_path / "m"
    shutil.copytree(MODEL, path)
    arrays = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    for i, name in enumerate(names):
        part = {key: array for j, (key, array) in enumerate(arrays.items()) if j % len(names) == i}
        save_file(part, path / name)
    save_file({"lora": np.ones(1)}, path / "adapter_model.safetensors")
    checkpoint = open_checkpoint(path)
    assert {spec[0] for spec in checkpoint.source} == arrays.keys()
    _C.Model(checkpoint.config, checkpoint.source)
    save_file(part, path / "z.safetensors")
    with pytest.raises(_C.CheckpointError, match=f"z.safetensors.* is in {names[-1]} too"):
        open_checkpoint(path)


def test_files_that_hold_no_model(tmp_path: Path) -> None:
    shutil.copytree(MODEL, tmp_path / "m")
    path = tmp_path / "m"
    (path / "model.safetensors").rename(path / "adapter_model.safetensors")
    with pytest.raises(_C.CheckpointError, match="adapter alone.*merge"):
        open_checkpoint(path)
    index = {"weight_map": {"a": "pytorch_model-00001-of-00002.bin"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(_C.CheckpointError, match="pickles.*save_pretrained"):
        open_checkpoint(path)


def test_a_tensor_in_two_shards_is_where_the_index_says(tmp_path: Path) -> None:
    path = tmp_path / "m"
    shutil.copytree(GOLDEN / "models" / "llama-gqa-tied", path)
    shards = sorted(path.glob("*.safetensors"))
    name = next(iter(load_file(shards[0])))
    save_file({**load_file(shards[1]), name: np.zeros(3, np.float32)}, shards[1])
    specs = {spec[0]: spec for spec in safetensors.read_directory(path)}
    assert specs[name][3] == str(shards[0])


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "generation_config.json"])
def test_a_git_lfs_pointer_is_called_one(tmp_path: Path, name: str) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 269060552\n"
    shutil.copytree(MODEL, tmp_path / "m")
    (tmp_path / "m" / name).write_bytes(pointer)
    with pytest.raises(_C.CheckpointError, match=f"{name}.*git-lfs pointer.*git lfs pull"):
        open_checkpoint(tmp_path / "m")
    (tmp_path / "m.gguf").write_bytes(pointer)
    with pytest.raises(_C.CheckpointError, match="m.gguf.*git-lfs pointer"):
        open_checkpoint(tmp_path / "m.gguf")


def test_a_missing_or_misshapen_tensor_is_named(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(MODEL)
    specs = list(checkpoint.source)  # type: ignore[arg-type]
    with pytest.raises(_C.CheckpointError, match=r'no tensor "model\.layers\.1\.mlp\.up_proj'):
        _C.Model(checkpoint.config, [s for s in specs if "layers.1.mlp.up_proj" not in s[0]])
    config = {**checkpoint.config, "ffn_dim": checkpoint.config["ffn_dim"] + 1}
    with pytest.raises(_C.CheckpointError, match="has shape"):
        _C.Model(config, specs)
    with pytest.raises(KeyError, match="n_head"):
        _C.Model({k: v for k, v in checkpoint.config.items() if k != "n_head"}, specs)
    with pytest.raises(TypeError, match="n_head must be a 32-bit integer"):
        _C.Model({**checkpoint.config, "n_head": "four"}, specs)
    for key, value in (("n_head", 0), ("head_dim", 12), ("n_layer", 10**6), ("norm_eps", -1.0)):
        with pytest.raises(ValueError, match=key):
            _C.Model({**checkpoint.config, key: value}, specs)
    with pytest.raises(_C.UnsupportedError, match="device"):
        _C.Model(checkpoint.config, specs, device="cuda")
    with pytest.raises(ValueError, match="num_threads"):
        _C.Model(checkpoint.config, specs, num_threads=0)


def test_progress_counts_up_and_can_stop_the_load() -> None:
    checkpoint = open_checkpoint(MODEL)
    seen: list[tuple[int, int]] = []
    _C.Model(checkpoint.config, checkpoint.source, progress=lambda *at: seen.append(at))
    assert seen == sorted(seen)
    assert 0.9 < seen[-1][0] / seen[-1][1] <= 1.0

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _C.Model(checkpoint.config, checkpoint.source, progress=stop)


HF = json.loads((MODEL / "config.json").read_text())
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel is not served; served: Llama"),
    ({"quantization_config": {"quant_method": "fp8"}}, "fp8"),
    ({"hidden_act": "gelu"}, "gelu"),
    ({"is_causal": False}, "is_causal is false"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ({"rope_scaling": {"type": "longrope"}}, "longrope"),
    ({"rope_scaling": {"rope_type": "default", "mrope_section": [1]}}, "mrope"),
    ({"rope_scaling": 5}, "rope_scaling"),
    ({"num_hidden_layers": -1}, "num_hidden_layers"),
    ({"hidden_size": "big"}, "hidden_size"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
    ({"num_experts": 8}, "experts"),
    ({"model_type": "mistral", "sliding_window": 8}, "sliding_window 8"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=lambda v: str(v)[:40])
def test_what_is_not_served_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_hf({**HF, **change})


def test_gguf_configs_are_checked(smollm2_path: Path) -> None:
    gguf = _C.Gguf(smollm2_path)
    metadata = gguf.metadata
    assert from_gguf(metadata, gguf.tensors)["n_layer"] == 30
    for change, message in (
        ({"general.architecture": "bert"}, "'bert'"),
        ({"llama.expert_count": 4}, "expert"),
        ({"llama.attention.causal": False}, "attention.causal is false"),
        ({"llama.block_count": 0}, "block_count"),
        ({"llama.rope.dimension_count": 32}, "rope.dimension_count"),
        ({"llama.rope.scaling.type": "su"}, "'su'"),
    ):
        with pytest.raises(ValueError, match=message):
            from_gguf({**metadata, **change}, gguf.tensors)


def test_finding_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_model(MODEL) == MODEL
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    assert resolve_model(tmp_path) == tmp_path / "x.gguf"
    for name in ("./gone", "/gone/x", "gone.gguf"):
        with pytest.raises(FileNotFoundError, match="no file or directory"):
            resolve_model(name)
    with pytest.raises(ValueError, match="owner/name"):
        resolve_model("gone")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="'owner/name' is no path here"):
        resolve_model("owner/name", download_dir=str(tmp_path))
    monkeypatch.setenv("LMDEPLOY_USE_MODELSCOPE", "True")
    with pytest.raises(FileNotFoundError, match="pip install modelscope"):
        resolve_model("owner/name")
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "config.json").write_text(json.dumps(HF))
    (tmp_path / "p" / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(_C.CheckpointError, match="pickles"):
        open_checkpoint(tmp_path / "p")


def test_mutants_never_kill_the_process(tmp_path: Path) -> None:
    """10,000 mutants of a header: each loads, or raises one of the documented exceptions."""
    random.seed(11)
    shutil.copytree(MODEL, tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    original = path.read_bytes()
    header_end = 8 + int.from_bytes(original[:8], "little")
    checkpoint = open_checkpoint(MODEL)
    outcomes = {"loads": 0, "refused": 0}
    for i in range(10_000):
        data = bytearray(original)
        for _ in range(random.choice((1, 1, 2, 5))):
            at = random.randrange(header_end)
            choice = random.random()
            if choice < 0.5:
                data[at] = random.choice(b'0123456789-[]{},:"eE. ')
            elif choice < 0.8:
                data[at] = random.randrange(256)
            elif choice < 0.9:
                del data[at : at + random.randint(1, 40)]
            else:
                data[at:at] = data[at : at + random.randint(1, 40)]
        path.write_bytes(data[: random.randrange(len(data))] if random.random() < 0.1 else data)
        try:
            specs = safetensors.read_directory(tmp_path / "m")
            if i % 10 == 0:
                _C.Model(checkpoint.config, specs, num_threads=1)
            outcomes["loads"] += 1
        except ALLOWED:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 100, outcomes
