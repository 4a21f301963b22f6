"""How long a decoded token will take, timed before a model is loaded.

The engine itself is timed, with matrices that have the model's sizes and formats and made-up
values. Layers are alike, so of a large model only some are made.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..files.checkpoint import Checkpoint
from ..messages import TurbomindEngineConfig

if TYPE_CHECKING:
    from .._C import Engine, Snapshot

#: Most bytes of layers that are made up.
_MOST_BYTES = 1 << 30
#: Tokens of a sequence that are waited for, and then timed; fewer where they take longer than that
#: many seconds.
_WARM, _TIMED, _ENOUGH_S = 4, 24, 0.5
#: Tokens that a timed sequence may have after its context.
MOST_TOKENS = _WARM + _TIMED + 1


@dataclass(frozen=True)
class DecodeTime:
    """Seconds for one token of one sequence."""

    alone: float  # without a context
    of_context: float  # more for each token of context

    def tokens_per_second(self, context: int) -> float:
        return 1.0 / (self.alone + context * self.of_context)


def decode_time(config: TurbomindEngineConfig, checkpoint: Checkpoint, context: int) -> DecodeTime:
    """Times one sequence without a context, and with one of about `context` tokens.

    config: of the engine to be. The model must fit in memory, with the KV of that context.
    Raises RuntimeError where nothing can be timed, MemoryError.
    """
    from .. import _C

    def read_bytes(n_layer: int) -> int:
        part = {**shape, "n_layer": n_layer}
        sizes = _C.model_sizes(
            part, checkpoint.source, device=config.device, quantize=config.quantize
        )
        return sizes["read_bytes"]

    shape, all_layers = checkpoint.config, checkpoint.config["n_layer"]
    one, whole = read_bytes(1), read_bytes(all_layers)
    layer = max((whole - one) // max(all_layers - 1, 1), 1)
    n_layer = min(max(_MOST_BYTES // layer, 1), all_layers)
    part = {**shape, "n_layer": n_layer}
    model = _C.Model(
        part,
        checkpoint.source,
        device=config.device,
        num_threads=config.num_threads,
        blank=True,
        quantize=config.quantize,
    )
    block_len = config.cache_block_seq_len
    n_blocks = context // block_len
    engine = _C.Engine(
        model,
        session_len=context + MOST_TOKENS,
        n_blocks=n_blocks + 2 + MOST_TOKENS // block_len,
        fast_activations=config.fast_activations,
        enable_prefix_caching=False,
        enable_metrics=False,
        max_batch_size=1,
        max_prefill_token_num=block_len,
        block_len=block_len,
        kv_bits=config.stored_kv_bits(),
    )
    try:
        snapshot, seconds = _token_seconds(engine, [0])
        more = 0.0
        if n_blocks:
            n_tokens = n_blocks * block_len
            before = _blank_context(engine, snapshot, n_blocks, n_tokens)
            longer = _token_seconds(engine, [0] * (n_tokens + 1), before)[1]
            more = max(longer - seconds, 0.0) / n_tokens
    finally:
        engine.close()
    return DecodeTime(seconds * whole / read_bytes(n_layer), more * all_layers / n_layer)


def _blank_context(engine: Engine, snapshot: Snapshot, n_blocks: int, n_tokens: int) -> Snapshot:
    """A snapshot of n_tokens tokens, whose KV is all zeros. snapshot: of the same engine."""
    import numpy as np  # not needed to import this module, which the package does

    layout, _, blocks = snapshot.export_kv()
    kv = np.zeros((n_blocks, blocks.shape[1]), np.uint8)
    return engine.import_snapshot(np.zeros(n_tokens, np.int32), layout, n_tokens, kv)


def _token_seconds(
    engine: Engine, token_ids: Sequence[int], snapshot: Snapshot | None = None
) -> tuple[Snapshot, float]:
    """The snapshot of an answer, and the median time that one of its tokens took."""
    seconds: list[float] = []  # of each token; those that come together share their time
    start = last = time.perf_counter()
    request = engine.submit(
        token_ids,
        max_new_tokens=_WARM + _TIMED,
        do_sample=False,
        snapshot=snapshot,
        keep_snapshot=True,
    )
    while True:
        output = request.read()
        if output is None:
            continue
        if n := len(output.token_ids):
            now = time.perf_counter()
            seconds += [(now - last) / n] * n
            last = now
        if output.finish_reason == "error":
            raise RuntimeError(f"the speed cannot be timed: {output.error_message}")
        if output.finish_reason is not None:
            break
        if last - start > _ENOUGH_S and len(seconds) > 2 * _WARM:
            request.cancel()
    kept = request.snapshot
    if kept is None or not seconds:
        raise RuntimeError("the speed cannot be timed: the sequence has ended at once")
    return kept, statistics.median(seconds[_WARM:] or seconds)
