"""Measures what the README and docs/benchmarks.md claim, on this machine.

    python benchmarks/engine.py [--csv FILE]

Prints a line for each figure and appends a CSV row with machine and commit. Start-up figures are
medians of fresh processes; speeds are medians of several runs in one engine.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
LOAD_AND_REPORT = """
import resource, time
import lmdeploy_c
from lmdeploy_c import _C
from lmdeploy_c.checkpoint import open_checkpoint, resolve_model
def resident():
    with open("/proc/self/status") as file:
        lines = (line.split(":") for line in file if line.startswith(("VmRSS", "VmHWM")))
        return {key: int(value.split()[0]) for key, value in lines}
before = resident()["VmRSS"]
start = time.perf_counter()
checkpoint = open_checkpoint(resolve_model(None))
model = _C.Model(checkpoint.config, checkpoint.source)
seconds = time.perf_counter() - start
print(seconds, (resident()["VmHWM"] - before) * 1024 / checkpoint.file_bytes)
"""


def median_of(n: int, run) -> float:  # type: ignore[no-untyped-def]
    return statistics.median(run() for _ in range(n))


def python_seconds(code: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def build_seconds() -> float:
    """`pip install .` of a copy of the sources into an empty folder, build isolation off."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        shutil.copytree(
            ROOT, source, ignore=shutil.ignore_patterns(".git", ".venv*", "build", "golden")
        )
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target",
             f"{folder}/out", str(source)],
            check=True,
        )  # fmt: skip
        return time.perf_counter() - start


def startup() -> dict[str, float]:
    numpy_only = median_of(7, lambda: python_seconds("import numpy"))
    ours = median_of(7, lambda: python_seconds("import numpy, lmdeploy_c"))
    loads = [
        [float(x) for x in subprocess.run([sys.executable, "-c", LOAD_AND_REPORT], check=True,
                                          capture_output=True, text=True).stdout.split()]
        for _ in range(5)
    ]  # fmt: skip
    help_seconds = []
    for _ in range(7):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "lmdeploy_c", "--help"], check=True,
                       stdout=subprocess.DEVNULL)  # fmt: skip
        help_seconds.append(time.perf_counter() - start)
    return {
        "import_s_beyond_numpy": ours - numpy_only,
        "help_s": statistics.median(help_seconds),
        "load_s": statistics.median(load[0] for load in loads),
        "load_peak_rss_over_file": statistics.median(load[1] for load in loads),
    }


def speeds() -> dict[str, float]:
    import numpy as np

    from lmdeploy_c import _C
    from lmdeploy_c.checkpoint import open_checkpoint, resolve_model

    checkpoint = open_checkpoint(resolve_model(None))
    model = _C.Model(checkpoint.config, checkpoint.source)
    engine = _C.Engine(model, session_len=4096, n_blocks=256, max_batch_size=16)
    ids = (np.arange(4096) * 7919 + 13) % model.config["vocab_size"]

    def finish(requests: list[_C.Request]) -> None:
        for request in requests:
            while (output := request.read()) is None or output.finish_reason is None:
                pass

    def timed(n_requests: int, n_prompt: int, n_new: int) -> float:
        start = time.perf_counter()
        finish([engine.submit(ids[i : i + n_prompt], max_new_tokens=n_new)
                for i in range(n_requests)])  # fmt: skip
        return time.perf_counter() - start

    def decode_rate(n_requests: int, n_prompt: int, n_new: int) -> float:
        return (
            n_requests
            * n_new
            / (timed(n_requests, n_prompt, n_new + 1) - timed(n_requests, n_prompt, 1))
        )

    timed(1, 64, 8)
    result = {
        "prefill_512_tok_s": 512 / median_of(5, lambda: timed(1, 512, 1)),
        "decode_tok_s": median_of(5, lambda: decode_rate(1, 1, 64)),
        "decode_16_sequences_tok_s": median_of(3, lambda: decode_rate(16, 64, 32)),
    }
    engine.close()
    return result


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.machine()


def machine() -> dict[str, str]:
    from lmdeploy_c import _C

    info = _C.cpu_info()
    commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"],
                            capture_output=True, text=True).stdout.strip()  # fmt: skip
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit,
        "cpu": cpu_name(),
        "isa": str(info["isa"]),
        "threads": str(info["usable_threads"]),
        "python": platform.python_version(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--csv", type=Path, default=ROOT / "benchmarks" / "engine.csv")
    parser.add_argument("--no-build", action="store_true", help="skip timing `pip install .`")
    options = parser.parse_args()
    os.environ.setdefault("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    row: dict[str, object] = dict(machine())
    if not options.no_build:
        row["pip_install_s"] = build_seconds()
    row.update(startup())
    row.update(speeds())
    for key, value in row.items():
        print(f"{key:28} {value:.3f}" if isinstance(value, float) else f"{key:28} {value}")
    is_new = not options.csv.exists()
    with options.csv.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(row))
        if is_new:
            writer.writeheader()
        writer.writerow({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()})


if __name__ == "__main__":
    main()
