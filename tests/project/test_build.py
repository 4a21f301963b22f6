"""How the extension is built: what is compiled again, and what a source package holds."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: A project that setup.py builds in a moment.
SMALL = {
    "csrc/python/module.c": """
#include <Python.h>
#include "base/base.h"
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "_C"};
PyMODINIT_FUNC PyInit__C(void) { return base() ? PyModule_Create(&module) : NULL; }
""",
    "csrc/base/base.c": '#include "base/base.h"\nint base(void) { return 1; }\n',
    "csrc/base/base.h": "int base(void);\n",
    "csrc/base/alone.c": "int alone(void) { return 1; }\n",
    "csrc/cpu/kernels/isa_flags": "",
    "lmdeploy_c/version.py": '__version__ = "1.0"\n',
    "lmdeploy_c/__init__.py": "",
    "lmdeploy_c/gone.py": "",
    "pyproject.toml": """
[project]
name = "small"
dynamic = ["version"]
[tool.setuptools]
packages = ["lmdeploy_c"]
""",
}
#: A compiler that notes what it is asked to compile.
COMPILER = """#!/bin/sh
for word; do case $word in *.c) echo "$word" >> "$COMPILED";; esac; done
exec gcc "$@"
"""


class SmallProject:
    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "compiled"
        for name, text in SMALL.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        shutil.copy(ROOT / "setup.py", folder)
        compiler = folder / "gcc-that-notes"
        compiler.write_text(COMPILER)
        compiler.chmod(0o755)
        self.env = {**os.environ, "CC": str(compiler), "COMPILED": str(self.log)}

    def build(self, **switches: str) -> list[str]:
        """The files that a build compiled."""
        self.log.write_text("")
        subprocess.run(
            [sys.executable, "setup.py", "-q", "build"],
            cwd=self.folder,
            env={**self.env, **switches},
            check=True,
            capture_output=True,
        )
        return sorted(Path(line).name for line in self.log.read_text().split())

    def edit(self, name: str) -> None:
        with (self.folder / name).open("a") as file:
            file.write("/* edited */\n")


def test_a_build_compiles_what_changed(tmp_path: Path) -> None:
    project = SmallProject(tmp_path)
    everything = ["alone.c", "base.c", "module.c"]
    assert project.build() == everything
    assert project.build() == []
    project.edit("csrc/base/alone.c")
    assert project.build() == ["alone.c"]
    project.edit("csrc/base/base.h")
    assert project.build() == ["base.c", "module.c"]
    assert project.build(LMDEPLOY_C_DEBUG="1") == everything
    assert project.build() == []
    (tmp_path / "csrc/cpu/kernels/isa_flags").write_text(f"{os.uname().machine} some -O2\n")
    assert project.build() == everything


def test_a_module_that_is_gone_is_not_packaged(tmp_path: Path) -> None:
    project = SmallProject(tmp_path)
    project.build()
    [packaged] = tmp_path.glob("build/lib*/lmdeploy_c")
    assert {"gone.py", "version.py"} <= {path.name for path in packaged.iterdir()}
    (tmp_path / "lmdeploy_c" / "gone.py").unlink()
    project.build()
    left = sorted(path.name.partition(".")[0] for path in packaged.iterdir())
    assert left == ["_C", "__init__", "version"]


def test_a_source_package_holds_what_a_build_needs(tmp_path: Path) -> None:
    """On any machine: the kernels of every instruction set, and the CUDA library's sources."""
    code = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    command = [sys.executable, "-c", code, str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    [package] = tmp_path.glob("lmdeploy_c-*.tar.gz")
    with tarfile.open(package) as tar:
        held = {name.partition("/")[2] for name in tar.getnames()}
    folders = ["csrc", "cuda", "lmdeploy_c"]
    listed = subprocess.check_output(["git", "ls-files", *folders], cwd=ROOT, text=True)
    wanted = {name for name in listed.split() if not name.startswith("cuda/emu/")}
    assert "csrc/cpu/kernels/isa_neon.c" in wanted
    assert wanted | {"LICENSE", "NOTICE", "README.md", "pyproject.toml", "setup.py"} <= held
    assert not any(name.startswith(("tests", "docs", "build")) for name in held)
