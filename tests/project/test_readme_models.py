"""README's table of models by memory: its numbers are what `plan` computes for their shapes.

The shapes are those of the models' config.json (Qwen2.5's files store its tied embedding twice).
Which tensors have which type is llama.cpp's rule for Q4_K_M: 6 bits for the output (or a tied
embedding), and for attn_v and ffn_down in some layers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lmdeploy_c import _C, TurbomindEngineConfig
from lmdeploy_c.engine.sizes import _engine_bytes, kv_block_bytes
from lmdeploy_c.files import model_config

ROOT = Path(__file__).parents[2]
TOKENS = 8192  # of context in the table
#: Of a machine's memory, what its table's models may take: the system and the user have the rest.
SHARE = 0.75


class CpuDefaults:
    name, max_batch_size, max_prefill_token_num = "cpu", 64, 512


@dataclass
class Shape:
    arch: str
    n_layer: int
    hidden: int
    ffn: int
    n_head: int
    n_kv_head: int
    vocab: int
    tied: bool
    head_dim: int = 128

    def tensors(self) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        """Name, type and shape of each tensor of a Q4_K_M file."""
        q, kv = self.n_head * self.head_dim, self.n_kv_head * self.head_dim
        yield "token_embd", "Q6_K" if self.tied else "Q4_K", (self.vocab, self.hidden)
        yield "output_norm", "F32", (self.hidden,)
        if not self.tied:
            yield "output", "Q6_K", (self.vocab, self.hidden)
        for i in range(self.n_layer):
            eighth = self.n_layer // 8
            more = i < eighth or i >= 7 * self.n_layer // 8 or (i - eighth) % 3 == 2
            large = "Q6_K" if more else "Q4_K"
            block = f"blk.{i}."
            yield f"{block}attn_norm", "F32", (self.hidden,)
            yield f"{block}ffn_norm", "F32", (self.hidden,)
            yield f"{block}attn_q", "Q4_K", (q, self.hidden)
            yield f"{block}attn_k", "Q4_K", (kv, self.hidden)
            yield f"{block}attn_v", large, (kv, self.hidden)
            yield f"{block}attn_output", "Q4_K", (self.hidden, q)
            yield f"{block}ffn_gate", "Q4_K", (self.ffn, self.hidden)
            yield f"{block}ffn_up", "Q4_K", (self.ffn, self.hidden)
            yield f"{block}ffn_down", large, (self.hidden, self.ffn)
            if self.arch == "qwen3":
                yield f"{block}attn_q_norm", "F32", (self.head_dim,)
                yield f"{block}attn_k_norm", "F32", (self.head_dim,)

    def metadata(self) -> dict[str, object]:
        values = {
            "block_count": self.n_layer,
            "embedding_length": self.hidden,
            "feed_forward_length": self.ffn,
            "attention.head_count": self.n_head,
            "attention.head_count_kv": self.n_kv_head,
            "attention.key_length": self.head_dim,
            "attention.value_length": self.head_dim,
            "attention.layer_norm_rms_epsilon": 1e-6,
            "context_length": 32768,
        }
        return {"general.architecture": self.arch} | {
            f"{self.arch}.{key}": value for key, value in values.items()
        }


MODELS = {
    "Qwen/Qwen2.5-1.5B-Instruct-GGUF": Shape("qwen2", 28, 1536, 8960, 12, 2, 151936, False),
    "Qwen/Qwen3-4B-GGUF": Shape("qwen3", 36, 2560, 9728, 32, 8, 151936, True),
    "Qwen/Qwen3-8B-GGUF": Shape("qwen3", 36, 4096, 12288, 32, 8, 151936, False),
    "bartowski/Meta-Llama-3.1-8B-Instruct-GGUF": Shape(
        "llama", 32, 4096, 14336, 32, 8, 128256, False
    ),
    "Qwen/Qwen3-14B-GGUF": Shape("qwen3", 40, 5120, 17408, 40, 8, 151936, False),
}
#: Type -> bytes of 256 values.
BLOCK_BYTES = {"F32": 1024, "Q4_K": 144, "Q6_K": 210}


def taken(shape: Shape, file: Path) -> tuple[int, int]:
    """Bytes of the file, and of weights, scratch and the KV of TOKENS tokens."""
    specs, offset, tensors = [], 0, {}
    for name, dtype, dims in shape.tensors():
        n_bytes = math.prod(dims) * BLOCK_BYTES[dtype] // 256
        specs.append((f"{name}.weight", dtype, dims, str(file), offset, n_bytes))
        tensors[f"{name}.weight"] = (dtype, dims)
        offset += -(-n_bytes // 32) * 32
    with file.open("wb") as sparse:  # only norms are read, and of none a value matters
        sparse.truncate(offset)
    config = model_config.from_gguf(shape.metadata(), tensors)
    weights = _C.model_sizes(config, specs)["weight_bytes"]
    n_blocks = TOKENS // 64
    scratch = _engine_bytes(TurbomindEngineConfig(), config, CpuDefaults, TOKENS, n_blocks)  # type: ignore[arg-type]
    return offset, weights + scratch + n_blocks * kv_block_bytes(config, 64, (16, 16), "cpu")


def rows() -> list[tuple[int, str, float, float]]:
    """Memory in GB, model, GB of its file, and GB that it takes, as the README has them."""
    text = (ROOT / "README.md").read_text()
    row = r"^\| (\d+) GB \| `lmdeploy_c chat ([\w./-]+)[^|]*\| ([\d.]+) \| ([\d.]+) \|"
    found = re.findall(row, text, re.M)
    return [(int(m), model, float(size), float(all_)) for m, model, size, all_ in found]


def test_the_table_has_every_model() -> None:
    assert {model for _, model, _, _ in rows()} == set(MODELS)
    assert {memory for memory, _, _, _ in rows()} == {4, 8, 16, 24}


@pytest.mark.parametrize("model", MODELS)
def test_a_row(model: str, tmp_path: Path) -> None:
    file, everything = taken(MODELS[model], tmp_path / "sparse")
    [(memory, _, size, told)] = [row for row in rows() if row[1] == model]
    assert size == round(file / 1e9, 1) and told == round(everything / 1e9, 1)
    assert everything < SHARE * memory * 1e9
