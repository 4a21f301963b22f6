"""What a model will take on this machine, before anything of it is loaded."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .engine.decode_time import MOST_TOKENS, decode_time
from .engine.loading import (
    EngineConfig,
    check_model_format,
    describe_kv_bits,
    engine_config,
    kv_block_bytes,
    plan_kv_cache,
)
from .engine.memory import KvSize, available_memory, cgroup_memory, system_memory
from .files.checkpoint import Checkpoint, open_checkpoint, resolve_model
from .messages import TurbomindEngineConfig
from .units import format_size

logger = logging.getLogger("lmdeploy_c")

#: Seats of the batch and the token budget of a step, on the CPU.
CPU_BATCH_SIZE = 64
CPU_PREFILL_TOKENS = 512

KV_BITS = (16, 8, 4)
#: Tokens before the one that is decoded, of the predicted speeds.
CONTEXTS = (0, 4096)
#: Largest buffer that the bandwidth is measured with: more than most caches hold.
_MAX_BUFFER = 256 << 20


# ---- memory ----


def _usable_threads() -> int:
    from ._C import cpu_info

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
class MemoryPlan:
    """What a pipeline will hold, in bytes. read_bytes: of the weights, for one decoded token."""

    available_bytes: int
    weight_bytes: int
    read_bytes: int
    scratch_bytes: int
    max_batch_size: int
    max_prefill_token_num: int
    kv: KvSize


def plan_memory(config: TurbomindEngineConfig, checkpoint: Checkpoint) -> MemoryPlan:
    """Sizes everything before anything large is allocated, and says so.

    Raises MemoryError with the numbers when it does not fit into the memory that is available,
    ValueError when session_len does not fit into the KV cache.
    """
    from . import _C

    shape = checkpoint.config
    batch_size = config.max_batch_size or CPU_BATCH_SIZE
    sizes = _C.model_sizes(shape, checkpoint.source)
    available = available_memory()

    def refused(why: str) -> str:
        return (
            f"{checkpoint.path.name}: {why} (weights take {format_size(sizes['weight_bytes'])}, "
            f"scratch up to {format_size(most)}, of {format_size(available)} available memory)"
        )

    most = _scratch_bytes(config, shape, config.session_len or shape["max_position"], 0)
    left = available - sizes["weight_bytes"] - most
    if left <= 0:
        raise MemoryError(
            refused("the model does not fit; free memory, or take a smaller or more quantised one")
        )
    try:
        kv = plan_kv_cache(config, shape, batch_size, left)
    except (MemoryError, ValueError) as e:
        raise type(e)(refused(str(e))) from None
    plan = MemoryPlan(
        available_bytes=available,
        weight_bytes=sizes["weight_bytes"],
        read_bytes=sizes["read_bytes"],
        scratch_bytes=_scratch_bytes(config, shape, kv.session_len, kv.n_blocks),
        max_batch_size=batch_size,
        max_prefill_token_num=config.max_prefill_token_num or CPU_PREFILL_TOKENS,
        kv=kv,
    )
    logger.info(
        "%s: weights %s, KV cache %s (%d blocks of %d tokens, %s), scratch %s, session_len %d, "
        "max_batch_size %d",
        checkpoint.path.name,
        format_size(plan.weight_bytes),
        format_size(kv.n_bytes),
        kv.n_blocks,
        kv.block_len,
        describe_kv_bits(config.stored_kv_bits()),
        format_size(plan.scratch_bytes),
        kv.session_len,
        batch_size,
    )
    return plan


# ---- the plan ----


@dataclass(frozen=True)
class Plan:
    """What a pipeline with this configuration would hold and how fast it could be: see `plan`.

    Names are those of `Pipeline.plan`, which says the same of what was loaded. Bytes are bytes.
    total_memory_bytes: of the machine, or of the cgroup's limit. available_memory_bytes: of it, for
    this process. scratch_bytes: activations, logits and tables. kv_bits: of keys and of values.
    kv_bytes_per_token: in that form; kv_bytes_per_token_at: with 16, 8 or 4 bits for both.
    kv_tokens: that the KV cache holds. By context length, for one sequence that decodes:
    tokens_per_second, as timed, and tokens_per_second_limit, what reading everything once allows at
    read_bytes_per_second, the bandwidth measured with all threads. Empty and 0 if not measured.
    """

    model: str
    arch: str
    device: str
    isa: str
    num_threads: int
    total_memory_bytes: int
    available_memory_bytes: int
    weight_bytes: int
    scratch_bytes: int
    kv_bytes: int
    kv_blocks: int
    kv_block_len: int
    kv_bits: tuple[int, int]
    kv_bytes_per_token: float
    kv_bytes_per_token_at: Mapping[int, float]
    session_len: int
    max_batch_size: int
    max_prefill_token_num: int
    read_bytes_per_second: float
    tokens_per_second: Mapping[int, float]
    tokens_per_second_limit: Mapping[int, float]

    @property
    def total_bytes(self) -> int:
        """Weights, KV cache and scratch."""
        return self.weight_bytes + self.kv_bytes + self.scratch_bytes

    @property
    def kv_tokens(self) -> int:
        return self.kv_blocks * self.kv_block_len

    @property
    def full_sequences(self) -> int:
        """Sequences of session_len tokens that the KV cache holds at once."""
        return self.kv_blocks // -(-self.session_len // self.kv_block_len)

    def __str__(self) -> str:
        rows = [
            ("weights", format_size(self.weight_bytes), ""),
            (
                "KV cache",
                format_size(self.kv_bytes),
                f"{self.kv_tokens} tokens in {describe_kv_bits(self.kv_bits)}: {self.kv_blocks} "
                f"blocks of {self.kv_block_len}, "
                f"{self.full_sequences} sequences of {self.session_len}",
            ),
            ("scratch", format_size(self.scratch_bytes), f"batch of {self.max_batch_size}, steps "
             f"of {self.max_prefill_token_num} tokens"),
            ("together", format_size(self.total_bytes),
             f"of {format_size(self.available_memory_bytes)} available, "
             f"{format_size(self.total_memory_bytes)} in all"),
        ]  # fmt: skip
        lines = [
            f"{Path(self.model).name}: {self.arch} on {self.device} ({self.isa}), "
            f"{self.num_threads} threads",
            *(f"  {name:<10}{size:>10}  {text}".rstrip() for name, size, text in rows),
            "KV cache, by bits",
            *(
                f"  {bits:>2} bits {n:>9.0f} bytes/token {int(self.kv_bytes / n):>10} tokens"
                for bits, n in self.kv_bytes_per_token_at.items()
            ),
        ]
        if self.tokens_per_second:
            lines += [
                f"decoding one sequence (memory gives {self.read_bytes_per_second / 1e9:.1f} GB/s)",
                *(
                    f"  context {n:>6} {rate:>10.1f} tok/s, at most "
                    f"{self.tokens_per_second_limit[n]:.1f}"
                    for n, rate in self.tokens_per_second.items()
                ),
            ]
        return "\n".join(lines)


def _timed_rates(
    config: TurbomindEngineConfig, checkpoint: Checkpoint, session_len: int
) -> dict[int, float]:
    """Tokens a second by context; empty, and a warning, where they cannot be timed."""
    contexts = [n for n in CONTEXTS if n + MOST_TOKENS <= session_len] or [0]
    try:
        timed = decode_time(config, checkpoint, contexts[-1])
    except (MemoryError, RuntimeError) as e:
        logger.warning("%s: no speed is predicted: %s", checkpoint.path.name, e)
        return {}
    return {n: timed.tokens_per_second(n) for n in contexts}


def plan(
    model_path: str | Path | None = None,
    backend_config: EngineConfig | None = None,
    *,
    measure: bool = True,
) -> Plan:
    """What a pipeline of these arguments would take on this machine; it loads nothing.

    Sizes come from the files' headers and are those that the pipeline will have: one arithmetic for
    both. The speed is timed in a second or two: the engine decodes with made-up weights of the
    model's sizes and formats (all it has besides layers, and at most 1 GiB of them), so it holds
    for a machine as idle as it is now.

    model_path, backend_config: as for `pipeline`. measure: time the speed and the bandwidth.
    Raises what `pipeline` raises: FileNotFoundError, CheckpointError, UnsupportedError, ValueError,
    and MemoryError, whose message has the numbers, for what does not fit.
    """
    from . import _C

    config = engine_config(backend_config)
    path = resolve_model(model_path, config.revision, config.download_dir)
    checkpoint = open_checkpoint(path, config.hf_overrides)
    check_model_format(config, checkpoint)
    memory = plan_memory(config, checkpoint)
    cpu = _C.cpu_info()
    if cpu["error"]:
        raise ValueError(cpu["error"])
    n_threads = config.num_threads or cpu["usable_threads"]
    shape, kv, cgroup = checkpoint.config, memory.kv, cgroup_memory()
    total = system_memory()[0]
    read_rate, rates = 0.0, {}
    if measure:
        n_bytes = min(memory.read_bytes, _MAX_BUFFER, memory.available_bytes // 4)
        read_rate = _C.read_bandwidth(max(n_bytes, 1), n_threads)
        rates = _timed_rates(config, checkpoint, kv.session_len)
    token_bytes = {
        bits: kv_block_bytes(shape, kv.block_len, (bits, bits)) / kv.block_len for bits in KV_BITS
    }
    return Plan(
        model=str(checkpoint.path),
        arch=shape["arch"],
        device="cpu",
        isa=cpu["isa"],
        num_threads=n_threads,
        total_memory_bytes=total if cgroup is None else min(total, cgroup[0]),
        available_memory_bytes=memory.available_bytes,
        weight_bytes=memory.weight_bytes,
        scratch_bytes=memory.scratch_bytes,
        kv_bytes=kv.n_bytes,
        kv_blocks=kv.n_blocks,
        kv_block_len=kv.block_len,
        kv_bits=config.stored_kv_bits(),
        kv_bytes_per_token=kv.block_bytes / kv.block_len,
        kv_bytes_per_token_at=token_bytes,
        session_len=kv.session_len,
        max_batch_size=memory.max_batch_size,
        max_prefill_token_num=memory.max_prefill_token_num,
        read_bytes_per_second=read_rate,
        tokens_per_second=rates,
        tokens_per_second_limit={
            n: read_rate / (memory.read_bytes + n * kv.block_bytes // kv.block_len) for n in rates
        },
    )
