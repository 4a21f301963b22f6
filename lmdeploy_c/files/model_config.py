"""Normalises a model's config: config.json or GGUF metadata to one flat dict, which C reads.

The dict has the same keys for every model. What this release does not serve is refused by name,
with what was found and what is served.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..messages import unsupported
from . import quantization

#: Hugging Face architecture -> arch.
ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "InternLM2ForCausalLM": "internlm2",
    "InternLM3ForCausalLM": "internlm3",
}
#: GGUF's general.architecture -> whether llama.cpp's converter interleaves the rows of q and k.
GGUF_ARCHITECTURES = {"llama": True, "internlm2": True, "qwen2": False, "qwen3": False}
BOTH_WAYS = "attention to later tokens is not served"
ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "yarn")

#: Numbers below it fit into the core's, and a quotient of two of them into a float.
TOO_LARGE = 1 << 62

Config = dict[str, Any]


# ---- reading values ----


def _int(source: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value: Any = source.get(key)
    value = default if value is None else value
    if getattr(value, "ndim", 0):  # an array in a GGUF file: a number for each layer
        raise unsupported(f"{key} differs from layer to layer: {value.tolist()!r:.60}")
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < TOO_LARGE:
        raise ValueError(f"config: {key} must be a positive integer, not {value!r:.60}")
    return value


def _float(source: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = source.get(key)
    value = default if value is None else value
    # NaN is not below anything.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < TOO_LARGE:
        raise ValueError(f"config: {key} must be a number, not {value!r:.60}")
    return float(value)


def _flag(source: Mapping[str, Any], key: str, default: bool = False) -> bool:
    value = source.get(key, default)
    value = default if value is None else value
    if not isinstance(value, bool):
        raise ValueError(f"config: {key} must be true or false, not {value!r:.60}")
    return value


# ---- RoPE ----


def _yarn_attention_factor(scaling: Mapping[str, Any], factor: float) -> float:
    """As transformers' `_compute_yarn_parameters`; source: arXiv 2309.00071, section 3.4."""

    def scale(mscale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    if scaling.get("attention_factor") is not None:
        return _float(scaling, "attention_factor")
    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        of_all = scale(_float(scaling, "mscale_all_dim"))
        if of_all == 0:
            raise ValueError("config: mscale_all_dim makes a scale of 0")
        return scale(_float(scaling, "mscale")) / of_all
    return scale(1.0)


def _of_one_type(value: Any) -> Mapping[str, Any]:
    """RoPE parameters; of those for each type of layer, what full attention has."""
    if not isinstance(value, Mapping):
        raise ValueError("config: rope_scaling and rope_parameters must be objects")
    if not any(isinstance(v, Mapping) for v in value.values()):
        return value
    full = value.get("full_attention")
    if not isinstance(full, Mapping):
        raise unsupported("RoPE parameters for each type of layer, without full_attention's")
    return full


def _hf_rope(hf: Mapping[str, Any], max_position: int) -> Config:
    """The rope_* keys of a config.json, as transformers 5.23 reads them: hf_overrides and older
    files give rope_scaling, newer ones rope_parameters, with theta in it."""
    scaling = _of_one_type(hf.get("rope_scaling") or {})
    parameters = _of_one_type(hf.get("rope_parameters") or {})
    scaling = scaling or parameters
    original = hf.get("original_max_position_embeddings")
    if original is not None and (scaling.get("rope_type") or scaling.get("type")) in (
        "llama3",
        "yarn",
    ):
        scaling = {**scaling, "original_max_position_embeddings": original}
    theta = _float(parameters, "rope_theta", _float(hf, "rope_theta", 10000.0))
    return _rope(scaling, _float(scaling, "rope_theta", theta), max_position)


def _rope(scaling: Mapping[str, Any], theta: float, max_position: int) -> Config:
    """The rope_* keys. scaling: what config.json calls rope_scaling or rope_parameters."""
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind not in ROPE_TYPES:
        raise unsupported(f"RoPE type {kind!r} is not served; served: {', '.join(ROPE_TYPES)}")
    if scaling.get("mrope_section") is not None:
        raise unsupported("RoPE with mrope_section (multimodal) is not served")
    original = _int(scaling, "original_max_position_embeddings", max_position)
    missing = {"default": 1.0, "yarn": max_position / original}.get(kind)
    factor = _float(scaling, "factor", missing)
    if scaling.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise unsupported(f"partial_rotary_factor {scaling['partial_rotary_factor']} is not served")
    return {
        "rope_type": kind,
        "rope_theta": theta,
        "rope_factor": factor,
        # dynamic NTK scales from the length that config.json gives, whatever the original was
        "rope_original_max_position": max_position if kind == "dynamic" else original,
        "rope_low_freq_factor": _float(scaling, "low_freq_factor", 1.0),
        "rope_high_freq_factor": _float(scaling, "high_freq_factor", 4.0),
        "rope_beta_fast": _float(scaling, "beta_fast", 32.0),
        "rope_beta_slow": _float(scaling, "beta_slow", 1.0),
        "rope_attention_factor": _yarn_attention_factor(scaling, factor) if kind == "yarn" else 1.0,
        "rope_truncate": _flag(scaling, "truncate", True),
        "rope_freqs_tensor": False,
    }


# ---- Hugging Face ----


def flat(hf: Mapping[str, Any]) -> dict[str, Any]:
    """config.json with what only its text_config says, where there is one (multimodal files)."""
    text = hf.get("text_config")
    if not isinstance(text, Mapping):
        return dict(hf)
    return {**text, **{key: value for key, value in hf.items() if value is not None}}


def arch_of(hf: Mapping[str, Any]) -> str:
    """The arch of a config.json. UnsupportedError, ValueError."""
    names = hf.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"config: architectures must be a list of names, not {names!r:.80}")
    for name in names:
        if name in ARCHITECTURES:
            return ARCHITECTURES[name]
    if not names and hf.get("model_type") in ARCHITECTURES.values():
        return str(hf["model_type"])
    found = ", ".join(map(str, names)) or f"model_type {hf.get('model_type')!r}"
    raise unsupported(f"architecture {found} is not served; served: {', '.join(ARCHITECTURES)}")


