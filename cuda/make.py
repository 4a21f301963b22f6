"""Builds the CUDA library and the programs of tests/cuda, into build/.

usage: make.py cuda [--into FOLDER]   the library, by nvcc; then copied into FOLDER
       make.py emu                    the library and the programs, with kernels on the emulator
       make.py gpu                    the programs with real kernels, for a machine with a GPU
       make.py budget                 the library, and what budget.py asks

Environment:
  LMDEPLOY_C_CUDA_ARCHS=80,90a   the targets of nvcc; all of TARGETS otherwise
  LMDEPLOY_C_WERROR=1            warnings are errors

What is up to date is left alone. Must not know: where CUDA is (toolkit.py).
"""

import argparse
import ctypes
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import toolkit

ROOT = toolkit.ROOT
BUILD = Path("build")  # commands run in ROOT
LIBRARY = "liblmdeploy_cuda.so"
TARGETS = ("80", "86", "89", "90a", "100", "120")
#: For a GPU that is newer than all targets.
PTX = "80"

WERROR = os.environ.get("LMDEPLOY_C_WERROR") == "1"
WARNINGS = ["-Wall", "-Wextra", *["-Werror"] * WERROR]
#: Vectors are passed between inlined functions alone, where the ABI has no say.
C_WARNINGS = [*WARNINGS, "-Wshadow", "-Wpointer-arith", "-Wvla", "-Wno-psabi"]
INCLUDES = ["-Icuda", "-Icsrc"]
#: The numeric contract is setup.py's.
C = ["gcc", "-std=c11", "-fPIC", "-pthread", "-ffp-contract=off", "-fno-math-errno", *C_WARNINGS]
CPP = ["g++", "-std=c++17", "-fPIC", *WARNINGS]

# ---- files ----


def files(*patterns: str) -> set[Path]:
    return {path.relative_to(ROOT) for pattern in patterns for path in ROOT.glob(pattern)}


HOST = files("cuda/*.c", *(f"csrc/{folder}/*.c" for folder in ("base", "io", "quant", "backend")))
KERNELS = files("cuda/*.cu")
EMULATOR = files("cuda/emu/*.c", "cuda/emu/*.cpp", "cuda/emu/*.S")
#: Stands for libcublasLt on the emulator; a library of its own.
CUBLASLT = files("tests/cuda/fake_cublaslt.c")
#: Program -> its files.
PROGRAMS = {
    "check_cuda": files(
        *(f"tests/cuda/{part}.c" for part in ("suite", "check_matrix")),
        *(f"tests/cuda/check_{part}.c" for part in ("rows", "linear", "attention", "sample")),
        "tests/c/sampling_definition.c",
    ),
    "conformance": files("tests/cuda/check_dev*.c", "tests/cuda/check_dev*.cu"),
    "check_bugs": files("tests/cuda/check_bugs*.c", "tests/cuda/bugs*.cu"),
    "check_runtime": files("tests/cuda/check_runtime*.c"),
    "check_cublaslt": files("tests/cuda/check_cublaslt*.c"),
    "dynamic_smem": files("tests/cuda/dynamic_smem.c"),
}


# ---- commands ----


@cache
def machine_has_f16c() -> bool:
    info = Path("/proc/cpuinfo")
    return info.exists() and "f16c" in info.read_text().split()


@cache
def nvcc_command() -> list[str]:
    nvcc = str(toolkit.require("compiler") / "bin" / "nvcc")
    command = [nvcc, "-std=c++17", "-O3", *INCLUDES]
    for target in targets():
        command.append(f"-gencode=arch=compute_{target},code=sm_{target}")
    command.append(f"-gencode=arch=compute_{PTX},code=compute_{PTX}")
    if "compress-mode" in subprocess.check_output([nvcc, "--help"], text=True):
        command.append("--compress-mode=size")
    if WERROR:
        command += ["-Werror", "all-warnings"]
    return [*command, "-Xcompiler=-fPIC,-fvisibility=hidden,-ffunction-sections,-Wall"]


def targets() -> list[str]:
    named = os.environ.get("LMDEPLOY_C_CUDA_ARCHS", "")
    return re.findall(r"\w+", named) or list(TARGETS)


@cache
def emulated_headers() -> list[str]:
    return ["-isystem", str(toolkit.require("headers") / "include")]


def real_command(source: Path) -> list[str]:
    if source.suffix == ".cu":
        return nvcc_command()
    product = ["-DNDEBUG", "-fvisibility=hidden", "-ffunction-sections"] * (source in HOST)
    headers = ["-isystem", str(toolkit.require("compiler") / "include")]
    return [*C, "-O2", *product, *INCLUDES, *headers]


