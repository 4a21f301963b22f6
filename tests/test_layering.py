"""The order of folders in csrc/: an include may point down, never up."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CSRC = ROOT / "csrc"
ORDER = ["base", "io", "quant", "backend", "cpu", "model", "engine", "python"]
APART = {("cpu", "model"), ("model", "cpu")}
FILES = sorted([*CSRC.rglob("*.c"), *CSRC.rglob("*.h")])


def includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s+[<"]([^>"]+)[>"]', path.read_text(), re.M)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(CSRC)))
def test_includes_point_down(path: Path) -> None:
    folder = path.relative_to(CSRC).parts[0]
    for name in includes(path):
        other = name.split("/")[0]
        if other not in ORDER or "/" not in name:
            continue
        assert (CSRC / name).exists(), f"{path} includes {name}, which does not exist"
        assert ORDER.index(other) <= ORDER.index(folder), f"{path} includes {name}: up"
        assert (folder, other) not in APART, f"{path} includes {name}: cpu and model stay apart"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(CSRC)))
def test_rooms_of_special_headers(path: Path) -> None:
    in_python = path.relative_to(CSRC).parts[0] == "python"
    is_isa_file = re.fullmatch(r"kernels_(avx|amx|neon)\w*\.[ch]", path.name) is not None
    for name in includes(path):
        assert in_python or not name.startswith(("Python.h", "numpy/")), f"{path}: {name}"
        assert is_isa_file or name not in ("immintrin.h", "arm_neon.h"), f"{path}: {name}"


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
