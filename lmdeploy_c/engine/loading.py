"""From a configuration to a running engine: checks, the template, the model, the engine."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..files.checkpoint import Checkpoint
from ..messages import PytorchEngineConfig, SpeculativeConfig, TurbomindEngineConfig
from ..progress import loading_progress
from ..text.chat_template import ChatTemplate, ChatTemplateConfig
from ..tokenizer import Tokenizer
from .memory import KvSize, kv_size

if TYPE_CHECKING:
    from .._C import Engine, Model
    from ..planning import MemoryPlan

logger = logging.getLogger("lmdeploy_c")

EngineConfig = TurbomindEngineConfig | PytorchEngineConfig


def engine_config(config: EngineConfig | None) -> TurbomindEngineConfig:
    if config is None:
        return TurbomindEngineConfig()
    if isinstance(config, PytorchEngineConfig):
        logger.warning("PytorchEngineConfig: this release has no PyTorch engine; the C engine runs")
        return config.to_turbomind()
    if not isinstance(config, TurbomindEngineConfig):
        raise TypeError(
            f"backend_config: a TurbomindEngineConfig or PytorchEngineConfig, "
            f"not {type(config).__name__}"
        )
    config.check()
    return config


def check_model_format(config: TurbomindEngineConfig, checkpoint: Checkpoint) -> None:
    method = checkpoint.config["quant_method"]
    packed = "hf" if method == "none" else method.removesuffix("_v2")
    found = "gguf" if checkpoint.metadata else packed
    if config.model_format not in (None, found):
        raise ValueError(
            f"model_format={config.model_format!r}, but {checkpoint.path} is {found!r}"
        )


def load_model(config: TurbomindEngineConfig, checkpoint: Checkpoint) -> Model:
    """Packs the weights, with a progress bar."""
    from .. import _C

    with loading_progress() as progress:
        model = _C.Model(
            checkpoint.config,
            checkpoint.source,
            device="cpu",
            num_threads=config.num_threads,
            progress=progress,
        )
    warn_of_slow_kernels(model.isa)
    return model


def warn_of_slow_kernels(isa: str) -> None:
    """Says once per load that the CPU has no instruction set with fast kernels."""
    if isa == "ref" and not os.environ.get("LMDEPLOY_C_ISA"):
        logger.warning(
            "this CPU has none of the instruction sets with fast kernels (AVX2 or better, NEON): "
            "the portable reference kernels run, exact and slow"
        )


def start_engine(
    model: Model,
    config: TurbomindEngineConfig,
    memory: MemoryPlan,
    speculative_config: SpeculativeConfig | None,
) -> Engine:
    from .. import _C

    drafts: dict[str, Any] = {}
    if speculative_config is not None:
        drafts["num_speculative_tokens"] = speculative_config.num_speculative_tokens
        drafts["adaptive_speculation"] = speculative_config.adaptive
    return _C.Engine(
        model,
        session_len=memory.kv.session_len,
        n_blocks=memory.kv.n_blocks,
        fast_activations=config.fast_activations,
        target_step_ms=config.target_step_ms,
        max_waiting_requests=config.max_waiting_requests or 0,
        enable_prefix_caching=config.enable_prefix_caching,
        enable_metrics=config.enable_metrics,
        max_batch_size=memory.max_batch_size,
        max_prefill_token_num=memory.max_prefill_token_num,
        block_len=memory.kv.block_len,
        kv_bits=config.stored_kv_bits(),
        **drafts,
    )


def make_chat_template(config: ChatTemplateConfig | None, tokenizer: Tokenizer) -> ChatTemplate:
    if config is None and not tokenizer.chat_templates:
        logger.warning("the model brings no chat template: prompts are completed as they are")
        config = ChatTemplateConfig("base")
    return (config or ChatTemplateConfig()).template(tokenizer)


def kv_block_bytes(shape: Mapping[str, Any], block_len: int, bits: tuple[int, int]) -> int:
    """Bytes of one KV block of a model with this (normalised) config, as the backend stores it."""
    from .. import _C

    sizes = (shape["n_layer"], shape["n_kv_head"], shape["head_dim"])
    return _C.kv_block_bytes(*sizes, block_len=block_len, kv_bits=bits)


def describe_kv_bits(bits: tuple[int, int]) -> str:
    """ "fp16", "int8", "int8 keys and int4 values"."""
    keys, values = ("fp16" if b == 16 else f"int{b}" for b in bits)
    return keys if keys == values else f"{keys} keys and {values} values"


#: Families whose keys have columns far larger than the others, which leave no codes for these:
#: reported to lose their abilities with keys of 4 bits (LMDeploy's issues 2822, 3752, 4743).
_LARGE_KEY_COLUMNS = ("qwen2", "qwen3")


def warn_of_few_bits(bits: tuple[int, int], arch: str) -> None:
    """Says once per load that keys of 4 bits break models of this family."""
    if bits[0] == 4 and arch in _LARGE_KEY_COLUMNS:
        logger.warning(
            "a KV cache of 4 bits is known to break models of the Qwen family, by its keys: "
            "use kv_bits=(8, 4), which keeps keys at 8 bits, or quant_policy=8"
        )


def plan_kv_cache(
    config: TurbomindEngineConfig, shape: Mapping[str, Any], batch_size: int, available: int
) -> KvSize:
    """Sizes the KV cache of a model of that shape. available: bytes. MemoryError, ValueError."""
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


def set_log_level(level: str) -> None:
    try:
        logger.setLevel(level.upper())
    except (AttributeError, ValueError):
        raise ValueError(
            f"log_level: DEBUG, INFO, WARNING, ERROR or CRITICAL, not {level!r}"
        ) from None
    if not logger.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
        logger.addHandler(handler)
