"""A normalised config (files/model_config.py) as the metadata of a GGUF file, under llama.cpp's
keys. The other way: `model_config.from_gguf`.

What llama.cpp (llama-cpp-python 0.3.36) cannot compute is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files.checkpoint import Checkpoint
from ..messages import unsupported

#: arch of a directory -> general.architecture. With q, k and v apart the first four are Llamas.
ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "internlm2": "llama",
    "internlm3": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
}


def architecture_of(checkpoint: Checkpoint) -> str:
    """general.architecture of the GGUF file that is made of a checkpoint: a GGUF file's own."""
    if checkpoint.metadata:
        return str(checkpoint.metadata["general.architecture"])
    return ARCHITECTURES[checkpoint.config["arch"]]


def _check(config: Mapping[str, Any], arch: str) -> None:
    """UnsupportedError for what llama.cpp's architecture does not have."""
    is_yarn = config["rope_type"] == "yarn"
    betas = (config["rope_beta_fast"], config["rope_beta_slow"])
    problems = {
        "biases of the feed-forward layers": config["mlp_bias"],
        "a bias of the o projection": config["o_bias"] and arch != "llama",
        "biases of q, k and v": config["qkv_bias"] and arch == "qwen3",
        "Llama 3's RoPE scaling": config["rope_type"] == "llama3" and arch != "llama",
        "YaRN with truncate: false": is_yarn and not config["rope_truncate"],
        "YaRN with other betas than 32 and 1": is_yarn and betas != (32.0, 1.0),
        "heads that do not add up to the hidden dimension": arch == "qwen2"
        and config["n_head"] * config["head_dim"] != config["hidden_dim"],
    }
    for what, is_there in problems.items():
        if is_there:
            raise unsupported(f"{what}: a GGUF file of architecture {arch} cannot have that")


def _scaling(config: Mapping[str, Any]) -> dict[str, Any]:
    """rope.scaling.*. Dynamic NTK is plain RoPE up to context_length; Llama 3's scaling is the
    tensor of `rope_freqs`."""
    kind, factor = config["rope_type"], config["rope_factor"]
    if kind not in ("linear", "yarn"):
        return {}
    found: dict[str, Any] = {"type": kind, "factor": np.float32(factor)}
    if kind == "yarn":
        found["original_context_length"] = config["rope_original_max_position"]
        # llama.cpp multiplies by the paper's factor itself, and by attn_factor.
        usual = 1.0 if factor <= 1 else 0.1 * math.log(factor) + 1.0
        found["attn_factor"] = np.float32(config["rope_attention_factor"] / usual)
    return {f"rope.scaling.{key}": value for key, value in found.items()}


def of_config(config: Mapping[str, Any], arch: str) -> dict[str, Any]:
    """The keys of the architecture, which `model_config.from_gguf` reads as this config.

    arch: general.architecture. Raises UnsupportedError.
    """
    _check(config, arch)
    values = {
        "block_count": config["n_layer"],
        "context_length": config["max_position"],
        "embedding_length": config["hidden_dim"],
        "feed_forward_length": config["ffn_dim"],
        "attention.head_count": config["n_head"],
        "attention.head_count_kv": config["n_kv_head"],
        "attention.key_length": config["head_dim"],
        "attention.value_length": config["head_dim"],
        "attention.layer_norm_rms_epsilon": np.float32(config["norm_eps"]),
        "rope.dimension_count": config["head_dim"],
        "rope.freq_base": np.float32(config["rope_theta"]),
        "vocab_size": config["vocab_size"],
        **_scaling(config),
    }
    return {f"{arch}.{key}": value for key, value in values.items()}


def rope_freqs(config: Mapping[str, Any]) -> NDArray[np.float32] | None:
    """rope_freqs.weight, by which llama.cpp divides the plain frequencies: [head_dim / 2]. None
    where the model has no use for it."""
    if config["rope_type"] != "llama3":
        return None
    exponents = np.arange(0, config["head_dim"], 2) / config["head_dim"]
    turns = config["rope_theta"] ** -exponents / (2 * math.pi)  # a position
    low, high = config["rope_low_freq_factor"], config["rope_high_freq_factor"]
    # 0: as fast as the factor makes it; 1: as it was. Between, frequencies are interpolated.
    kept = ((config["rope_original_max_position"] * turns - low) / (high - low)).clip(0, 1)
    frequencies = (1 - kept) / config["rope_factor"] + kept
    result: NDArray[np.float32] = (1 / frequencies).astype(np.float32)
    return result
