"""The normalised config: against golden models, and what it refuses."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import GOLDEN

from lmdeploy_c import _C
from lmdeploy_c.files.model_config import from_gguf, from_hf

MODELS = sorted(path.parent for path in GOLDEN.glob("models/*/config.json"))
NOT_SERVED = {"llama-rope-longrope"}
GGUFS = sorted(p for p in GOLDEN.glob("gguf/*.gguf") if p.stem != "types")
LLAMA = json.loads((GOLDEN / "models" / "llama-mha" / "config.json").read_text())
ANYTHING = [None, True, 0, -1, 7, 2**31, 1.5, math.nan, math.inf, "", "x", [], [1], {}, {"a": 1},
            {"type": "yarn", "factor": None}, {"rope_type": ["yarn"]}, {"rope_type": "linear"},
            {"type": "dynamic", "factor": "2"}, {"rope_type": "llama3", "factor": -1}]  # fmt: skip


def read(path: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((path / "config.json").read_text())
    return config


def inv_freq(config: dict[str, Any]) -> np.ndarray:
    """Frequencies of default, linear and yarn RoPE: what the keys mean, written once more."""
    dim, theta = config["head_dim"], config["rope_theta"]
    plain = theta ** (-np.arange(0, dim, 2) / dim)
    if config["rope_type"] == "default":
        return plain
    if config["rope_type"] == "linear":
        return plain / config["rope_factor"]
    original = config["rope_original_max_position"]

    def turns(n: float) -> float:
        return dim * math.log(original / (n * 2 * math.pi)) / (2 * math.log(theta))

    low, high = turns(config["rope_beta_fast"]), turns(config["rope_beta_slow"])
    if config["rope_truncate"]:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = np.clip((np.arange(dim // 2) - low) / max(high - low, 0.001), 0, 1)
    return plain / config["rope_factor"] * ramp + plain * (1 - ramp)


@pytest.mark.parametrize("path", MODELS, ids=lambda p: p.name)
def test_golden_models(path: Path) -> None:
    if path.name in NOT_SERVED:
        with pytest.raises(_C.UnsupportedError, match="longrope"):
            from_hf(read(path))
        return
    config = from_hf(read(path))
    assert config.keys() == from_hf(LLAMA).keys()
    with np.load(path / "golden.npz") as golden:
        assert config["rope_attention_factor"] == pytest.approx(float(golden["attention_scaling"]))
        if config["rope_type"] in ("default", "linear", "yarn"):
            np.testing.assert_allclose(inv_freq(config), golden["inv_freq"], rtol=1e-5)


@pytest.mark.parametrize("path", GGUFS, ids=lambda p: p.stem)
def test_golden_ggufs(path: Path) -> None:
    gguf = _C.Gguf(path)
    config = from_gguf(gguf.metadata, gguf.tensors)
    assert config.keys() == from_hf(LLAMA).keys()
    assert config["interleaved_rope"] == (config["arch"] == "llama")
    assert config["rope_freqs_tensor"] == (path.stem == "llama-ropefreqs")


def test_rope_scaling_of_the_user_wins() -> None:
    """hf_overrides give rope_scaling; transformers 5 wrote rope_parameters, with theta in it."""
    parameters = {"rope_type": "default", "rope_theta": 5e5}
    scaling = {"type": "linear", "factor": 2.0}
    config = from_hf({**LLAMA, "rope_parameters": parameters, "rope_scaling": scaling})
    assert (config["rope_type"], config["rope_factor"]) == ("linear", 2.0)
    assert config["rope_theta"] == 5e5


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    "change",
    [
        {"rope_scaling": {**YARN, "rope_theta": 5e5}},
        {"rope_scaling": YARN, "rope_theta": 5e5},
        {"rope_parameters": {**YARN, "rope_theta": 5e5}},
        {"rope_parameters": {"full_attention": {**YARN, "rope_theta": 5e5},
                             "sliding_attention": {"rope_type": "default"}}},
        {"text_config": {"rope_parameters": {**YARN, "rope_theta": 5e5}}},
        {"text_config": {"rope_scaling": YARN, "rope_theta": 5e5}},
        {"rope_scaling": {**YARN, "original_max_position_embeddings": 8}, "rope_theta": 5e5,
         "original_max_position_embeddings": 64},
    ],
)  # fmt: skip
def test_where_rope_parameters_stand(change: dict[str, Any]) -> None:
    bare = {key: value for key, value in LLAMA.items() if not key.startswith("rope")}
    config = from_hf({**bare, **change})
    found = [config[f"rope_{key}"] for key in ("type", "theta", "factor")]
    assert found == ["yarn", 5e5, 4.0]
    assert config["rope_original_max_position"] == 64


def test_yarn_without_a_factor() -> None:
    scaling = {"rope_type": "yarn", "original_max_position_embeddings": 64}
    assert from_hf({**LLAMA, "rope_scaling": scaling})["rope_factor"] == 4.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantization_config": {"quant_method": "fp8"}}, "fp8.*served: awq, gptq"),
        ({"architectures": ["Qwen2MoeForCausalLM"]}, r"Qwen2Moe.*served: Llama"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ({"sliding_window": 64}, "sliding_window 64"),
        ({"rope_scaling": {"type": "su", "factor": 2.0}}, "'su'.*served: default"),
        ({"rope_parameters": {"sliding_attention": {"rope_type": "default"}}}, "type of layer"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ],
)
def test_what_is_not_served_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(_C.UnsupportedError, match=message):
        from_hf({**LLAMA, **change})


def test_windows() -> None:
    mistral = {**read(GOLDEN / "models" / "mistral"), "max_position_embeddings": 8192}
    assert from_hf(mistral)["arch"] == "mistral"
    del mistral["sliding_window"]  # transformers' default is a window, then
    with pytest.raises(_C.UnsupportedError, match="sliding_window 4096"):
        from_hf(mistral)
    assert from_hf({**mistral, "sliding_window": 8192})["max_position"] == 8192
    qwen = {**read(GOLDEN / "models" / "qwen2"), "sliding_window": 64}
    assert from_hf(qwen)["max_position"] == 256
    qwen |= {"use_sliding_window": True, "max_window_layers": 1}
    with pytest.raises(_C.UnsupportedError, match="sliding_window 64"):
        from_hf(qwen)
    for every_layer in ({"max_window_layers": 2}, {"layer_types": ["full_attention"] * 2}):
        assert from_hf({**qwen, **every_layer})["max_position"] == 256
    del qwen["sliding_window"]
    with pytest.raises(_C.UnsupportedError, match="sliding_window 4096"):
        from_hf({**qwen, "max_position_embeddings": 8192})
    with pytest.raises(ValueError, match="max_window_layers"):
        from_hf({**qwen, "max_window_layers": "1"})


@pytest.mark.parametrize(
    ("model", "biases"),
    [
        ("llama-mha", (True, True, True)),
        ("mistral", (False, False, False)),
        ("qwen2", (True, False, False)),
        ("qwen3", (True, True, False)),
    ],
)
def test_flags_of_biases_are_those_that_transformers_knows(
    model: str, biases: tuple[bool, bool, bool]
) -> None:
    config = from_hf({**read(GOLDEN / "models" / model), "attention_bias": True, "mlp_bias": True})
    assert tuple(config[key] for key in ("qkv_bias", "o_bias", "mlp_bias")) == biases


@pytest.fixture
def tiny_gguf() -> _C.Gguf:
    return _C.Gguf(GOLDEN / "gguf" / "llama-q4_1.gguf")


def scaled(gguf: _C.Gguf, **scaling: Any) -> dict[str, Any]:
    """The config of a file with other rope.scaling.* keys."""
    changes = {f"llama.rope.scaling.{key}": value for key, value in scaling.items()}
    return from_gguf({**gguf.metadata, **changes}, gguf.tensors)


def test_gguf_rope_scaling(tiny_gguf: _C.Gguf) -> None:
    assert scaled(tiny_gguf, factor=2.0)["rope_type"] == "linear"  # llama.cpp's default
    assert scaled(tiny_gguf, type="none", factor=2.0)["rope_factor"] == 1.0
    yarn = scaled(tiny_gguf, type="yarn", factor=4.0, original_context_length=64, attn_factor=0.5)
    assert yarn["rope_attention_factor"] == pytest.approx(0.5 * (1 + 0.1 * math.log(4)))
    assert yarn["rope_original_max_position"] == 64
    with pytest.raises(_C.UnsupportedError, match="longrope"):
        scaled(tiny_gguf, type="longrope", factor=4.0)


@pytest.mark.parametrize(
    "scaling",
    [
        {"attention_factor": 0.8, "beta_fast": 16.0, "beta_slow": 2.0},
        {"attention_factor": 1.0},
        {"beta_fast": 8.0},
        {},
    ],
)
def test_what_the_converter_makes_of_yarn(tiny_gguf: _C.Gguf, scaling: dict[str, float]) -> None:
    """The frequencies are those of config.json: llama.cpp's converter renames its keys."""
    names = {
        "attention_factor": "yarn_attn_factor",
        "beta_fast": "yarn_beta_fast",
        "beta_slow": "yarn_beta_slow",
    }
    yarn = {"factor": 4.0, "original_max_position_embeddings": 64, **scaling}
    hf = from_hf({**LLAMA, "rope_scaling": {"rope_type": "yarn", **yarn}})
    keys = {names[key]: value for key, value in scaling.items()}
    got = scaled(tiny_gguf, type="yarn", factor=4.0, original_context_length=64, **keys)
    rope = [key for key in hf if key.startswith("rope_")]
    assert [got[key] for key in rope] == [hf[key] for key in rope]


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"type": "yarn", "factor": 4.0, "yarn_log_multiplier": 0.1}, "yarn_log_multiplier 0.1"),
        ({"type": "yarn", "factor": 4.0, "yarn_ext_factor": 0.5}, "yarn_ext_factor 0.5"),
        ({"type": "yarn", "factor": 4.0, "alpha": 1000.0}, "alpha 1000.0"),
        ({"type": "linear", "factor": 4.0, "attn_factor": 0.5}, "attn_factor 0.5 with type 'lin"),
        ({"factor": 4.0, "yarn_attn_factor": 0.5}, "yarn_attn_factor 0.5"),
        ({"attn_factor": 0.5}, "attn_factor 0.5"),
        ({"type": "none", "attn_factor": 0.5}, "attn_factor 0.5"),
    ],
)
def test_gguf_rope_keys_are_read_or_named(
    tiny_gguf: _C.Gguf, scaling: dict[str, Any], message: str
) -> None:
    with pytest.raises(_C.UnsupportedError, match=f"rope.scaling.{message}"):
        scaled(tiny_gguf, **scaling)


