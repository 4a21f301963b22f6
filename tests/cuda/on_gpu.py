"""Everything that a GPU should see, in one command: `make test-gpu`.

usage: on_gpu.py [LOG]    default: build/gpu/test.log

Needs nvcc, a C compiler and Python with NumPy, and no network. Each part runs in its turn, whatever
became of the one before; all output goes to the log, and a table to the terminal. Exits 1 if a part
failed.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "gpu"
PYTHON_BUILD = BUILD / "python"
CONFORMANCE = ROOT / "tests" / "cuda" / "conformance.txt"
#: Tests of the engine whose subject is the device; the others would test the host once more.
ENGINE_TESTS = ["engine", "exactness", "golden", "packed_weights", "sampler", "snapshots"]


@dataclass(frozen=True)
class Part:
    """A command, how long it may take, and what it needs."""

    name: str
    command: list[str]
    seconds: int
    environment: dict[str, str] = field(default_factory=dict)
    needs: str = ""  # a program without which the part is left out


def _arch() -> str:
    """The GPU's target, as nvcc names it: "90a"."""
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    capability = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    arch = capability.replace(".", "")
    return arch + "a" * (arch == "90")


def _parts(arch: str) -> list[Part]:
    python = sys.executable
    build = {"LMDEPLOY_C_CUDA_ARCHS": arch}
    device = {
        "LMDEPLOY_C_CUDA_LIBRARY": str(ROOT / "build" / "cuda" / "liblmdeploy_cuda.so"),
        "LMDEPLOY_C_TEST_DEVICE": "cuda",
        "PYTHONPATH": str(PYTHON_BUILD),
    }
    pytest = [python, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    tests = [f"tests/core/test_{name}.py" for name in ENGINE_TESTS]
    programs = [python, "cuda/make.py"]
    sanitizer = ["compute-sanitizer", "--error-exitcode", "1", "--tool"]
    check = [str(BUILD / "check_cuda"), "sm80"]
    return [
        Part("build: programs", [*programs, "gpu"], 240, build),
        Part("build: library", [*programs, "cuda"], 240, build),
        Part(
            "build: module",
            [python, "setup.py", "-q", "build_ext", "--build-lib", str(PYTHON_BUILD)],
            120,
        ),
        # The first GPU writes the record, which is then committed; the emulator is held to it.
        Part(
            "conformance",
            [
                str(BUILD / "conformance"),
                "--compare" if CONFORMANCE.exists() else "--write",
                str(CONFORMANCE),
            ],
            60,
        ),
        Part("kernels against ref", check, 120),
        Part("models against the CPU", [*pytest, "tests/device"], 120, device),
        Part("the engine's suite", [*pytest, *tests], 180, device),
        Part("memcheck", [*sanitizer, "memcheck", *check, "attention"], 60, needs=sanitizer[0]),
        Part("racecheck", [*sanitizer, "racecheck", *check, "linear"], 60, needs=sanitizer[0]),
    ]


def _run(part: Part, log: Path) -> tuple[str, float, str]:
    """The verdict, the seconds, and the last line that says something."""
    if part.needs and not shutil.which(part.needs):
        return "left out", 0.0, f"{part.needs} is not installed"
    start = time.monotonic()
    environment = {**os.environ, **part.environment}
    with log.open("a") as out:
        print(f"==== {part.name}: {' '.join(part.command)}", file=out, flush=True)
        begin = out.tell()
        try:
            code = subprocess.run(
                part.command,
                cwd=ROOT,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment,
                timeout=part.seconds,
            ).returncode
        except subprocess.TimeoutExpired:
            return "FAILED", time.monotonic() - start, f"longer than {part.seconds} s"
        except OSError as e:
            return "FAILED", 0.0, str(e)
    text = log.read_bytes()[begin:].decode(errors="replace")
    said = [line.strip() for line in text.splitlines() if re.search(r"\w", line)]
    verdict = "passed" if code == 0 else "FAILED"
    return verdict, time.monotonic() - start, said[-1] if said else ""


def main() -> int:
    log = Path(sys.argv[1]) if len(sys.argv) > 1 else BUILD / "test.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("")
    shutil.copytree(ROOT / "lmdeploy_c", PYTHON_BUILD / "lmdeploy_c", dirs_exist_ok=True)
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    print(subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip())
    rows = []
    for part in _parts(_arch()):
        rows.append((part.name, *_run(part, log)))
        name, verdict, seconds, said = rows[-1]
        print(f"{name:<24}{verdict:<10}{seconds:>7.1f} s  {said[:90]}", flush=True)
    n_failed = sum(row[1] == "FAILED" for row in rows)
    n_passed = sum(row[1] == "passed" for row in rows)
    print(f"{n_passed} passed, {n_failed} failed; {log}")
    return n_failed != 0


if __name__ == "__main__":
    sys.exit(main())
