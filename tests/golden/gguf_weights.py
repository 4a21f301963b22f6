"""Tensors of a GGUF file under Hugging Face's names and row order, dequantised to fp32.

llama.cpp's converter reorders the rows of q and k of Llama-like models: it stores pairs
(i, i + head_dim / 2) side by side, since it rotates neighbours. Hugging Face rotates halves.
Qwen2 and Qwen3 are stored unpermuted.
"""

import numpy as np
import torch
from gguf.quants import dequantize


def permute(w, n_head):
    """Puts rows (i, i + head_dim / 2) of each head side by side, as the converter does."""
    rows = w.shape[0]
    return w.reshape(n_head, 2, rows // n_head // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def unpermute(w, n_head):
    """Undoes the converter's row order (interleaved RoPE) to get Hugging Face's (halves)."""
    rows = w.shape[0]
    return w.reshape(n_head, rows // n_head // 2, 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
}
TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def hf_name(gguf_name):
    if gguf_name.startswith("blk."):
        _, layer, name, kind = gguf_name.split(".")
        return f"model.layers.{layer}.{LAYER_NAMES[name]}.{kind}"
    name, kind = gguf_name.split(".")
    return f"{TOP_NAMES[name]}.{kind}"


def read_weights(reader, n_head, n_kv_head, permuted=True):
    """Dequantises every tensor to float32 under Hugging Face's names."""
    out = {}
    for t in reader.tensors:
        if t.name == "rope_freqs.weight":
            continue
        w = dequantize(t.data, t.tensor_type).astype(np.float32)
        if permuted and t.name.endswith("attn_q.weight"):
            w = unpermute(w, n_head)
        elif permuted and t.name.endswith("attn_k.weight"):
            w = unpermute(w, n_kv_head)
        out[hf_name(t.name)] = torch.from_numpy(w.copy())
    if "lm_head.weight" not in out:
        out["lm_head.weight"] = out["model.embed_tokens.weight"]
    return out
