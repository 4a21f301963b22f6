"""The order of folders in csrc/ and cuda/ and of modules in lmdeploy_c/: an include or an import
may point down, never up."""

import ast
import graphlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
#: Folders from the lowest to the highest; those of one set never include each other.
ORDER = [
    {"base"},
    {"io"},
    {"quant"},
    {"backend"},
    {"cpu", "model", "engine"},
    {"devices"},
    {"lite"},
    {"python"},
]
LEVEL = {folder: i for i, folders in enumerate(ORDER) for folder in folders}
#: The kernels' own folder, what it may include, and its one header for the rest of cpu/.
KERNELS = CSRC / "cpu" / "kernels"
BELOW_KERNELS = ("base/", "quant/", "cpu/kernels/")
KERNELS_HEADER = "cpu/kernels/kernels.h"
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
def test_kernels_know_nothing_of_the_backend(path: Path) -> None:
    for name in includes(path):
        if not (CSRC / name).exists():
            continue
        if path.is_relative_to(KERNELS):
            assert name.startswith(BELOW_KERNELS), f"{path} includes {name}"
        else:
            inner = name.startswith("cpu/kernels/") and name != KERNELS_HEADER
            assert not inner, f"{path} includes {name}; {KERNELS_HEADER} is for others"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(CSRC)))
def test_rooms_of_special_headers(path: Path) -> None:
    in_python = path.relative_to(CSRC).parts[0] == "python"
    is_isa_file = re.fullmatch(r"(isa|vector)_(avx|amx|neon)\w*\.[ch]", path.name) is not None
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
    names = [path.name for path in [*FILES, *CUDA.glob("*.[ch]")]]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(CSRC)))
def test_the_core_never_ends_the_process(path: Path) -> None:
    assert not re.search(r"\b(abort|exit|_exit|printf|puts)\s*\(", path.read_text())


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(CSRC)))
def test_files_stay_readable(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= 800
    assert lines[0].startswith("/*"), "a file starts with what it owns"


# ---- cuda ----

CUDA = ROOT / "cuda"
#: What a library of its own takes of csrc/: it knows the seam, and nobody above it.
BELOW_CUDA = ("base", "io", "quant", "backend")
CUDA_FILES = sorted(p for p in CUDA.rglob("*") if p.suffix in (".c", ".h", ".cu", ".cpp"))


@pytest.mark.parametrize("path", CUDA_FILES, ids=lambda p: str(p.relative_to(CUDA)))
def test_cuda_includes_itself_and_what_is_below(path: Path) -> None:
    for name in re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(), re.M):
        below = name.split("/")[0] in BELOW_CUDA and (CSRC / name).exists()
        inside = (path.parent / name).exists() or (CUDA / name).exists()
        assert below or inside, f"{path} includes {name}"
        emulator = "emu" in path.parts or not name.startswith("emu/")
        assert emulator, f"{path} includes {name}: a flag gives kernels the emulator"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(CSRC)))
def test_the_core_knows_nothing_of_cuda(path: Path) -> None:
    for name in includes(path):
        assert not (CUDA / name).exists(), f"{path} includes {name} of cuda/"
        assert not name.startswith("cuda"), f"{path} includes {name} of CUDA itself"


@pytest.mark.parametrize("path", CUDA_FILES, ids=lambda p: str(p.relative_to(CUDA)))
def test_assembly_is_in_its_header_alone(path: Path) -> None:
    assert path.name == "dev.h" or not re.search(r"\b(asm|__asm__)\b", path.read_text())


@pytest.mark.parametrize("path", CUDA_FILES, ids=lambda p: str(p.relative_to(CUDA)))
def test_cuda_files_stay_readable(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= 800
    assert lines[0].startswith("/*"), "a file starts with what it owns"


# ---- lmdeploy_c ----

PACKAGE = ROOT / "lmdeploy_c"
#: Packages and flat modules from the lowest to the highest; those of one set never import each
#: other. Imports for types alone count, and those inside functions.
PYTHON_ORDER = [
    {"_C", "_older_names", "output_cache", "progress", "units", "version"},
    {"messages"},
    {"files", "text"},
    {"tokenizer"},
    {"model"},
    {"engine"},
    {"metrics", "planning"},
    {"serve"},
    {"pipeline"},
    {"lite"},
    {"cli"},
    {"__init__", "__main__"},
]
PYTHON_LEVEL = {room: i for i, rooms in enumerate(PYTHON_ORDER) for room in rooms}
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def existing(name: str) -> str:
    """The module's name in MODULES: a package is its __init__."""
    package = f"{name}.__init__" if name else "__init__"
    return package if package in MODULES else name


def imports(module: str) -> Iterator[str]:
    """The modules of lmdeploy_c that a module imports, by their names in it."""
    package = module.split(".")[:-1]
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                assert not alias.name.startswith("lmdeploy_c"), f"{module}: imports are relative"
        elif isinstance(node, ast.ImportFrom):
            assert node.level or not (node.module or "").startswith("lmdeploy_c"), module
            if not node.level:
                continue
            base = package[: len(package) + 1 - node.level] + (node.module or "").split(".")
            base = [part for part in base if part]
            for alias in node.names:
                inside = existing(".".join([*base, alias.name]))
                is_module = inside in MODULES or inside == "_C"
                yield inside if is_module else existing(".".join(base))


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    room = module.split(".")[0]
    for other in imports(module):
        assert other in MODULES or other == "_C", f"{module} imports {other}, which does not exist"
        below = other.split(".")[0]
        down = below == room or PYTHON_LEVEL[below] < PYTHON_LEVEL[room]
        assert down, f"{module} imports {other}, which is not below it"


def test_every_module_has_a_place() -> None:
    assert {module.split(".")[0] for module in MODULES} == set(PYTHON_LEVEL) - {"_C"}


def test_no_imports_go_in_a_circle() -> None:
    graph = {module: set(imports(module)) for module in MODULES}
    graphlib.TopologicalSorter(graph).prepare()  # CycleError names the modules


@pytest.mark.parametrize("module", MODULES)
def test_modules_stay_readable(module: str) -> None:
    text = MODULES[module].read_text()
    assert text.startswith(('"""', 'r"""')), "a module starts with what it owns"
    assert text.count("\n") < 500
