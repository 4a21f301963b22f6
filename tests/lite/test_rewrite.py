"""Models rewritten as directories: exactly, and with codes that another reader understands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import packed_models as pm
import pytest
from conftest import GOLDEN, logits_tolerance
from lite_models import logits_of
from safetensors.numpy import load_file, save_file

from lmdeploy_c import _C, Tokenizer
from lmdeploy_c.files.checkpoint import open_checkpoint
from lmdeploy_c.lite import LinearReport, export, target
from lmdeploy_c.lite import quantize as calibrated
from lmdeploy_c.lite.floats import as_dtype
from lmdeploy_c.lite.source import Source

GGUFS = sorted(p for p in (GOLDEN / "gguf").glob("*.gguf") if p.stem != "types")
#: Types that the engine rounds once more: as floats they are nearer to what the file says.
ROUNDED_AGAIN = {"Q2_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"}
FORMS = [
    ("awq", 4, False, "awq"), ("awq", 4, True, "awq"), ("gptq", 4, True, "gptq"),
    ("gptq", 4, False, "gptq_v2"), ("gptq", 8, True, "gptq-8"),
    ("compressed-tensors", 4, False, "compressed"), ("compressed-tensors", 8, True, "compressed-8"),
    ("compressed-tensors", 4, True, "compressed_sym"), ("gptq", 3, True, "gptq-3"),
    ("gptq", 3, False, "gptq_v2-3"), ("compressed-tensors", 3, False, "compressed-3"),
    ("compressed-tensors", 3, True, "compressed_sym-3"),
    ("int-quantized", 8, True, "int-quantized"),
]  # fmt: skip
#: int-quantized has one scale for each row.
FORMS_IN_GROUPS = [(*form, group) for form in FORMS for group in (32, -1)
                   if form[0] != "int-quantized" or group == -1]  # fmt: skip


def quantize(*args: Any, **options: Any) -> list[LinearReport]:
    """Without calibration: these models have no tokenizer."""
    return calibrated(*args, method="rtn", calib_dataset=None, **options)


# ---- export ----


@pytest.mark.parametrize("path", GGUFS, ids=lambda p: p.stem)
def test_a_gguf_file_becomes_a_directory_of_the_same_model(tmp_path: Path, path: Path) -> None:
    """The same configuration, and the same logits but for what codes round."""
    checkpoint = open_checkpoint(path)
    if checkpoint.config["rope_freqs_tensor"]:
        with pytest.raises(_C.UnsupportedError, match=r"rope_freqs\.weight"):
            export(path, tmp_path / "out")
        return
    made = export(path, tmp_path / "out")
    got = open_checkpoint(made)
    ours = {"arch", "naming", "interleaved_rope"}
    same = {key: value for key, value in checkpoint.config.items() if key not in ours}
    assert {key: value for key, value in got.config.items() if key not in ours} == same
    assert got.eos_token_ids == checkpoint.eos_token_ids
    assert got.bos_token_id == checkpoint.bos_token_id
    a, b = logits_of(made), logits_of(path)
    rounded = ROUNDED_AGAIN & {stored.dtype for stored in Source(path).tensors.values()}
    tolerance = 0.05 if rounded else logits_tolerance()
    assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


def test_every_value_is_kept(tmp_path: Path) -> None:
    """A directory's floats are copied bit for bit, in one file or in several."""
    model = pm.write_float_model(tmp_path / "model")
    export(model, tmp_path / "one")
    export(model, tmp_path / "many", max_shard_bytes=1 << 16)
    original = load_file(model / "model.safetensors")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    for folder in ("one", "many"):
        found: dict[str, Any] = {}
        for file in (tmp_path / folder).glob("*.safetensors"):
            found |= load_file(file)
        assert found.keys() == original.keys()
        assert all((found[name] == original[name]).all() for name in found)
        assert all(found[name].dtype == np.float16 for name in found)
    assert (logits_of(tmp_path / "many") == logits_of(model)).all()
    assert json.loads((tmp_path / "one" / "config.json").read_text())["torch_dtype"] == "float16"


