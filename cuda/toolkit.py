"""Finds CUDA on this machine: a compiler with its headers, the headers alone, or a disassembler.

A toolkit of the system comes first (CUDA_HOME, the nvcc in PATH, /usr/local/cuda), then the wheels
of pyproject.toml's extra "cuda-build". Must not know: what is built with it.

usage: toolkit.py missing PART    prints the wheels that would bring the part, if it is not there
       toolkit.py install PART    installs them for this Python
"""

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

#: Part -> the files that it is known by, and the wheels that bring it.
PARTS = {
    "compiler": (
        ("bin/nvcc", "include/cuda_runtime.h"),
        ("nvidia-cuda-nvcc", "nvidia-nvvm", "nvidia-cuda-crt", "nvidia-cuda-runtime"),
    ),
    "headers": (
        ("include/cuda_runtime_api.h", "include/crt/host_defines.h"),
        ("nvidia-cuda-crt", "nvidia-cuda-runtime"),
    ),
    "disassembler": (
        ("bin/cuobjdump", "bin/nvdisasm"),
        ("nvidia-cuda-cuobjdump", "nvidia-cuda-nvdisasm"),
    ),
}


def homes() -> Iterator[Path]:
    """Folders that may hold bin/ and include/ of CUDA, the best first."""
    if "CUDA_HOME" in os.environ:
        yield Path(os.environ["CUDA_HOME"])
    if nvcc := shutil.which("nvcc"):
        yield Path(nvcc).resolve().parents[1]
    yield Path("/usr/local/cuda")
    for folder in sys.path:
        yield Path(folder) / "nvidia" / "cu13"


def find(part: str) -> Path | None:
    files, _ = PARTS[part]
    return next((home for home in homes() if all((home / f).exists() for f in files)), None)


def require(part: str) -> Path:
    home = find(part)
    if home is None:
        sys.exit(
            f"no CUDA {part} was found: set CUDA_HOME to a toolkit, or install these wheels: "
            + " ".join(missing(part))
        )
    return home


def static_runtime(home: Path) -> Path:
    """The CUDA runtime that goes into a library whole."""
    for folder in ("lib64", "lib", "targets/*/lib", "lib/*-linux-gnu"):
        for path in home.glob(f"{folder}/libcudart_static.a"):
            return path
    sys.exit(f"{home} has no libcudart_static.a")


def missing(part: str) -> list[str]:
    """The pinned wheels that would bring a part which is not there."""
    if find(part):
        return []
    text = (ROOT / "pyproject.toml").read_text()
    pinned = ast.literal_eval(re.search(r"^cuda-build = (\[.*?\])", text, re.M | re.S).group(1))
    _, names = PARTS[part]
    return [wheel for wheel in pinned if wheel.split("==")[0] in names]


def main() -> None:
    action, part = sys.argv[1:]
    wheels = missing(part)
    if action == "missing":
        print("\n".join(wheels))
    elif wheels:
        print("installing", *wheels)
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", *wheels], check=True)


if __name__ == "__main__":
    main()
