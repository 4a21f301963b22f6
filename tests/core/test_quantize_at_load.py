"""Floats that become codes while they are loaded: the same as those of a file that was quantised
before, sizes that are known beforehand, and refusals by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import packed_models as pm
import pytest
from conftest import DEVICE, GOLDEN, device_name, exact_kv_bits, make_engine, read_all
from safetensors.numpy import load_file, save_file

from lmdeploy_c import _C, UnsupportedError
from lmdeploy_c.files.checkpoint import open_checkpoint
from lmdeploy_c.lite import export
from lmdeploy_c.lite import quantize as write_quantised

DOWN = "model.layers.1.mlp.down_proj.weight"
FILES = {"w4": ("awq", 4, False), "w8": ("gptq", 8, True)}
GGUF = GOLDEN / "gguf" / "llama-float.gguf"


def load(path: Path, quantize: str | None = None, **options: Any) -> _C.Model:
    checkpoint = open_checkpoint(path)
    return _C.Model(
        checkpoint.config, checkpoint.source, device=DEVICE, quantize=quantize, **options
    )


def sizes(path: Path, quantize: str | None = None) -> dict[str, int]:
    checkpoint = open_checkpoint(path)
    return _C.model_sizes(checkpoint.config, checkpoint.source, device=DEVICE, quantize=quantize)


def logits_of(model: _C.Model) -> np.ndarray:
    ids = np.random.default_rng(7).integers(0, 64, 40)
    engine = make_engine(model, kv_bits=exact_kv_bits())
    logits = read_all(engine.submit(ids, max_new_tokens=0, output_logits="all")).logits
    engine.close()
    assert logits is not None
    return logits


def change(path: Path, name: str, value: float) -> None:
    """Sets one weight of a directory's tensor."""
    tensors = load_file(path / "model.safetensors")
    tensors[name] = tensors[name].copy()
    tensors[name][5, 17] = value
    save_file(tensors, path / "model.safetensors")


@pytest.mark.parametrize("quantize", ["w4", "w8"])
@pytest.mark.parametrize(
    ("arch", "group"), [("llama", 32), ("qwen3", 64), ("qwen2", 128), ("internlm2", 32)]
)
def test_the_same_as_a_file_that_was_quantised_before(
    tmp_path: Path, arch: str, group: int, quantize: str
) -> None:
    """Bit for bit: the file is decoded by another path, which has NumPy as its oracle."""
    floats = pm.write_float_model(tmp_path / "floats", arch, group)
    form, bits, is_symmetric = FILES[quantize]
    write_quantised(
        floats, tmp_path / "file", format=form, w_bits=bits, w_sym=is_symmetric,
        w_group_size=group, dtype="auto", calib_dataset=None, method="rtn",
    )  # fmt: skip
    model, before = load(floats, quantize), load(tmp_path / "file")
    assert model.weight_bytes == before.weight_bytes == sizes(floats, quantize)["weight_bytes"]
    logits = logits_of(model)
    assert (logits == logits_of(before)).all()
    assert logits.std() > 0.1
    exact = logits_of(load(floats))
    off = np.abs(logits - exact).max() / np.abs(exact).max()
    assert 0 < off < {"w4": 0.5, "w8": 0.03}[quantize]


@pytest.mark.parametrize("quantize", ["w4", "w8"])
def test_a_gguf_file_of_floats(tmp_path: Path, quantize: str) -> None:
    """Its rows of q and k lie in another order than a directory's."""
    directory = export(GGUF, tmp_path / "directory")
    assert load(GGUF).config["interleaved_rope"]
    got, expected = load(GGUF, quantize), load(directory, quantize)
    assert got.weight_bytes < 0.8 * load(GGUF).weight_bytes
    assert (logits_of(got) == logits_of(expected)).all()


def test_threads_change_nothing(tmp_path: Path) -> None:
    path = pm.write_float_model(tmp_path)
    logits = [logits_of(load(path, "w4", num_threads=n)) for n in (1, 3)]
    assert (logits[0] == logits[1]).all()


def test_bytes_are_those_that_were_predicted(tmp_path: Path) -> None:
    path = pm.write_float_model(tmp_path, "llama", 128)
    config = open_checkpoint(path).config
    shapes = pm.linears_of(pm.config_of("llama", "awq", 128)).values()
    n_linear = sum(n_out * n_in for n_out, n_in in shapes)
    plain, w4, w8 = (sizes(path, q)["weight_bytes"] for q in (None, "w4", "w8"))
    if device_name() == "cpu":  # 4 bits and a scale and a zero of 16 bits for each 128
        assert plain - w4 == n_linear * 2 - n_linear * (4 + 32 / 128) / 8
        assert plain - w8 == n_linear * 2 - n_linear * (8 + 16 / 128) / 8
    else:
        assert w4 < w8 < plain
    for quantize, n_bytes in ((None, plain), ("w4", w4), ("w8", w8)):
        assert load(path, quantize).weight_bytes == n_bytes
        blank = load(path, quantize, blank=True)
        assert blank.weight_bytes == n_bytes and blank.config == config


