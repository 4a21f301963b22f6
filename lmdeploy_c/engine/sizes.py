"""How large an engine will be: computed from a checkpoint's headers, before anything is loaded."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..files.checkpoint import Checkpoint
from ..messages import TurbomindEngineConfig
from ..units import format_size, parse_size
from .device import Device, find_device

logger = logging.getLogger("lmdeploy_c")

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
    fraction: float,
    limit: int,
) -> KvSize:
    """Sizes the KV cache as `TurbomindEngineConfig.cache_max_entry_count` describes it.

    cache: that field. block_bytes: bytes of one block of all layers. session_len: None takes
    model_len, the tokens that the model was made for, lowered to what the cache holds. available:
    bytes. fraction, limit: the share of these, and the most bytes (0: no bound), that the cache
    takes where `cache` is None. Raises MemoryError for more than is available, ValueError when
    session_len does not fit.
    """
    blocks_per_sequence = -(-(session_len or model_len) // block_len)
    wanted = blocks_per_sequence * max_batch_size
    if isinstance(cache, str):
        n_blocks = parse_size(cache) // block_bytes
    elif cache is not None and cache >= 1:
        n_blocks = int(cache)
    elif cache is not None:
        n_blocks = min(int(cache * available) // block_bytes, wanted)
    else:
        most = int(fraction * available)
        n_blocks = min((min(most, limit) if limit else most) // block_bytes, wanted)
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


def kv_block_bytes(
    shape: Mapping[str, Any], block_len: int, bits: tuple[int, int], device: str = "cpu"
) -> int:
    """Bytes of one KV block of a model with this (normalised) config, as the device stores it."""
    from .. import _C

    sizes = (shape["n_layer"], shape["n_kv_head"], shape["head_dim"])
    return _C.kv_block_bytes(*sizes, block_len=block_len, kv_bits=bits, device=device)


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
    config: TurbomindEngineConfig, shape: Mapping[str, Any], device: Device, available: int
) -> KvSize:
    """Sizes the KV cache of a model with this (normalised) config. available: bytes.

    Raises MemoryError, ValueError.
    """
    bits = config.stored_kv_bits()
    return kv_size(
        cache=config.cache_max_entry_count,
        block_len=config.cache_block_seq_len,
        block_bytes=kv_block_bytes(shape, config.cache_block_seq_len, bits, device.name),
        session_len=config.session_len,
        model_len=shape["max_position"],
        max_batch_size=config.max_batch_size or device.max_batch_size,
        available=available,
        fraction=device.kv_fraction,
        limit=device.kv_max_bytes,
    )


# ---- everything ----


def _engine_bytes(
    config: TurbomindEngineConfig,
    shape: Mapping[str, Any],
    device: Device,
    session_len: int,
    n_blocks: int,
) -> int:
    """The bytes of an engine besides weights and KV: activations, logits, tables, plans, records of
    blocks. The code that allocates them adds them up."""
    from .. import _C

    return _C.engine_bytes(
        shape,
        session_len=session_len,
        n_blocks=n_blocks,
        max_batch_size=config.max_batch_size or device.max_batch_size,
        max_prefill_token_num=config.max_prefill_token_num or device.max_prefill_token_num,
        block_len=config.cache_block_seq_len,
        kv_bits=config.stored_kv_bits(),
        enable_prefix_caching=config.enable_prefix_caching,
        device=device.name,
        num_threads=config.num_threads,
    )


@dataclass(frozen=True)
class Sizes:
    """What an engine will hold."""

    device: Device  # as it was before
    weight_bytes: int
    read_bytes: int  # of the weights, for one decoded token
    scratch_bytes: int
    max_batch_size: int
    max_prefill_token_num: int
    target_step_ms: float
    kv: KvSize
    kv_bits: tuple[int, int]  # of keys and of values
    kv_bytes_per_token_at: dict[int, float]  # by bits, the same for keys and values
    device_reason: str = ""  # why it is this device, where the configuration says "auto"

    @property
    def available_bytes(self) -> int:
        """Memory of the device that this process could use before the model was loaded."""
        return self.device.free_bytes


#: What sets a limit, by `Device.memory_bound`; the others are what a machine has.
_LIMITS = {
    "cgroup": "a cgroup's limit",
    "address space": "the limit on address space, ulimit -v",
    "data size": "the limit on writable memory, ulimit -d",
}


def describe_bound(bound: str) -> str:
    """A phrase that follows the available memory and names the limit that leaves least; or ""."""
    return f", by {_LIMITS[bound]}" if bound in _LIMITS else ""


def compute_sizes(config: TurbomindEngineConfig, checkpoint: Checkpoint) -> Sizes:
    """Sizes everything on the configuration's device before anything large is allocated, and logs
    it.

    Raises MemoryError with the numbers when it does not fit into the memory that is available,
    ValueError when session_len does not fit into the KV cache.
    """
    from .. import _C

    shape, device = checkpoint.config, find_device(config)
    weights = _C.model_sizes(shape, checkpoint.source, device=device.name, quantize=config.quantize)
    available = device.free_bytes

    def refused(why: str) -> str:
        return (
            f"{checkpoint.path.name}: {why} (weights take {format_size(weights['weight_bytes'])}, "
            f"scratch up to {format_size(most)}, of {format_size(available)} available memory on "
            f"{device.name}{describe_bound(device.memory_bound)})"
        )

    most = _engine_bytes(config, shape, device, config.session_len or shape["max_position"], 1)
    left = available - weights["weight_bytes"] - most
    if left <= 0:
        raise MemoryError(
            refused(
                "the model does not fit; free memory, lower max_prefill_token_num, or take a "
                "smaller or more quantised one"
            )
        )
    try:
        kv = size_kv_cache(config, shape, device, left)
    except (MemoryError, ValueError) as e:
        raise type(e)(refused(str(e))) from None
    sizes = Sizes(
        device=device,
        weight_bytes=weights["weight_bytes"],
        read_bytes=weights["read_bytes"],
        scratch_bytes=_engine_bytes(config, shape, device, kv.session_len, kv.n_blocks),
        max_batch_size=config.max_batch_size or device.max_batch_size,
        max_prefill_token_num=config.max_prefill_token_num or device.max_prefill_token_num,
        target_step_ms=(
            device.target_step_ms if config.target_step_ms is None else config.target_step_ms
        ),
        kv=kv,
        kv_bits=config.stored_kv_bits(),
        kv_bytes_per_token_at={
            bits: kv_block_bytes(shape, kv.block_len, (bits, bits), device.name) / kv.block_len
            for bits in KV_BITS
        },
    )
    _tell(checkpoint, sizes)
    return sizes


def _tell(checkpoint: Checkpoint, sizes: Sizes) -> None:
    """Logs the sizes of an engine that fits, and what a user may not have meant."""
    kv, shape = sizes.kv, checkpoint.config
    warn_of_few_bits(sizes.kv_bits, shape["arch"])
    if kv.session_len > shape["max_position"]:
        logger.warning(
            "session_len %d is more than the %d tokens the model was made for",
            kv.session_len,
            shape["max_position"],
        )
    logger.info(
        "%s: weights %s, KV cache %s (%d blocks of %d tokens, %s), scratch %s, session_len %d, "
        "max_batch_size %d",
        checkpoint.path.name,
        format_size(sizes.weight_bytes),
        format_size(kv.n_bytes),
        kv.n_blocks,
        kv.block_len,
        describe_kv_bits(sizes.kv_bits),
        format_size(sizes.scratch_bytes),
        kv.session_len,
        sizes.max_batch_size,
    )
