"""Models and data that are wrong or strange: an error that names what is, or a result without a
NaN; never a directory that is half written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import GOLDEN, load_model, make_engine, read_all
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from lmdeploy_c import _C, lite
from lmdeploy_c.lite.unfinished import FOLDER

GGUF = GOLDEN / "gguf" / "llama-float.gguf"
TEXT = "the quick brown fox jumps over the lazy dog, and so on; " * 20
COMMANDS = ("auto_awq", "auto_gptq", "smooth_quant", "calibrate")
Tensors = dict[str, NDArray[Any]]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return lite.export(GGUF, tmp_path / "model")


def change(model: Path, **changes: Any) -> None:
    tensors = load_file(model / "model.safetensors")
    for name, set_values in changes.items():
        set_values(tensors[f"model.{name.replace('__', '.')}.weight"])
    save_file(tensors, model / "model.safetensors")


def run(name: str, model: Path, out: Path, **options: Any) -> list[Any]:
    text = out.parent / "text"
    if not text.exists():
        text.write_text(TEXT)
    options = {"calib_dataset": text, "calib_seqlen": 64, **options}
    if name in ("auto_awq", "auto_gptq"):
        options.setdefault("w_group_size", 32)
    found: list[Any] = getattr(lite, name)(model, work_dir=out, **options)
    return found


def logits_of(path: Path) -> NDArray[np.float32]:
    engine = make_engine(load_model(path))
    logits = read_all(engine.submit(np.arange(20), max_new_tokens=0, output_logits="all")).logits
    engine.close()
    assert logits is not None
    return logits


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    "where",
    ["layers__1__mlp__up_proj", "layers__0__input_layernorm", "embed_tokens"],
)
def test_what_is_not_finite_is_named(
    tmp_path: Path, model: Path, name: str, value: float, where: str
) -> None:
    def put(tensor: NDArray[Any]) -> None:
        tensor[...] = np.where(np.arange(tensor.size).reshape(tensor.shape) % 7 == 3, value, tensor)

    change(model, **{where: put})
    with pytest.raises(ValueError, match=rf'"model\.{where.replace("__", ".")}\.weight"'):
        run(name, model, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").glob("*")] in ([], [FOLDER])


@pytest.mark.parametrize("name", COMMANDS)
def test_activations_that_overflow_name_the_layer(tmp_path: Path, model: Path, name: str) -> None:
    """Every weight is finite, and what they compute is not."""
    change(
        model,
        layers__1__mlp__gate_proj=lambda w: np.copyto(w, 3e30),
        layers__1__mlp__up_proj=lambda w: np.copyto(w, 3e30),
    )
    with pytest.raises(ValueError, match="layer 1: "):
        run(name, model, tmp_path / "out", dtype="float32")


@pytest.mark.parametrize("name", COMMANDS[:3])
def test_zeros_are_served(tmp_path: Path, model: Path, name: str) -> None:
    """Norms of 0, dead channels, groups and whole matrices of zeros: no NaN, and near the model."""

    def zero(*where: Any) -> Any:
        return lambda tensor: tensor.__setitem__(where if len(where) > 1 else where[0], 0.0)

    change(
        model,
        layers__0__input_layernorm=zero([1, 5]),
        layers__0__mlp__up_proj=zero(3),
        layers__0__mlp__down_proj=zero(slice(None), slice(32, 64)),
        layers__1__post_attention_layernorm=zero(slice(None)),
        layers__1__self_attn__v_proj=zero(slice(None)),
    )
    run(name, model, tmp_path / "out")
    got, exact = logits_of(tmp_path / "out"), logits_of(model)
    assert np.isfinite(got).all()
    most = 0.03 if name == "smooth_quant" else 0.5
    assert np.abs(got - exact).mean() < most * np.abs(exact).mean()


@pytest.mark.parametrize("name", COMMANDS)
def test_models_that_are_quantised_already(tmp_path: Path, model: Path, name: str) -> None:
    run("auto_awq", model, tmp_path / "awq")
    with pytest.raises(_C.UnsupportedError, match=r"quantised already \(awq\): start from"):
        run(name, tmp_path / "awq", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", COMMANDS)
def test_little_text_is_served_and_none_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "little").write_text("ab")
    assert run(name, GGUF, tmp_path / "out", calib_dataset=tmp_path / "little")
    (tmp_path / "empty").write_text(" \n")
    with pytest.raises(ValueError, match="calibration data are empty"):
        run(name, GGUF, tmp_path / "none", calib_dataset=tmp_path / "empty")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk(tmp_path: Path, name: str, monkeypatch: Any) -> None:
    """What was there stays, and no file is half written."""
    run(name, GGUF, tmp_path / "out")
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        run(name, GGUF, tmp_path / "out", calib_seqlen=32)
    after = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir() if p.is_file()}
    assert after == before
