"""A few mutants of tokenizer.json, always the same; `make fuzz` makes others without end."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "fuzz" / "fuzz_tokenizer.py"


def test_mutants_open_or_are_refused() -> None:
    """In a process of its own, with bounded memory: an abort, a panic or a hang ends it."""
    command = [sys.executable, str(SCRIPT), "--mutants", "600", "--seed", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "panicked" not in done.stderr, "what makes the library panic is refused before"
    n_made, n_opened = (
        int(line.split()[i]) for line in done.stdout.splitlines()[-1:] for i in (0, 2)
    )
    assert n_made == 600
    assert 100 < n_opened < 500, "the mutants are too wild, or too tame"
