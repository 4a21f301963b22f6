"""What a model takes on this machine: forecast before anything of it is loaded, or as loaded."""

from __future__ import annotations

import dataclasses
import logging
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .engine.decode_time import MOST_TOKENS, decode_time
from .engine.device_choice import choose_device
from .engine.loading import EngineConfig, engine_config, open_model
from .engine.sizes import Sizes, describe_bound, describe_kv_bits
from .files.checkpoint import Checkpoint
from .messages import TurbomindEngineConfig
from .units import format_size

logger = logging.getLogger("lmdeploy_c")

#: Tokens of context for which the speed of decoding is predicted.
CONTEXTS = (0, 4096)
#: Largest buffer that the bandwidth is measured with: more than most caches hold.
_MAX_BUFFER = 256 << 20


@dataclass(frozen=True, eq=False, repr=False)
class Plan(Mapping[str, Any]):
    """What a pipeline with this configuration would hold and how fast it could be (`plan`), or what
    a loaded one holds (`Pipeline.plan`). Bytes are bytes.

    It is a mapping too, plan["kv_blocks"] and so on, of what describes the loaded model; dict(plan)
    is for JSON, and to change it. What the machine had and did at one moment (fields with
    compare=False) is no key, and two plans that differ in nothing else are equal.

    Attributes:
        model: path of the files. arch: of the model.
        device, isa, num_threads: where and how it runs; of a GPU, isa is the family of its kernels,
            and the threads are the host's, which pack its weights.
        device_description: what the device is, for people.
        total_memory_bytes: of the device: of a CPU the machine's, or the least limit that holds for
            this process: a cgroup's, or its own on address space and writable memory (ulimit).
        available_memory_bytes: of it, what this process could take before the model was loaded.
        memory_bound: what left the least: "machine", "cgroup", "address space" (ulimit -v), "data
            size" (ulimit -d), or "device".
        weight_bytes: of the weights as loaded. scratch_bytes: activations, logits and tables.
        kv_bytes: of the KV cache: kv_blocks blocks of kv_block_len tokens.
        kv_bits: of keys and of values. kv_bytes_per_token: in that form.
        kv_bytes_per_token_at: with 16, 8 or 4 bits for both.
        session_len: most tokens of a sequence. max_batch_size: most sequences at once.
        max_prefill_token_num: most tokens of a step.
        device_reason: why it is that device, where the configuration said "auto".
        read_bytes_per_second: memory bandwidth of all threads; 0 if not measured, and for a GPU.
        tokens_per_second: by context length, of one sequence that decodes, as timed on the device;
            empty if not measured.
        tokens_per_second_limit: what reading everything once at that bandwidth would allow; empty
            where that is not known.
    """

    model: str
    arch: str
    device: str
    device_description: str
    isa: str
    num_threads: int
    total_memory_bytes: int = field(compare=False)
    available_memory_bytes: int = field(compare=False)
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
    memory_bound: str = field(default="", compare=False)
    device_reason: str = field(default="", compare=False)
    read_bytes_per_second: float = field(default=0.0, compare=False)
    tokens_per_second: Mapping[int, float] = field(default_factory=dict, compare=False)
    tokens_per_second_limit: Mapping[int, float] = field(default_factory=dict, compare=False)

    def __getitem__(self, key: str) -> Any:
        if key not in _KEYS:
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return iter(_KEYS)

    def __len__(self) -> int:
        return len(_KEYS)

    @property
    def total_bytes(self) -> int:
        """Weights, KV cache and scratch."""
        return self.weight_bytes + self.kv_bytes + self.scratch_bytes

    @property
    def kv_tokens(self) -> int:
        """Tokens that the KV cache holds."""
        return self.kv_blocks * self.kv_block_len

    @property
    def full_sequences(self) -> int:
        """Sequences of session_len tokens that the KV cache holds at once."""
        return self.kv_blocks // -(-self.session_len // self.kv_block_len)

    def __repr__(self) -> str:
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
             f"{format_size(self.total_memory_bytes)} in all{describe_bound(self.memory_bound)}"),
        ]  # fmt: skip
        lines = [
            f"{Path(self.model).name}: {self.arch} on {self.device} ({self.isa}), "
            f"{self.num_threads} threads",
            *self._device_lines(),
            *(f"  {name:<10}{size:>10}  {text}".rstrip() for name, size, text in rows),
            "KV cache, by bits",
            *(
                f"  {bits:>2} bits {n:>9.0f} bytes/token {int(self.kv_bytes / n):>10} tokens"
                for bits, n in self.kv_bytes_per_token_at.items()
            ),
        ]
        if self.tokens_per_second:
            lines += self._speed_lines()
        return "\n".join(lines)

    def _device_lines(self) -> list[str]:
        paragraphs = []
        if self.device_description != self.isa:
            paragraphs.append(self.device_description)
        if self.device_reason:
            paragraphs.append(f'device="auto": {self.device_reason}')
        return [
            line
            for text in paragraphs
            for line in textwrap.wrap(
                text, 96, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False
            )
        ]

    def _speed_lines(self) -> list[str]:
        bandwidth, limits = self.read_bytes_per_second, self.tokens_per_second_limit
        memory = f" (memory gives {bandwidth / 1e9:.1f} GB/s)" if bandwidth else ""
        return [
            f"decoding one sequence{memory}",
            *(
                f"  context {n:>6} {rate:>10.1f} tok/s"
                + (f", at most {limits[n]:.1f}" if n in limits else "")
                for n, rate in self.tokens_per_second.items()
            ),
        ]


