"""Rotated models: transformers' logits of the original ones, and matrices by NumPy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import packed_models as pm
import pytest
from conftest import (
    GOLDEN,
    device_name,
    exact_kv_bits,
    load_model,
    logits_tolerance,
    make_engine,
    read_all,
)
from lite_models import logits_of
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from lmdeploy_c import UnsupportedError
from lmdeploy_c.lite import driver, quantize, rotation, target
from lmdeploy_c.lite.report import FILE
from lmdeploy_c.lite.rotation import Rotation, rotate
from lmdeploy_c.lite.source import Source

GGUF = GOLDEN / "gguf" / "llama-float.gguf"
TEXT = "the quick brown fox jumps over the lazy dog, and so on; " * 20
MODELS = ("internlm2", "llama-bias", "llama-f16", "llama-gqa-tied", "llama-headdim40", "llama-mha",
          "mistral", "qwen2", "qwen2-tied", "qwen3")  # fmt: skip


def matrix(width: int, seed: int = 0) -> NDArray[np.float32]:
    return Rotation(width, seed).columns(np.eye(width, dtype=np.float32))


# ---- the matrix ----


@pytest.mark.parametrize("width", [1, 7, 8, 24, 64, 576])
def test_it_is_orthogonal_and_always_the_same(width: int) -> None:
    q = matrix(width).astype(np.float64)
    assert np.abs(q @ q.T - np.eye(width)).max() < 1e-6
    assert (q == matrix(width)).all()
    assert width == 1 or not (q == matrix(width, 1)).all()
    odd = width // (width & -width)
    # Signs aside, it is a Hadamard matrix of blocks that are all alike.
    blocks = np.abs(q.reshape(width // odd, odd, width // odd, odd))
    assert np.abs(blocks - blocks[:1, :, :1]).max() < 1e-7


def test_products() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(5, 24)).astype(np.float32)
    weights, turn, q = values[1], Rotation(24, 0), matrix(24)
    assert np.abs(turn.columns(values) - values @ q).max() < 1e-5
    assert np.abs(turn.columns(values, weights) - values * weights @ q).max() < 1e-5
    assert np.abs(turn.rows(values.T) - q.T @ values.T).max() < 1e-5
    assert np.abs(turn.rows(values[0]) - q.T @ values[0]).max() < 1e-5


def test_many_rows_are_taken_in_chunks(monkeypatch: Any) -> None:
    values = np.random.default_rng(0).normal(size=(50, 24)).astype(np.float32)
    whole = Rotation(24, 0).columns(values)
    monkeypatch.setattr(rotation, "CHUNK", 24 * 7)
    assert np.abs(Rotation(24, 0).columns(values) - whole).max() < 1e-6


# ---- models ----


@pytest.mark.parametrize("name", MODELS)
def test_the_logits_are_transformers_of_the_original(tmp_path: Path, name: str) -> None:
    model, out = GOLDEN / "models" / name, tmp_path / "out"
    rotate(Source(model), out, "F32")
    golden = np.load(model / "golden.npz")
    engine = make_engine(load_model(out), kv_bits=exact_kv_bits())
    request = engine.submit(golden["input_ids"], max_new_tokens=0, output_logits="all")
    logits = read_all(request).logits
    engine.close()
    assert logits is not None
    got, expected = logits[golden["logit_positions"]], golden["logits"]
    most = 1e-4 if device_name() == "cpu" else logits_tolerance()
    assert np.abs(got - expected).max() <= most * np.abs(expected).max()
    config = json.loads((out / "config.json").read_text())
    assert config["tie_word_embeddings"] is False and config["torch_dtype"] == "float32"
    # Each matrix is another one, and each norm of the residual stream has weights of 1.
    for tensor, values in load_file(out / "model.safetensors").items():
        if tensor.endswith("norm.weight") and not tensor.endswith(
            ("q_norm.weight", "k_norm.weight")
        ):
            assert (values == 1).all()
        elif tensor in Source(model).tensors and values.ndim == 2:
            assert np.abs(values - Source(model).read(tensor)).max() > 1e-2 * np.abs(values).max()


@pytest.mark.parametrize("arch", ["llama", "qwen3", "internlm2"])
def test_norm_weights_and_biases_are_taken_up(tmp_path: Path, arch: str) -> None:
    """Norm weights that are far from 1, and biases of every linear that may have one."""
    biases = {"attention_bias": True, "mlp_bias": True, "bias": True}
    model = pm.write_float_model(tmp_path / "model", arch, dtype=np.float32, **biases)
    rotate(Source(model), tmp_path / "out", "F32")
    a, b = logits_of(tmp_path / "out"), logits_of(model)
    assert np.abs(a - b).max() <= logits_tolerance() * np.abs(b).max()


def test_an_outlier_is_spread(tmp_path: Path) -> None:
    """A channel of the residual stream with norm weights of 50, and one of the value heads."""
    model = pm.write_float_model(tmp_path / "model", dtype=np.float32)
    tensors = load_file(model / "model.safetensors")
    for name in tensors:
        if name.endswith("input_layernorm.weight"):
            tensors[name][5] = 50
        if name.endswith("o_proj.weight"):
            tensors[name][:, 7] *= 50
    save_file(tensors, model / "model.safetensors")
    rotate(Source(model), tmp_path / "out", "F32")
    source = Source(tmp_path / "out")
    for linear in ("q_proj", "v_proj", "o_proj"):
        values = source.read(f"model.layers.0.self_attn.{linear}.weight")
        sizes = np.sqrt(np.square(values).mean(0))
        assert sizes.max() < 10 * np.median(sizes)


# ---- quantised ----


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text").write_text(TEXT)
    return tmp_path / "text"


class Stop(Exception):
    pass


def fail_after(monkeypatch: Any, owner: Any, name: str, n: int) -> None:
    """Makes the n-th call of a function fail."""
    original, calls = getattr(owner, name), iter(range(n))

    def call(*args: Any, **options: Any) -> Any:
        if next(calls, None) is None:
            raise Stop
        return original(*args, **options)

    monkeypatch.setattr(owner, name, call)


def files_of(folder: Path) -> dict[str, bytes]:
    """All but the report, which has times."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != FILE}


