"""What linears read, against a forward pass of one token written down in NumPy; and what the
quantizer makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import packed_models as pm
import pytest
from conftest import GOLDEN, exact_kv_bits, load_model, make_engine, read_all
from numpy.typing import NDArray
from safetensors.numpy import load_file

from lmdeploy_c import _C
from lmdeploy_c.lite import quantize
from lmdeploy_c.lite.calibration_data import windows as windows_of
from lmdeploy_c.lite.layers import INPUTS, Layers, input_of, layer_of
from lmdeploy_c.lite.recipe import LEAST, importance
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
    result: NDArray[Any] = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * weight
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


def sums_of_layers(path: Path, windows: list[list[int]], **options: Any) -> list[dict[str, Any]]:
    """What each layer's linears read, by input."""
    layers = Layers(Source(path), windows, _C.Quantizer(2), held_out=0, **options)
    n_layer = Source(path).checkpoint.config["n_layer"]
    found = [layers.run(i) for i in range(n_layer)]
    return [sums.calibration for sums in found if sums is not None]


@pytest.mark.parametrize("token", [0, 5, 63])
def test_squares_of_one_token(model: Path, token: int) -> None:
    sums = sums_of_layers(model, [[token]])
    for read, wanted in zip(INPUTS, squares_of_one_token(model, token), strict=True):
        for layer, b in zip(sums, wanted, strict=True):
            assert layer[read].n_tokens == 1
            a = layer[read].squares()
            assert np.abs(a - b).max() <= 2e-3 * b.max()
            np.testing.assert_allclose(np.diag(layer[read].gram()), a, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("name", ["llama-f16", "llama-bias", "qwen2", "qwen3", "internlm2"])
def test_keys_and_values(name: str) -> None:
    """Of a first layer, whose input is the embedding, by NumPy: biases, norms, RoPE, packed qkv."""
    source = Source(GOLDEN / "models" / name)
    config = source.checkpoint.config
    n_kv, n_dim, per = config["n_kv_head"], config["head_dim"], config["n_head"]
    ids = np.random.default_rng(3).integers(0, 64, 90)
    w = {n: source.read(n).astype(np.float64) for n in source.tensors if not layer_of(n) > 0}

    def find(end: str) -> Any:
        return next((w[n] for n in w if n.endswith(end)), None)

    def norm(x: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
        scaled: NDArray[np.float64] = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)
        return scaled * weight

    x = norm(
        find("embed_tokens.weight" if name != "internlm2" else "tok_embeddings.weight")[ids],
        find("input_layernorm.weight" if name != "internlm2" else "attention_norm.weight"),
    )
    if name == "internlm2":
        packed = find("wqkv.weight").reshape(n_kv, per // n_kv + 2, n_dim, -1)
        key, value = (np.einsum("tc,hdc->thd", x, packed[:, i]) for i in (-2, -1))
    else:
        key, value = (
            (x @ find(f"{p}_proj.weight").T + (0 if b is None else b)).reshape(-1, n_kv, n_dim)
            for p, b in ((p, find(f"self_attn.{p}_proj.bias")) for p in "kv")
        )
    if find("k_norm.weight") is not None:
        key = norm(key, find("k_norm.weight"))
    at = np.arange(90)[:, None, None] * config["rope_theta"] ** (-np.arange(n_dim // 2) * 2 / n_dim)
    a, b = key[..., : n_dim // 2], key[..., n_dim // 2 :]
    key = np.concatenate([a * np.cos(at) - b * np.sin(at), b * np.cos(at) + a * np.sin(at)], -1)
    kv = np.concatenate([key, value], 1).reshape(90, -1)
    sums = Layers(source, [ids.tolist()], _C.Quantizer(2), held_out=0).run(0, gram=False)
    assert sums is not None and sums.kv.n_tokens == 90
    size = np.abs(kv).max()
    np.testing.assert_allclose(sums.kv.least(), kv.min(0), atol=2e-3 * size)
    np.testing.assert_allclose(sums.kv.most(), kv.max(0), atol=2e-3 * size)
    np.testing.assert_allclose(sums.kv.squares(), (kv * kv).sum(0), rtol=0.02, atol=1e-3 * size**2)


def test_tokens_add_up(model: Path) -> None:
    """What q, k and v of the first layer read does not depend on the other tokens."""
    ids = np.random.default_rng(1).integers(0, 64, 200).tolist()
    together = sums_of_layers(model, [ids[:150], ids[150:]])
    alone = sums_of_layers(model, [[i] for i in ids])
    a, b = together[0]["qkv"], alone[0]["qkv"]
    assert a.n_tokens == b.n_tokens == 200
    np.testing.assert_allclose(a.squares(), b.squares(), rtol=1e-5)
    np.testing.assert_allclose(a.gram(), b.gram(), atol=1e-4 * a.squares().max())
    np.testing.assert_allclose(a.absolute(), b.absolute(), rtol=1e-5)
    again = sums_of_layers(model, [ids[:150], ids[150:]], num_threads=3)
    for one, other in zip(together, again, strict=True):
        assert all((one[read].gram() == other[read].gram()).all() for read in INPUTS)


@pytest.mark.parametrize(
    "path", [GGUF, GOLDEN / "gguf" / "llama-Q4_K.gguf"], ids=["float", "codes"]
)
def test_layers_make_the_model(path: Path) -> None:
    """One layer after the other gives the hidden states of all together: the same logits."""
    if not path.exists():
        pytest.skip("no such golden model")
    source = Source(path)
    ids = np.random.default_rng(2).integers(0, 64, 50).tolist()
    layers = Layers(source, [ids], _C.Quantizer(2))
    for i in range(source.checkpoint.config["n_layer"]):
        assert layers.run(i, watch=False) is None
    close_to_engine(path, layers, ids)


def close_to_engine(path: Path, layers: Layers, ids: list[int]) -> None:
    """The hidden states of the layers' only text give the engine's logits."""
    source = Source(path)
    [hidden] = layers.hidden()
    rms = np.sqrt((hidden.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-5)
    head = "lm_head.weight" if "lm_head.weight" in source.tensors else "model.embed_tokens.weight"
    got = (hidden / rms * source.read("model.norm.weight")) @ source.read(head).T
    engine = make_engine(
        load_model(path), kv_bits=exact_kv_bits(), session_len=len(ids) + 1, n_blocks=64
    )
    wanted = read_all(engine.submit(ids, max_new_tokens=0, output_logits="all")).logits
    engine.close()
    assert np.abs(got - wanted).max() <= 0.01 * np.abs(wanted).max()


LENGTHS = (3, 700, 2500, 1, 1400, 30)  # some share a step; the third has more than one


def test_texts_share_steps(model: Path) -> None:
    """What becomes of a text does not depend on the texts beside it, and first tokens are
    counted."""
    rng = np.random.default_rng(4)
    windows = [rng.integers(0, 64, n).tolist() for n in LENGTHS]
    source, quantizer = Source(model), _C.Quantizer(2)
    together = Layers(source, windows, quantizer, held_out=0)
    sums = together.run(0)
    assert sums is not None
    alone = [Layers(source, [window], quantizer, held_out=0) for window in windows]
    for one, hidden in zip(alone, together.hidden(), strict=True):
        one.run(0, watch=False)
        np.testing.assert_array_equal(one.hidden()[0], hidden)
    read = sums.calibration["qkv"]
    assert read.n_tokens == sum(LENGTHS)
    table = source.read("model.embed_tokens.weight").astype(np.float64)
    normed = norm(table, source.read("model.layers.0.input_layernorm.weight"))
    mass = (normed**2).sum(1)
    first = sum(mass[window[0]] for window in windows)
    assert read.first_token_mass == pytest.approx(
        first / sum(mass[window].sum() for window in windows), rel=1e-5
    )


def test_a_long_text_is_one(model: Path) -> None:
    """A text of more than one step is read as the engine reads it: whole."""
    ids = np.random.default_rng(5).integers(0, 64, 2500).tolist()
    layers = Layers(Source(model), [ids], _C.Quantizer(2))
    for i in range(Source(model).checkpoint.config["n_layer"]):
        layers.run(i, watch=False)
    close_to_engine(model, layers, ids)


def test_refusals(model: Path, tmp_path: Path) -> None:
    quantizer, whole = _C.Quantizer(1), load_model(model)
    width = Source(model).checkpoint.config["hidden_dim"]
    with pytest.raises(ValueError, match="one layer, not 2"):
        quantizer.run_layer(whole, np.zeros((3, width), np.float32), [3])
    layers = Layers(Source(model), [[1, 2]], quantizer)
    one = layers._open(0)
    two = np.zeros((2, width), np.float32)
    assert quantizer.run_layer(one, two[:0], []).shape == (0, width)
    for lengths, message in (
        ([2, 0], "1 to 65536 tokens, not 0"),
        ([65537], "not 65537"),
        ([2, -1], "not -1"),
        ([1, 2], "hidden has 2 rows; lengths add up to 3"),
        ([], "lengths add up to 0"),
    ):
        with pytest.raises(ValueError, match=message):
            quantizer.run_layer(one, two, lengths)
    with pytest.raises(ValueError, match="hidden has 3 columns"):
        quantizer.run_layer(one, np.zeros((2, 3), np.float32), [2])
    with pytest.raises(ValueError, match="sums must be 5, not 1"):
        quantizer.run_layer(one, two, [2], [None])
    with pytest.raises(ValueError, match="sums 0 have 3 columns"):
        quantizer.run_layer(one, two, [2], [_C.InputSums(3), None, None, None, None])
    with pytest.raises(ValueError, match="NaN or infinite"):
        quantizer.run_layer(one, two + np.inf, [1, 1], [*layers.new_sums(True).values(), None])
    with pytest.raises(FileNotFoundError, match="data sets are not downloaded"):
        quantize(GGUF, tmp_path / "out", calib_dataset="wikitext2")
    assert not (tmp_path / "out" / "config.json").exists()


def test_errors_count_where_the_model_reads(tmp_path: Path) -> None:
    """Weighed by what each column carries, the calibrated codes are nearer; no column is free."""
    source = Source(GGUF)
    (tmp_path / "text").write_text(TEXT)
    windows = windows_of(source, tmp_path / "text", seqlen=64)
    layers = Layers(source, windows, _C.Quantizer(2))
    quantize(GGUF, tmp_path / "plain", method="rtn", w_group_size=32, calib_dataset=None)
    quantize(GGUF, tmp_path / "calibrated", method="rtn", w_group_size=32,
             calib_dataset=tmp_path / "text", calib_seqlen=64)  # fmt: skip
    dense = [
        pm.dense_tensors("awq", load_file(tmp_path / name / "model.safetensors"))
        for name in ("plain", "calibrated")
    ]
    for layer in range(source.checkpoint.config["n_layer"]):
        sums = layers.run(layer)
        assert sums is not None
        for name in (n for n in source.linears() if layer_of(n) == layer):
            counts = importance(sums.calibration[input_of(name)]).astype(np.float64)
            exact = source.read(name)
            plain, better = (float((counts * (d[name] - exact) ** 2).sum()) for d in dense)
            assert better <= plain * 1.0001
            assert counts.min() >= 0.99 * LEAST * counts.mean() > 0