_KEYS = tuple(f.name for f in dataclasses.fields(Plan) if f.compare)


def plan_of(sizes: Sizes, *, model: Path, arch: str) -> Plan:
    """The plan of an engine of these sizes, without a speed."""
    kv, device = sizes.kv, sizes.device
    return Plan(
        model=str(model),
        arch=arch,
        device=device.name,
        device_description=device.description,
        isa=device.isa,
        num_threads=device.num_threads,
        total_memory_bytes=device.total_bytes,
        available_memory_bytes=device.free_bytes,
        weight_bytes=sizes.weight_bytes,
        scratch_bytes=sizes.scratch_bytes,
        kv_bytes=kv.n_bytes,
        kv_blocks=kv.n_blocks,
        kv_block_len=kv.block_len,
        kv_bits=sizes.kv_bits,
        kv_bytes_per_token=kv.block_bytes / kv.block_len,
        kv_bytes_per_token_at=sizes.kv_bytes_per_token_at,
        session_len=kv.session_len,
        max_batch_size=sizes.max_batch_size,
        max_prefill_token_num=sizes.max_prefill_token_num,
        memory_bound=device.memory_bound,
        device_reason=sizes.device_reason,
    )


def _read_bandwidth(sizes: Sizes) -> float:
    """Bytes a second that the device reads of its memory; 0 for a GPU, whose memory the host's
    threads do not read."""
    from . import _C

    device = sizes.device
    if not device.is_cpu:
        return 0.0
    n_bytes = min(sizes.read_bytes, _MAX_BUFFER, device.free_bytes // 4)
    return _C.read_bandwidth(max(n_bytes, 1), device.num_threads)


def _timed_rates(
    config: TurbomindEngineConfig, checkpoint: Checkpoint, session_len: int
) -> dict[int, float]:
    """Tokens a second by context; empty, and a warning, where they cannot be timed."""
    contexts = [n for n in CONTEXTS if n + MOST_TOKENS <= session_len] or [0]
    try:
        timed = decode_time(config, checkpoint, contexts[-1])
    except (MemoryError, OSError, RuntimeError) as e:
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

    Sizes come from the files' headers and are those that the pipeline will have: both compute them
    by the same functions. The speed is timed in a second or two: the engine decodes with made-up
    weights of the model's sizes and formats (at most 1 GiB of its layers, and everything else), so
    it is the speed of a machine as idle as it is at that moment.

    model_path, backend_config: as for `pipeline`. measure: time the speed and the bandwidth.
    Raises what `pipeline` raises: FileNotFoundError, CheckpointError, UnsupportedError, ValueError,
    and MemoryError, whose message has the numbers, for what does not fit.
    """
    config = engine_config(backend_config)
    checkpoint = open_model(model_path, config)
    config, sizes = choose_device(config, checkpoint)
    forecast = plan_of(sizes, model=checkpoint.path, arch=checkpoint.config["arch"])
    if not measure:
        return forecast
    rate = _read_bandwidth(sizes)
    timed = _timed_rates(config, checkpoint, forecast.session_len)
    kv = sizes.kv
    limits = {
        n: rate / (sizes.read_bytes + n * kv.block_bytes // kv.block_len) for n in timed if rate
    }
    return dataclasses.replace(
        forecast,
        read_bytes_per_second=rate,
        tokens_per_second=timed,
        tokens_per_second_limit=limits,
    )
