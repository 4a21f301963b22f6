"""What the benchmarks share: the machine's name, CSV rows, and the work that a token asks for."""

from __future__ import annotations

import csv
import datetime
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lmdeploy_c import _C
from lmdeploy_c.files.checkpoint import open_checkpoint

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build"

#: GGUF type -> values and bytes of a block.
BLOCKS = {"F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "Q8_0": (32, 34), "Q4_0": (32, 18),
          "Q4_1": (32, 20)}  # fmt: skip


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.machine()


def commit() -> str:
    """The commit that is checked out; with a + where files differ from it, rows of earlier runs
    and the picture excepted."""

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)

    found = git("rev-parse", "--short", "HEAD").stdout.strip()
    files = (":!benchmarks/*.csv", ":!docs/*.svg")
    changed = git("diff", "--quiet", "HEAD", "--", ".", *files).returncode != 0
    return found + "+" * changed if found else "unknown"


def machine() -> dict[str, str]:
    info = _C.cpu_info()
    return {
        "date": datetime.date.today().isoformat(),
        "machine": cpu_name(),
        "isa": str(info["isa"]),
        "threads": str(info["usable_threads"]),
        "commit": commit(),
    }


def without_paths(words: str) -> str:
    """Of an engine's message: where this folder lies is nobody's business."""
    return words.replace(f"{ROOT}/", "")


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, all threads; 0 of one that has ended."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


class Neighbours:
    """What other processes took of all processors since this was made: a run beside them is void.

    Counts what the hypervisor stole. This process's children are its own once they have ended; the
    living ones in pids are, too.
    """

    def __init__(self, pids: Sequence[int] = ()) -> None:
        self.pids = pids
        self.start = self.now()

    def now(self) -> tuple[float, float]:
        """Seconds of all processors, and of those that were not idle or ours."""
        words = Path("/proc/stat").read_text().split("\n", 1)[0].split()
        ticks = [int(word) for word in words[1:9]]  # user nice system idle iowait irq softirq steal
        busy = sum(ticks) - ticks[3] - ticks[4]
        tick = 1 / os.sysconf("SC_CLK_TCK")
        own = sum(os.times()[:4]) + sum(cpu_seconds(pid) for pid in self.pids)
        return sum(ticks) * tick, busy * tick - own

    def share(self) -> float:
        (total, others), (total_0, others_0) = self.now(), self.start
        return max(0.0, (others - others_0) / max(total - total_0, 1e-9))


def rounded(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else value


def append_csv(path: Path, rows: list[dict[str, object]]) -> None:
    """Appends rows; a file with other columns gets the new ones, empty in its old rows."""
    old: list[dict[str, object]] = []
    if path.exists():
        with path.open(newline="") as file:
            old = list(csv.DictReader(file))
    columns = list(dict.fromkeys(key for row in [*old, *rows] for key in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: rounded(v) for k, v in row.items()} for row in [*old, *rows])


@dataclass
class Work:
    """What one token asks of the machine, from the file alone: the same for every engine.

    weight_bytes: read by a decode step, however many sequences it has. layer_macs: multiply-adds of
    the linear layers; head_macs: of the output, asked for rows that give a token. kv_bytes: of one
    position in an fp16 cache.
    """

    weight_bytes: int
    layer_macs: int
    head_macs: int
    kv_bytes: int

    def decode_bytes(self, context_len: float) -> float:
        return self.weight_bytes + self.kv_bytes * context_len

    def prefill_macs(self, n_tokens: int) -> int:
        """Attention is not counted: it is no integer arithmetic."""
        return self.layer_macs * n_tokens + self.head_macs


def work_of(path: Path) -> Work:
    checkpoint = open_checkpoint(path)
    config = checkpoint.config
    tensors = _C.Gguf(path).tensors
    head = "output.weight" if "output.weight" in tensors else "token_embd.weight"
    n_bytes = layer_macs = head_macs = 0
    for name, (kind, shape) in tensors.items():
        n = 1
        for size in shape:
            n *= size
        if name == "token_embd.weight" and name != head:
            continue  # one row of it is read
        values, block_bytes = BLOCKS[kind]
        n_bytes += n // values * block_bytes
        if name == head:
            head_macs = n
        elif len(shape) == 2:
            layer_macs += n
    kv_bytes = config["n_layer"] * 2 * config["n_kv_head"] * config["head_dim"] * 2
    return Work(n_bytes, layer_macs, head_macs, kv_bytes)