def emulated_command(source: Path, checked: bool = False) -> list[str]:
    """Checked: each access of a kernel calls a hook, which the emulator has and no sanitizer."""
    headers = [*INCLUDES, *emulated_headers()]
    if source.suffix == ".cu":
        how = ["-O1", "-fsanitize=thread"] if checked else ["-O2"]
        # The hooks find a place in the source by the address that they return to.
        how += ["-fno-optimize-sibling-calls", "-Wno-unknown-pragmas", "-fvisibility=hidden"]
        return [*CPP, "-g", *how, *headers, "-x", "c++", "-include", "cuda/emu/emu.h"]
    if source.suffix == ".cpp":
        return [*CPP, "-g", "-O2", "-Wshadow", *["-mf16c"] * machine_has_f16c(), *headers]
    if source.suffix == ".S":
        return ["gcc"]
    # Tests reach the emulator's own functions through the library.
    visibility = ["-fvisibility=hidden"] * (source in HOST)
    return [*C, "-g", "-O2", *visibility, *headers]


# ---- making a file from others ----


def inputs_of(product: Path) -> list[Path]:
    """What the compiler said that a product was made from; nothing if it was never made."""
    rule = product.with_suffix(".d")
    if not rule.exists():
        return []
    names = rule.read_text().split(":", 1)[1].replace("\\\n", " ").split()
    return [ROOT / name for name in names]


def is_current(product: Path, text: str, inputs: list[Path]) -> bool:
    note = product.with_suffix(".command")
    if not (inputs and product.exists() and note.exists() and note.read_text() == text):
        return False
    made = product.stat().st_mtime
    return all(path.exists() and path.stat().st_mtime <= made for path in inputs)


def refresh(product: Path, command: list[str], inputs: list[Path] | None = None) -> bool:
    """Runs a command unless its product is newer than its inputs and of the same command; None
    stands for the inputs that the compiler notes. Tells whether it ran."""
    product = ROOT / product
    text = shlex.join(command)
    if is_current(product, text, inputs_of(product) if inputs is None else inputs):
        return False
    product.parent.mkdir(parents=True, exist_ok=True)
    product.unlink(missing_ok=True)  # an archive would keep old members
    began = time.time()
    subprocess.run(command, cwd=ROOT, check=True)
    os.utime(product, (began, began))  # an input that changed meanwhile is newer
    product.with_suffix(".command").write_text(text)
    return True


def compile_all(
    sources: set[Path], folder: str, command_of: Callable[[Path], list[str]]
) -> list[Path]:
    """Compiles on all usable cores; the objects are in build/FOLDER/objects."""

    def compile_one(source: Path) -> tuple[Path, bool]:
        product = BUILD / folder / "objects" / (str(source).replace("/", "_") + ".o")
        rule = ["-MD", "-MF", str(product.with_suffix(".d"))]
        command = [*command_of(source), *rule, "-c", str(source), "-o", str(product)]
        return product, refresh(product, command)

    began = time.monotonic()
    # The largest first, so that no core waits long for the last one.
    by_size = sorted(sources, key=lambda s: (s.suffix == ".cu", (ROOT / s).stat().st_size))
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        results = list(pool.map(compile_one, reversed(by_size)))
    if n_made := sum(made for _, made in results):
        print(f"build/{folder}: {n_made} files compiled in {time.monotonic() - began:.0f} s")
    return sorted(product for product, _ in results)


def link(product: Path, inputs: list[Path], flags: list[str]) -> Path:
    command = ["g++", *map(str, inputs), "-o", str(product), *flags]
    refresh(product, command, [ROOT / i for i in inputs])
    return product


def archive(product: Path, objects: list[Path]) -> Path:
    refresh(product, ["ar", "rcs", str(product), *map(str, objects)], [ROOT / o for o in objects])
    return product


# ---- what there is to build ----

#: What dynamic_smem.c has in the place of the runtime's.
WRAPPED = [
    f"-Wl,--wrap={name}"
    for name in (
        "cudaFuncSetAttribute",
        "cudaFuncGetAttributes",
        "cudaOccupancyMaxActiveBlocksPerMultiprocessor",
    )
]
SYSTEM_LIBRARIES = ["-lpthread", "-ldl", "-lrt", "-lm"]


def build_cuda() -> list[Path]:
    """Gives the objects that the library is made of."""
    began = time.monotonic()
    objects = compile_all(HOST | KERNELS, "cuda", real_command)
    # A C++ runtime of its own, if a small one: nvcc's launches guard their static variables.
    own = ["-static-libstdc++", "-static-libgcc", "-Wl,--exclude-libs,ALL", "-Wl,--gc-sections"]
    flags = ["-shared", "-s", "-Wl,--no-undefined", *own, *SYSTEM_LIBRARIES]
    runtime = toolkit.static_runtime(toolkit.require("compiler"))
    library = link(BUILD / "cuda" / LIBRARY, [*objects, runtime], flags)
    check_library(ROOT / library)
    size = (ROOT / library).stat().st_size / 1e6
    seconds = time.monotonic() - began
    print(f"{library}: {size:.1f} MB, {len(targets())} targets, {seconds:.0f} s")
    return objects