def test_gguf_arrays_by_layer(tiny_gguf: _C.Gguf) -> None:
    metadata = tiny_gguf.metadata
    expected = from_gguf(metadata, tiny_gguf.tensors)
    keys = [f"llama.{k}" for k in ("attention.head_count", "attention.head_count_kv",
                                   "feed_forward_length")]  # fmt: skip
    alike = {key: np.full(2, metadata[key], np.int32) for key in keys}
    assert from_gguf({**metadata, **alike}, tiny_gguf.tensors) == expected
    for key in keys:
        differing = {key: np.array([2, 1], np.int32)}
        with pytest.raises(_C.UnsupportedError, match=rf"{key[6:]} differs.*\[2, 1\]"):
            from_gguf({**metadata, **differing}, tiny_gguf.tensors)


def test_gguf_biases(tiny_gguf: _C.Gguf) -> None:
    def read_with(name: str) -> dict[str, Any]:
        return from_gguf(
            tiny_gguf.metadata, {**tiny_gguf.tensors, f"blk.0.{name}.bias": ("F32", (1,))}
        )

    for name in ("attn_q", "attn_k", "attn_v", "attn_qkv"):
        assert read_with(name)["qkv_bias"]
    for name in ("ffn_gate", "ffn_up", "ffn_down"):
        with pytest.raises(_C.UnsupportedError, match="feed-forward"):
            read_with(name)


