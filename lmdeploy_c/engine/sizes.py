"""How large an engine will be: computed from a checkpoint's headers, before anything is loaded."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..files.checkpoint import Checkpoint
from ..messages import TurbomindEngineConfig
from ..units import GIB, format_size, parse_size
from .memory import available_memory

logger = logging.getLogger("lmdeploy_c")

#: Seats of the batch and the token budget of a step, on the CPU.
CPU_BATCH_SIZE = 64
CPU_PREFILL_TOKENS = 512
#: Most bytes that the KV cache takes unless it is asked to take more.
DEFAULT_KV_LIMIT = 4 * GIB
#: Bits of the KV cache's values that `Sizes.kv_bytes_per_token_at` compares.
KV_BITS = (16, 8, 4)


# ---- the KV cache ----


@dataclass(frozen=True)
class KvSize:
    """The KV cache's size: n_blocks of block_len tokens serve sequences up to session_len."""

    n_blocks: int
    block_len: int
    block_bytes: int  # of one block of all layers
    session_len: int

    @property
    def n_bytes(self) -> int:
        return self.n_blocks * self.block_bytes


def kv_size(
    *,
    cache: float | int | str | None,
    block_len: int,
    block_bytes: int,
    session_len: int | None,
    model_len: int,
    max_batch_size: int,
    available: int,
) -> KvSize:
    """Sizes the KV cache as `TurbomindEngineConfig.cache_max_entry_count` describes it.

    cache: that field. block_bytes: bytes of one block of all layers. session_len: None takes
    model_len, the tokens that the model was made for, lowered to what the cache holds. available:
    bytes. Raises MemoryError for more than is available, ValueError when session_len does not fit.
    """
    blocks_per_sequence = -(-(session_len or model_len) // block_len)
    wanted = blocks_per_sequence * max_batch_size
    if isinstance(cache, str):
        n_blocks = parse_size(cache) // block_bytes
    elif cache is not None and cache > 1:
        n_blocks = int(cache)
    elif cache is not None:
        n_blocks = min(int(cache * available) // block_bytes, wanted)
    else:
        n_blocks = min(min(available // 2, DEFAULT_KV_LIMIT) // block_bytes, wanted)
    size = KvSize(n_blocks, block_len, block_bytes, session_len or model_len)
    if size.n_bytes > available:
        raise MemoryError(
            f"cache_max_entry_count={cache!r} asks for {format_size(size.n_bytes)} of KV cache, "
            f"{format_size(available)} of memory are available"
        )
    if n_blocks < 1:
        raise ValueError(
            f"the KV cache holds no block: one of {block_len} tokens takes "
            f"{format_size(block_bytes)}, {format_size(available)} of memory are available; "
            f"raise cache_max_entry_count"
        )
    if n_blocks < blocks_per_sequence:
        if session_len is not None:
            raise ValueError(
                f"session_len={session_len} needs {format_size(blocks_per_sequence * block_bytes)} "
                f"of KV cache, which has {format_size(size.n_bytes)}: lower session_len or raise "
                f"cache_max_entry_count"
            )
        size = KvSize(n_blocks, block_len, block_bytes, n_blocks * block_len)
    return size


def kv_block_bytes(shape: Mapping[str, Any], block_len: int, bits: tuple[int, int]) -> int:
    """Bytes of one KV block of a model with this (normalised) config, as the backend stores it."""
    from .. import _C

    sizes = (shape["n_layer"], shape["n_kv_head"], shape["head_dim"])
    return _C.kv_block_bytes(*sizes, block_len=block_len, kv_bits=bits)


def describe_kv_bits(bits: tuple[int, int]) -> str:
    """ "fp16", "int8", "int8 keys and int4 values"."""
    keys, values = ("fp16" if b == 16 else f"int{b}" for b in bits)
    return keys if keys == values else f"{keys} keys and {values} values"


#: Families whose keys have a few columns far larger than the others. With 4 bits these columns
#: leave no codes for the others, and the models are reported to lose their abilities (LMDeploy's
#: issues 2822, 3752, 4743).
_LARGE_KEY_COLUMNS = ("qwen2", "qwen3")


def warn_of_few_bits(bits: tuple[int, int], arch: str) -> None:
    """Says once per load that keys of 4 bits break models of this family."""
    if bits[0] == 4 and arch in _LARGE_KEY_COLUMNS:
        logger.warning(
            "a KV cache of 4 bits is known to break models of the Qwen family, by its keys: "
            "use kv_bits=(8, 4), which keeps keys at 8 bits, or quant_policy=8"
        )


def size_kv_cache(
    config: TurbomindEngineConfig, shape: Mapping[str, Any], batch_size: int, available: int
) -> KvSize:
    """Sizes the KV cache of a model with this (normalised) config. available: bytes.

    Raises MemoryError, ValueError.
    """
    bits = config.stored_kv_bits()
    warn_of_few_bits(bits, shape["arch"])
    size = kv_size(
        cache=config.cache_max_entry_count,
        block_len=config.cache_block_seq_len,
        block_bytes=kv_block_bytes(shape, config.cache_block_seq_len, bits),
        session_len=config.session_len,
        model_len=shape["max_position"],
        max_batch_size=batch_size,
        available=available,
    )
    if size.session_len > shape["max_position"]:
        logger.warning(
            "session_len %d is more than the %d tokens the model was made for",
            size.session_len,
            shape["max_position"],
        )
    return size


# ---- everything ----


def _usable_threads() -> int:
    from .._C import cpu_info

    return int(cpu_info()["usable_threads"])


def _scratch_bytes(
    config: TurbomindEngineConfig, shape: Mapping[str, Any], session_len: int, n_blocks: int
) -> int:
    """What an engine holds besides weights and KV, to a few percent and a megabyte: activations,
    logits, tables, plans, records of blocks. The RoPE table counts twice: while an engine starts
    there are two."""
    n_threads = config.num_threads or _usable_threads()
    tokens = config.max_prefill_token_num or CPU_PREFILL_TOKENS
    batch_size = config.max_batch_size or CPU_BATCH_SIZE
    hidden, ffn, head_dim, n_head, n_kv_head, n_layer, vocab = (
        int(shape[key])
        for key in ("hidden_dim", "ffn_dim", "head_dim", "n_head", "n_kv_head", "n_layer",
                    "vocab_size")
    )  # fmt: skip
    q, logits_rows = n_head * head_dim, min(tokens, 64)
    columns = (hidden, hidden, q + 2 * n_kv_head * head_dim, q, ffn)
    # A value in fp32 and as a 16-bit integer, and three numbers for each 32 of them.
    activations = sum(tokens * (n * 6 + n // 32 * 12) for n in columns)
    n_chunks = -(-session_len // 256)
    n_split = min(batch_size, (8 * n_threads - 1) // n_kv_head)
    block_len = config.cache_block_seq_len
    return (
        activations
        + logits_rows * (hidden * 6 + vocab * 4)
        + tokens * 700  # parameters and results of rows
        + n_threads * (vocab * 16 + max(hidden, q, ffn) * 36 + (300 << 10))
        + 2 * session_len * head_dim * 4  # RoPE
        + n_head * n_split * n_chunks * ((head_dim + 2) * 4 + 48)  # partial attention
        + 2 * batch_size * -(-session_len // block_len) * 4  # block tables
        + n_blocks * (block_len * 4 + 60)
        + (13 * n_layer + 16) * 512  # operations of a step
        + (1 << 20)
    )


@dataclass(frozen=True)
class Sizes:
    """What an engine will hold."""

    available_bytes: int  # memory that this process could take before
    weight_bytes: int
    read_bytes: int  # of the weights, for one decoded token
    scratch_bytes: int
    max_batch_size: int
    max_prefill_token_num: int
    kv: KvSize
    kv_bits: tuple[int, int]  # of keys and of values
    kv_bytes_per_token_at: dict[int, float]  # by bits, the same for keys and values


def compute_sizes(config: TurbomindEngineConfig, checkpoint: Checkpoint) -> Sizes:
    """Sizes everything before anything large is allocated, and logs it.

    Raises MemoryError with the numbers when it does not fit into the memory that is available,
    ValueError when session_len does not fit into the KV cache.
    """
    from .. import _C

    shape = checkpoint.config
    batch_size = config.max_batch_size or CPU_BATCH_SIZE
    weights = _C.model_sizes(shape, checkpoint.source)
    available = available_memory()

    def refused(why: str) -> str:
        return (
            f"{checkpoint.path.name}: {why} (weights take {format_size(weights['weight_bytes'])}, "
            f"scratch up to {format_size(most)}, of {format_size(available)} available memory)"
        )

    most = _scratch_bytes(config, shape, config.session_len or shape["max_position"], 0)
    left = available - weights["weight_bytes"] - most
    if left <= 0:
        raise MemoryError(
            refused("the model does not fit; free memory, or take a smaller or more quantised one")
        )
    try:
        kv = size_kv_cache(config, shape, batch_size, left)
    except (MemoryError, ValueError) as e:
        raise type(e)(refused(str(e))) from None
    sizes = Sizes(
        available_bytes=available,
        weight_bytes=weights["weight_bytes"],
        read_bytes=weights["read_bytes"],
        scratch_bytes=_scratch_bytes(config, shape, kv.session_len, kv.n_blocks),
        max_batch_size=batch_size,
        max_prefill_token_num=config.max_prefill_token_num or CPU_PREFILL_TOKENS,
        kv=kv,
        kv_bits=config.stored_kv_bits(),
        kv_bytes_per_token_at={
            bits: kv_block_bytes(shape, kv.block_len, (bits, bits)) / kv.block_len
            for bits in KV_BITS
        },
    )
    _log(checkpoint.path.name, sizes)
    return sizes


def _log(name: str, sizes: Sizes) -> None:
    kv = sizes.kv
    logger.info(
        "%s: weights %s, KV cache %s (%d blocks of %d tokens, %s), scratch %s, session_len %d, "
        "max_batch_size %d",
        name,
        format_size(sizes.weight_bytes),
        format_size(kv.n_bytes),
        kv.n_blocks,
        kv.block_len,
        describe_kv_bits(sizes.kv_bits),
        format_size(sizes.scratch_bytes),
        kv.session_len,
        sizes.max_batch_size,
    )
