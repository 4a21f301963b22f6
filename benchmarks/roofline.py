"""The machine's limits, measured by build/roofline (roofline.c); run it to print them."""

from __future__ import annotations

import json
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from common import BUILD, Neighbours, Work

from lmdeploy_c import _C

READ_BYTES, READ_S = 1 << 29, 0.1


@dataclass
class Roofline:
    """Rates with all usable threads. read: the best and the median of several passes over a buffer
    that no cache holds. int8: the best multiply-add rate, and the instructions that reach it."""

    read_bytes_s: float
    read_median_bytes_s: float
    int8_macs_s: float
    int8_isa: str
    buffer_bytes: int
    threads: int

    def or_better(self, other: Roofline) -> Roofline:
        """The higher of two measurements of each limit: a neighbour can only lower them."""
        read = max(self, other, key=lambda r: r.read_bytes_s)
        int8 = max(self, other, key=lambda r: r.int8_macs_s)
        return replace(read, int8_macs_s=int8.int8_macs_s, int8_isa=int8.int8_isa)

    def __str__(self) -> str:
        return (
            f"reads {self.read_bytes_s / 1e9:.1f} GB/s at best (median "
            f"{self.read_median_bytes_s / 1e9:.1f}), {self.int8_macs_s / 1e9:.0f} G int8 "
            f"multiply-adds/s ({self.int8_isa}), {self.threads} threads"
        )


def read_bandwidth() -> float:
    """Bytes a second that all threads read at best just now, for what is timed beside it; a fifth
    of a second."""
    return _C.read_bandwidth(READ_BYTES, seconds=READ_S)


@dataclass
class Turn:
    """One run: tokens a second; the bandwidth beside it (of a decode; else 0); what others took of
    the machine meanwhile."""

    rate: float
    read_bytes_s: float = 0.0
    others: float = 0.0


def timed(case: Mapping[str, Any], run: Callable[[], float], pids: Sequence[int] = ()) -> Turn:
    """A run of a case, in this process or in those of pids. Of a decode the bandwidth is taken
    right before and after, for it changes with who shares the memory."""
    is_decode = case["kind"] == "decode"
    before = read_bandwidth() if is_decode else 0.0
    neighbours = Neighbours(pids)
    rate, others = run(), neighbours.share()
    return Turn(rate, (before + read_bandwidth()) / 2 if is_decode else 0.0, others)


def share_of_limit(
    case: Mapping[str, Any], turns: list[Turn], work: Work, limits: Roofline
) -> tuple[float, str]:
    """How much of the limit that binds a case was used, and which it is; (0, "") for a batch."""
    if case["kind"] == "prefill":
        macs = work.prefill_macs(case["n"]) / case["n"]
        return macs * statistics.median(t.rate for t in turns) / limits.int8_macs_s, "int8 peak"
    if case["kind"] == "decode":
        n_bytes = work.decode_bytes(case["context"] + case["n"] / 2)
        read = statistics.median(t.read_bytes_s for t in turns)
        used = statistics.median(n_bytes * t.rate / t.read_bytes_s for t in turns)
        return used, f"{read / 1e9:.0f} GB/s"
    return 0.0, ""


def roofline() -> Roofline:
    """Takes about ten seconds."""
    command = [str(BUILD / "roofline"), str(_C.cpu_info()["usable_threads"])]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    values = json.loads(done.stdout)
    peaks: dict[str, float] = values["int8_macs_s"]
    best = max(peaks, key=lambda isa: peaks[isa])
    return Roofline(
        values["read_best_bytes_s"],
        values["read_median_bytes_s"],
        peaks[best],
        best,
        values["buffer_bytes"],
        values["threads"],
    )


if __name__ == "__main__":
    print(roofline())
