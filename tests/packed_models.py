"""Tiny models in packed checkpoint formats, and what their tensors mean: the oracle.

The decoders are the formats' definitions written down in NumPy, one code at a time. Codes and
zeros are random words, so that every value occurs, zeros that wrap included.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

Tensors = dict[str, NDArray[Any]]

AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
COMPRESSED = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
INT_QUANTIZED = {"quant_method": "compressed-tensors", "format": "int-quantized", "bits": 8}
#: Form -> quantization_config without group_size.
FORMS: dict[str, dict[str, Any]] = {
    "awq": {"quant_method": "awq", "bits": 4, "version": "gemm", "zero_point": True},
    "gptq": {"quant_method": "gptq", "bits": 4, "desc_act": False, "sym": False},
    "gptq_borrow": {
        "quant_method": "gptq", "bits": 4, "sym": False, "meta": {"quantizer": ["gptqmodel:7.7.0"]},
    },
    "gptq_v2": {"quant_method": "gptq", "bits": 4, "sym": True, "checkpoint_format": "gptq_v2"},
    "gptq-8": {"quant_method": "gptq", "bits": 8, "sym": True, "desc_act": False},
    "gptq-3": {"quant_method": "gptq", "bits": 3, "sym": False, "desc_act": False},
    "gptq_borrow-3": {
        "quant_method": "gptq", "bits": 3, "sym": False, "meta": {"quantizer": ["gptqmodel:7.7.0"]},
    },
    "gptq_v2-3": {"quant_method": "gptq", "bits": 3, "sym": True, "checkpoint_format": "gptq_v2"},
    "compressed": {**COMPRESSED, "bits": 4, "config_groups": {"group_0": {
        "targets": ["Linear"], "input_activations": None,
        "weights": {"type": "int", "num_bits": 4, "strategy": "group", "symmetric": False},
    }}},
    "compressed_sym": {**COMPRESSED, "bits": 4, "config_groups": {"W4A16": ["Linear"]}},
    "compressed-8": {**COMPRESSED, "bits": 8, "config_groups": {"W8A16": ["Linear"]}},
    "compressed-3": {**COMPRESSED, "bits": 3, "config_groups": {"group_0": {
        "targets": ["Linear"], "format": "pack-quantized",
        "weights": {"type": "int", "num_bits": 3, "strategy": "channel", "symmetric": False},
    }}},
    "compressed_sym-3": {**COMPRESSED, "bits": 3, "config_groups": {"W3A16": ["Linear"]}},
    "int-quantized": {**INT_QUANTIZED, "config_groups": {"group_0": {
        "targets": ["Linear"], "format": "int-quantized",
        "weights": {"type": "int", "num_bits": 8, "strategy": "channel", "symmetric": True},
        "input_activations": {"type": "int", "num_bits": 8, "strategy": "token", "dynamic": True},
    }}},
    "int-quantized_asym": {**INT_QUANTIZED, "config_groups": {"W8A8": ["Linear"]}},
}  # fmt: skip
#: Names of codes, zeros and scales after a module's name.
WORD_NAMES = ("qweight", "qzeros", "scales")
COMPRESSED_NAMES = ("weight_packed", "weight_zero_point", "weight_scale")
BYTE_NAMES = ("weight", "weight_zero_point", "weight_scale")
#: Group size -> hidden_size, intermediate_size; -1 once of whole rows of 96 = 3 x 32.
SIZES = {32: (96, 160), 64: (128, 192), 128: (128, 384), -1: (96, 320)}
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "internlm2": "InternLM2ForCausalLM",
}
LLAMA_NAMES = ["self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
INTERNLM2_NAMES = ["attention.wo", "feed_forward.w1", "feed_forward.w3", "feed_forward.w2"]


# ---- the formats ----


def unpack(words: NDArray[np.int32], bits: int, axis: int, order: list[int]) -> NDArray[np.int64]:
    """Every word becomes 32 / bits codes along an axis; code i of a word goes to order[i]. Of 3
    bits, code i has the bits from 3 * i on of all words together."""
    per_word = 32 // bits
    words = np.moveaxis(words, axis, -1).astype(np.int64) & 0xFFFFFFFF
    if bits == 3:
        stream = (words[..., None] >> np.arange(32) & 1).reshape(*words.shape[:-1], -1)
        n = stream.shape[-1] // 3
        threes = stream[..., : 3 * n].reshape(*stream.shape[:-1], n, 3)
        return np.moveaxis((threes * [1, 2, 4]).sum(-1), -1, axis)
    codes = np.zeros((*words.shape, per_word), np.int64)
    for i in range(per_word):
        codes[..., order[i]] = words >> (bits * i) & (2**bits - 1)
    return np.moveaxis(codes.reshape(*words.shape[:-1], -1), -1, axis)


def names_of(form: str) -> tuple[str, str, str]:
    if form.startswith("int-quantized"):
        return BYTE_NAMES
    return COMPRESSED_NAMES if form.startswith("compressed") else WORD_NAMES


def g_idx_of(form: str) -> str:
    return "weight_g_idx" if form.startswith(("compressed", "int-quantized")) else "g_idx"


def decode(
    form: str, packed: Mapping[str, NDArray[Any]], bits: int | None = None
) -> NDArray[np.float32]:
    """The dense [n_out, n_in] matrix of one packed linear. bits: where not the form's."""
    bits = bits or int(FORMS[form]["bits"])
    order = AWQ_ORDER if form == "awq" else list(range(32 // bits))
    words, zero_words, scales = (packed.get(name) for name in names_of(form))
    assert words is not None and scales is not None
    scales = scales.astype(np.float32)
    if form.startswith("int-quantized"):
        codes, scales = words.astype(np.int64).T, scales.T
        zeros = np.zeros(scales.shape) if zero_words is None else zero_words.T
    elif form.startswith("compressed"):  # rows first: [N, K], and zeros and scales [N, K / g]
        codes, scales = unpack(words, bits, 1, order).T, scales.T
        zeros = np.full(scales.shape, 2 ** (bits - 1))
        if zero_words is not None:
            zeros = unpack(zero_words, bits, 0, order).T[:, : scales.shape[1]]
    else:
        assert zero_words is not None
        codes = unpack(words, bits, 1 if form == "awq" else 0, order)  # [K, N]
        if form == "gptq_borrow":  # 1 is added to the zeros of a word as to one number
            ones = np.uint32(sum(1 << at for at in range(0, 32, bits)))
            zero_words = (zero_words.view(np.uint32) + ones).view(np.int32)
        zeros = unpack(zero_words, bits, 1, order)[:, : scales.shape[1]]  # [K / g, N]
    if form in ("gptq", "gptq-8", "gptq-3", "gptq_borrow-3"):
        zeros = (zeros + 1) % 2**bits
    group_size = len(codes) // len(scales)
    in_order = np.arange(len(codes)) // group_size
    of_column = packed.get(g_idx_of(form), in_order)
    return np.ascontiguousarray((scales[of_column] * (codes - zeros[of_column])).T, np.float32)


def random_packed(
    rng: np.random.Generator,
    form: str,
    group_size: int,
    n_out: int,
    n_in: int,
    bits: int | None = None,
) -> Tensors:
    """Random tensors of one packed linear; some scales are zero or negative."""
    bits = bits or int(FORMS[form]["bits"])
    n_groups = 1 if group_size == -1 else n_in // group_size
    zero_words = -(-n_out * bits // 32)
    shape = (n_in, n_out * bits // 32) if form == "awq" else (n_in * bits // 32, n_out)

    def words(*shape: int) -> NDArray[np.int32]:
        return rng.integers(-(2**31), 2**31, shape, np.int64).astype(np.int32)

    scales = rng.uniform(0.5, 1.5, (n_groups, n_out)) * (4.0 / 2**bits) / np.sqrt(n_in)
    scales *= rng.choice([1.0, 1.0, 1.0, -1.0, 0.0], scales.shape)
    if form.startswith("int-quantized"):
        stored: Tensors = {
            "weight": rng.integers(-128, 128, (n_out, n_in), np.int8),
            "weight_scale": np.ascontiguousarray(scales.T.astype(np.float16)),
        }
        if form.endswith("asym"):
            stored["weight_zero_point"] = rng.integers(-128, 128, (n_out, n_groups), np.int8)
        return stored
    if form.startswith("compressed"):
        compressed: Tensors = {
            "weight_packed": words(n_out, n_in * bits // 32),
            "weight_scale": np.ascontiguousarray(scales.T.astype(np.float16)),
            "weight_shape": np.array([n_out, n_in]),
        }
        if form in ("compressed", "compressed-3"):
            compressed["weight_zero_point"] = words(zero_words, n_groups)
        return compressed
    packed: Tensors = {
        "qweight": words(*shape),
        "qzeros": words(n_groups, zero_words),
        "scales": scales.astype(np.float16),
    }
    if bits == 8:
        packed["qzeros"][:] = 0x7F7F7F7F
    if form == "gptq":
        packed["g_idx"] = (np.arange(n_in) // (n_in // n_groups)).astype(np.int32)
    return packed


# ---- models ----


def config_of(arch: str, form: str, group_size: int, **keys: Any) -> dict[str, Any]:
    hidden, ffn = SIZES[group_size]
    return {
        "architectures": [ARCHITECTURES[arch]],
        "model_type": arch,
        "vocab_size": 64,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": hidden // 4,
        "max_position_embeddings": 256,
        "sliding_window": None,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "quantization_config": {**FORMS[form], "group_size": group_size},
        **keys,
    }


def linears_of(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Module name -> (n_out, n_in) of each linear of the layers."""
    hidden, ffn, head_dim = (
        config[key] for key in ("hidden_size", "intermediate_size", "head_dim")
    )
    q, kv = (config[f"num_{key}_heads"] * head_dim for key in ("attention", "key_value"))
    found: dict[str, tuple[int, int]] = {}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        if config["model_type"] == "internlm2":
            found[f"{prefix}attention.wqkv"] = (q + 2 * kv, hidden)
            names = INTERNLM2_NAMES
        else:
            for name, n_out in (("q", q), ("k", kv), ("v", kv)):
                found[f"{prefix}self_attn.{name}_proj"] = (n_out, hidden)
            names = LLAMA_NAMES
        shapes = [(hidden, q), (ffn, hidden), (ffn, hidden), (hidden, ffn)]
        found |= {prefix + name: shape for name, shape in zip(names, shapes, strict=True)}
    return found


def other_tensors(rng: np.random.Generator, config: Mapping[str, Any]) -> Tensors:
    """Embedding, norms, head and biases, in fp16."""
    hidden, vocab, arch = config["hidden_size"], config["vocab_size"], config["model_type"]
    v2 = arch == "internlm2"
    out = {
        "model.tok_embeddings.weight" if v2 else "model.embed_tokens.weight": (vocab, hidden),
        "output.weight" if v2 else "lm_head.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
    }
    for i in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{i}."
        out[prefix + ("attention_norm.weight" if v2 else "input_layernorm.weight")] = (hidden,)
        out[prefix + ("ffn_norm.weight" if v2 else "post_attention_layernorm.weight")] = (hidden,)
        if arch == "qwen3":
            out[f"{prefix}self_attn.q_norm.weight"] = (config["head_dim"],)
            out[f"{prefix}self_attn.k_norm.weight"] = (config["head_dim"],)
    for name, (n_out, _) in linears_of(config).items():
        qkv = name[-6:] in ("q_proj", "k_proj", "v_proj")
        attention = "attn" in name or "attention" in name
        if (
            (arch == "qwen2" and qkv)
            or (attention and (config.get("attention_bias") or config.get("bias")))
            or (not attention and config.get("mlp_bias"))
        ):
            out[f"{name}.bias"] = (n_out,)
    return {
        name: (rng.normal(size=shape) + (name.endswith("norm.weight"))).astype(np.float16)
        for name, shape in out.items()
    }


def write_model(path: Path, config: Mapping[str, Any], tensors: Tensors) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    save_file(tensors, path / "model.safetensors")
    return path


def write_float_model(
    path: Path,
    arch: str = "llama",
    group_size: int = 64,
    dtype: type[np.floating[Any]] = np.float16,
    **keys: Any,
) -> Path:
    """A directory of random linears of a dtype, whose rows such groups divide; the rest is fp16."""
    config = {**config_of(arch, "awq", group_size), **keys}
    del config["quantization_config"]
    rng = np.random.default_rng(3)
    tensors = other_tensors(rng, config)
    for name, shape in linears_of(config).items():
        tensors[f"{name}.weight"] = (rng.normal(size=shape) / np.sqrt(shape[1])).astype(dtype)
    return write_model(path, config, tensors)


def to_bf16(values: NDArray[Any]) -> NDArray[np.uint16]:
    """The upper halves of fp32 values, for a tensor that `call_bf16` names."""
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def from_bf16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def call_bf16(path: Path) -> Path:
    """Says in a model's header that its U16 tensors are BF16, which NumPy does not have."""
    file = path / "model.safetensors"
    data = file.read_bytes()
    end = 8 + struct.unpack("<Q", data[:8])[0]
    header = data[8:end].replace(b'"U16"', b'"BF16"')
    file.write_bytes(struct.pack("<Q", len(header)) + header + data[end:])
    return path


def packed_tensors(
    rng: np.random.Generator, form: str, config: Mapping[str, Any], also: tuple[str, ...] = ()
) -> Tensors:
    """A whole model's tensors with every linear packed, and the matrices of `also` too."""
    group_size = config["quantization_config"]["group_size"]
    tensors = other_tensors(rng, config)
    shapes = {**linears_of(config), **{name: tensors[f"{name}.weight"].shape for name in also}}
    for name, shape in shapes.items():
        tensors.pop(f"{name}.weight", None)
        for suffix, array in random_packed(rng, form, group_size, *shape).items():
            tensors[f"{name}.{suffix}"] = array
    return tensors


def with_orders(
    rng: np.random.Generator,
    form: str,
    config: Mapping[str, Any],
    tensors: Tensors,
    group_size: int = 64,
) -> Tensors:
    """The model with its columns in random groups (desc_act), the same for linears that read the
    same input."""
    inputs: Tensors = {}
    heads = {"lm_head": (0, config["hidden_size"])} if "lm_head.qweight" in tensors else {}
    out = dict(tensors)
    for name, (_, n_in) in {**linears_of(config), **heads}.items():
        read = re.sub("(q|k|v|gate|up)_proj$", "", name)
        groups = (rng.permutation(n_in) // group_size).astype(np.int32)
        out[f"{name}.{g_idx_of(form)}"] = inputs.setdefault(read, groups)
    return out


def dense_tensors(form: str, tensors: Tensors) -> Tensors:
    """The same model, every matrix that has a qweight decoded to fp32."""
    floats = {k: v for k, v in tensors.items() if v.dtype != np.int8}
    dense = {k: v for k, v in floats.items() if k.endswith((".weight", ".bias"))}
    names = names_of(form)
    for key in tensors:
        name, _, suffix = key.rpartition(".")
        if suffix == names[0] and tensors[key].dtype in (np.int32, np.int8):
            found = {s: tensors.get(f"{name}.{s}") for s in (*names, g_idx_of(form))}
            packed = {s: array for s, array in found.items() if array is not None}
            dense[f"{name}.weight"] = decode(form, packed)
    return dense
