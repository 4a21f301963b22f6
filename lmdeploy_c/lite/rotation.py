"""Rotates a model by orthogonal matrices that its own weights take up, so that it stays the same
and outliers are spread over many columns before they meet a grid.

R1 turns the residual stream: what writes it becomes Q^T W, what reads it behind a norm of weights g
becomes W diag(g) Q, and the norm's weights become 1. R2 turns each value head between v and o.
Sources: QuaRot (arXiv 2404.00456), SpinQuant (arXiv 2405.16406), without training.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files.checkpoint import fingerprint
from ..messages import unsupported
from ..version import __version__
from . import rewrite
from .floats import as_dtype, check_finite
from .layers import EMBEDDINGS, FINAL_NORMS, LAYER
from .shards import MAX_SHARD_BYTES, Part, Tensor, write_json
from .source import Source

Array = NDArray[np.float32]

FOLDER = "unfinished.rotated"  # of a work_dir
MARK = "rotated.json"  # is written last: what the folder was made of
SEED = 17
CHUNK = 1 << 21  # values that are in fp64 at once
#: A module of a layer that reads the residual stream -> the norm before it.
READERS = {
    "self_attn.q_proj": "input_layernorm",
    "self_attn.k_proj": "input_layernorm",
    "self_attn.v_proj": "input_layernorm",
    "attention.wqkv": "attention_norm",
    "mlp.gate_proj": "post_attention_layernorm",
    "mlp.up_proj": "post_attention_layernorm",
    "feed_forward.w1": "ffn_norm",
    "feed_forward.w3": "ffn_norm",
}
WRITERS = ("self_attn.o_proj", "attention.wo", "mlp.down_proj", "feed_forward.w2")
#: What makes value heads, and what reads them.
VALUES = ("self_attn.v_proj", "attention.wqkv")
VALUE_READERS = ("self_attn.o_proj", "attention.wo")
KEPT = ("self_attn.q_norm", "self_attn.k_norm", "self_attn.rotary_emb")
#: Embedding -> the head's name, which a model with tied embeddings gets.
HEADS = dict.fromkeys(EMBEDDINGS, "lm_head.weight") | {
    "model.tok_embeddings.weight": "output.weight"
}


class Rotation:
    """An orthogonal matrix, the same for the same seed: random signs times a Hadamard matrix of
    the largest power of two that divides the width, times a random orthogonal block where a
    factor is left."""

    def __init__(self, width: int, seed: int) -> None:
        rng = np.random.default_rng([SEED, width, seed])
        self._signs = rng.choice([-1.0, 1.0], width)
        size = width // (width & -width)
        block, upper = np.linalg.qr(rng.normal(size=(size, size)))
        self._block = block * np.sign(np.diag(upper))
        self._scale = (size / width) ** 0.5

    def _times(self, values: NDArray[Any]) -> NDArray[Any]:
        size = len(self._block)
        made: NDArray[Any] = (values * self._signs).reshape(len(values), -1, size) @ self._block
        while size < values.shape[1]:
            pairs = made.reshape(len(values), -1, 2, size)
            first, second = pairs[:, :, 0], pairs[:, :, 1]
            made = np.stack((first + second, first - second), 2)
            size *= 2
        made = made.reshape(values.shape) * self._scale
        return made

    def columns(self, values: Array, weights: Array | None = None) -> Array:
        """values diag(weights) Q, in fp64 before it is rounded: [n, width]."""
        out = np.empty(values.shape, np.float32)
        scale = 1.0 if weights is None else weights.astype(np.float64)
        step = max(1, CHUNK // values.shape[1])
        for i in range(0, len(values), step):
            out[i : i + step] = self._times(
                np.multiply(values[i : i + step], scale, dtype=np.float64)
            )
        return out

    def rows(self, values: Array) -> Array:
        """Q^T values: [width, n], or a bias: [width]."""
        columns = values.reshape(len(values), -1).T
        return np.ascontiguousarray(self.columns(columns).T).reshape(values.shape)


class _Rotated:
    """A source's tensors, rotated as they are read. Raises UnsupportedError for a tensor of which
    it is not known what a rotation does to it."""

    def __init__(self, source: Source) -> None:
        config = source.checkpoint.config
        self._source, self._dim = source, config["head_dim"]
        self._n_kv_head: int = config["n_kv_head"]
        self._n_repeat: int = config["n_head"] // self._n_kv_head
        self._packed: bool = config["packed_qkv"]
        self._stream = Rotation(config["hidden_dim"], 0)
        self._is_tied: bool = config["tie_embeddings"]
        self._embedding = next(name for name in source.tensors if name in EMBEDDINGS)
        self._head = HEADS[self._embedding]
        self._final_norm = next(name for name in source.tensors if name in FINAL_NORMS)
        known = (self._embedding, self._head, self._final_norm)
        for name in source.tensors:
            if name not in known and not self._is_known(name):
                raise unsupported(f'a rotation of tensor "{name}": quantise without rotate')
        self.shapes = {name: stored.shape for name, stored in source.tensors.items()}
        self.shapes[self._head] = self.shapes[self._embedding]

    def _is_known(self, name: str) -> bool:
        found = LAYER.fullmatch(name)
        if not found or int(found[2]) >= self._source.checkpoint.config["n_layer"]:
            return False
        module = found[3].rpartition(".")[0]
        return module in (*READERS, *READERS.values(), *WRITERS, *KEPT)

    def _read(self, name: str) -> Array:
        values = self._source.read(name)
        check_finite(name, values)
        return values

    def _value_heads(self, values: Array) -> Array:
        """Rows of v, or of v within wqkv, or a bias. wqkv has for each of its key and value heads
        the rows of the query heads that share it, of k and of v."""
        per_head = self._n_repeat + 2 if self._packed else 1
        heads = values.reshape(self._n_kv_head, per_head, self._dim, -1)
        for i in range(self._n_kv_head):
            heads[i, -1] = Rotation(self._dim, i + 1).rows(heads[i, -1])
        return heads.reshape(values.shape)

    def _read_values(self, values: Array) -> Array:
        """Columns of o: query heads one after another."""
        heads = values.reshape(len(values), -1, self._dim)
        for i in range(heads.shape[1]):
            turn = Rotation(self._dim, i // self._n_repeat + 1)
            heads[:, i] = turn.columns(np.ascontiguousarray(heads[:, i]))
        return heads.reshape(values.shape)

    def read(self, name: str) -> Array:
        """A tensor of `shapes`, in fp32. ValueError for a value that is not finite."""
        if name == self._embedding:
            return self._stream.columns(self._read(name))
        if name == self._head:
            head = self._read(self._embedding if self._is_tied else name)
            return self._stream.columns(head, self._read(self._final_norm))
        found = LAYER.fullmatch(name)
        if found is None:
            return np.ones_like(self._read(name))
        prefix, (module, _, kind) = f"{found[1]}.{found[2]}.", found[3].rpartition(".")
        values = self._read(name)
        if module in READERS.values():
            return np.ones_like(values)
        if module in READERS and kind == "weight":
            values = self._stream.columns(values, self._read(f"{prefix}{READERS[module]}.weight"))
        if module in VALUES:
            values = self._value_heads(values)
        if module in VALUE_READERS and kind == "weight":
            values = self._read_values(values)
        return self._stream.rows(values) if module in WRITERS else values


def rotate(
    source: Source, folder: Path, stored: str, max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Writes a model that computes the same logits, rotated, as a Hugging Face directory, one
    tensor in memory at a time. Tied embeddings become two matrices, because the final norm's
    weights are in the head.

    stored: the type of its floats, "F32", "F16" or "BF16". Raises UnsupportedError for what has no
    config.json or no known rotation; ValueError for a value that is not finite or that the type
    cannot hold; OSError.
    """
    rotated = _Rotated(source)
    config = {**rewrite.config_of(source, stored), "tie_word_embeddings": False}

    def part(name: str, shape: tuple[int, ...]) -> Part:
        tensor = Tensor(name, stored, shape)
        return Part((tensor,), lambda: [as_dtype(stored, name, rotated.read(name))])

    parts = [part(name, shape) for name, shape in rotated.shapes.items()]
    begun = rewrite.begin(source, folder)
    rewrite.write(source, begun, parts, config, "rotating", max_shard_bytes)


def _is_of(folder: Path, made_of: Mapping[str, Any]) -> bool:
    try:
        found = json.loads((folder / MARK).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return bool(found == made_of)


def rotated(source: Source, work_dir: Path, stored: str) -> Source:
    """The rotated model in a folder of work_dir, written where a stopped run has not left it
    whole, under the model's own name. Raises what `rotate` raises."""
    folder = work_dir / FOLDER
    model = folder / source.path.resolve().name.removesuffix(".gguf")
    made_of = {"version": __version__, "model": fingerprint(source.checkpoint), "stored": stored}
    if not _is_of(folder, made_of):
        remove(work_dir)
        rotate(source, model, stored)
        write_json(folder / MARK, made_of)
    return Source(model)


def remove(work_dir: Path) -> None:
    """Removes the folder of `rotated`, where there is one; a kill in between leaves no mark."""
    (work_dir / FOLDER / MARK).unlink(missing_ok=True)
    shutil.rmtree(work_dir / FOLDER, ignore_errors=True)