def _window(hf: Mapping[str, Any], arch: str) -> Any:
    """What layers with a sliding window attend to; None where every layer attends to all. The
    defaults are transformers'."""
    if arch not in ("qwen2", "qwen3"):
        window = hf.get("sliding_window", 4096 if arch == "mistral" else None)
        return window if _flag(hf, "use_sliding_window", True) else None
    first = hf.get("max_window_layers", 28)  # the first layer that has one
    if not isinstance(first, int):
        raise ValueError(f"config: max_window_layers must be an integer, not {first!r:.40}")
    used = _flag(hf, "use_sliding_window") and first < _int(hf, "num_hidden_layers")
    return hf.get("sliding_window", 4096) if used and not hf.get("layer_types") else None


def _refuse_unserved(hf: Mapping[str, Any], arch: str, max_position: int) -> None:
    if hf.get("hidden_act", "silu") not in ("silu", "swish"):
        raise unsupported(f"hidden_act {hf['hidden_act']!r} is not served; served: silu")
    if not _flag(hf, "is_causal", True):
        raise unsupported(f"is_causal is false: {BOTH_WAYS}")
    if hf.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise unsupported(f"partial_rotary_factor {hf['partial_rotary_factor']} is not served")
    window = _window(hf, arch)
    if window is not None and _int({"sliding_window": window}, "sliding_window") < max_position:
        raise unsupported(
            f"sliding_window {window} is not served: every layer attends to the whole context; "
            f"hf_overrides={{'max_position_embeddings': {window}}} serves what fits in the window"
        )
    layer_types = hf.get("layer_types") or []
    if not isinstance(layer_types, list) or any(t != "full_attention" for t in layer_types):
        raise unsupported(f"layer_types {layer_types!r:.80}: only full_attention is served")
    for key in ("num_experts", "num_local_experts", "n_routed_experts"):
        if hf.get(key):
            raise unsupported(f"{key} {hf[key]}: mixtures of experts are not served")


