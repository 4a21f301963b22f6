"""Models and data that are wrong or strange: an error that names what is, or a result without a
NaN; never a directory that is half written."""

from __future__ import annotations

import subprocess
import sys
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
METHODS: dict[str, dict[str, Any]] = {
    "best": {"w_group_size": 32},
    "awq-searched": {"w_group_size": 32},
    "rtn": {"w_group_size": 32, "calib_dataset": None},
    "gguf": {"method": "best", "format": "gguf"},
    "mixed": {"method": "best", "format": "compressed-tensors", "mixed": "6bpw"},
}
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


def made_in(folder: Path) -> Path:
    return folder / "model.gguf" if (folder / "model.gguf").exists() else folder


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


@pytest.mark.parametrize("where", ["embed_tokens", "norm", "layers__1__post_attention_layernorm"])
@pytest.mark.parametrize(
    "options",
    [
        {"w_group_size": 32, "dtype": "bfloat16"},
        {"w_group_size": 32, "dtype": "float32", "calib_dataset": None, "method": "rtn"},
        {"format": "gguf"},
        {"format": "gguf", "method": "rtn"},
        {"export": "hf"},
        {"export": "gguf"},
    ],
    ids=["bf16", "fp32", "gguf", "rounded", "export", "export-gguf"],
)
def test_floats_that_are_not_finite_are_named(
    tmp_path: Path, model: Path, where: str, options: dict[str, Any]
) -> None:
    """Also what no calibration reads, and what would be kept as it is."""
    change(model, **{where: lambda tensor: tensor.reshape(-1).__setitem__(-1, np.inf)})
    with pytest.raises(ValueError, match=rf'"model\.{where.replace("__", ".")}\.weight"'):
        if "export" in options:
            lite.export(model, tmp_path / "out", format=options["export"])
        else:
            run("quantize", model, tmp_path / "out", **options)
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


@pytest.mark.parametrize("name", [*COMMANDS[:3], *METHODS])
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
    if name in METHODS:
        run("quantize", model, tmp_path / "out", **{"method": name, **METHODS[name]})
    else:
        run(name, model, tmp_path / "out")
    got, exact = logits_of(made_in(tmp_path / "out")), logits_of(model)
    assert np.isfinite(got).all()
    most = 0.03 if name == "smooth_quant" else 0.5
    assert np.abs(got - exact).mean() < most * np.abs(exact).mean()


@pytest.mark.parametrize("name", [*COMMANDS, "quantize", "export"])
def test_models_that_are_quantised_already(tmp_path: Path, model: Path, name: str) -> None:
    run("auto_awq", model, tmp_path / "awq")
    with pytest.raises(_C.UnsupportedError, match=r"quantised already \(awq\): start from"):
        if name == "export":
            lite.export(tmp_path / "awq", tmp_path / "out")
        else:
            run(name, tmp_path / "awq", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [*COMMANDS, "quantize"])
def test_little_text_is_served_and_none_refused(tmp_path: Path, name: str, caplog: Any) -> None:
    (tmp_path / "little").write_text("ab")
    assert run(name, GGUF, tmp_path / "out", calib_dataset=tmp_path / "little")
    is_said = "calibration tokens are few" in caplog.text
    assert is_said == (name in ("auto_gptq", "quantize"))  # which solve with all of H
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


FULL_DISK = """
import resource, sys
from pathlib import Path
from lmdeploy_c import lite
model, text, folder = map(Path, sys.argv[1:])
options = dict(calib_dataset=text, calib_seqlen=64, w_group_size=32, evaluate=False)
files = lambda path: {p.name: p.read_bytes() for p in path.iterdir() if p.name != "report.json"}
lite.quantize(model, folder / "whole", **options)
whole = files(folder / "whole")
largest = max(map(len, whole.values()))
for limit in (1, 2000, largest // 3, largest - 1):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        lite.quantize(model, folder / "out", **options)
    except OSError as error:
        left = {p.name for p in (folder / "out").rglob("*")}
        print(limit < largest, "config.json" in left, any("partial" in n for n in left), error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
lite.quantize(model, folder / "out", **options)
assert files(folder / "out") == whole
"""


def test_files_that_end_at_any_byte(tmp_path: Path) -> None:
    """The system refuses to write on, as a full disk does; with room, the run goes on to the same
    bits."""
    (tmp_path / "text").write_text(TEXT)
    command = [sys.executable, "-c", FULL_DISK, GGUF, tmp_path / "text", tmp_path]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    assert all(line.startswith("True False False [Errno 27]") for line in lines), done.stdout
