"""Runs commands as the parts of one test, and prints a line for each and what became of all.

A part that fails, hangs or says that something failed does not stop the others. All output goes to
one log.
"""

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[2]
#: What a GPU has answered to each wrapper of dev.h.
CONFORMANCE = ROOT / "tests" / "cuda" / "conformance.txt"
#: Tests of tests/core whose subject is what a device computes; the others would test the host once
#: more. The longest come first.
DEVICE_TESTS = ("exactness", "engine", "golden", "packed_weights", "sampler", "snapshots")


@dataclass(frozen=True)
class Part:
    """A command, the seconds that it may take, and what it needs.

    environment: added to this process's. needs: a program without which the part is left out.
    """

    name: str
    command: Sequence[str]
    seconds: int
    environment: dict[str, str] = field(default_factory=dict)
    needs: str = ""


@dataclass(frozen=True)
class Result:
    """verdict: "passed", "FAILED" or "left out". said: the last line of the output that has a word.
    n_passed, n_failed: what that line counts; a part that counts nothing is one."""

    verdict: str
    seconds: float
    said: str
    n_passed: int
    n_failed: int


def _count(said: str, word: str) -> int | None:
    found = re.search(rf"(\d+) {word}", said)
    return int(found.group(1)) if found else None


def _judge(part: Part, code: int, seconds: float, output: str) -> Result:
    lines = [line.strip() for line in output.splitlines() if re.search(r"\w", line)]
    said = lines[-1] if lines else ""
    n_failed, n_passed = _count(said, "failed") or 0, _count(said, "passed")
    if code == 0 and n_failed == 0:
        return Result("passed", seconds, said, 1 if n_passed is None else n_passed, 0)
    said = said if code != 124 else f"longer than {part.seconds} s"
    return Result("FAILED", seconds, said, n_passed or 0, max(n_failed, 1))


def _run(part: Part, output: IO[bytes]) -> Result:
    if part.needs and not shutil.which(part.needs):
        return Result("left out", 0.0, f"{part.needs} is not installed", 0, 0)
    start = time.monotonic()
    try:
        code = subprocess.run(
            part.command,
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **part.environment},
            timeout=part.seconds,
        ).returncode
    except subprocess.TimeoutExpired:
        code = 124  # as timeout(1)
    except OSError as error:
        return Result("FAILED", 0.0, str(error), 0, 1)
    output.seek(0)
    text = output.read().decode(errors="replace")
    return _judge(part, code, time.monotonic() - start, text)


def run_parts(parts: Sequence[Part], log: Path, n_at_once: int = 1) -> int:
    """Runs the parts, n_at_once of them side by side. Returns the exit status: 1 if one failed."""
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(b"")

    def run(part: Part) -> Result:
        with tempfile.TemporaryFile() as output:
            result = _run(part, output)
            output.seek(0)
            title = f"==== {part.name}: {' '.join(part.command)}\n"
            with log.open("ab") as out:
                out.write(title.encode() + output.read())
        line = f"{part.name:<28}{result.verdict:<10}{result.seconds:>7.1f} s  {result.said[:90]}"
        print(line, flush=True)
        return result

    with ThreadPoolExecutor(n_at_once) as pool:
        results = list(pool.map(run, parts))
    n_failed = sum(result.n_failed for result in results)
    print(f"the log is {log}")
    print(f"{sum(result.n_passed for result in results)} passed, {n_failed} failed")
    return int(n_failed > 0)
