"""`smooth_quant`: what it writes, against NumPy; that the engine reads it; and its report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import packed_models as pm
import pytest
from conftest import GOLDEN, logits_tolerance
from lite_models import logits_of
from safetensors.numpy import load_file

from lmdeploy_c import TurbomindEngineConfig, lite, pipeline
from lmdeploy_c.cli import main
from lmdeploy_c.lite.layers import input_of
from lmdeploy_c.lite.packing import Scheme
from lmdeploy_c.lite.recipe import absmax_codes
from lmdeploy_c.lite.source import Source

GGUF = GOLDEN / "gguf" / "llama-float.gguf"
TEXT = "the quick brown fox jumps over the lazy dog, and so on; " * 20


@pytest.fixture
def calibration(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "text").write_text(TEXT)
    return {"calib_dataset": tmp_path / "text", "calib_seqlen": 64}


@pytest.mark.parametrize("group_size", [32, -1])
def test_the_largest_weight_has_the_largest_code(group_size: int) -> None:
    rng = np.random.default_rng(2)
    weight = rng.standard_t(3, (40, 96)).astype(np.float32)
    weight[3] = 0.0
    codes, scales, zeros = absmax_codes(weight, Scheme(8, group_size, True))
    size = 96 if group_size == -1 else group_size
    assert (zeros == 128).all() and scales.shape == zeros.shape == (40, 96 // size)
    for row in range(40):
        for group in range(96 // size):
            at = slice(group * size, (group + 1) * size)
            values = weight[row, at].astype(np.float64)
            step = float(np.float16(np.abs(values).max() / 127))
            assert scales[row, group] == step
            got = codes[row, at].astype(np.int64) - 128
            assert (got == (np.rint(values / step) if step else 0)).all()
            assert np.abs(got).max() == (127 if step else 0)


def test_smooth_quant(tmp_path: Path, calibration: dict[str, Any]) -> None:
    """The file's values, with the norms divided, are the float model's but for the rounding: as
    floats they give the engine's own answers, and the model's nearly."""
    out, source = tmp_path / "out", Source(GGUF)
    done = lite.smooth_quant(GGUF, out, **calibration)
    config = json.loads((out / "config.json").read_text())
    [group] = config.pop("quantization_config")["config_groups"].values()
    assert (group["weights"]["num_bits"], group["weights"]["strategy"]) == (8, "channel")
    assert group["input_activations"]["dynamic"] is True
    tensors = load_file(out / "model.safetensors")
    dense = pm.dense_tensors("int-quantized", tensors)
    for linear in done:
        name, codes = linear.name, tensors[linear.name]
        assert codes.dtype == np.int8 and (np.abs(codes.astype(int)).max(1) == 127).all()
        ratio = np.median(dense[name] / source.read(name), 0)  # a column's scale, up to its rows'
        if input_of(name) in ("qkv", "gate_up") and "up_proj" not in name:
            layer = name.split(".")[2]
            norm = {"qkv": "input_layernorm", "gate_up": "post_attention_layernorm"}
            norm_name = f"model.layers.{layer}.{norm[input_of(name)]}.weight"
            divided = source.read(norm_name) / dense[norm_name].astype(np.float32)
            assert ratio == pytest.approx(divided, rel=0.03) and ratio.max() / ratio.min() > 1.2
        assert linear.error < 1e-3
    plain = logits_of(pm.write_model(tmp_path / "dense", config, dense))
    got, exact = logits_of(out), logits_of(GGUF)
    assert np.abs(got - plain).max() <= logits_tolerance() * np.abs(plain).max()
    assert np.abs(got - exact).mean() < 0.03 * np.abs(exact).mean()


def test_alpha_and_search(tmp_path: Path, calibration: dict[str, Any]) -> None:
    """alpha 0 looks at weights alone, 1 at inputs alone; the search picks other scales again."""
    norms = []
    for name, options in (("0", {"alpha": 0.0}), ("1", {"alpha": 1.0}),
                          ("s", {"search_scale": True})):  # fmt: skip
        lite.smooth_quant(GGUF, tmp_path / name, dtype="float32", **options, **calibration)
        tensors = load_file(tmp_path / name / "model.safetensors")
        norms.append(tensors["model.layers.0.post_attention_layernorm.weight"])
    assert all(np.abs(a / norms[0] - 1).max() > 0.01 for a in norms[1:2])
    exact = logits_of(GGUF)
    for name in "01s":
        assert np.abs(logits_of(tmp_path / name) - exact).mean() < 0.05 * np.abs(exact).mean()


def test_command(tmp_path: Path, calibration: dict[str, Any], capsys: Any) -> None:
    out, data = tmp_path / "out", str(calibration["calib_dataset"])
    options = ["--calib-dataset", data, "--calib-seqlen", "64", "--work-dir", str(out)]
    assert main(["lite", "smooth_quant", str(GGUF), "--alpha", "0.6", *options]) == 0
    said = capsys.readouterr().out
    assert "linears in 8 bits, " in said and f"chat {out}" in said
    with pipeline(out, TurbomindEngineConfig(session_len=64)) as pipe:
        assert pipe("a", do_preprocess=False).generate_token_len > 0
