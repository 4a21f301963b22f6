"""Other processes on the same cores: they cost their share, not more."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import SLOWER, greedy, load_model

from lmdeploy_c import _C

#: A busy process, which ends with the one that started it.
BUSY = """import os
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(10**6): pass
"""


@contextmanager
def busy_processes(n: int) -> Iterator[None]:
    others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(n)]
    time.sleep(0.3)
    try:
        yield
    finally:
        for other in others:
            other.kill()
        for other in others:
            other.wait()


def tokens_per_second(engine: _C.Engine) -> float:
    rates = []
    for _ in range(3):
        start = time.perf_counter()
        assert len(greedy(engine, [1, 2, 3], 48)) == 48
        rates.append(48 / (time.perf_counter() - start))
    return statistics.median(rates)


@pytest.mark.skipif(SLOWER > 1, reason="times itself")
def test_a_busy_neighbour_costs_its_share(smollm2_path: Path) -> None:
    """As many busy processes as threads leave half of the machine. An engine whose threads wait
    for one another at barriers falls to a tenth."""
    model = load_model(smollm2_path)
    engine = _C.Engine(model, session_len=128, n_blocks=8)
    shares = []
    try:
        for _ in range(3):
            alone = tokens_per_second(engine)
            with busy_processes(model.num_threads):
                shares.append(tokens_per_second(engine) / alone)
    finally:
        engine.close()
    assert statistics.median(shares) > 0.2, shares
