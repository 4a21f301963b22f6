"""Writes GGUF files with the shapes of known models and random weights, for measurements.

    python benchmarks/shapes.py 1b-q4_0 ...        (no name: the list)

Into build/bench-models, once; the folder may be deleted at any time. Linear layers are Q4_0 or
Q4_1, embeddings and output Q8_0, norms fp32 ones. Weights are random codes with fp16 scales that
keep every activation near 1, so logits are finite; one random chunk is written again and again
(its length is prime in blocks, so that no two rows are alike). The vocabulary is made up, in the
form that llama.cpp reads. Every engine's speed depends on the shape alone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Q

FOLDER = Path(__file__).parent.parent / "build" / "bench-models"
CHUNK_BLOCKS = 262147  # prime: 5 to 9 MB


@dataclass
class Shape:
    """What config.json would say. vocabulary: "bpe" as Llama 3's, or "spm" as Llama 2's."""

    title: str
    n_layer: int
    hidden_dim: int
    ffn_dim: int
    n_head: int
    n_kv_head: int
    vocab_size: int
    context_len: int
    rope_theta: float
    vocabulary: str
    tied: bool

    @property
    def head_dim(self) -> int:
        return self.hidden_dim // self.n_head

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name without ".weight" and shape, rows first, in the order of the file."""
        hidden, kv = self.hidden_dim, self.n_kv_head * self.head_dim
        yield "token_embd", (self.vocab_size, hidden)
        for i in range(self.n_layer):
            yield f"blk.{i}.attn_norm", (hidden,)
            yield f"blk.{i}.attn_q", (hidden, hidden)
            yield f"blk.{i}.attn_k", (kv, hidden)
            yield f"blk.{i}.attn_v", (kv, hidden)
            yield f"blk.{i}.attn_output", (hidden, hidden)
            yield f"blk.{i}.ffn_norm", (hidden,)
            yield f"blk.{i}.ffn_gate", (self.ffn_dim, hidden)
            yield f"blk.{i}.ffn_up", (self.ffn_dim, hidden)
            yield f"blk.{i}.ffn_down", (hidden, self.ffn_dim)
        yield "output_norm", (hidden,)
        if not self.tied:
            yield "output", (self.vocab_size, hidden)


SHAPES = {
    "smollm2": Shape("SmolLM2-135M", 30, 576, 1536, 9, 3, 49152, 32768, 100000.0, "bpe", tied=True),
    "1b": Shape("Llama-3.2-1B", 16, 2048, 8192, 32, 8, 128256, 131072, 500000.0, "bpe", tied=True),
    "7b": Shape("Llama-2-7B", 32, 4096, 11008, 32, 32, 32000, 4096, 10000.0, "spm", tied=False),
    "tiny": Shape("tiny", 2, 64, 128, 4, 2, 512, 256, 10000.0, "bpe", tied=True),
}
TYPES = {"q4_0": Q.Q4_0, "q4_1": Q.Q4_1}
FILE_TYPES = {"q4_0": gguf.LlamaFileType.MOSTLY_Q4_0, "q4_1": gguf.LlamaFileType.MOSTLY_Q4_1}


# ---- weights ----


def random_chunk(qtype: Q, n_blocks: int, spread: float) -> np.ndarray:
    """Blocks of 32 random codes whose weights have mean 0 and about this spread, as bytes."""
    rng = np.random.Generator(np.random.PCG64(int(qtype)))

    def half(values: np.ndarray) -> np.ndarray:
        return values.astype("<f2").view(np.uint8).reshape(-1, 2)

    if qtype == Q.Q8_0:
        codes = rng.integers(-127, 128, (n_blocks, 32), dtype=np.int8).view(np.uint8)
        return np.hstack([half(rng.uniform(0.7, 1.3, n_blocks) * spread / 73.3), codes])
    codes = rng.integers(0, 256, (n_blocks, 16), dtype=np.uint8)
    scales = rng.uniform(0.7, 1.3, n_blocks) * spread / 4.61
    if qtype == Q.Q4_1:
        return np.hstack([half(scales), half(-7.5 * scales), codes])
    signs = rng.choice([-1.0, 1.0], n_blocks)  # as in real files; cancels the mean code of -0.5
    return np.hstack([half(scales * signs), codes])


def write_repeated(file: Any, chunk: np.ndarray, n_bytes: int, at: int) -> int:
    """Writes n_bytes of the endless repetition of chunk from `at`; returns where it stopped."""
    flat = memoryview(chunk.reshape(-1))
    while n_bytes:
        part = flat[at : at + n_bytes]
        file.write(part)
        n_bytes -= len(part)
        at = (at + len(part)) % len(flat)
    return at


