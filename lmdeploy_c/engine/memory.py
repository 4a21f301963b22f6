"""How much memory there is, and what of it the KV cache takes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ..units import GIB, format_size, parse_size

#: Most bytes that the KV cache takes unless it is asked to take more.
DEFAULT_KV_LIMIT = 4 * GIB


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # not there, or "max"
        return None


def _cgroup_dirs(root: Path) -> list[tuple[Path, str, str]]:
    """(folder, limit file, usage file) of this process's cgroups, v2 and v1, and their parents."""
    found = []
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, files = root / "sys/fs/cgroup", ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            base = root / "sys/fs/cgroup/memory"
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        folder = base / path.lstrip("/")
        # In a container the path may name a folder outside of what is mounted.
        for d in (folder, *folder.parents):
            if d == base or base in d.parents:
                found.append((d, *files))
    return found


def _cgroup_reclaimable(folder: Path) -> int:
    """Page cache that counts as used but is given back under pressure."""
    try:
        stat = dict(
            line.split()[:2] for line in (folder / "memory.stat").read_text().splitlines() if line
        )
        return int(stat.get("total_inactive_file", stat.get("inactive_file", "0")))
    except (OSError, ValueError):
        return 0


def cgroup_memory(root: Path = Path("/")) -> tuple[int, int] | None:
    """(limit, available) bytes of the tightest cgroup; None where no limit is set."""
    tightest = None
    for folder, limit_file, usage_file in _cgroup_dirs(root):
        limit, usage = _number(folder / limit_file), _number(folder / usage_file)
        if limit is None or usage is None or limit >= 1 << 60:  # v1 writes "none" as 2^63 - 4096
            continue
        available = max(0, limit - usage + _cgroup_reclaimable(folder))
        if tightest is None or available < tightest[1]:
            tightest = (limit, available)
    return tightest


def system_memory(root: Path = Path("/")) -> tuple[int, int]:
    """(total, available) bytes of the machine, from /proc/meminfo. (0, 0) where there is none."""
    try:
        text = (root / "proc/meminfo").read_text()
    except OSError:
        return 0, 0
    sizes = {m[1]: int(m[2]) << 10 for m in re.finditer(r"^(\w+):\s+(\d+) kB", text, re.M)}
    return sizes.get("MemTotal", 0), sizes.get("MemAvailable", sizes.get("MemFree", 0))


def available_memory(root: Path = Path("/")) -> int:
    """Bytes that this process can still take: the machine's and its cgroups', whichever is less."""
    available = system_memory(root)[1]
    cgroup = cgroup_memory(root)
    return available if cgroup is None else min(available, cgroup[1])


@dataclass(frozen=True)
class KvSize:
    """The KV cache's size: n_blocks of block_len tokens serve sequences up to session_len."""

    n_blocks: int
    block_len: int
    block_bytes: int
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
) -> KvSize:
    """Sizes the KV cache as `TurbomindEngineConfig.cache_max_entry_count` describes it.

    cache: that field. block_bytes: bytes of one block of all layers. session_len: None takes
    model_len, tokens the model was made for, lowered to what the cache holds. available: bytes.
    Raises MemoryError for more than is available, ValueError when session_len does not fit.
    """
    blocks_per_sequence = -(-(session_len or model_len) // block_len)
    wanted = blocks_per_sequence * max_batch_size
    if isinstance(cache, str):
        n_blocks = parse_size(cache) // block_bytes
    elif cache is not None and cache > 1:
        n_blocks = int(cache)
    elif cache is not None:
        n_blocks = min(int(cache * available) // block_bytes, wanted)
    else:
        n_blocks = min(min(available // 2, DEFAULT_KV_LIMIT) // block_bytes, wanted)
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
