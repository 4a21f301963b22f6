"""A model to be rewritten: its tensors under the names of a Hugging Face directory, in fp32.

A GGUF file's tensors get those names, and the rows of q and k, which llama.cpp's converter
interleaves, go back into the order of heads.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files.checkpoint import Checkpoint, open_checkpoint, resolve_model
from ..messages import unsupported
from . import hf_config

#: Name in a GGUF file -> in a directory; those of a layer without "blk.N." and "model.layers.N.".
GGUF_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
GGUF_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
ROPE_FREQS = "rope_freqs.weight"  # of a GGUF file; a directory has no such tensor
#: The linears of a layer, by the end of their module's name.
LINEARS = re.compile(
    r"model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj"
    r"|attention\.(wqkv|wo)|feed_forward\.w[123])\.weight"
)


@dataclass(frozen=True)
class Stored:
    """A tensor as its file has it."""

    dtype: str  # "F32", "F16", "BF16", "Q4_1", ...
    shape: tuple[int, ...]


class Source:
    """A model's tensors, opened; none is read yet.

    path: the GGUF file or directory. tensors: name -> Stored, in the order of the file; shapes are
    rows first.

    Raises what `open_checkpoint` raises, and UnsupportedError for a model that is quantised for
    another engine.
    """

    def __init__(self, model: str | Path | None = None) -> None:
        self.path = resolve_model(model)
        self.checkpoint: Checkpoint = open_checkpoint(self.path)
        self.is_gguf = not self.path.is_dir()
        config, source = self.checkpoint.config, self.checkpoint.source
        if config["quant_method"] != "none":
            raise unsupported(
                f'"{self.path}" is quantised already ({config["quant_method"]}): start from the '
                "model that it was made of"
            )
        specs = source if isinstance(source, list) else source.specs
        #: As `_C.Model` takes them, under the names of the file.
        self.specs = specs
        names = [self._hf_name(spec[0]) if self.is_gguf else spec[0] for spec in specs]
        self._rope_freqs = next((spec for spec in specs if spec[0] == ROPE_FREQS), None)
        self._specs = {n: s for n, s in zip(names, specs, strict=True) if n is not None}
        self.tensors = {n: Stored(s[1], tuple(s[2])) for n, s in self._specs.items()}

    @cached_property
    def config(self) -> dict[str, Any]:
        """Its config.json; a GGUF file's: what it would be, in fp32. Raises UnsupportedError for a
        GGUF file that no config.json can describe."""
        found = self.checkpoint
        if not self.is_gguf:
            return dict(found.hf_config)
        return hf_config.of_config(found.config, "float32", found.bos_token_id, found.eos_token_ids)

    def _hf_name(self, name: str) -> str | None:
        """None for a tensor of a GGUF file that the model does not need."""
        match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
        if not match:
            return GGUF_NAMES.get(name)
        layer, module, kind = match.groups()
        found = GGUF_LAYER_NAMES.get(module)
        is_there = int(layer) < self.checkpoint.config["n_layer"]
        return f"model.layers.{layer}.{found}.{kind}" if found and is_there else None

    def _in_order_of_heads(self, name: str, values: NDArray[Any]) -> NDArray[Any]:
        """Rows of q and k of a GGUF file, which has the pairs (i, i + head_dim / 2) together."""
        config = self.checkpoint.config
        match = re.search(r"\.self_attn\.([qk])_proj\.", name)
        if not (match and config["interleaved_rope"]):
            return values
        n_head = config["n_head" if match[1] == "q" else "n_kv_head"]
        pairs = values.reshape(n_head, config["head_dim"] // 2, 2, -1)
        return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)

    def as_stored(self, name: str, values: NDArray[np.float32]) -> tuple[str, NDArray[np.float32]]:
        """The name that a tensor has in the file, and its values in the order of the file."""
        order = self._in_order_of_heads(name, np.arange(len(values))[:, None]).ravel()
        rows = np.empty_like(values)
        rows[order] = values
        return self._specs[name][0], rows

    def read(self, name: str) -> NDArray[np.float32]:
        """A tensor in fp32, exactly as it is stored."""
        from .._C import dequantize

        return self._in_order_of_heads(name, dequantize(self._specs[name]))

    def rope_freqs(self) -> NDArray[np.float32] | None:
        """What a GGUF file divides the plain frequencies of RoPE by, where it says so."""
        from .._C import dequantize

        return None if self._rope_freqs is None else dequantize(self._rope_freqs)

    def n_bytes(self, name: str) -> int:
        """What a tensor takes in its file."""
        return self._specs[name][5]

    def linears(self) -> list[str]:
        """The names of the layers' linears."""
        return [name for name in self.tensors if LINEARS.fullmatch(name)]