def from_hf(hf: Mapping[str, Any]) -> Config:
    """The normalised config of a config.json. UnsupportedError, ValueError."""
    hf = flat(hf)
    arch = arch_of(hf)
    n_head, hidden_dim = _int(hf, "num_attention_heads"), _int(hf, "hidden_size")
    # As transformers: without the key, or with null, their configs say 128 or hidden_size / heads.
    wide_heads = arch == "qwen3" or (arch == "internlm3" and "head_dim" not in hf)
    max_position = _int(hf, "max_position_embeddings", 2048)
    _refuse_unserved(hf, arch, max_position)
    # As transformers: Mistral and Qwen2 know no attention_bias, and Llama alone has mlp_bias.
    attention_bias = _flag(hf, "bias" if arch == "internlm2" else "attention_bias")
    attention_bias = attention_bias and arch not in ("mistral", "qwen2")
    mlp_bias = _flag(hf, "mlp_bias") and arch in ("llama", "internlm3")
    if arch == "internlm3":  # on the hub qkv_bias and bias, which transformers 5 saves renamed
        attention_bias = _flag(hf, "qkv_bias", attention_bias)
        mlp_bias = _flag(hf, "bias", mlp_bias)
    return {
        "arch": arch,
        "naming": "hf",
        "n_layer": _int(hf, "num_hidden_layers"),
        "n_head": n_head,
        "n_kv_head": _int(hf, "num_key_value_heads", n_head),
        "head_dim": _int(hf, "head_dim", 128 if wide_heads else hidden_dim // n_head),
        "hidden_dim": hidden_dim,
        "ffn_dim": _int(hf, "intermediate_size"),
        "vocab_size": _int(hf, "vocab_size"),
        "max_position": max_position,
        "norm_eps": _float(hf, "rms_norm_eps", 1e-6),
        **_hf_rope(hf, max_position),
        "tie_embeddings": _flag(hf, "tie_word_embeddings"),
        "qkv_bias": arch == "qwen2" or attention_bias,
        "o_bias": mlp_bias if arch == "internlm3" else attention_bias,
        "mlp_bias": mlp_bias,
        "qk_norm": arch == "qwen3",
        "packed_qkv": arch == "internlm2",
        "interleaved_rope": False,
        **quantization.read(hf),
    }


# ---- GGUF ----


def _gguf_values(metadata: Mapping[str, Any], arch: str) -> Config:
    """The architecture's keys, without its name in front. What is written for each layer, and for
    each the same, is one number."""
    values = {}
    for key, value in metadata.items():
        if getattr(value, "ndim", 0) == 1 and value.size and (value == value[0]).all():
            value = value[0].item()
        values[key.removeprefix(f"{arch}.")] = value
    return values


def _gguf_scaling(values: Mapping[str, Any]) -> Config:
    """GGUF's rope.scaling.* under config.json's names, read as llama.cpp does; but what its
    converter writes of transformers' attention_factor and betas is read as they mean it."""

    def get(key: str) -> Any:
        return values.get(f"rope.scaling.{key}")

    kind, factor = get("type"), get("factor")
    factor = values.get("rope.scale_linear") if factor is None else factor
    is_yarn = kind == "yarn"
    served: dict[str, tuple[float, ...]] = {
        "yarn_ext_factor": (1.0,) if is_yarn else (0.0, 1.0),
        "yarn_log_multiplier": (0.0,),
        "alpha": (0.0,),
    }
    if not is_yarn:
        served |= {"attn_factor": (1.0,), "yarn_attn_factor": (1.0,)}
    for key, numbers in served.items():
        if get(key) is not None and _float(values, f"rope.scaling.{key}") not in numbers:
            raise unsupported(
                f"rope.scaling.{key} {get(key)!r:.40} with type {kind!r:.20} is not served, "
                f"only {numbers[0]:g}"
            )
    if kind == "none" or (kind is None and factor is None):
        return {}
    factor = _float({"factor": factor}, "factor", 1.0)
    attention = 1.0
    if is_yarn:  # the converter's yarn_attn_factor stands for the paper's, attn_factor multiplies
        attention = _yarn_attention_factor({"attention_factor": get("yarn_attn_factor")}, factor)
        attention *= _float(values, "rope.scaling.attn_factor", 1.0)
    return {
        "rope_type": kind or "linear",
        "factor": factor,
        "original_max_position_embeddings": get("original_context_length"),
        "attention_factor": attention,
        "beta_fast": get("yarn_beta_fast"),
        "beta_slow": get("yarn_beta_slow"),
    }


def from_gguf(
    metadata: Mapping[str, Any], tensors: Mapping[str, tuple[str, tuple[int, ...]]]
) -> Config:
    """The normalised config of a GGUF file. UnsupportedError, ValueError."""
    arch = metadata.get("general.architecture")
    if not isinstance(arch, str) or arch not in GGUF_ARCHITECTURES:
        raise unsupported(
            f"GGUF architecture {arch!r} is not served; served: {', '.join(GGUF_ARCHITECTURES)}"
        )
    values = _gguf_values(metadata, arch)
    if values.get("expert_count") not in (None, 0):
        raise unsupported(f"{arch}.expert_count: mixtures of experts are not served")
    if not _flag(values, "attention.causal", True):
        raise unsupported(f"{arch}.attention.causal is false: {BOTH_WAYS}")
    if "token_embd.weight" not in tensors:
        raise ValueError('the GGUF file has no tensor "token_embd.weight"')
    if not tensors.keys().isdisjoint(f"blk.0.ffn_{name}.bias" for name in ("gate", "up", "down")):
        raise unsupported("biases of the feed-forward layers in a GGUF file are not served")
    n_head, hidden_dim = _int(values, "attention.head_count"), _int(values, "embedding_length")
    max_position = _int(values, "context_length", 2048)
    head_dim = _int(values, "attention.key_length", hidden_dim // n_head)
    if _int(values, "rope.dimension_count", head_dim) != head_dim:
        raise unsupported("rope.dimension_count below the head's dimension is not served")
    if _int(values, "attention.value_length", head_dim) != head_dim:
        raise unsupported("attention.value_length other than attention.key_length is not served")
    window = values.get("attention.sliding_window") or max_position
    if _int({"attention.sliding_window": window}, "attention.sliding_window") < max_position:
        raise unsupported(f"attention.sliding_window {window} is not served")
    theta = _float(values, "rope.freq_base", 10000.0)
    rope = _rope(_gguf_scaling(values), theta, max_position)
    return {
        "arch": arch,
        "naming": "gguf",
        "n_layer": _int(values, "block_count"),
        "n_head": n_head,
        "n_kv_head": _int(values, "attention.head_count_kv", n_head),
        "head_dim": head_dim,
        "hidden_dim": hidden_dim,
        "ffn_dim": _int(values, "feed_forward_length"),
        "vocab_size": tensors["token_embd.weight"][1][0],
        "max_position": max_position,
        "norm_eps": _float(values, "attention.layer_norm_rms_epsilon"),
        **rope,
        "rope_freqs_tensor": "rope_freqs.weight" in tensors,
        "tie_embeddings": "output.weight" not in tensors,
        "qkv_bias": not tensors.keys().isdisjoint(
            f"blk.0.attn_{name}.bias" for name in ("q", "k", "v", "qkv")
        ),
        "o_bias": "blk.0.attn_output.bias" in tensors,
        "mlp_bias": False,
        "qk_norm": arch == "qwen3",
        "packed_qkv": False,
        "interleaved_rope": GGUF_ARCHITECTURES[arch],
        **quantization.read({}),
    }
