"""What the documentation shows runs: the examples, and the README's Python."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import notebook_cells

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_example(path: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(path)], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook(path: Path, tmp_path: Path) -> None:
    """Its code runs as one program, on a tiny model (`make test-notebook`: in a kernel)."""
    book = json.loads(path.read_text())
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert book["cells"][0]["cell_type"] == "markdown"
    assert all(cell.get("outputs", []) == [] for cell in book["cells"]), (
        "it is kept without outputs"
    )
    program = tmp_path / "notebook.py"
    program.write_text("\n".join(notebook_cells(path)))
    done = subprocess.run(
        [sys.executable, str(program)], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_examples_are_numbered_and_say_what_they_show() -> None:
    assert "01_hello" in [p.stem for p in EXAMPLES]
    assert all(re.fullmatch(r"\d\d_\w+", path.stem) for path in [*EXAMPLES, *NOTEBOOKS])
    for path in EXAMPLES:
        assert path.read_text().startswith('"""')


def test_the_readmes_python_runs(tmp_path: Path) -> None:
    """Its blocks run in order as one program, as a reader would type them."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    assert blocks
    program = tmp_path / "readme.py"
    program.write_text("\n".join(blocks))
    done = subprocess.run(
        [sys.executable, str(program)], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