def test_bf16_is_rounded_to_the_nearest(tmp_path: Path) -> None:
    model = pm.write_float_model(tmp_path / "model")
    export(model, tmp_path / "out", dtype="bfloat16")
    source = Source(tmp_path / "out")
    for name, values in load_file(model / "model.safetensors").items():
        got, exact = source.read(name), values.astype(np.float32)
        assert source.tensors[name].dtype == "BF16"
        assert (np.abs(got - exact) <= np.abs(exact) * 2**-8 * 1.0001).all()
    export(tmp_path / "out", tmp_path / "again")
    a, b = ((tmp_path / f / "model.safetensors").read_bytes() for f in ("out", "again"))
    assert a == b


@pytest.mark.parametrize("name", ["none", "bos"])
def test_the_tokenizer_comes_along(tmp_path: Path, name: str) -> None:
    """What a GGUF file says of its tokenizer, written for others to read."""
    path = next(p for p in GGUFS if "rope-llama3" not in p.stem)
    source = Source(path)
    metadata = dict(source.checkpoint.metadata)
    if "tokenizer.ggml.model" not in metadata:
        pytest.skip("the golden models have no vocabulary")
    metadata["tokenizer.ggml.add_bos_token"] = name == "bos"
    original = Tokenizer.from_gguf(metadata)
    original.save(tmp_path / "tokenizer.json")
    got = Tokenizer(tmp_path)
    for text in ("Hello world", "", "  two spaces\n", "naïve 東京"):
        assert got.encode(text) == original.encode(text)


# ---- quantised ----


@pytest.mark.parametrize(("form", "bits", "symmetric", "oracle", "group"), FORMS_IN_GROUPS)
def test_codes_mean_what_they_should(
    tmp_path: Path, form: str, bits: int, symmetric: bool, oracle: str, group: int
) -> None:
    """Decoded by the format's definition in NumPy, the matrices are near the original ones, and
    the engine computes with just these."""
    head_dim = 64 if form == "gptq" else 32  # it packs 32 zeros of 3 bits together
    model = pm.write_float_model(tmp_path / "model", head_dim=head_dim)
    done = quantize(
        model, tmp_path / "out", format=form, w_bits=bits, w_group_size=group, w_sym=symmetric
    )
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    dense = pm.dense_tensors(oracle, tensors)
    original = load_file(model / "model.safetensors")
    assert dense.keys() == original.keys()
    most = {3: 0.06 if group == 32 else 0.13, 4: 0.012 if group == 32 else 0.03, 8: 1e-4}[bits]
    for linear in done:
        exact = original[linear.name].astype(np.float64)
        error = float(np.square(dense[linear.name] - exact).sum() / np.square(exact).sum())
        assert error == pytest.approx(linear.error, rel=1e-3)
        # What is searched for is an error in which large weights count more.
        assert error <= linear.min_max_error * 1.01 and error < most
    config = json.loads((model / "config.json").read_text())
    plain = logits_of(pm.write_model(tmp_path / "dense", config, dense))
    got = logits_of(tmp_path / "out")
    assert np.abs(got - plain).max() <= logits_tolerance() * np.abs(plain).max()


@pytest.mark.parametrize("arch", ["qwen2", "qwen3", "internlm2"])
def test_architectures(tmp_path: Path, arch: str) -> None:
    model = pm.write_float_model(tmp_path / "model", arch)
    done = quantize(model, tmp_path / "out")
    assert len(done) == len(pm.linears_of(json.loads((model / "config.json").read_text())))
    a, b = logits_of(tmp_path / "out"), logits_of(model)
    assert 0 < np.abs(a - b).mean() < 0.4 * np.abs(b).mean()


def test_group_sizes(tmp_path: Path) -> None:
    model = pm.write_float_model(tmp_path / "model")  # 128 and 192 columns
    source = Source(model)
    assert target.group_size_for(source, None) == 64
    assert target.group_size_for(source, -1) == -1
    with pytest.raises(ValueError, match=r"groups of 128 do not divide the 192 columns of .*down"):
        quantize(model, tmp_path / "out", w_group_size=128)
    assert not (tmp_path / "out").exists()


