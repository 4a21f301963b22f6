"""Tiny models that say given tokens one after another, as a directory and as a GGUF file.

A model of one layer that adds nothing: the embedding of a token is its own unit vector, and the
head gives the token that follows it in the script.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf_bytes as g
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
#: The token after which a script begins: the last one of a ChatML prompt.
START = "\n"
CONTROL = 3  # a value of tokenizer.ggml.token_type

_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_OTHERS = [b for b in range(256) if b not in _PRINTABLE]
_CHARACTERS = {b: chr(b) for b in _PRINTABLE} | {b: chr(256 + i) for i, b in enumerate(_OTHERS)}

Tensors = dict[str, NDArray[np.float32]]


def spell(text: str) -> str:
    """A text as byte-level vocabularies write it."""
    return "".join(_CHARACTERS[b] for b in text.encode())


def vocabulary(words: Sequence[str], specials: Sequence[str]) -> dict[str, int]:
    """Token -> id: the 256 bytes, the words, the special tokens."""
    names = [*(_CHARACTERS[b] for b in range(256)), *map(spell, words), *specials]
    return {name: i for i, name in enumerate(names)}


def _follows(ids: Mapping[str, int], says: Sequence[str]) -> dict[int, int]:
    chain = [ids[token] if token in ids else ids[spell(token)] for token in (START, *says)]
    return dict(itertools.pairwise(chain))


def _tensors(n_vocab: int, follows: Mapping[int, int]) -> Tensors:
    width = -(-n_vocab // 64) * 64
    head = np.zeros((n_vocab, width), np.float32)
    for token, after in follows.items():
        head[after, token] = 4
    one, zero = np.ones(width, np.float32), np.zeros((width, width), np.float32)
    names = {
        "input_layernorm": one,
        "post_attention_layernorm": one,
        **{f"self_attn.{name}_proj": zero for name in "qkvo"},
        "mlp.gate_proj": zero[:64],
        "mlp.up_proj": zero[:64],
        "mlp.down_proj": np.ascontiguousarray(zero[:, :64]),
    }
    return {
        "model.embed_tokens.weight": np.eye(n_vocab, width, dtype=np.float32),
        "lm_head.weight": head,
        "model.norm.weight": one,
        **{f"model.layers.0.{name}.weight": array for name, array in names.items()},
    }


def write_directory(
    path: Path,
    words: Sequence[str],
    says: Sequence[str],
    *,
    specials: Sequence[str] = SPECIALS,
    template: str = CHATML,
    config: Mapping[str, Any] | None = None,
    tokenizer_config: Mapping[str, Any] | None = None,
    generation_config: Mapping[str, Any] | None = None,
) -> tuple[Path, dict[str, int]]:
    """A Hugging Face directory and its vocabulary. words: tokens besides the 256 bytes. says: the
    answer's tokens. The others: what the files say besides, or in place of their usual values."""
    ids = vocabulary(words, specials)
    width = -(-len(ids) // 64) * 64
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    flags = ("single_word", "lstrip", "rstrip", "normalized")
    special = [
        {"id": ids[text], "content": text, **dict.fromkeys(flags, False), "special": True}
        for text in specials
    ]
    plain = {name: i for name, i in ids.items() if name not in specials}
    files = {
        "tokenizer.json": {
            "version": "1.0",
            "added_tokens": special,
            "pre_tokenizer": {**byte_level, "use_regex": True},
            "decoder": {**byte_level, "use_regex": True},
            "model": {"type": "BPE", "vocab": plain, "merges": []},
        },
        "tokenizer_config.json": {
            "bos_token": "<|endoftext|>",
            "eos_token": "<|im_end|>",
            "chat_template": template,
            **(tokenizer_config or {}),
        },
        "config.json": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": width,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": width // 64,
            "num_key_value_heads": width // 64,
            "max_position_embeddings": 512,
            "vocab_size": len(ids),
            "rms_norm_eps": 1e-6,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            **(config or {}),
        },
    }
    if generation_config is not None:
        files["generation_config.json"] = dict(generation_config)
    path.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (path / name).write_text(json.dumps(value))
    save_file(_tensors(len(ids), _follows(ids, says)), path / "model.safetensors")
    return path, ids


_GGUF_NAMES = {
    "model.embed_tokens": "token_embd", "lm_head": "output", "model.norm": "output_norm",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip


def _gguf_name(name: str) -> str:
    base = name.removesuffix(".weight")
    short = base.removeprefix("model.layers.0.")
    return ("" if short == base else "blk.0.") + _GGUF_NAMES[short] + ".weight"


def write_gguf(
    path: Path,
    words: Sequence[str],
    says: Sequence[str],
    *,
    specials: Mapping[str, int] | None = None,
    template: str = CHATML,
    **tokenizer: int,
) -> tuple[Path, dict[str, int]]:
    """A GGUF file and its vocabulary. specials: text -> token type. tokenizer: further values of
    tokenizer.ggml, such as eos_token_id and add_bos_token."""
    kinds = dict.fromkeys(SPECIALS, CONTROL) if specials is None else dict(specials)
    ids = vocabulary(words, list(kinds))
    width = -(-len(ids) // 64) * 64
    numbers = {
        "block_count": 1, "context_length": 512, "embedding_length": width,
        "feed_forward_length": 64, "attention.head_count": width // 64,
        "attention.head_count_kv": width // 64, "rope.dimension_count": 64,
    }  # fmt: skip
    texts = {
        "general.architecture": "llama", "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2", "tokenizer.chat_template": template,
    }  # fmt: skip
    types = np.array([kinds.get(name, 1) for name in ids], "<i4")
    pairs = [
        *(g.pair(key, g.STRING, g.string(text)) for key, text in texts.items()),
        *(g.number(f"llama.{key}", g.U32, value) for key, value in numbers.items()),
        g.number("llama.attention.layer_norm_rms_epsilon", g.F32, 1e-6),
        g.array("tokenizer.ggml.tokens", g.STRING, len(ids), b"".join(map(g.string, ids))),
        g.array("tokenizer.ggml.token_type", g.I32, len(ids), types.tobytes()),
        g.array("tokenizer.ggml.merges", g.STRING, 0, b""),
        *(
            g.number(f"tokenizer.ggml.{key}", g.BOOL if key.startswith("add_") else g.U32, value)
            for key, value in {"add_bos_token": 0, **tokenizer}.items()
        ),
    ]
    entries, data = [], b""
    for name, array in _tensors(len(ids), _follows(ids, says)).items():
        entries.append(g.tensor(_gguf_name(name), array.shape[::-1], g.F32_TENSOR, len(data)))
        data += array.tobytes()
    path.write_bytes(g.gguf_file(pairs, entries, data))
    return path, ids
