"""From a configuration to a running engine, in steps: checks, files, text, weights, engine."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files.checkpoint import Checkpoint, open_checkpoint, resolve_model
from ..messages import (
    PytorchEngineConfig,
    SpeculativeConfig,
    TurbomindEngineConfig,
    wrong_type,
)
from ..progress import loading_progress
from ..text.chat_template import ChatTemplate, ChatTemplateConfig
from ..tokenizer import Tokenizer
from .sizes import Sizes

if TYPE_CHECKING:
    from .._C import Engine, Model

logger = logging.getLogger("lmdeploy_c")

EngineConfig = TurbomindEngineConfig | PytorchEngineConfig


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


# ---- checks ----


def engine_config(config: EngineConfig | None) -> TurbomindEngineConfig:
    """The C engine's configuration, checked. TypeError, ValueError."""
    if config is None:
        return TurbomindEngineConfig()
    if isinstance(config, PytorchEngineConfig):
        logger.warning("PytorchEngineConfig: this release has no PyTorch engine; the C engine runs")
        return config.to_turbomind()
    if not isinstance(config, TurbomindEngineConfig):
        wanted = "a TurbomindEngineConfig or PytorchEngineConfig"
        raise wrong_type("backend_config", wanted, config)
    config.check()
    return config


def check_speculative_config(config: SpeculativeConfig | None) -> None:
    """TypeError, ValueError."""
    if config is None:
        return
    if not isinstance(config, SpeculativeConfig):
        raise wrong_type("speculative_config", "a SpeculativeConfig", config)
    config.check()


def check_chat_template_config(config: ChatTemplateConfig | None) -> None:
    """TypeError."""
    if config is not None and not isinstance(config, ChatTemplateConfig):
        cure = f", such as ChatTemplateConfig({config!r})" if isinstance(config, str) else ""
        raise wrong_type("chat_template_config", f"a ChatTemplateConfig{cure}", config)


def check_model_format(config: TurbomindEngineConfig, checkpoint: Checkpoint) -> None:
    """ValueError where the files are not of the form that model_format insists on."""
    method = checkpoint.config["quant_method"]
    packed = "hf" if method == "none" else method.split("_")[0]
    found = "gguf" if checkpoint.metadata else packed
    if config.model_format not in (None, found):
        raise ValueError(
            f"model_format={config.model_format!r}, but {checkpoint.path} is {found!r}"
        )


# ---- files and text ----


def open_model(model_path: str | Path | None, config: TurbomindEngineConfig) -> Checkpoint:
    """Finds a model's files, downloads them if need be, and opens them. None: the default model.

    Raises FileNotFoundError, CheckpointError, UnsupportedError, ValueError.
    """
    if not isinstance(model_path, (str, os.PathLike, type(None))):
        raise wrong_type("model_path", "a path, a model id, or None for the default", model_path)
    path = resolve_model(model_path, config.revision, config.download_dir, config.filename)
    checkpoint = open_checkpoint(path, config.hf_overrides)
    check_model_format(config, checkpoint)
    return checkpoint


def make_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    if checkpoint.metadata:
        return Tokenizer.from_gguf(checkpoint.metadata, checkpoint.path)
    return Tokenizer(checkpoint.path)


def make_chat_template(config: ChatTemplateConfig | None, tokenizer: Tokenizer) -> ChatTemplate:
    """The template that config names; None: the model's own, or none at all where it has none."""
    if config is None and not any(map(str.strip, tokenizer.chat_templates.values())):
        logger.warning("the model brings no chat template: prompts are completed as they are")
        config = ChatTemplateConfig("base")
    return (config or ChatTemplateConfig()).template(tokenizer)


# ---- weights and engine ----


def load_model(config: TurbomindEngineConfig, checkpoint: Checkpoint) -> Model:
    """Packs the weights, with a progress bar."""
    from .. import _C

    with loading_progress() as progress:
        model = _C.Model(
            checkpoint.config,
            checkpoint.source,
            device=config.device,
            num_threads=config.num_threads,
            progress=progress,
            quantize=config.quantize,
        )
    if model.device == "cpu":
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
    sizes: Sizes,
    speculative_config: SpeculativeConfig | None,
) -> Engine:
    from .. import _C

    drafts: dict[str, Any] = {}
    if speculative_config is not None:
        drafts["num_speculative_tokens"] = speculative_config.num_speculative_tokens
        drafts["adaptive_speculation"] = speculative_config.adaptive
    return _C.Engine(
        model,
        session_len=sizes.kv.session_len,
        n_blocks=sizes.kv.n_blocks,
        fast_activations=config.fast_activations,
        batch_invariant=config.batch_invariant,
        target_step_ms=sizes.target_step_ms,
        max_waiting_requests=config.max_waiting_requests or 0,
        enable_prefix_caching=config.enable_prefix_caching,
        enable_metrics=config.enable_metrics,
        max_batch_size=sizes.max_batch_size,
        max_prefill_token_num=sizes.max_prefill_token_num,
        block_len=sizes.kv.block_len,
        kv_bits=sizes.kv_bits,
        **drafts,
    )
