"""Makes models/<name>/: tiny random Hugging Face checkpoints, each with its golden.npz.

config.json is written by hand in the shapes that real checkpoints have (rope_scaling of old,
rope_parameters of new, "type" and "rope_type"), not by transformers' save_pretrained.
The logits come from transformers reading the stored directory back in fp32, so rounding of the
storage type is part of the golden. InternLM2 is not in transformers: a Llama of equal weights
gives the logits, and its weights are repacked. Nor does it read AWQ and GPTQ by itself: it gets
the values that the packed tensors stand for.
"""

import shutil

import numpy as np
import torch
from golden_common import (
    ROOT,
    Init,
    check_fields,
    clear_prompts,
    golden_fields,
    model_with,
    sample_positions,
    write_json,
)
from packed_weights import pack_weights
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mistral": "MistralForCausalLM",
    "internlm2": "InternLM2ForCausalLM",
}
# Keys of a config.json, beside those that base_config() always writes.
HEAD16 = {"num_attention_heads": 2, "num_key_value_heads": 1}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False}


def shape(n_layer, hidden, ffn, n_head, n_kv_head, head_dim):
    return {
        "num_hidden_layers": n_layer,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_attention_heads": n_head,
        "num_key_value_heads": n_kv_head,
        "head_dim": head_dim,
    }


