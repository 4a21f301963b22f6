"""A normalised config (files/model_config.py) as the config.json of a Hugging Face directory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..messages import unsupported

#: arch of a GGUF file -> what its tensors are in a directory. InternLM2 with q, k and v apart is
#: a Llama.
ARCHITECTURES = {
    "llama": ("LlamaForCausalLM", "llama"),
    "internlm2": ("LlamaForCausalLM", "llama"),
    "qwen2": ("Qwen2ForCausalLM", "qwen2"),
    "qwen3": ("Qwen3ForCausalLM", "qwen3"),
}


def _rope_scaling(config: Mapping[str, Any]) -> dict[str, Any] | None:
    kind = config["rope_type"]
    if kind == "default":
        return None
    scaling: dict[str, Any] = {"rope_type": kind, "factor": config["rope_factor"]}
    if kind in ("llama3", "yarn"):
        scaling["original_max_position_embeddings"] = config["rope_original_max_position"]
    if kind == "llama3":
        scaling["low_freq_factor"] = config["rope_low_freq_factor"]
        scaling["high_freq_factor"] = config["rope_high_freq_factor"]
    if kind == "yarn":
        scaling["attention_factor"] = config["rope_attention_factor"]
        scaling["beta_fast"] = config["rope_beta_fast"]
        scaling["beta_slow"] = config["rope_beta_slow"]
        scaling["truncate"] = config["rope_truncate"]
    return scaling


def _check(config: Mapping[str, Any]) -> None:
    """UnsupportedError for what config.json cannot say."""
    if config["rope_freqs_tensor"]:
        raise unsupported(
            "a GGUF file with rope_freqs.weight has no config.json: that tensor stands for RoPE "
            "parameters which only the original model's config.json has; start from that one"
        )
    if config["arch"] in ("qwen2", "qwen3") and config["o_bias"]:
        raise unsupported("a Qwen model whose o projection has a bias")
    if config["arch"] not in ("qwen2",) and config["qkv_bias"] != config["o_bias"]:
        raise unsupported(f"{config['arch']}: biases of q, k and v without one of o, or without")


def of_config(
    config: Mapping[str, Any], dtype: str, bos: int | None, eos: list[int]
) -> dict[str, Any]:
    """The config.json that `model_config.from_hf` reads as this config of a GGUF file.

    dtype: "float32", "float16" or "bfloat16". Raises UnsupportedError.
    """
    _check(config)
    architecture, model_type = ARCHITECTURES[config["arch"]]
    hf: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": config["vocab_size"],
        "hidden_size": config["hidden_dim"],
        "intermediate_size": config["ffn_dim"],
        "num_hidden_layers": config["n_layer"],
        "num_attention_heads": config["n_head"],
        "num_key_value_heads": config["n_kv_head"],
        "head_dim": config["head_dim"],
        "hidden_act": "silu",
        "max_position_embeddings": config["max_position"],
        "rms_norm_eps": config["norm_eps"],
        "rope_theta": config["rope_theta"],
        "tie_word_embeddings": config["tie_embeddings"],
        "torch_dtype": dtype,
    }
    scaling = _rope_scaling(config)
    if scaling:
        hf["rope_scaling"] = scaling
    if config["arch"] != "qwen2":
        hf["attention_bias"] = config["qkv_bias"]
    if bos is not None:
        hf["bos_token_id"] = bos
    if eos:
        hf["eos_token_id"] = eos if len(eos) > 1 else eos[0]
    return hf