@pytest.mark.parametrize(
    "options",
    [
        {"w_group_size": 32},
        {"format": "gguf"},
        {"format": "gguf", "method": "rtn"},
        {"w_group_size": -1, "method": "rtn"},
    ],
    ids=["best", "gguf", "gguf-rtn", "rtn"],
)
def test_a_stopped_run_continues_with_the_same_bits(
    tmp_path: Path, text: Path, monkeypatch: Any, options: dict[str, Any]
) -> None:
    """Stopped while it rotates, and again while it quantises or writes."""
    options |= {"rotate": True, "calib_dataset": text, "calib_seqlen": 64, "num_threads": 2}
    whole = quantize(GGUF, tmp_path / "whole", **options)
    source, out = Source(GGUF), tmp_path / "out"
    assert whole.model == str(GGUF)
    assert whole.before_bytes == sum(map(source.n_bytes, source.tensors))
    linears = [linear for layer in whole.layers for linear in layer.linears]
    assert [x.before_bytes for x in linears] == [source.n_bytes(x.name) for x in linears]
    with monkeypatch.context() as patch:
        fail_after(patch, rotation, "as_dtype", 5)
        with pytest.raises(Stop):
            quantize(GGUF, out, **options)
    assert [p.name for p in out.iterdir()] == [rotation.FOLDER]
    with monkeypatch.context() as patch:
        rounds = options.get("format") == "gguf" and options.get("method") == "rtn"
        owner = target.GgufFile if rounds else driver._Job
        fail_after(patch, owner, "write" if rounds else "_made", 0 if rounds else 1)
        with pytest.raises(Stop):
            quantize(GGUF, out, **options)
    with monkeypatch.context() as patch:
        fail_after(patch, rotation, "rotate", 0)  # it is there already
        again = quantize(GGUF, out, **options)
    assert list(again) == list(whole) and again.evaluation == whole.evaluation
    assert files_of(out) == files_of(tmp_path / "whole")
    assert whole.evaluation and max(c.kl.value for c in whole.evaluation.values()) < 0.5


def test_outliers_cost_less(tmp_path: Path) -> None:
    """The trained model, the same but for two columns that are 20 times as large, whose norm
    weights are as much smaller: rows in 4 bits do not hold them beside the others."""
    tensors = load_file(GOLDEN / "trained" / "model.safetensors")
    for name, values in tensors.items():
        if name.endswith("layernorm.weight"):
            values[[5, 70]] /= 20
        elif name.split(".")[-2] in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"):
            values[:, [5, 70]] *= 20
    config = json.loads((GOLDEN / "trained" / "config.json").read_text())
    model = pm.write_model(tmp_path / "model", config, tensors)
    options: dict[str, Any] = {"method": "rtn", "w_group_size": -1, "calib_dataset": None}
    exact, errors = logits_of(model), []
    for turn in (False, True):
        quantize(model, tmp_path / "out", rotate=turn, evaluate=False, **options)
        errors.append(float(np.square(logits_of(tmp_path / "out") - exact).mean()))
    assert errors[1] < 0.2 * errors[0]


def test_another_models_rotation_is_not_taken(tmp_path: Path, text: Path, monkeypatch: Any) -> None:
    options: dict[str, Any] = {"method": "rtn", "calib_dataset": None, "evaluate": False}
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        fail_after(patch, driver._Job, "_made", 1)
        with pytest.raises(Stop):
            quantize(pm.write_float_model(tmp_path / "a"), out, rotate=True, **options)
    other = pm.write_float_model(tmp_path / "b", "qwen2")
    quantize(other, out, rotate=True, **options)
    quantize(other, tmp_path / "new", rotate=True, **options)
    assert files_of(out) == files_of(tmp_path / "new")


# ---- what goes wrong ----


def test_what_cannot_be_rotated_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"rope_freqs\.weight"):
        rotate(Source(GOLDEN / "gguf" / "llama-ropefreqs.gguf"), tmp_path / "out", "F32")
    model = pm.write_float_model(tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.0.self_attn.sinks"] = np.zeros(4, np.float16)
    save_file(tensors, model / "model.safetensors")
    with pytest.raises(UnsupportedError, match=r'"model\.layers\.0\.self_attn\.sinks"'):
        quantize(model, tmp_path / "out", rotate=True)
    del tensors["model.layers.0.self_attn.sinks"]
    tensors["model.layers.1.input_layernorm.weight"][3] = np.nan
    save_file(tensors, model / "model.safetensors")
    with pytest.raises(
        ValueError, match=r'"model\.layers\.1\.input_layernorm\.weight": .* value 3'
    ):
        rotate(Source(model), tmp_path / "out", "F32")
    assert not (tmp_path / "out" / "config.json").exists()