# ---- vocabulary ----


def byte_letters() -> list[str]:
    """GPT-2's printable letter for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)]


def write_bpe(writer: gguf.GGUFWriter, n: int) -> None:
    """Bytes, then merges of two bytes, then of such a pair and a byte; specials at the end."""
    letters = byte_letters()
    tokens, merges = list(letters), []
    for i in range(n - 256 - 3):
        left, right = tokens[i // 256], letters[i % 256]
        tokens.append(left + right)
        merges.append(f"{left} {right}")
    specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|pad|>"]
    kinds = [gguf.TokenType.NORMAL] * len(tokens) + [gguf.TokenType.CONTROL] * len(specials)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens + specials)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(n - 3)
    writer.add_eos_token_id(n - 2)
    writer.add_pad_token_id(n - 1)
    writer.add_add_bos_token(True)


def write_spm(writer: gguf.GGUFWriter, n: int) -> None:
    """Specials, bytes, then made-up words."""
    kind = gguf.TokenType
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    kinds = [kind.UNKNOWN, kind.CONTROL, kind.CONTROL, *[kind.BYTE] * 256]
    for i in range(n - len(tokens)):
        tokens.append("\u2581" + "".join(chr(97 + i // 26**k % 26) for k in range(4)))
        kinds.append(kind.NORMAL)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(i) for i in range(n)])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)


# ---- the file ----


def write_header(writer: gguf.GGUFWriter, shape: Shape, file_type: int) -> None:
    writer.add_name(f"random weights, shape of {shape.title}")
    writer.add_context_length(shape.context_len)
    writer.add_embedding_length(shape.hidden_dim)
    writer.add_block_count(shape.n_layer)
    writer.add_feed_forward_length(shape.ffn_dim)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_kv_head)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_vocab_size(shape.vocab_size)
    writer.add_file_type(file_type)
    writer.add_quantization_version(2)
    write_vocabulary = write_bpe if shape.vocabulary == "bpe" else write_spm
    write_vocabulary(writer, shape.vocab_size)


def write_model(path: Path, shape: Shape, quantization: str) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    write_header(writer, shape, int(FILE_TYPES[quantization]))
    layout = []
    for name, dims in shape.tensors():
        is_head = name in ("token_embd", "output")
        qtype = Q.F32 if len(dims) == 1 else Q.Q8_0 if is_head else TYPES[quantization]
        values, block_bytes = gguf.GGML_QUANT_SIZES[qtype]
        n_bytes = int(np.prod(dims)) // values * block_bytes
        # A quantised tensor is announced by the bytes of its rows.
        raw = dims if qtype == Q.F32 else (dims[0], dims[1] // values * block_bytes)
        dtype = np.float32 if qtype == Q.F32 else np.uint8
        writer.add_tensor_info(f"{name}.weight", raw, np.dtype(dtype), n_bytes, raw_dtype=qtype)
        layout.append((dims, qtype, n_bytes))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    (file,) = writer.fout or ()
    writer.write_padding(file, file.tell())
    chunks: dict[tuple[Q, int], np.ndarray] = {}
    at: dict[tuple[Q, int], int] = {}
    for dims, qtype, n_bytes in layout:
        if qtype == Q.F32:
            file.write(np.ones(dims, "<f4").tobytes())
        else:
            key = (qtype, dims[1])
            if key not in chunks:
                chunks[key] = random_chunk(qtype, CHUNK_BLOCKS, dims[1] ** -0.5)
            at[key] = write_repeated(file, chunks[key], n_bytes, at.get(key, 0))
        writer.write_padding(file, n_bytes)
    writer.close()


def names() -> list[str]:
    return [f"{shape}-{quantization}" for shape in SHAPES for quantization in TYPES]


def model_file(name: str, folder: Path = FOLDER) -> Path:
    """The file of a name such as "1b-q4_0", written if it is not there."""
    path = folder / f"{name}.gguf"
    if not path.exists():
        shape, quantization = name.split("-")
        folder.mkdir(parents=True, exist_ok=True)
        print(f"writing {path.name} ...", file=sys.stderr, flush=True)
        unfinished = path.with_suffix(f".{os.getpid()}")
        write_model(unfinished, SHAPES[shape], quantization)
        unfinished.rename(path)
    return path


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(model_file(name))
    if not sys.argv[1:]:
        print("\n".join(names()))
