"""Where a model runs when its configuration says "auto": on the first GPU that can be used, if it
serves the model and has the memory for it, or else on the CPU."""

from __future__ import annotations

import dataclasses
import logging

from ..files.checkpoint import Checkpoint
from ..messages import TurbomindEngineConfig
from ..units import format_size
from .device import first_gpu, gpu_is_expected
from .sizes import Sizes, compute_sizes

logger = logging.getLogger("lmdeploy_c")


def choose_device(
    config: TurbomindEngineConfig, checkpoint: Checkpoint
) -> tuple[TurbomindEngineConfig, Sizes]:
    """The configuration with the name of one device, and what an engine will hold there.

    Raises what `compute_sizes` raises. A device that the configuration names is never replaced by
    another one.
    """
    if config.device == "auto":
        sizes = _first_that_serves(config, checkpoint)
    else:
        sizes = compute_sizes(config, checkpoint)
    return dataclasses.replace(config, device=sizes.device.name), sizes


def _first_that_serves(config: TurbomindEngineConfig, checkpoint: Checkpoint) -> Sizes:
    from .. import _C

    gpu, reason = first_gpu()
    if gpu is not None:
        try:
            return _on_gpu(dataclasses.replace(config, device=gpu), checkpoint, reason)
        except _C.CheckpointError:
            raise  # no device can read it
        except (MemoryError, OSError, ValueError) as e:
            reason = str(e)
    return _on_cpu(dataclasses.replace(config, device="cpu"), checkpoint, reason)


def _on_gpu(config: TurbomindEngineConfig, checkpoint: Checkpoint, reason: str) -> Sizes:
    sizes = compute_sizes(config, checkpoint)
    device = sizes.device
    logger.info(
        "device %s: %s, %s free of %s",
        device.name,
        device.description,
        format_size(device.free_bytes),
        format_size(device.total_bytes),
    )
    return dataclasses.replace(sizes, device_reason=reason)


def _on_cpu(config: TurbomindEngineConfig, checkpoint: Checkpoint, refusal: str) -> Sizes:
    """refusal: why no GPU is used. It is told to whoever may have expected one, together with why
    the CPU cannot be used either."""
    expected = gpu_is_expected()
    try:
        sizes = compute_sizes(config, checkpoint)
    except (MemoryError, ValueError) as e:
        if not expected or str(e) == refusal:
            raise
        raise type(e)(f"{e}; the GPU is not used: {refusal}") from None
    level = logging.WARNING if expected else logging.DEBUG
    logger.log(level, "the GPU is not used: %s; the model runs on the CPU", refusal)
    return dataclasses.replace(sizes, device_reason=f"the GPU is not used: {refusal}")
