"""Builds lmdeploy_c._C: every C file under csrc/ into one extension, flags by file suffix.

Switches, read from the environment:
  LMDEPLOY_C_DEBUG=1      -O1 -g, asserts and the invariant checker on
  LMDEPLOY_C_SANITIZE=x   address,undefined | thread
  LMDEPLOY_C_COVERAGE=1   gcov instrumentation
  LMDEPLOY_C_WERROR=1     warnings are errors (make dev)
  LMDEPLOY_C_FAKE_DEVICE=1  the CPU with a queue in front, as a device that runs ahead (tests)
  LMDEPLOY_C_CUDA=1       the CUDA library as well: cuda/make.py, with its own switches
"""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
DEBUG = os.environ.get("LMDEPLOY_C_DEBUG") == "1"
SANITIZE = os.environ.get("LMDEPLOY_C_SANITIZE", "")
COVERAGE = os.environ.get("LMDEPLOY_C_COVERAGE") == "1"
FAKE_DEVICE = os.environ.get("LMDEPLOY_C_FAKE_DEVICE") == "1"
WERROR = os.environ.get("LMDEPLOY_C_WERROR") == "1"
CUDA = os.environ.get("LMDEPLOY_C_CUDA") == "1"

WARNINGS = ["-Wall", "-Wextra", "-Wshadow", "-Wpointer-arith", "-Wvla"] + ["-Werror"] * WERROR
# Vectors are passed between inlined functions alone, where the ABI that this warns of has no say.
WARNINGS.append("-Wno-psabi")
OPTIMISE = (
    ["-O1", "-g", "-fno-omit-frame-pointer", "-UNDEBUG"]
    if DEBUG or SANITIZE
    else ["-O3", "-DNDEBUG"]
)
# A fused multiply-add is written where the numeric contract wants one, and nowhere else; gcc's
# tree-ter hoists loads out of the kernels' loops and spills them.
NUMERIC = ["-ffp-contract=off", "-fno-math-errno"]


def isa_flags() -> dict[str, list[str]]:
    """ISA -> the flags that isa_<isa>.c may use, and no other file, on this machine's kind."""
    lines = (ROOT / "csrc" / "cpu" / "kernels" / "isa_flags").read_text().splitlines()
    rows = [line.split() for line in lines]
    return {isa: flags for machine, isa, *flags in rows if machine == platform.machine()}


ISA_FLAGS = isa_flags()


def flags_for(source: str) -> list[str]:
    return ISA_FLAGS.get(Path(source).stem.removeprefix("isa_"), [])


def is_for_this_machine(path: Path) -> bool:
    isa = path.stem.removeprefix("isa_")
    return isa == path.stem or isa == "ref" or isa in ISA_FLAGS


def sources() -> list[str]:
    found = [p for p in (ROOT / "csrc").rglob("*.c") if is_for_this_machine(p)]
    if FAKE_DEVICE:
        found.append(ROOT / "tests" / "c" / "fake_device.c")
    return sorted(str(p.relative_to(ROOT)) for p in found)


def version() -> str:
    text = (ROOT / "lmdeploy_c" / "version.py").read_text()
    return re.search(r'__version__ = "(.+)"', text).group(1)


def cuda_wheels() -> list[str]:
    """What the CUDA library's build needs of PyPI: nvcc, on a machine without one."""
    tool = [sys.executable, str(ROOT / "cuda" / "toolkit.py"), "missing", "compiler"]
    return subprocess.check_output(tool, text=True).split() if CUDA else []


def is_fresh(product: Path) -> bool:
    """Whether an object is newer than every file that the compiler read for it."""
    rule = product.with_suffix(".d")
    if not (product.exists() and rule.exists()):
        return False
    read = [Path(name) for name in rule.read_text().replace("\\\n", " ").split()[1:]]
    made = product.stat().st_mtime_ns
    return bool(read) and all(p.exists() and p.stat().st_mtime_ns < made for p in read)


class BuildPy(build_py):
    """Begins with nothing: a wheel would get what an earlier build left, and is no more."""

    def run(self) -> None:
        shutil.rmtree(Path(self.build_lib) / "lmdeploy_c", ignore_errors=True)
        super().run()


class BuildExt(build_ext):
    """Compiles with each file's own flags, on all usable cores, what changed since an earlier
    build with the same switches: those name the folder of the objects."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.force = True  # to link: setuptools does not know which switches a module was made with

    def run(self) -> None:
        super().run()
        if CUDA:
            folder = Path(self.get_ext_fullpath("lmdeploy_c._C")).resolve().parent
            tool = [sys.executable, str(ROOT / "cuda" / "make.py"), "cuda", "--into", str(folder)]
            subprocess.run(tool, check=True)

    def build_extensions(self) -> None:
        self.compiler.compile = self._compile
        super().build_extensions()

    def _compile(
        self,
        files,
        output_dir=None,
        macros=None,
        include_dirs=None,
        debug=0,
        extra_preargs=None,
        extra_postargs=None,
        depends=None,
    ):
        compiler = self.compiler
        switches = [compiler.compiler_so, macros, extra_preargs, extra_postargs, ISA_FLAGS]
        folder = hashlib.sha256(repr(switches).encode()).hexdigest()[:12]
        macros, objects, extra, pp_opts, build = compiler._setup_compile(
            os.path.join(output_dir, folder), macros, include_dirs, files, depends, extra_postargs
        )
        cc_args = compiler._get_cc_args(pp_opts, debug, extra_preargs)

        def compile_one(obj: str) -> None:
            src, ext = build[obj]
            own = ["-MMD", *extra, *flags_for(src)]
            compiler._compile(obj, src, ext, cc_args, own, pp_opts)

        jobs = len(os.sched_getaffinity(0))
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(compile_one, [o for o in objects if not is_fresh(Path(o))]))
        return objects


compile_args = ["-std=c11", "-fvisibility=hidden", "-pthread", *WARNINGS, *OPTIMISE, *NUMERIC]
link_args = ["-pthread", "-lm", "-ldl"]
if platform.python_implementation() == "CPython" and "gcc" in os.environ.get("CC", "gcc"):
    compile_args.append("-fno-tree-ter")
if SANITIZE:
    compile_args += [f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=all"]
    link_args += [f"-fsanitize={SANITIZE}"]
if COVERAGE:
    compile_args.append("--coverage")
    link_args.append("--coverage")

setup(
    version=version(),
    setup_requires=cuda_wheels(),
    ext_modules=[
        Extension(
            "lmdeploy_c._C",
            sources=sources(),
            include_dirs=["csrc", *["tests/c"] * FAKE_DEVICE, numpy.get_include()],
            define_macros=[
                ("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION"),
                ("NPY_TARGET_VERSION", "NPY_1_26_API_VERSION"),
                ("LMD_VERSION", f'"{version()}"'),
                *([("LMD_DEBUG", "1")] if DEBUG or SANITIZE else []),
                *([("LMD_FAKE_DEVICE", "1")] if FAKE_DEVICE else []),
            ],
            extra_compile_args=compile_args,
            extra_link_args=link_args,
        )
    ],
    cmdclass={"build_py": BuildPy, "build_ext": BuildExt},
)
