"""What is wanted of the quantised model's linears, against a forward pass written down in NumPy."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file
from test_calibration import GGUF, model, norm  # noqa: F401

from lmdeploy_c import _C
from lmdeploy_c.files.checkpoint import open_checkpoint
from lmdeploy_c.lite import divergence, drift, layers, quantize
from lmdeploy_c.lite.layers import INPUTS, input_of, layer_of
from lmdeploy_c.lite.pairs import LayerPairs
from lmdeploy_c.lite.recipe import METHODS
from lmdeploy_c.lite.source import Source

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
    return {
        "before": x,
        "qkv": h,
        "o": o,
        "middle": middle,
        "gate_up": m,
        "down": down,
        "after": after,
    }


#: The residual streams of both models when an input was read.
AFTER = {"qkv": ("before", "before"), "o": ("middle", "before"), "gate_up": ("middle", "middle"),
         "down": ("after", "middle")}  # fmt: skip


@pytest.mark.parametrize("name", AFTER)
def test_products_with_what_is_wanted(model: Path, name: str) -> None:  # noqa: F811
    rng = np.random.default_rng(4)
    layer, w = one_layer(model)
    width = layer_width = w["input_layernorm.weight"].size
    exact = rng.normal(size=(7, layer_width)).astype(np.float32)
    drifted = (exact + 0.1 * rng.normal(size=exact.shape)).astype(np.float32)
    gram, wanted = 0.0, 0.0
    streams: list[tuple[Array, Array]] = []
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
        streams.append((first[AFTER[name][0]], second[AFTER[name][1]]))
    input = ["qkv", "o", "gate_up", "down"].index(name)
    sums = _C.InputSums(len(row), n_wanted=width)
    quantizer, states = _C.Quantizer(1), (exact, drifted)
    for before in range(input):
        n_cols = len(of_one_token(model, w, exact[0])[list(AFTER)[before]])
        passed = _C.InputSums(n_cols, n_wanted=width)
        states = quantizer.run_pair(layer, layer, *states, [1] * 7, before, passed)
    states = quantizer.run_pair(layer, layer, *states, [1] * 7, input, sums)

    def near(got: Any, expected: Any) -> bool:
        return bool(np.abs(got - expected).max() < 2e-3 * np.abs(expected).max())

    assert near(sums.gram(), gram)
    assert near(sums.wanted(), wanted)
    for got, expected in zip(states, zip(*streams, strict=True), strict=True):
        assert near(got, np.array(expected))
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


@pytest.mark.parametrize("group", ["qkv", "down"])
@pytest.mark.parametrize("has_held_out", [False, True])
def test_corrected_weights_solve_a_ridge_regression(group: str, has_held_out: bool) -> None:
    """The least |Y - V X|^2 + d |V - W|^2, as far along the way from W as held-out tokens say."""
    rng = np.random.default_rng(6)
    weight = rng.normal(size=(5, 32)).astype(np.float32)

    def tokens(n: int) -> tuple[Sums, Array, Array]:
        x = rng.normal(size=(n, 32))
        y = x + 0.3 * rng.normal(size=x.shape)
        if group == "down":
            y = y @ weight.T
        return Sums(x, y), x, y if group == "down" else y @ weight.T

    (sums, x, y), (held_out, x2, y2) = tokens(200), tokens(60 if has_held_out else 0)
    damp = 0.1 * float(np.square(x).sum(0).mean())
    rows = np.concatenate([x, np.sqrt(damp) * np.eye(32)])
    outputs = np.concatenate([y, np.sqrt(damp) * weight.T])
    change = np.linalg.lstsq(rows, outputs, rcond=None)[0].T - weight
    if has_held_out:
        steps = np.linspace(0, 1, 1001)
        losses = [np.square(y2 - x2 @ (weight + s * change).T).sum() for s in steps]
        change *= steps[np.argmin(losses)]
    got = drift.corrected(Regression(), weight, group, sums, held_out, 0.1)
    assert np.abs(got - weight - change).max() < 2e-3 * np.abs(change).max()


def test_a_linear_that_no_token_used_stays() -> None:
    weight, sums = np.ones((2, 32), np.float32), Sums(np.zeros((4, 32)), np.zeros((4, 32)))
    assert np.array_equal(drift.corrected(Regression(), weight, "qkv", sums, sums, 0.1), weight)


class Sums:
    """As InputSums has them, of rows x and of what is wanted of them."""

    def __init__(self, x: Array, y: Array) -> None:
        self._x, self._y, self.n_tokens = x.astype(np.float32), y.astype(np.float32), len(x)

    def squares(self) -> NDArray[np.float32]:
        return np.square(self._x).sum(0)

    def gram(self) -> NDArray[np.float32]:
        return self._x.T @ self._x

    def wanted(self) -> NDArray[np.float32]:
        return self._y.T @ self._x


class Regression:
    """As Quantizer has it."""

    def regress(self, sums: Sums, products: Any, *, damp: float) -> NDArray[np.float32]:
        gram = sums.gram().astype(np.float64)
        gram[np.diag_indices(len(gram))] += damp * gram.diagonal().mean()
        return np.linalg.solve(gram, products.T).T.astype(np.float32)


@pytest.mark.parametrize("is_gguf", [False, True])
def test_linears_that_stay_the_same_do_not_drift(
    tmp_path: Path,
    model: Path,  # noqa: F811
    is_gguf: bool,
) -> None:
    """A GGUF file has the rows of q and k in another order."""
    source = Source(GGUF if is_gguf else model)
    pairs = LayerPairs(source, [[1, 2, 3, 4, 5], [6, 7, 8]], _C.Quantizer(1), tmp_path)
    for layer in range(source.checkpoint.config["n_layer"]):
        pairs.begin(layer)
        for group in INPUTS:
            names = [n for n in source.linears() if layer_of(n) == layer and input_of(n) == group]
            sums, _ = pairs.read(group)
            assert sums.n_tokens == 8
            pairs.put({name: source.read(name) for name in names})
        pairs.end()
    drifted = np.concatenate(pairs.drifted())
    original = np.concatenate(pairs.hidden())
    assert np.abs(drifted - original).max() < 1e-3 * np.abs(original).max()
    assert not list(tmp_path.iterdir())
    pairs.save(tmp_path / "states")
    other = LayerPairs(source, [[1, 2, 3, 4, 5], [6, 7, 8]], _C.Quantizer(1), tmp_path)
    other.load(tmp_path / "states")
    assert np.array_equal(np.concatenate(other.drifted()), drifted)
    (tmp_path / "states").write_bytes(b"short")
    with pytest.raises(ValueError, match="reshape"):
        other.load(tmp_path / "states")


def test_best_makes_up_for_drift(tmp_path: Path, model: Path) -> None:  # noqa: F811
    """The model is nearer to the original one with the correction than without it."""
    rng = np.random.default_rng(7)
    texts = [" ".join(map(chr, rng.integers(97, 123, 200))) for _ in range(8)]
    found = []
    for damp in (None, 0.1):
        recipe = replace(METHODS["best"], damp=damp)
        quantize(GGUF, tmp_path / "out", method=recipe, calib_dataset=texts, calib_seqlen=64,
                 w_group_size=32, evaluate=False)  # fmt: skip
        found.append(divergence(GGUF, tmp_path / "out", " ".join(texts)[:1500]).kl.value)
    assert found[1] < 0.8 * found[0], found


def test_large_states_lie_in_files(tmp_path: Path, model: Path, monkeypatch: Any) -> None:  # noqa: F811
    """The result has the same bits, and no file is left."""
    found = []
    for most in (layers.MOST_BYTES, 0):
        monkeypatch.setattr(layers, "MOST_BYTES", most)
        source = Source(model)
        pairs = LayerPairs(source, [[1, 2, 3], [4, 5]], _C.Quantizer(1), tmp_path)
        for layer in range(source.checkpoint.config["n_layer"]):
            pairs.begin(layer)
            pairs.end()
        found.append([pairs.hidden(), pairs.drifted()])
        assert isinstance(pairs.drifted()[0], np.memmap) == (most == 0)
        assert not list(tmp_path.iterdir())
    for in_memory, in_files in zip(*found, strict=True):
        assert np.array_equal(np.concatenate(in_memory), np.concatenate(in_files))
