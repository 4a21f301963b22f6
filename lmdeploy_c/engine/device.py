"""The device that an engine runs on, as its backend describes it."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ..messages import TurbomindEngineConfig


@dataclass(frozen=True)
class Device:
    """Facts about a device, and what a configuration leaves open there.

    name: "cpu". isa: the instruction set in use. num_threads: of the host, that compute.
    runs_ahead: a step may begin while the one before runs. free_bytes, total_bytes: of its memory,
    for this process. The KV cache takes kv_fraction of the free memory, but no more than
    kv_max_bytes (0: no bound).
    """

    name: str
    isa: str
    num_threads: int
    runs_ahead: bool
    free_bytes: int
    total_bytes: int
    max_batch_size: int
    max_prefill_token_num: int
    target_step_ms: float
    kv_fraction: float
    kv_max_bytes: int


def find_device(config: TurbomindEngineConfig) -> Device:
    """The device that a configuration names.

    Raises UnsupportedError for one that this build lacks, ValueError for a wrong LMDEPLOY_C_ISA.
    """
    from .. import _C

    facts = _C.device_info(config.device, config.num_threads)
    return Device(**{field.name: facts[field.name] for field in fields(Device)})