# What is drawn and kept of a model with heads of 64 and more: logits at the edges of tiles alone,
# since its rows are long, and an answer that runs past 128 positions.
TILED = {
    "n_ids": 130,
    "prompt_lens": [12, 1, 120],
    "positions": [0, 1, 15, 16, 63, 64, 65, 127, 128, 129],
}
SPECS = {
    "llama-mha": {"keys": {"num_key_value_heads": 4}, "dtype": "float32"},
    "llama-gqa-tied": {
        "tied": True,
        "dtype": "float32",
        "sharded": True,
        "generation": {"eos_token_id": [2, 5], "do_sample": True, "temperature": 0.6, "top_p": 0.9},
    },
    "llama-f16": {"dtype": "float16"},
    "llama-bf16": {"keys": {"attention_bias": False, "mlp_bias": False}},
    "llama-bias": {"keys": {"attention_bias": True, "mlp_bias": True}},
    "llama-headdim8": {"keys": {"num_key_value_heads": 4, "head_dim": 8}},
    "llama-headdim40": {"keys": {**HEAD16, "head_dim": 40}},
    "llama-long": {
        "keys": {**HEAD16, "max_position_embeddings": 1024},
        "tied": True,
        "n_ids": 600,
        "prompt_lens": [250, 12, 505],
        "positions": [127, 128, *range(253, 260), *range(509, 516), *range(580, 600)],
    },
    "llama-rope-llama3": {
        "tied": True,
        "keys": {
            **HEAD16,
            "max_position_embeddings": 256,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    },
    "llama-rope-linear": {
        "tied": True,
        "keys": {**HEAD16, "rope_scaling": {"type": "linear", "factor": 4.0}},
    },
    "llama-rope-linear-v5": {
        "tied": True,
        "v5_rope": True,
        "keys": {**HEAD16, "rope_scaling": {"rope_type": "linear", "factor": 2.5}},
    },
    "llama-rope-dynamic": {
        "tied": True,
        "session_len": 512,
        "keys": {
            **HEAD16,
            "max_position_embeddings": 64,
            "rope_scaling": {"type": "dynamic", "factor": 2.0},
        },
    },
    "llama-rope-dynamic-short": {
        "tied": True,
        "session_len": 128,
        "keys": {
            **HEAD16,
            "max_position_embeddings": 256,
            "rope_scaling": {"rope_type": "dynamic", "factor": 2.0},
        },
    },
    "llama-rope-yarn": {
        "tied": True,
        "keys": {**HEAD16, "max_position_embeddings": 128, "rope_scaling": YARN},
    },
    "llama-rope-yarn-factor": {
        "tied": True,
        "keys": {
            **HEAD16,
            "max_position_embeddings": 128,
            "rope_scaling": {**YARN, "attention_factor": 0.85, "beta_fast": 8.0, "beta_slow": 0.5},
        },
    },
    "llama-rope-yarn-mscale": {
        "tied": True,
        "keys": {
            **HEAD16,
            "max_position_embeddings": 128,
            "rope_scaling": {**YARN, "mscale": 1.3, "mscale_all_dim": 0.7, "truncate": False},
        },
    },
    "llama-rope-longrope": {
        "tied": True,
        "session_len": 256,
        "keys": {
            **HEAD16,
            "max_position_embeddings": 256,
            "rope_scaling": {
                "rope_type": "longrope",
                "factor": 4.0,
                "original_max_position_embeddings": 64,
                "short_factor": [1.0, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6],
                "long_factor": [1.0, 1.2, 1.5, 2.0, 3.0, 4.5, 6.0, 8.0],
            },
        },
    },
    "qwen2": {
        "arch": "qwen2",
        "keys": {"use_sliding_window": False, "sliding_window": 32, "max_window_layers": 2},
    },
    "qwen2-tied": {
        "arch": "qwen2",
        "tied": True,
        "keys": {"use_sliding_window": False, "sliding_window": 32, "max_window_layers": 1},
        "generation": {
            "eos_token_id": [2, 1],
            "repetition_penalty": 1.1,
            "temperature": 0.7,
            "top_k": 20,
            "top_p": 0.8,
        },
    },
    "qwen3": {
        "arch": "qwen3",
        "tied": True,
        "keys": {
            **HEAD16,
            "head_dim": 24,
            "rope_theta": 1000000.0,
            "attention_bias": False,
            "use_sliding_window": False,
            "sliding_window": None,
            "max_window_layers": 2,
        },
    },
    "mistral": {"arch": "mistral", "keys": {"sliding_window": None, "rms_norm_eps": 1e-5}},
    "internlm2": {
        "arch": "internlm2",
        "keys": {"rope_theta": 1000000.0, "bias": False, "rope_scaling": None},
    },
    "llama-f16-hd64-gqa1": {
        **TILED,
        "tied": True,
        "dtype": "float16",
        "keys": {"vocab_size": 260, **shape(1, 128, 136, 2, 2, 64)},
    },
    "qwen3-bf16-hd64-gqa4": {
        **TILED,
        "arch": "qwen3",
        "tied": True,
        "keys": {"vocab_size": 256, **shape(1, 128, 128, 4, 1, 64)},
    },
    "qwen2-awq-hd128-gqa4": {
        "n_ids": 600,
        "prompt_lens": [12, 250, 505],
        "positions": [0, 15, 16, 127, 128, 255, 256, 257, 511, 512, 513, 599],
        "arch": "qwen2",
        "tied": True,
        "dtype": "float16",
        "keys": {
            "vocab_size": 264,
            "max_position_embeddings": 1024,
            **shape(1, 128, 384, 4, 1, 128),
            "quantization_config": AWQ,
        },
    },
    "llama-gptq-hd256-gqa4": {
        **TILED,
        "tied": True,
        "dtype": "float16",
        "keys": {
            "vocab_size": 272,
            **shape(1, 128, 160, 4, 1, 256),
            "quantization_config": GPTQ,
        },
    },
}


def base_config(spec):
    arch = spec.get("arch", "llama")
    config = {
        "architectures": [ARCHITECTURES[arch]],
        "model_type": arch,
        "torch_dtype": spec.get("dtype", "bfloat16"),
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": spec.get("tied", False),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
        "use_cache": True,
        **spec.get("keys", {}),
    }
    if spec.get("v5_rope"):
        rope = {"rope_theta": config.pop("rope_theta"), **config.pop("rope_scaling")}
        config["rope_parameters"] = rope
    return config


def head_dim_of(config):
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def make_weights(config, seed):
    """Draws weights under Llama's names, with gains that keep attention and argmax lively."""
    init, hidden, ffn = Init(seed), config["hidden_size"], config["intermediate_size"]
    q_dim = config["num_attention_heads"] * head_dim_of(config)
    kv_dim = config["num_key_value_heads"] * head_dim_of(config)
    tied, arch = config["tie_word_embeddings"], config["model_type"]
    attention_bias = config.get("attention_bias", False)
    w = {"model.embed_tokens.weight": init.linear(config["vocab_size"], hidden, 2.5 if tied else 4)}
    for i in range(config["num_hidden_layers"]):
        p = f"model.layers.{i}."
        for name, shape, gain in (
            ("self_attn.q_proj", (q_dim, hidden), 1.3),
            ("self_attn.k_proj", (kv_dim, hidden), 1.3),
            ("self_attn.v_proj", (kv_dim, hidden), 1.5),
            ("self_attn.o_proj", (hidden, q_dim), 1.5),
            ("mlp.gate_proj", (ffn, hidden), 1.5),
            ("mlp.up_proj", (ffn, hidden), 1.5),
            ("mlp.down_proj", (hidden, ffn), 1.5),
        ):
            w[f"{p}{name}.weight"] = init.linear(*shape, gain)
            qkv = name[-6:] in ("q_proj", "k_proj", "v_proj")
            if (
                (arch == "qwen2" and qkv)
                or (attention_bias and "attn" in name)
                or (config.get("mlp_bias") and "mlp" in name)
            ):
                w[f"{p}{name}.bias"] = init.bias(shape[0])
        if arch == "qwen3":
            w[f"{p}self_attn.q_norm.weight"] = init.norm(head_dim_of(config))
            w[f"{p}self_attn.k_norm.weight"] = init.norm(head_dim_of(config))
        w[f"{p}input_layernorm.weight"] = init.norm(hidden)
        w[f"{p}post_attention_layernorm.weight"] = init.norm(hidden)
    w["model.norm.weight"] = init.norm(hidden)
    if not tied:
        w["lm_head.weight"] = init.linear(config["vocab_size"], hidden, 2.5)
    return w


def to_internlm2(w, config):
    """Renames and packs: wqkv holds, per kv head, its q heads, then k, then v."""
    hidden, dim, n_kv = config["hidden_size"], head_dim_of(config), config["num_key_value_heads"]
    per_kv = config["num_attention_heads"] // n_kv
    out = {
        "model.tok_embeddings.weight": w["model.embed_tokens.weight"],
        "model.norm.weight": w["model.norm.weight"],
        "output.weight": w["lm_head.weight"],
    }
    for i in range(config["num_hidden_layers"]):
        p = f"model.layers.{i}."
        q, k, v = (w[f"{p}self_attn.{x}_proj.weight"] for x in "qkv")
        groups = [
            q.reshape(n_kv, per_kv, dim, hidden),
            k.reshape(n_kv, 1, dim, hidden),
            v.reshape(n_kv, 1, dim, hidden),
        ]
        out[f"{p}attention.wqkv.weight"] = torch.cat(groups, 1).reshape(-1, hidden)
        for new, old in (
            ("attention.wo", "self_attn.o_proj"),
            ("feed_forward.w1", "mlp.gate_proj"),
            ("feed_forward.w3", "mlp.up_proj"),
            ("feed_forward.w2", "mlp.down_proj"),
            ("attention_norm", "input_layernorm"),
            ("ffn_norm", "post_attention_layernorm"),
        ):
            out[f"{p}{new}.weight"] = w[f"{p}{old}.weight"]
    return out


def write_checkpoint(folder, spec, config, weights):
    write_json(folder / "config.json", config)
    generation = spec.get("generation", {"bos_token_id": 1, "eos_token_id": 2})
    write_json(folder / "generation_config.json", generation)
    weights = {k: v.contiguous() for k, v in weights.items()}
    if not spec.get("sharded"):
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return
    # The split falls inside layer 1, so that one layer's tensors lie in both files.
    names, weight_map = list(weights), {}
    half = names.index("model.layers.1.self_attn.o_proj.weight")
    for n, part in enumerate((names[:half], names[half:]), 1):
        file = f"model-{n:05d}-of-00002.safetensors"
        save_file({k: weights[k] for k in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(v.numel() * v.element_size() for v in weights.values())
    write_json(
        folder / "model.safetensors.index.json",
        {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))},
    )


def freeze_rope(model, session_len):
    """Fixes length-dependent frequencies to those of session_len, as the engine does."""
    rotary = model.model.rotary_emb
    rope = model.config.rope_parameters
    if rope["rope_type"] in ("dynamic", "longrope"):
        make = ROPE_INIT_FUNCTIONS[rope["rope_type"]]
        inv_freq, scaling = make(model.config, "cpu", seq_len=session_len)
        rotary.inv_freq, rotary.attention_scaling = inv_freq, scaling
        rotary.rope_type = "default"  # the forward pass must not recompute them


def load_oracle(folder, config, values):
    """values: of every weight, for what transformers does not read from the folder by itself."""
    arch = config["model_type"]
    if arch != "internlm2" and "quantization_config" not in config:
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
    left_out = ("architectures", "bias", "quantization_config")
    plain = {k: v for k, v in config.items() if k not in left_out}
    plain["model_type"] = "llama" if arch == "internlm2" else arch
    return model_with(plain, values)


def make_model(name, spec, seed):
    folder = ROOT / "models" / name
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    config = base_config(spec)
    dtype = DTYPES[config["torch_dtype"]]
    weights = {k: v.to(dtype) for k, v in make_weights(config, seed).items()}
    stored = weights
    if spec.get("arch") == "internlm2":
        stored = to_internlm2(weights, config)
    elif "quantization_config" in config:
        quantization = config["quantization_config"]
        stored, weights = pack_weights(
            weights, quantization["quant_method"], quantization["group_size"]
        )
    write_checkpoint(folder, spec, config, stored)

    session_len = spec.get("session_len", config["max_position_embeddings"])
    model = load_oracle(folder, config, weights)
    freeze_rope(model, session_len)
    prompt_lens = spec.get("prompt_lens", [12, 1, 70])
    ids = clear_prompts(
        model, 1000 + seed, spec.get("n_ids", 130), config["vocab_size"], prompt_lens
    )
    positions = spec.get("positions")
    positions = sample_positions(len(ids)) if positions is None else np.array(positions, np.int32)
    fields = golden_fields(model, ids, prompt_lens, session_len, positions)
    check_fields(name, fields)
    np.savez_compressed(folder / "golden.npz", **fields)
    print(
        f"{name}: min gap {fields['prompt_greedy_gaps'].min():.3g}, "
        f"{len(np.unique(fields['prompt_greedy_ids']))} distinct tokens"
    )


def main(only=None):
    """Makes all models, or one."""
    for name in SPECS if only is None else [only]:
        make_model(name, SPECS[name], 1 + list(SPECS).index(name))
