"""What linears read, against a forward pass of one token written down in NumPy; and what the
quantizer makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import packed_models as pm
import pytest
from conftest import GOLDEN, load_model
from numpy.typing import NDArray
from safetensors.numpy import load_file

from lmdeploy_c import _C
from lmdeploy_c.lite import quantize
from lmdeploy_c.lite.calibration import LEAST, calibrate, own_windows, windows_of_text
from lmdeploy_c.lite.source import Source

GGUF = GOLDEN / "gguf" / "llama-float.gguf"
TEXT = "the quick brown fox jumps over the lazy dog, and so on; " * 20


@pytest.fixture(scope="module")
def model(tmp_path_factory: Any) -> Path:
    """A directory of random fp32 weights."""
    config = pm.config_of("llama", "awq", 64)
    del config["quantization_config"]
    rng = np.random.default_rng(3)
    tensors = {k: v.astype(np.float32) for k, v in pm.other_tensors(rng, config).items()}
    for name, shape in pm.linears_of(config).items():
        tensors[f"{name}.weight"] = (rng.normal(size=shape) / np.sqrt(shape[1])).astype(np.float32)
    path: Path = tmp_path_factory.mktemp("model")
    return pm.write_model(path, config, tensors)


def norm(x: NDArray[Any], weight: NDArray[Any]) -> NDArray[Any]:
    result: NDArray[Any] = x / np.sqrt((x * x).mean() + 1e-6) * weight
    return result


def squares_of_one_token(path: Path, token: int) -> list[NDArray[Any]]:
    """Attention to one position is its value."""
    config = json.loads((path / "config.json").read_text())
    w = {k: v.astype(np.float64) for k, v in load_file(path / "model.safetensors").items()}
    n_head, n_kv = config["num_attention_heads"], config["num_key_value_heads"]
    x = w["model.embed_tokens.weight"][token]
    found: list[list[NDArray[Any]]] = [[], [], [], []]
    for i in range(config["num_hidden_layers"]):
        p = f"model.layers.{i}."
        h = norm(x, w[p + "input_layernorm.weight"])
        value = (w[p + "self_attn.v_proj.weight"] @ h).reshape(n_kv, -1)
        o = np.repeat(value, n_head // n_kv, 0).ravel()
        weight = 1 / (x * x).mean()
        found[0].append(h * h)
        found[1].append(weight * o * o)
        x = x + w[p + "self_attn.o_proj.weight"] @ o
        h = norm(x, w[p + "post_attention_layernorm.weight"])
        gate = w[p + "mlp.gate_proj.weight"] @ h
        down = gate / (1 + np.exp(-gate)) * (w[p + "mlp.up_proj.weight"] @ h)
        weight = 1 / (x * x).mean()
        found[2].append(h * h)
        found[3].append(weight * down * down)
        x = x + w[p + "mlp.down_proj.weight"] @ down
    return [np.array(part) for part in found]


@pytest.mark.parametrize("token", [0, 5, 63])
def test_squares_of_one_token(model: Path, token: int) -> None:
    got = _C.column_squares(load_model(model), [token])
    for a, b in zip(got, squares_of_one_token(model, token), strict=True):
        assert a.shape == b.shape
        assert np.abs(a - b).max() <= 2e-3 * b.max()


def test_tokens_add_up(model: Path) -> None:
    """What q, k and v of the first layer read does not depend on the other tokens."""
    loaded = load_model(model)
    ids = np.random.default_rng(1).integers(0, 64, 200)
    together = _C.column_squares(loaded, ids)
    alone = sum(_C.column_squares(loaded, [i])[0][0] for i in ids)
    np.testing.assert_allclose(together[0][0], alone, rtol=1e-5)
    again = _C.column_squares(load_model(model, num_threads=3), ids)
    assert all((a == b).all() for a, b in zip(together, again, strict=True))


def test_refusals(model: Path, tmp_path: Path) -> None:
    loaded = load_model(model)
    for ids, message in (([], "1 to 65536 tokens, not 0"), ([64], "token 0 is 64; the model has"),
                         ([-1], "token 0 is -1"), ([0] * 65537, "not 65537")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            _C.column_squares(loaded, ids)
    with pytest.raises(FileNotFoundError, match="data sets are not downloaded"):
        quantize(GGUF, tmp_path / "out", calib_dataset="wikitext2")
    with pytest.raises(ValueError, match="calibration text is empty"):
        windows_of_text(Source(GGUF), " \n", 8, 8)
    with pytest.raises(ValueError, match="at least 1, not 0 and 1"):
        calibrate(Source(GGUF), "self", seqlen=0, samples=1)
    assert not (tmp_path / "out").exists()


def test_windows_are_spread_over_the_text() -> None:
    source = Source(GGUF)
    found = windows_of_text(source, TEXT, 16, 3)
    assert [len(w) for w in found] == [16, 16, 16]
    every = windows_of_text(source, TEXT, 16, 10_000)
    assert found == [every[int(i * len(every) / 3)] for i in range(3)]
    assert len(windows_of_text(source, "ab", 512, 4)) == 1


def test_own_samples_are_the_same_every_time() -> None:
    source = Source(GGUF)
    found = own_windows(source, 32, 26, 1)
    assert found == own_windows(source, 32, 26, 2)
    assert len(found) == 26 and len({tuple(w) for w in found}) > 20
    assert all(16 < len(w) <= 32 for w in found)
    assert calibrate(source, "self", samples=2, seqlen=24).n_tokens > 16


def test_errors_count_where_the_model_reads(tmp_path: Path) -> None:
    """Weighed by what each column carries, the calibrated codes are nearer; no column is free."""
    source = Source(GGUF)
    (tmp_path / "text").write_text(TEXT)
    calibration = calibrate(source, tmp_path / "text", seqlen=64)
    quantize(GGUF, tmp_path / "plain", w_group_size=32, calib_dataset=None)
    quantize(GGUF, tmp_path / "calibrated", w_group_size=32, calib_dataset=tmp_path / "text",
             calib_seqlen=64)  # fmt: skip
    dense = [
        pm.dense_tensors("awq", load_file(tmp_path / name / "model.safetensors"))
        for name in ("plain", "calibrated")
    ]
    for name in source.linears():
        counts = calibration.importance(name).astype(np.float64)
        exact = source.read(name)
        plain, better = (float((counts * (d[name] - exact) ** 2).sum()) for d in dense)
        assert better <= plain * 1.0001
        assert counts.min() >= 0.99 * LEAST * counts.mean() > 0
