"""What a pipeline needs before it loads: checked configuration, template, size of the KV cache."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

from ._memory import KvSize, kv_size
from .chat_template import ChatTemplate, ChatTemplateConfig
from .checkpoint import Checkpoint
from .messages import PytorchEngineConfig, TurbomindEngineConfig
from .tokenizer import Tokenizer

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


def warn_of_slow_kernels(isa: str) -> None:
    """Says once per load that the CPU has no instruction set with fast kernels."""
    if isa == "ref" and not os.environ.get("LMDEPLOY_C_ISA"):
        logger.warning(
            "this CPU has none of the instruction sets with fast kernels (AVX2 or better, NEON): "
            "the portable reference kernels run, exact and slow"
        )


def make_chat_template(config: ChatTemplateConfig | None, tokenizer: Tokenizer) -> ChatTemplate:
    if config is None and not tokenizer.chat_templates:
        logger.warning("the model brings no chat template: prompts are completed as they are")
        config = ChatTemplateConfig("base")
    return (config or ChatTemplateConfig()).template(tokenizer)


def kv_token_bytes(shape: Mapping[str, Any], kv_bits: int) -> int:
    """Bytes of KV of one token in all layers. 8 and 4 bits carry a scale and a minimum, in half
    precision, for each head's key and for its value."""
    parameters = 4 if kv_bits < 16 else 0
    head_bytes: int = shape["head_dim"] * kv_bits // 8 + parameters
    return int(shape["n_layer"] * shape["n_kv_head"] * 2 * head_bytes)


def plan_kv_cache(
    config: TurbomindEngineConfig, shape: Mapping[str, Any], batch_size: int, available: int
) -> KvSize:
    """Sizes the KV cache of a model of that shape. available: bytes. MemoryError, ValueError."""
    size = kv_size(
        cache=config.cache_max_entry_count,
        block_len=config.cache_block_seq_len,
        block_bytes=kv_token_bytes(shape, 16) * config.cache_block_seq_len,
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
