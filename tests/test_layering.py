"""The order of folders in csrc/: an include may point down, never up."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CSRC = ROOT / "csrc"
#: Folders from the lowest to the highest; those of one set never include each other.
ORDER = [
    {"base"},
    {"io"},
    {"quant"},
    {"backend"},
    {"cpu", "model", "engine"},
    {"devices"},
    {"python"},
]
LEVEL = {folder: i for i, folders in enumerate(ORDER) for folder in folders}
FILES = sorted([*CSRC.rglob("*.c"), *CSRC.rglob("*.h")])


def includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s+[<"]([^>"]+)[>"]', path.read_text(), re.M)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(CSRC)))
def test_includes_point_down(path: Path) -> None:
    folder = path.relative_to(CSRC).parts[0]
    for name in includes(path):
        other = name.split("/")[0]
        if other not in LEVEL or "/" not in name:
            continue
        assert (CSRC / name).exists(), f"{path} includes {name}, which does not exist"
        down = other == folder or LEVEL[other] < LEVEL[folder]
        assert down, f"{path} includes {name}, which is not below it"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(CSRC)))
def test_rooms_of_special_headers(path: Path) -> None:
    in_python = path.relative_to(CSRC).parts[0] == "python"
    is_isa_file = re.fullmatch(r"kernels_(avx|amx|neon)\w*\.[ch]", path.name) is not None
    for name in includes(path):
        assert in_python or not name.startswith(("Python.h", "numpy/")), f"{path}: {name}"
        assert is_isa_file or name not in ("immintrin.h", "arm_neon.h"), f"{path}: {name}"


def test_every_folder_has_a_place() -> None:
    assert {p.name for p in CSRC.iterdir() if p.is_dir()} == set(LEVEL)


@pytest.mark.parametrize("header", ["plan.h", "executor.h", "backend.h", "sampling.h"])
def test_the_seam_is_c_for_cpp_too(header: str, tmp_path: Path) -> None:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    source = tmp_path / "seam.cpp"
    source.write_text(f'#include "backend/{header}"\n')
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", f"-I{CSRC}"]
    subprocess.run([compiler, *flags, str(source)], check=True)


def test_file_names_are_unique() -> None:
    names = [path.name for path in FILES]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(CSRC)))
def test_the_core_never_ends_the_process(path: Path) -> None:
    assert not re.search(r"\b(abort|exit|_exit|printf|puts)\s*\(", path.read_text())


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(CSRC)))
def test_files_stay_readable(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= 800
    assert lines[0].startswith("/*"), "a file starts with what it owns"