def check_library(library: Path) -> None:
    """Fails unless the library runs without CUDA's, exports one name, and opens without a GPU."""
    needed = subprocess.check_output(["ldd", library], text=True)
    if found := re.findall(r"\blib(?:cuda|cudart|cublas|cublasLt|nvrtc)\.so\S*", needed):
        sys.exit(f"{library.name} needs {found}")
    names = subprocess.check_output(["nm", "-D", "--defined-only", library], text=True)
    names = [line.split()[-1] for line in names.splitlines()]
    if names != ["lmd_device_library_get"]:
        sys.exit(f"{library.name} exports {names}")
    get = ctypes.CDLL(str(library)).lmd_device_library_get
    get.restype = ctypes.POINTER(ctypes.c_int32)
    header = (ROOT / "csrc/backend/device_library.h").read_text()
    abi = int(re.search(r"LMD_DEVICE_LIBRARY_ABI = (\d+)", header).group(1))
    if get()[0] != abi:
        sys.exit(f"{library.name} says that its ABI is {get()[0]}; the header has {abi}")


def build_real(programs: tuple[str, ...], flags: list[str]) -> None:
    """Programs that have the library's objects in themselves."""
    ours = archive(BUILD / "gpu" / "lmdeploy_cuda.a", build_cuda())
    runtime = toolkit.static_runtime(toolkit.require("compiler"))
    for program in programs:
        tests = compile_all(PROGRAMS[program], "gpu", real_command)
        link(BUILD / "gpu" / program, [*tests, ours, runtime], [*flags, *SYSTEM_LIBRARIES])


def build_emulated(programs: tuple[str, ...], checked: bool) -> None:
    """Only kernels differ when they are checked; all else is compiled once."""
    folder = BUILD / ("emu-checked" if checked else "emu")

    def compile_sources(sources: set[Path]) -> list[Path]:
        kernels = {source for source in sources if source.suffix == ".cu"}
        rest = compile_all(sources - kernels, "emu", emulated_command)
        return rest + compile_all(kernels, folder.name, lambda s: emulated_command(s, checked))

    emulator = compile_sources(EMULATOR)
    objects = compile_sources(HOST | KERNELS)
    # Names of the emulator are the runtime's: nothing outside may take their place.
    shared = ["-shared", "-Wl,-Bsymbolic", *SYSTEM_LIBRARIES]
    link(folder / LIBRARY, [*objects, *emulator], shared)
    link(folder / "libcublasLt.so", compile_sources(CUBLASLT), shared)
    ours = archive(folder / "lmdeploy_cuda.a", objects)
    for program in programs:
        inputs = [*compile_sources(PROGRAMS[program]), ours, *emulator]
        # libcublasLt finds the emulator by its names.
        link(folder / program, inputs, ["-rdynamic", *SYSTEM_LIBRARIES])


def build_stress() -> None:
    """The engine on an emulated device whose kernels are plain C, for the thread sanitizer."""
    core = files(*(f"csrc/{folder}/*.c" for folder in ("engine", "model")))
    runtime = {source for source in EMULATOR if source.suffix == ".c"}
    sources = HOST - files("cuda/sm80.c") | core | runtime
    sources |= files("tests/cuda/stress_device.c", "tests/cuda/no_kernels.c")

    def command(source: Path) -> list[str]:
        return [*emulated_command(source), "-O1", "-fsanitize=thread", "-Wno-tsan"]

    objects = compile_all(sources, "emu-tsan", command)
    product = BUILD / "emu-tsan" / "stress_device"
    link(product, objects, ["-fsanitize=thread", *SYSTEM_LIBRARIES])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["cuda", "emu", "gpu", "budget"])
    parser.add_argument("--into", type=Path, help="a folder that gets the library of nvcc as well")
    args = parser.parse_args()
    try:
        if args.what == "cuda":
            build_cuda()
            if args.into:
                (args.into / LIBRARY).unlink(missing_ok=True)  # a process may run the old one
                shutil.copy2(ROOT / BUILD / "cuda" / LIBRARY, args.into)
        elif args.what == "gpu":
            build_real(("check_cuda", "conformance"), [])
        elif args.what == "budget":
            build_real(("dynamic_smem",), ["-no-pie", *WRAPPED])
        else:
            plain = ("check_runtime", "check_cublaslt", "conformance", "check_cuda")
            build_emulated(plain, checked=False)
            build_emulated(("check_bugs", "conformance", "check_cuda"), checked=True)
            build_stress()
    except subprocess.CalledProcessError as failed:
        sys.exit(f"failed: {shlex.join(map(str, failed.cmd))}")


if __name__ == "__main__":
    main()
