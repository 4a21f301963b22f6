"""How parts of the CUDA tests run: what fails, hangs or is missing is told, and stops nothing."""

import sys
import types
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "cuda"


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.delitem(sys.modules, "parts", raising=False)
    import parts

    return parts


def program(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def test_each_part_is_told_and_counted(
    parts: types.ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = [
        parts.Part("counts", program("print('7 passed, 0 failed')"), 60),
        parts.Part("counts nothing", program("print('all is well')"), 60),
        parts.Part("says that it failed", program("print('3 passed, 2 failed')"), 60),
        parts.Part("ends with an error", program("raise SystemExit('went wrong')"), 60),
        parts.Part("hangs", program("import time; time.sleep(60)"), 1),
        parts.Part("is not there", [str(tmp_path / "none")], 60),
        parts.Part("needs more", program(""), 60, needs="no-such-program-anywhere"),
        parts.Part("sees", program("import os; print(os.environ['X'])"), 60, {"X": "the value"}),
    ]
    assert parts.run_parts(listed, tmp_path / "log", n_at_once=3) == 1
    *lines, _, total = capsys.readouterr().out.splitlines()
    found = {part.name: next(line for line in lines if line.startswith(part.name))[28:38].strip()
             for part in listed}  # fmt: skip
    assert [name for name, verdict in found.items() if verdict == "FAILED"] == [
        "says that it failed",
        "ends with an error",
        "hangs",
        "is not there",
    ]
    assert found["needs more"] == "left out"
    assert total == "12 passed, 5 failed"
    log = (tmp_path / "log").read_text()
    assert all(text in log for text in ("went wrong", "all is well", "the value"))


def test_all_is_well(
    parts: types.ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = [parts.Part(str(i), program("print('2 passed in 0.1s')"), 60) for i in range(3)]
    assert parts.run_parts(listed, tmp_path / "log") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "6 passed, 0 failed"
