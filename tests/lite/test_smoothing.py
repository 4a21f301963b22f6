"""AWQ's and SmoothQuant's scales against LMDeploy's formulas in NumPy; and what is divided out of
norms and of linears leaves every architecture the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import packed_models as pm
import pytest
from lite_models import logits_of
from numpy.typing import NDArray

from lmdeploy_c import _C
from lmdeploy_c.lite import smoothing
from lmdeploy_c.lite.layers import Layers, input_of, layer_of
from lmdeploy_c.lite.packing import Scheme
from lmdeploy_c.lite.recipe import LayerQuantizer, LayerResult, Recipe
from lmdeploy_c.lite.source import Source

Floats = NDArray[np.float32]
N_IN, N_OUT, GROUP = 96, 40, 32


def weight_and_inputs() -> tuple[Floats, Floats, _C.InputSums]:
    rng = np.random.default_rng(5)
    weight = rng.standard_t(4, (N_OUT, N_IN)).astype(np.float32) * 0.1
    inputs = (rng.normal(size=(300, N_IN)) * np.exp(rng.normal(size=N_IN))).astype(np.float32)
    sums = _C.InputSums(N_IN)
    _C.Quantizer(1).add_inputs(sums, inputs)
    return weight, inputs, sums


# ---- LMDeploy's formulas: lmdeploy/lite/quantization/awq.py and calibration.py, in NumPy ----


def size_of(weight: NDArray[np.float64], group: int) -> NDArray[np.float64]:
    rows = []
    for row in np.abs(weight):
        width = group if group > 0 else len(row)
        rows.append(np.concatenate([c / c.max() for c in np.split(row, len(row) // width)]))
    return np.mean(rows, 0)


def lmdeploy_scales(
    act: NDArray[np.float64], weight: Floats, group: int, alpha: float
) -> NDArray[np.float64]:
    found = act**alpha / size_of(weight.astype(np.float64), group) ** (1 - alpha)
    return found / np.sqrt(found.max() * found.min())


def fake_quantised(weight: NDArray[np.float64], group: int) -> NDArray[np.float64]:
    values = np.empty_like(weight)
    for begin in range(0, weight.shape[1], group):
        part = weight[:, begin : begin + group]
        low, high = part.min(1, keepdims=True), part.max(1, keepdims=True)
        scale = (high - low) / 15
        zero = np.rint(-low / scale)
        values[:, begin : begin + group] = scale * (
            np.clip(np.rint(part / scale) + zero, 0, 15) - zero
        )
    return values


@pytest.mark.parametrize("group", [GROUP, -1])
@pytest.mark.parametrize("alpha", [0.5, 0.8])
def test_plain_scales_are_lmdeploys(group: int, alpha: float) -> None:
    weight, inputs, sums = weight_and_inputs()
    wanted = lmdeploy_scales(np.abs(inputs.astype(np.float64)).max(0), weight, group, alpha)
    got = smoothing.plain(weight, sums, group, np.zeros(N_IN, bool), alpha)
    assert got == pytest.approx(wanted, rel=1e-5)
    assert got.max() / got.min() > 3


def test_searched_scales_lose_least() -> None:
    """None of the candidates loses less, by the outputs on the inputs themselves."""
    weight, inputs, sums = weight_and_inputs()
    mean = np.abs(inputs.astype(np.float64)).mean(0)
    candidates = [lmdeploy_scales(mean, weight, GROUP, i / 20) for i in range(20)]

    def loss(scales: NDArray[Any]) -> float:
        wrong = fake_quantised(weight * scales, GROUP) / scales - weight
        return float(((inputs @ wrong.T) ** 2).sum())

    got = smoothing.searched(
        weight, sums, GROUP, np.zeros(N_IN, bool), _C.Quantizer(1), bits=4, symmetric=False
    )
    losses = [loss(np.ones(N_IN)), *map(loss, candidates)]
    assert loss(got) <= min(losses) * 1.02 < losses[0]
    assert any(np.allclose(got, c, rtol=1e-4) for c in candidates)


def test_dead_columns_get_1_and_count_nowhere() -> None:
    """Of a norm's zeros, of inputs that no token used, and of weights that are all 0; so does a
    matrix of nothing else."""
    weight, inputs, _ = weight_and_inputs()
    is_dead = np.arange(N_IN) == 3
    inputs[:, 7], weight[:, 40] = 0.0, 0.0
    weight[2, GROUP : 2 * GROUP] = 0.0  # and a group of zeros
    sums = _C.InputSums(N_IN)
    _C.Quantizer(1).add_inputs(sums, inputs)
    got = smoothing.plain(weight, sums, GROUP, is_dead)
    live = np.ones(N_IN, bool)
    live[[3, 7, 40]] = False
    assert (got[~live] == 1).all()
    assert got[live].max() * got[live].min() == pytest.approx(1, rel=1e-5)
    assert smoothing.plain(np.zeros_like(weight), sums, GROUP, is_dead) == pytest.approx(1)


# ---- folding ----

MHA = {"num_key_value_heads": 4}
BIASES = {"attention_bias": True, "mlp_bias": True}
CASES = [
    ("llama", {}), ("llama", MHA), ("llama", {**MHA, **BIASES}), ("mistral", {}), ("qwen2", {}),
    ("qwen2", MHA), ("qwen3", {}), ("qwen3", MHA), ("internlm2", {}), ("internlm2", MHA),
    ("internlm2", {"bias": True}),
]  # fmt: skip


def float_model(path: Path, arch: str, keys: dict[str, Any], zeros: bool = False) -> Path:
    config = {**pm.config_of(arch, "awq", 64), **keys}
    del config["quantization_config"]
    rng = np.random.default_rng(3)
    tensors = pm.other_tensors(rng, config)
    for name, shape in pm.linears_of(config).items():
        values = rng.normal(size=shape) * np.exp(rng.normal(size=shape[1])) / np.sqrt(shape[1])
        tensors[f"{name}.weight"] = values
    if zeros:
        for name, tensor in tensors.items():
            if ".layers." in name and name.endswith("norm.weight") and len(tensor) > 100:
                tensor[[0, 5, 77]] = 0
            elif name.endswith(("up_proj.weight", "w3.weight")):
                tensor[11] = 0  # a row: nothing reaches that column of down
    return pm.write_model(path, config, {n: t.astype(np.float32) for n, t in tensors.items()})


def fold(model: Path, out: Path, recipe: Recipe) -> dict[str, list[Floats]]:
    """Writes the float model that is quantised: columns multiplied, what is before them divided.
    Input -> the scales of each layer."""
    source, quantizer = Source(model), _C.Quantizer(2)
    windows = np.random.default_rng(1).integers(0, 64, (2, 60)).tolist()
    layers = Layers(source, windows, quantizer, held_out=0)
    config = source.checkpoint.config
    quantise = LayerQuantizer(recipe, Scheme(4, 64, False), config, quantizer)
    tensors = {name: source.read(name) for name in source.tensors}
    seen: dict[str, list[Floats]] = {}
    for i in range(config["n_layer"]):
        sums = layers.run(i)
        names = [name for name in source.tensors if layer_of(name) == i]
        linears = [name for name in source.linears() if layer_of(name) == i]
        result = LayerResult()
        scales = quantise._fold(linears, source.read, names, sums, result)
        tensors |= result.floats
        for name in linears:
            if input_of(name) in scales:
                tensors[name] = tensors[name] * scales[input_of(name)]
        for read, values in scales.items():
            seen.setdefault(read, []).append(values)
    pm.write_model(out, source.config, {n: np.ascontiguousarray(t) for n, t in tensors.items()})
    return seen


@pytest.mark.parametrize(("arch", "keys"), CASES, ids=str)
@pytest.mark.parametrize("scales", ["plain", "searched"])
def test_a_folded_model_is_the_same_model(
    tmp_path: Path, arch: str, keys: dict[str, Any], scales: str
) -> None:
    model = float_model(tmp_path / "model", arch, keys)
    seen = fold(model, tmp_path / "folded", Recipe(scales=scales))
    folds_o = keys.get("num_key_value_heads") == 4 and arch != "internlm2"
    assert seen.keys() == {"qkv", "gate_up", "down"} | ({"o"} if folds_o else set())
    if scales == "plain":
        assert all(s.max() > 1.5 for values in seen.values() for s in values)
    a, b = logits_of(tmp_path / "folded"), logits_of(model)
    assert np.abs(a - b).max() <= 3e-3 * np.abs(b).max()


@pytest.mark.parametrize("arch", ["llama", "internlm2"])
def test_zero_norms_and_dead_channels_fold(tmp_path: Path, arch: str) -> None:
    model = float_model(tmp_path / "model", arch, {}, zeros=True)
    seen = fold(model, tmp_path / "folded", Recipe(scales="plain"))
    assert all((s[[0, 5, 77]] == 1).all() for s in (*seen["qkv"], *seen["gate_up"]))
    assert all(s[11] == 1 for s in seen["down"])
    a, b = logits_of(tmp_path / "folded"), logits_of(model)
    assert np.isfinite(a).all() and np.abs(a - b).max() <= 3e-3 * np.abs(b).max()