def test_another_models_files_go(tmp_path: Path) -> None:
    """Files that only an earlier model in the directory had would be read beside the new ones; a
    user's own stay."""
    model = pm.write_float_model(tmp_path / "model")
    (model / "chat_template.jinja").write_text("the earlier one's")
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "tool.jinja").write_text("the earlier one's")
    out = export(model, tmp_path / "out")
    assert (out / "chat_template.jinja").exists() and (out / "additional_chat_templates").exists()
    others = ("notes.txt", "model_of_mine.safetensors", "other.gguf")
    for name in others:
        (out / name).write_text("a user's")
    for name in ("model-00001-of-00002.safetensors", "model.gguf.partial"):
        (out / name).write_text("what a killed run has left")
    export(GOLDEN / "gguf" / "llama-float.gguf", out)
    new = {p.name for p in export(GOLDEN / "gguf" / "llama-float.gguf", tmp_path / "n").iterdir()}
    assert {p.name for p in out.iterdir()} == {*new, *others}


# ---- what goes wrong ----


def test_nothing_half_written_can_be_loaded(tmp_path: Path, monkeypatch: Any) -> None:
    """A tensor with a NaN ends the work before anything is written: an older model stays whole."""
    model = pm.write_float_model(tmp_path / "model")
    quantize(model, tmp_path / "out")
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = np.nan
    save_file(tensors, model / "model.safetensors")
    with pytest.raises(ValueError, match=r'"model\.layers\.1\.mlp\.up_proj\.weight": .* in row 3'):
        quantize(model, tmp_path / "out")
    assert open_checkpoint(tmp_path / "out").config["quant_method"] == "awq"
    with pytest.raises(ValueError, match=r"up_proj\.weight"):
        quantize(model, tmp_path / "new")
    assert list((tmp_path / "new").glob("*.safetensors*")) == []
    with pytest.raises(ValueError, match=r"config\.json"):
        open_checkpoint(tmp_path / "new")


def test_a_full_disk(tmp_path: Path, monkeypatch: Any) -> None:
    model = pm.write_float_model(tmp_path / "model")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        export(model, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_refusals(tmp_path: Path) -> None:
    model = pm.write_float_model(tmp_path / "model")
    quantize(model, tmp_path / "out")
    with pytest.raises(_C.UnsupportedError, match=r"quantised already \(awq\)"):
        quantize(tmp_path / "out", tmp_path / "again")
    with pytest.raises(ValueError, match="is the model itself"):
        export(model, model)
    with pytest.raises(ValueError, match="dtype must be auto, float32"):
        export(model, tmp_path / "again", dtype="fp16")
    with pytest.raises(ValueError, match="format must be awq, gptq"):
        quantize(model, tmp_path / "again", format="ggml")
    with pytest.raises(_C.UnsupportedError, match="w_bits of awq must be 4, not 8"):
        quantize(model, tmp_path / "again", w_bits=8)
    for options in ({}, {"w_sym": True}, {"w_group_size": -1}):
        with pytest.raises(_C.UnsupportedError, match="one scale for each row and no zeros"):
            quantize(model, tmp_path / "again", format="int-quantized", w_bits=8, **options)
    small = pm.write_float_model(tmp_path / "small", head_dim=24)  # k and v have 48 rows
    with pytest.raises(ValueError, match="k_proj.weight: gptq packs 3-bit zeros of 32 rows"):
        quantize(small, tmp_path / "again", format="gptq", w_bits=3)
    odd = pm.write_float_model(tmp_path / "odd", intermediate_size=196)
    with pytest.raises(ValueError, match=r"_proj\.weight has shape \(128, 196\); packed are"):
        quantize(odd, tmp_path / "again")
    large = load_file(model / "model.safetensors")
    large = {name: array.astype(np.float32) * 1e6 for name, array in large.items()}
    save_file(large, model / "model.safetensors")
    with pytest.raises(ValueError, match=r'tensor ".*" has values that float16 cannot hold'):
        export(model, tmp_path / "again", dtype="float16")
    with pytest.raises(ValueError, match='"big" has values that bfloat16 cannot hold'):
        as_dtype("BF16", "big", np.array([3.4e38], np.float32))  # which rounds to infinity