def test_gguf_architecture_is_looked_at_first() -> None:
    with pytest.raises(_C.UnsupportedError, match="'gemma3'.*served: llama"):
        from_gguf({"general.architecture": "gemma3"}, {"blk.0.attn_k.weight": ("IQ2_S", (2, 2))})


def test_any_value_gives_a_config_or_a_value_error() -> None:
    keys = [*LLAMA, "quantization_config", "sliding_window", "rope_scaling", "rope_parameters",
            "layer_types", "num_experts", "partial_rotary_factor", "head_dim"]  # fmt: skip
    for key in keys:
        for value in ANYTHING:
            try:
                from_hf({**LLAMA, key: value})
            except ValueError as error:
                assert str(error)
    gguf = _C.Gguf(GOLDEN / "gguf" / "llama-spm.gguf")
    for key in [*gguf.metadata, "llama.attention.sliding_window", "llama.rope.scaling.type"]:
        for value in ANYTHING:
            try:
                from_gguf({**gguf.metadata, key: value}, gguf.tensors)
            except ValueError as error:
                assert str(error)


def test_a_scale_of_nothing_is_named() -> None:
    """log(factor) is 1, and 0.1 * mscale_all_dim + 1 is 0."""
    scaling = {"rope_type": "yarn", "factor": math.e, "mscale": 1.0, "mscale_all_dim": -10.0}
    with pytest.raises(ValueError, match="mscale_all_dim"):
        from_hf({**LLAMA, "rope_scaling": scaling})
