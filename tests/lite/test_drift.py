"""What is wanted of the quantised model's linears, against a forward pass written down in NumPy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file
from test_calibration import model, norm  # noqa: F401

from lmdeploy_c import _C
from lmdeploy_c.files.checkpoint import open_checkpoint

Array = NDArray[np.float64]


def one_layer(path: Path) -> tuple[_C.Model, dict[str, Array]]:
    """A layer of the model, and its tensors."""
    checkpoint = open_checkpoint(path)
    tensors = load_file(path / "model.safetensors")
    prefix = "model.layers.0."
    layer = {k.removeprefix(prefix): v.astype(np.float64) for k, v in tensors.items()}
    return _C.Model({**checkpoint.config, "n_layer": 1}, checkpoint.source, num_threads=1), layer


def of_one_token(path: Path, w: dict[str, Array], x: Array) -> dict[str, Array]:
    """The inputs of the linears and the residual stream of a token alone, which attends to its own
    value."""
    config = json.loads((path / "config.json").read_text())
    n_head, n_kv = config["num_attention_heads"], config["num_key_value_heads"]
    h = norm(x, w["input_layernorm.weight"])
    value = (w["self_attn.v_proj.weight"] @ h).reshape(n_kv, -1)
    o = np.repeat(value, n_head // n_kv, 0).ravel()
    middle = x + w["self_attn.o_proj.weight"] @ o
    m = norm(middle, w["post_attention_layernorm.weight"])
    gate = w["mlp.gate_proj.weight"] @ m
    down = gate / (1 + np.exp(-gate)) * (w["mlp.up_proj.weight"] @ m)
    after = middle + w["mlp.down_proj.weight"] @ down
    return {"qkv": h, "o": o, "middle": middle, "gate_up": m, "down": down, "after": after}


@pytest.mark.parametrize("name", ["qkv", "o", "gate_up", "down"])
def test_products_with_what_is_wanted(model: Path, name: str) -> None:  # noqa: F811
    rng = np.random.default_rng(4)
    layer, w = one_layer(model)
    width = layer_width = w["input_layernorm.weight"].size
    exact = rng.normal(size=(7, layer_width)).astype(np.float32)
    drifted = (exact + 0.1 * rng.normal(size=exact.shape)).astype(np.float32)
    gram, wanted, after = 0.0, 0.0, []
    for x, y in zip(exact.astype(np.float64), drifted.astype(np.float64), strict=True):
        first, second = of_one_token(model, w, x), of_one_token(model, w, y)
        row, counts = second[name], 1.0
        want = first.get(name)
        if name == "o":
            want, counts = first["middle"] - y, 1 / (y * y).mean()
        elif name == "down":
            want = first["after"] - second["middle"]
            counts = 1 / (second["middle"] ** 2).mean()
        gram = gram + counts * np.outer(row, row)
        wanted = wanted + counts * np.outer(want, row)
        after.append(first["after"] if name == "down" else x)
    input = ["qkv", "o", "gate_up", "down"].index(name)
    sums = _C.InputSums(len(row), n_wanted=width)
    states = _C.Quantizer(1).run_pair(layer, layer, exact, drifted, [1] * 7, input, sums)

    def near(got: Any, expected: Any) -> bool:
        return bool(np.abs(got - expected).max() < 2e-3 * np.abs(expected).max())

    assert near(sums.gram(), gram)
    assert near(sums.wanted(), wanted)
    assert near(states, np.array(after))
    assert sums.n_tokens == 7


def test_a_model_that_has_not_drifted(model: Path) -> None:  # noqa: F811
    """What is wanted of q, k and v is what they read."""
    layer, w = one_layer(model)
    width = w["input_layernorm.weight"].size
    states = np.random.default_rng(5).normal(size=(50, width)).astype(np.float32)
    sums = _C.InputSums(width, n_wanted=width)
    _C.Quantizer(1).run_pair(layer, layer, states, states, [20, 30], 0, sums)
    assert np.allclose(sums.wanted(), sums.gram(), rtol=1e-6, atol=0)


def test_sums_must_fit(model: Path) -> None:  # noqa: F811
    layer, w = one_layer(model)
    width = w["input_layernorm.weight"].size
    states = np.ones((2, width), np.float32)
    quantizer = _C.Quantizer(1)
    with pytest.raises(ValueError, match="wanted ones"):
        quantizer.run_pair(layer, layer, states, states, [2], 0, _C.InputSums(width))
    with pytest.raises(ValueError, match="input must be 0 to 3, not 4"):
        sums = _C.InputSums(width, n_wanted=width)
        quantizer.run_pair(layer, layer, states, states, [2], 4, sums)
    with pytest.raises(ValueError, match="drifted_hidden has 3 rows"):
        quantizer.run_pair(layer, layer, states, np.ones((3, width)), [2], 0, sums)
