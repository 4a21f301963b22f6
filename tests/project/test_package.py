"""The package as a whole: light to import, and its top level."""

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lmdeploy_c


def test_import_is_light() -> None:
    code = (  # processor time: what else the machine does should not count
        "import numpy, sys, time\n"
        "t = time.process_time(); import lmdeploy_c, lmdeploy_c._C\n"
        "print(time.process_time() - t)\n"
        "heavy = {'tokenizers', 'jinja2', 'tqdm', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    times = []
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        times.append(float(done.stdout))
    assert min(times) < 0.15, times


def test_numpy_is_imported_when_it_is_needed() -> None:
    code = "import lmdeploy_c, sys; assert not {'numpy', 'lmdeploy_c._C'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("other_core", [None, "_C.cpython-30-x86_64-linux-gnu.so"])
def test_python_at_the_root_of_a_clone(tmp_path: Path, other_core: str | None) -> None:
    """The sources there, which come first, lack the core, or have that of another Python; the
    installed package has it."""
    installed = Path(lmdeploy_c.__file__).parent
    without_core = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(installed, tmp_path / "lmdeploy_c", ignore=without_core)
    if other_core is not None:
        (tmp_path / "lmdeploy_c" / other_core).touch()
    code = "import lmdeploy_c; print(lmdeploy_c.__file__); lmdeploy_c.Engine"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed.parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "lmdeploy_c" / "__init__.py")


def test_the_top_level() -> None:
    for name in lmdeploy_c.__all__:
        assert getattr(lmdeploy_c, name) is not None
    importlib.import_module("lmdeploy_c.pipeline")
    assert callable(lmdeploy_c.pipeline), "the module does not hide the function"
    assert lmdeploy_c.version_info == tuple(int(p) for p in lmdeploy_c.__version__.split("."))
    with pytest.raises(AttributeError, match="not part of release"):
        _ = lmdeploy_c.client
    with pytest.raises(ImportError, match="KVTransferConfig"):
        from lmdeploy_c import KVTransferConfig  # noqa: F401
    assert Path(lmdeploy_c.__file__).with_name("py.typed").exists()


def test_the_data_of_the_package_are_small() -> None:
    folder = Path(lmdeploy_c.__file__).parent / "lite" / "data"
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert sizes.keys() == {"README.md", "builtin.jsonl"}
    assert sum(sizes.values()) < 300_000
