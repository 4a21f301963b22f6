"""How much memory this process can still take: of the machine, and of its cgroups."""

from __future__ import annotations

import re
from pathlib import Path


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
        # In a container the path may lead out of what is mounted there.
        for d in (folder, *folder.parents):
            if d == base or base in d.parents:
                found.append((d, *files))
    return found


def _cgroup_reclaimable(folder: Path) -> int:
    """Bytes of page cache, which count as used and are given back when memory is short."""
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
    """Bytes that this process can still take: what the machine has left, or its cgroups if less."""
    available = system_memory(root)[1]
    cgroup = cgroup_memory(root)
    return available if cgroup is None else min(available, cgroup[1])