def test_embedding_head_and_norms_stay_as_they_are(tmp_path: Path) -> None:
    """Without layers' weights that count, only these are left."""
    path = pm.write_float_model(tmp_path)
    tensors = load_file(path / "model.safetensors")
    linears = [f"{name}.weight" for name in pm.linears_of(pm.config_of("llama", "awq", 64))]
    save_file(
        {n: np.zeros_like(t) if n in linears else t for n, t in tensors.items()},
        path / "model.safetensors",
    )
    assert (logits_of(load(path, "w4")) == logits_of(load(path))).all()


# ---- memory ----


@pytest.mark.skipif(DEVICE != "cpu", reason="counts memory of the host")
def test_memory_is_that_of_the_codes(tmp_path: Path) -> None:
    """Neither the file nor a matrix of it in fp32 is ever in memory as a whole."""
    path = pm.write_float_model(tmp_path, hidden_size=512, intermediate_size=4096, head_dim=128)
    code = f"""
from pathlib import Path
from lmdeploy_c import _C
from lmdeploy_c.files.checkpoint import open_checkpoint
def peak():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) << 10
checkpoint = open_checkpoint(Path({str(path)!r}))
before = peak()
model = _C.Model(checkpoint.config, checkpoint.source, num_threads=2, quantize="w4")
print(peak() - before, model.weight_bytes)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True, timeout=60
    )
    grown, weights = map(int, done.stdout.split())
    floats = (path / "model.safetensors").stat().st_size
    assert weights < 0.3 * floats
    assert 0.5 * weights < grown < weights + (4 << 20)


# ---- progress and refusals ----


def test_progress_is_told_and_may_stop_the_load(tmp_path: Path) -> None:
    path = pm.write_float_model(tmp_path)
    seen: list[tuple[int, int]] = []
    load(path, "w4", progress=lambda *at: seen.append(at))
    assert seen == sorted(seen) and len(seen) > 8
    plain: list[tuple[int, int]] = []
    load(path, progress=lambda *at: plain.append(at))
    assert seen == plain

    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(path, "w4", progress=stop)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("quantize", ["w4", "w8"])
def test_a_weight_that_no_code_can_hold_is_refused(
    tmp_path: Path, value: float, quantize: str
) -> None:
    path = pm.write_float_model(tmp_path, dtype=np.float32)
    change(path, DOWN, value)
    load(path)
    with pytest.raises(_C.CheckpointError, match=rf'"{DOWN}" cannot be quantised: .*infinity'):
        load(path, quantize)


@pytest.mark.parametrize("value", [np.nan, 0.0])
def test_what_is_not_quantised_is_not_looked_at(tmp_path: Path, value: float) -> None:
    path = pm.write_float_model(tmp_path)
    change(path, "lm_head.weight", value)
    load(path, "w4")


@pytest.mark.parametrize(
    "name", ["models/qwen2-awq-hd128-gqa4", "models/llama-gptq-hd256-gqa4", "gguf/llama-q8_0.gguf"]
)
def test_a_model_that_has_codes_already_is_refused(name: str) -> None:
    for function in (load, sizes):
        with pytest.raises(ValueError, match=r'tensor "\S+" is quantised already; leave quantize'):
            function(GOLDEN / name, "w4")


def test_rows_that_have_no_groups_are_refused(tmp_path: Path) -> None:
    path = pm.write_float_model(tmp_path, intermediate_size=336)
    load(path)
    for function in (load, sizes):
        with pytest.raises(UnsupportedError, match="rows of 128, 128 and 336 weights .* of 32"):
            function(path, "w4")


@pytest.mark.parametrize("wrong", ["w3", "", "W4", "w4a16", "none"])
def test_other_names_are_refused(tmp_path: Path, wrong: str) -> None:
    path = pm.write_float_model(tmp_path)
    for function in (load, sizes):
        with pytest.raises(ValueError, match=rf'quantize must be "w4" or "w8", not "{wrong}"'):
            function(path, wrong)
        with pytest.raises(TypeError, match="quantize"):
            function(path, 4)  # type: ignore[arg-type]
