"""What runs on the emulator: `make cuda-emulator`, `cuda-kernels`, `test-emu`, `test-device`.

usage: on_emulator.py emulator   what the emulator itself must refuse, the bugs that it must find,
                                 and every wrapper of dev.h
       on_emulator.py kernels    every launcher of sm80 against plain C, in three orders of threads,
                                 and with each access checked and counted
       on_emulator.py models     all of these, and models on the kernels beside the CPU
       on_emulator.py device     the engine's suite on a device whose kernels are plain C

Needs what `make emu` builds, and the package as this Python finds it. Parts run side by side, one
on each core. Exits 1 if one failed; all output is in build/emu/WHAT.log.
"""

import os
import sys

from parts import CONFORMANCE, DEVICE_TESTS, ROOT, Part, run_parts

CHECKED = "build/emu-checked"
PROFILE = f"{CHECKED}/profile.json"
PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
EMULATED = {
    "LMDEPLOY_C_TEST_DEVICE": "cuda",
    "LMDEPLOY_C_CUDA_LIBRARY": str(ROOT / "build" / "emu" / "liblmdeploy_cuda.so"),
}


def _emulator() -> list[Part]:
    """The wrappers of dev.h are held to what a GPU wrote, once there is such a record."""
    record = ["--compare", str(CONFORMANCE)] if CONFORMANCE.exists() else []
    cublaslt = ["build/emu/check_cublaslt", "build/emu/libcublasLt.so"]
    return [
        Part("runtime", ["build/emu/check_runtime"], 300),
        Part("stand-in for cuBLAS", cublaslt, 300),
        Part("wrappers of dev.h", ["build/emu/conformance", *record], 300),
        Part("seeded bugs", [f"{CHECKED}/check_bugs"], 300),
    ]


def _kernels() -> list[Part]:
    """Threads run first come first, last come first, and at random; then each access is checked,
    which takes the longest and so begins first."""
    watched = {"EMU_CHECK": "1", "EMU_PROFILE": "1", "EMU_PROFILE_FILE": PROFILE}
    orders = [
        Part(f"kernels, order {order}", ["build/emu/check_cuda"], 900, {"EMU_ORDER": order})
        for order in ("0", "1", "7")
    ]
    return [Part("kernels, each access", [f"{CHECKED}/check_cuda"], 1800, watched), *orders]


def _models() -> list[Part]:
    goldens = ["tests/core/test_golden.py", "-k", "hd64 or hd128 or hd256"]
    return [
        Part("models beside the CPU", [*PYTEST, "tests/device/test_models.py"], 1800, EMULATED),
        Part("goldens", [*PYTEST, *goldens], 1800, EMULATED),
    ]


def _device() -> list[Part]:
    environment = {**EMULATED, "LMDEPLOY_C_CUDA_KERNELS": "ref"}
    parts = [
        Part("tests/device", [*PYTEST, "tests/device"], 900, environment),
        Part("thread sanitizer", ["build/emu-tsan/stress_device"], 600, environment),
    ]
    for name in DEVICE_TESTS:
        command = [*PYTEST, f"tests/core/test_{name}.py", "-k", "not many_heads"]
        parts.append(Part(f"tests/core, {name}", command, 900, environment))
    return parts


def main() -> int:
    what = sys.argv[1]
    parts = {
        "emulator": _emulator,
        "kernels": _kernels,
        "models": lambda: [*_kernels(), *_models(), *_emulator()],
        "device": _device,
    }
    log = ROOT / "build" / "emu" / f"{what}.log"
    return run_parts(parts[what](), log, n_at_once=len(os.sched_getaffinity(0)))


if __name__ == "__main__":
    sys.exit(main())
