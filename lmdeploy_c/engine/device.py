"""The devices that an engine may run on, as their backends describe them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..messages import TurbomindEngineConfig


@dataclass(frozen=True)
class Device:
    """Facts about a device, and what a configuration leaves open there.

    name: "cpu", or "cuda:1" for the second GPU. kind: "cpu" or "cuda". description: for people: the
    CPU's instruction set, or what a GPU is. isa: the instruction set, or the family of a GPU's
    kernels, in use. num_threads: of the host: on the CPU they compute, for a GPU they pack weights.
    runs_ahead: a step may begin while the one before runs. free_bytes, total_bytes: of its memory,
    for this process. memory_bound: what leaves this process the least of it: "machine", "cgroup",
    "address space", "data size" or, on a GPU, "device". The KV cache takes kv_fraction of the free
    memory, but no more than kv_max_bytes (0: no bound).
    """

    name: str
    kind: str
    description: str
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
    memory_bound: str

    @property
    def is_cpu(self) -> bool:
        """Whether its memory is the host's."""
        return self.kind == "cpu"


def find_device(config: TurbomindEngineConfig) -> Device:
    """The device that a configuration names.

    Raises UnsupportedError for one that cannot be used, with the reason; ValueError for a GPU that
    is not there and for a wrong LMDEPLOY_C_ISA.
    """
    from .. import _C

    facts = _C.device_info(config.device, config.num_threads)
    kind, name, description = facts.pop("name"), "cpu", facts["isa"]
    bound = _C.host_memory()["bound"] if kind == "cpu" else "device"
    if kind == "cuda":
        number = int(config.device.partition(":")[2] or 0)
        name, description = f"cuda:{number}", describe_gpu(_C.gpu_info(number))
    return Device(name=name, kind=kind, description=description, memory_bound=bound, **facts)


def describe_gpu(gpu: Mapping[str, Any]) -> str:
    """What `_C.gpu_info` says of a GPU."""
    major, minor = divmod(gpu["arch"], 10)
    return f"{gpu['name']} (compute capability {major}.{minor}, kernels {gpu['kernels']})"


def first_gpu() -> tuple[str | None, str]:
    """The name of the first GPU that can be used, or None, and the reason for either."""
    from .. import _C

    reasons = []
    try:
        for number in range(_C.gpu_count()):
            try:
                _C.gpu_info(number)
                return f"cuda:{number}", "the first GPU that can be used"
            except (MemoryError, OSError, ValueError) as e:
                reasons.append(str(e))
    except (OSError, ValueError) as e:
        reasons.append(str(e))
    return None, reasons[0]


def gpu_is_expected() -> bool:
    """Whether a user may wonder why no GPU is used: a CUDA library was installed or is named, and
    CUDA_VISIBLE_DEVICES does not hide every GPU."""
    from .. import _C

    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    beside = Path(_C.__file__).with_name("liblmdeploy_cuda.so")
    return bool(os.environ.get("LMDEPLOY_C_CUDA_LIBRARY")) or beside.exists()
