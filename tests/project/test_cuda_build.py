"""How the CUDA library is built, as far as that shows without a compiler: where CUDA is looked for,
what is made again, and what the budgets of kernels say."""

import json
import re
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CUDA = ROOT / "cuda"


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    monkeypatch.syspath_prepend(CUDA)
    for name in ("toolkit", "make", "budget"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import budget
    import make
    import toolkit

    return types.SimpleNamespace(toolkit=toolkit, make=make, budget=budget)


# ---- the toolkit ----


def make_toolkit(home: Path) -> Path:
    for name in ("bin/nvcc", "include/cuda_runtime.h"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).touch(mode=0o755)
    return home


def test_a_toolkit_comes_from_the_environment_then_the_path_then_the_wheels(
    modules: types.SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = make_toolkit(tmp_path / "named")
    in_path = make_toolkit(tmp_path / "in_path")
    wheels = make_toolkit(tmp_path / "site" / "nvidia" / "cu13")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site")])
    monkeypatch.setenv("PATH", str(in_path / "bin"))
    monkeypatch.setenv("CUDA_HOME", str(named))
    homes = list(modules.toolkit.homes())
    assert homes == [named, in_path, Path("/usr/local/cuda"), wheels]
    assert modules.toolkit.find("compiler") == named
    (named / "include/cuda_runtime.h").unlink()
    assert modules.toolkit.find("compiler") == in_path


def test_wheels_bring_what_is_missing_at_pinned_versions(
    modules: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modules.toolkit, "homes", lambda: iter(()))
    for part, (_, wheels) in modules.toolkit.PARTS.items():
        pinned = [wheel.split("==") for wheel in modules.toolkit.missing(part)]
        assert sorted(name for name, _ in pinned) == sorted(wheels)
        assert all(re.fullmatch(r"13(\.\d+)+", version) for _, version in pinned)


# ---- making files ----


def test_a_product_is_made_again_when_an_input_or_the_command_changes(
    modules: types.SimpleNamespace, tmp_path: Path
) -> None:
    refresh = modules.make.refresh
    source, product = tmp_path / "source", tmp_path / "folder" / "product"
    source.write_text("1")
    copy = ["cp", str(source), str(product)]
    assert refresh(product, copy, [source])
    assert not refresh(product, copy, [source])
    assert refresh(product, [*copy[:1], "-f", *copy[1:]], [source])
    product.unlink()
    assert refresh(product, copy, [source])
    later = product.stat().st_mtime + 1
    source.write_text("2")
    modules.make.os.utime(source, (later, later))
    assert refresh(product, copy, [source])
    assert product.read_text() == "2"


def test_a_compiler_notes_what_it_read(modules: types.SimpleNamespace, tmp_path: Path) -> None:
    product = tmp_path / "a.o"
    assert modules.make.inputs_of(product) == []
    product.with_suffix(".d").write_text("a.o : cuda/a.c \\\n cuda/a.h\\\n /b.h\n")
    names = [ROOT / "cuda/a.c", ROOT / "cuda/a.h", Path("/b.h")]
    assert modules.make.inputs_of(product) == names


def test_every_program_has_files(modules: types.SimpleNamespace) -> None:
    for program, files in modules.make.PROGRAMS.items():
        assert files, program
        mains = [f for f in files if re.search(r"^int main\(", (ROOT / f).read_text(), re.M)]
        assert len(mains) == 1, f"{program}: {mains}"


# ---- budgets ----


@pytest.mark.parametrize(
    ("target", "threads", "registers", "smem", "blocks"),
    [
        ("80", 128, 32, 0, 16),  # by threads: 2048 / 128
        ("80", 32, 16, 0, 32),  # by blocks
        ("80", 256, 128, 0, 2),  # by registers: 65536 / (256 * 128)
        ("80", 256, 129, 0, 1),  # 136 for each thread, in four parts
        ("80", 128, 32, 40 << 10, 4),  # by shared memory: 164 / (40 + 1)
        ("86", 128, 32, 40 << 10, 2),  # 100 / (40 + 1)
        ("86", 128, 32, 99 << 10, 1),
        ("86", 128, 32, (99 << 10) + 1, 0),  # more than any block may have
        ("90a", 1024, 64, 17168, 1),
    ],
)
def test_blocks_of_a_multiprocessor(
    modules: types.SimpleNamespace,
    target: str,
    threads: int,
    registers: int,
    smem: int,
    blocks: int,
) -> None:
    kernel = {"threads": threads, "registers": registers, "smem": smem}
    assert modules.budget.MULTIPROCESSORS[target].blocks_of(kernel) == blocks


KERNEL = {
    "threads": 128,
    "registers": 100,
    "smem": 1024,
    "blocks": 4,
    "HMMA": 8,
    "LDSM": 4,
    "LDG.128": 2,
    "LDGSTS.128": 2,
}


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({}, []),
        ({"registers": 99, "blocks": 5, "HMMA": 9}, []),
        ({"registers": 101}, ["registers 101, at most 100"]),
        ({"blocks": 3}, ["blocks 3, at least 4"]),
        ({"LDG.128": 1}, ["LDG.128 1, at least 2"]),
        ({"spills": 2}, ["spills 2, never more than 0"]),
        ({"stack": 8}, ["stack 8, never more than 0"]),
    ],
)
def test_a_budget_is_over_when_something_became_worse(
    modules: types.SimpleNamespace, change: dict[str, int], wrong: list[str]
) -> None:
    kernel = {**KERNEL, "spills": 0, "stack": 0, **change}
    assert modules.budget.check_kernel(kernel, KERNEL) == wrong
    assert modules.budget.check_kernel(kernel, None)[-1] == "has no budget"


def test_emulated_accesses_have_budgets(modules: types.SimpleNamespace, tmp_path: Path) -> None:
    profile = tmp_path / "profile.json"
    site = {"kernel": "(k<a, b>)", "place": "k.cu:1", "memory": "global", "got": 30, "least": 20}
    total = {"kernel": "(k<a, b>)", "launches": 1}
    profile.write_text("".join(json.dumps(line) + "\n" for line in (total, site)))

    def check(budget: dict[str, float]) -> list:
        budgets = {"emulated": budget}
        return modules.budget.check_emulated(budgets, False, False, profile)

    assert check({"k<a, b>": {"global": 1.5}}) == [("k<a, b>", [])]
    worse = "global memory: 1.5 times the least, at most 1.4"
    assert check({"k<a, b>": {"global": 1.4}}) == [("k<a, b>", [worse])]
    gone = check({"k<a, b>": {"global": 1.5}, "other": {"global": 1.0}})
    assert ("other", ["was not run"]) in gone


def test_every_kernel_has_a_budget_for_every_target(modules: types.SimpleNamespace) -> None:
    compiled = json.loads((CUDA / "kernels.json").read_text())["compiled"]
    sources = [*CUDA.glob("*.cu"), *CUDA.glob("*.h")]
    text = "\n".join(path.read_text() for path in sources if path.name != "dev.h")
    kernels = re.findall(r"\bLMD_KERNEL2?\([^;{]*?\)\s*(\w+)\(", text)
    assert kernels
    assert {name.split("<")[0] for name in compiled} == set(kernels)
    assert "__global__" not in text, "a kernel is declared with LMD_KERNEL"
    for name, by_target in compiled.items():
        assert set(by_target) == set(modules.make.TARGETS), name
