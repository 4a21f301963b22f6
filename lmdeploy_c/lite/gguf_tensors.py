"""Under which names, and in which order of rows, a model's tensors stand in a GGUF file.

llama.cpp rotates neighbours where Hugging Face rotates halves of a head, so that its Llamas have
the rows of q and k interleaved. InternLM2's q, k and v, one tensor in a directory, are three.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files.safetensors import bad_file
from .gguf_config import architecture_of
from .source import GGUF_LAYER_NAMES, GGUF_NAMES, Source

Rows = NDArray[np.intp]

#: Name in a directory -> in a GGUF file.
TOP_NAMES = {
    **{hf: name for name, hf in GGUF_NAMES.items()},
    "model.tok_embeddings.weight": "token_embd.weight",
    "output.weight": "output.weight",
}
#: The same of a layer's modules.
LAYER_NAMES = {
    **{hf: name for name, hf in GGUF_LAYER_NAMES.items()},
    "attention_norm": "attn_norm",
    "attention.wo": "attn_output",
    "ffn_norm": "ffn_norm",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w3": "ffn_up",
    "feed_forward.w2": "ffn_down",
}
FUSED = "attention.wqkv"


@dataclass(frozen=True)
class Piece:
    """A tensor of a GGUF file: the rows of one of a directory, all in their order, or these."""

    name: str
    rows: Rows | None = None


def _interleaved(config: Mapping[str, Any], n_head: int) -> Rows:
    """Rows of q or k: in a head the pairs (i, i + head_dim / 2) side by side."""
    rows = np.arange(n_head * config["head_dim"], dtype=np.intp)
    return rows.reshape(n_head, 2, -1).swapaxes(1, 2).reshape(-1)


def _fused_rows(config: Mapping[str, Any]) -> dict[str, Rows]:
    """wqkv has, for each head of k, its heads of q, its k and its v."""
    n_kv_head, head_dim = config["n_kv_head"], config["head_dim"]
    n_q = config["n_head"] // n_kv_head
    rows = np.arange(n_kv_head * (n_q + 2) * head_dim, dtype=np.intp)
    by_head = rows.reshape(n_kv_head, n_q + 2, head_dim)
    parts = {"attn_q": by_head[:, :n_q], "attn_k": by_head[:, n_q], "attn_v": by_head[:, n_q + 1]}
    return {name: part.reshape(-1) for name, part in parts.items()}


def _pieces_of_layer(
    config: Mapping[str, Any], prefix: str, module: str, kind: str, interleaves: bool
) -> list[Piece]:
    """[] for a tensor that the model does not need."""
    order = {
        "attn_q": _interleaved(config, config["n_head"]),
        "attn_k": _interleaved(config, config["n_kv_head"]),
    }
    order = order if interleaves else {}
    if module == FUSED:
        return [
            Piece(f"{prefix}{name}.{kind}", rows[order[name]] if name in order else rows)
            for name, rows in _fused_rows(config).items()
        ]
    found = LAYER_NAMES.get(module)
    return [Piece(f"{prefix}{found}.{kind}", order.get(found))] if found else []


def _needed(config: Mapping[str, Any]) -> Iterator[str]:
    """The names of a model's tensors in a GGUF file."""
    yield from ("token_embd.weight", "output_norm.weight")
    if not config["tie_embeddings"]:
        yield "output.weight"
    names = [f"{name}.weight" for name in GGUF_LAYER_NAMES.keys() - {"attn_q_norm", "attn_k_norm"}]
    names += ["attn_q_norm.weight", "attn_k_norm.weight"] if config["qk_norm"] else []
    names += [f"attn_{name}.bias" for name in "qkv"] if config["qkv_bias"] else []
    names += ["attn_output.bias"] if config["o_bias"] else []
    for layer in range(config["n_layer"]):
        yield from (f"blk.{layer}.{name}" for name in names)


def pieces(source: Source) -> dict[str, list[Piece]]:
    """What becomes of each tensor of a source, by its name; those that the model does not need are
    left out. Raises UnsupportedError, and CheckpointError for tensors that are missing or have
    other shapes than the configuration says."""
    config = source.checkpoint.config
    interleaves = architecture_of(source.checkpoint) in ("llama", "internlm2")
    found: dict[str, list[Piece]] = {}
    for name in source.tensors:
        match = re.fullmatch(r"model\.layers\.(\d+)\.([\w.]+)\.(weight|bias)", name)
        if match and int(match[1]) < config["n_layer"]:
            prefix = f"blk.{match[1]}."
            found[name] = _pieces_of_layer(config, prefix, match[2], match[3], interleaves)
        elif name in TOP_NAMES:
            found[name] = [Piece(TOP_NAMES[name])]
    needed = set(_needed(config))
    found = {name: made for name, made in found.items() if {p.name for p in made} & needed}
    missing = needed - {piece.name for made in found.values() for piece in made}
    if missing:
        first = sorted(missing)[0]
        raise bad_file(source.path, f"it has no tensor for {first!r} of a GGUF file")
    for name, made in found.items():
        _check_shape(source, name, made)
    return found


def _check_shape(source: Source, name: str, made: list[Piece]) -> None:
    """CheckpointError. Columns, and rows that are not moved, are checked by who loads the file."""
    shape = source.tensors[name].shape
    n_dims = 1 if "norm" in name or name.endswith(".bias") else 2
    if len(shape) != n_dims:
        raise bad_file(source.path, f'tensor "{name}" has shape {shape}, not {n_dims} dimensions')
    n_rows = sum(len(piece.rows) for piece in made if piece.rows is not None)
    if n_rows not in (0, shape[0]):
        raise bad_file(
            source.path, f'tensor "{name}" has shape {shape}; its heads have {n_rows} rows'
        )
