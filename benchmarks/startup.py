"""Start-up figures of fresh processes: build, import, load, memory, and the first token.

Each is a median of 5 to 7 processes.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from common import ROOT

LOAD_AND_REPORT = """
import resource, time
import lmdeploy_c
from lmdeploy_c import _C
from lmdeploy_c.files.checkpoint import open_checkpoint, resolve_model
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

# From the call of pipeline() to the first token; the first call pays for imports, the second not.
FIRST_TOKENS = """
import time
import lmdeploy_c
def once():
    start = time.perf_counter()
    with lmdeploy_c.pipeline() as pipe:
        config = lmdeploy_c.GenerationConfig(max_new_tokens=4)
        next(iter(pipe.stream_infer("What is the capital of France?", gen_config=config)))
        return time.perf_counter() - start
print(once(), flush=True)
print(once())
"""


def median_of(n: int, run: Callable[[], float]) -> float:
    return statistics.median(run() for _ in range(n))


def seconds_of(*command: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def floats_of(code: str) -> list[float]:
    """What a fresh process prints."""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return [float(word) for word in done.stdout.split()]


def build_seconds() -> float:
    """`pip install .` of a copy of the sources into an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        shutil.copytree(
            ROOT, source, ignore=shutil.ignore_patterns(".git", ".venv*", "build", "golden")
        )
        return seconds_of(
            "-m", "pip", "install", "-q", "--no-deps", "--target", f"{folder}/out", str(source)
        )


def first_tokens() -> list[float]:
    """Seconds from the process's start to its first token, and of its second pipeline()."""
    start = time.perf_counter()
    with subprocess.Popen([sys.executable, "-c", FIRST_TOKENS], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        whole = time.perf_counter() - start
        second = float(process.stdout.readline())
    return [whole, second]


def startup() -> dict[str, float]:
    numpy_only = median_of(7, lambda: seconds_of("-c", "import numpy"))
    ours = median_of(7, lambda: seconds_of("-c", "import numpy, lmdeploy_c"))
    loads = [floats_of(LOAD_AND_REPORT) for _ in range(5)]
    firsts = [first_tokens() for _ in range(5)]
    return {
        "import_s_beyond_numpy": ours - numpy_only,
        "help_s": median_of(7, lambda: seconds_of("-m", "lmdeploy_c", "--help")),
        "load_s": statistics.median(load[0] for load in loads),
        "load_peak_rss_over_file": statistics.median(load[1] for load in loads),
        "process_to_first_token_s": statistics.median(first[0] for first in firsts),
        "second_pipeline_to_first_token_s": statistics.median(first[1] for first in firsts),
    }
