"""Takes a GGUF file's fused tensors apart: q, k and v in one, as llama.cpp's converter joins them
with --fuse-qkv. Their rows stand one after another, so that each is a part of the file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .safetensors import bad_file

if TYPE_CHECKING:
    from .._C import TensorSpec

_FUSED = re.compile(r"(blk\.\d+\.attn_)qkv(\.weight|\.bias)")


def is_fused(names: Iterable[str]) -> bool:
    return any(map(_FUSED.fullmatch, names))


def apart(specs: Sequence[TensorSpec], config: Mapping[str, Any]) -> list[TensorSpec]:
    """The tensors, the fused ones as three. config: normalised. CheckpointError."""
    n_q, n_kv = (config[key] * config["head_dim"] for key in ("n_head", "n_kv_head"))
    found: list[TensorSpec] = []
    for spec in specs:
        name, dtype, shape, path, begin, n_bytes = spec
        match = _FUSED.fullmatch(name)
        if match is None:
            found.append(spec)
            continue
        n_rows = n_q + 2 * n_kv
        if not shape or shape[0] != n_rows:
            raise bad_file(
                Path(path), f'tensor "{name}" has shape {shape}; q, k and v have {n_rows} rows'
            )
        for letter, n in (("q", n_q), ("k", n_kv), ("v", n_kv)):
            size = n_bytes // n_rows * n
            part = f"{match[1]}{letter}{match[2]}"
            found.append((part, dtype, (n, *shape[1:]), path, begin, size))
            begin += size
    return found
