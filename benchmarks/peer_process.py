"""A worker of peers.py seen from outside: asked by lines of JSON, stopped while others run."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
from pathlib import Path
from typing import Any

from common import without_paths

WORKERS = Path(__file__).parent / "workers"
TIMEOUT_S = 1800.0


class PeerError(Exception):
    """The worker said why not, died, or took too long."""


class PeerProcess:
    """Runs only inside ask()."""

    def __init__(self, python: Path, worker: str, log: Path) -> None:
        self.version = ""
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                [str(python), str(WORKERS / worker)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
                cwd=WORKERS,  # away from the sources: the installed package is measured
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def ask(self, request: dict[str, Any], timeout: float = TIMEOUT_S) -> dict[str, Any]:
        """Wakes the worker, gets one answer, stops it again. PeerError ends with the reason."""
        process = self.process
        if process.poll() is not None:
            raise PeerError(self.last_words())
        assert process.stdin is not None and process.stdout is not None
        os.killpg(process.pid, signal.SIGCONT)
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            raise PeerError(self.last_words()) from None
        ready, _, _ = select.select([process.stdout], [], [], timeout)
        line = process.stdout.readline() if ready else b""
        if not ready:
            self.kill()
            raise PeerError(f"took more than {timeout:.0f} s")
        if not line.endswith(b"\n"):
            raise PeerError(self.last_words())
        os.killpg(process.pid, signal.SIGSTOP)
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise PeerError(without_paths(reply["error"]))
        return reply

    def last_words(self) -> str:
        code = self.process.wait()
        lines = self.log.read_text(errors="replace").strip().splitlines()
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        last = without_paths(lines[-1])[:200] if lines else "without a word"
        return f"died ({how}): {last}"

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()
