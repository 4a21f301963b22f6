"""What the commands say on standard error: one line each."""

from __future__ import annotations

import sys

PROG = "lmdeploy_c"


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def complain(error: object) -> None:
    note(f"{PROG}: error: " + " ".join(str(error).split()))
