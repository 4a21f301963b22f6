"""What the tests share: golden data, and engines on the tiny models."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmdeploy_c import _C
from lmdeploy_c.files.checkpoint import open_checkpoint, resolve_model

#: Fixtures that are not here: a server's.
pytest_plugins = ("served_models",)

GOLDEN = Path(__file__).parent / "golden"
#: How much longer things may take under a sanitizer.
SLOWER = 5.0 if "san" in os.environ.get("LD_PRELOAD", "") else 1.0
NEAR_TIE = 0.05  # a gap between the two largest logits below which either token is right
#: Where the tests' models run; LMDEPLOY_C_TEST_DEVICE=cuda takes them to a GPU.
DEVICE = os.environ.get("LMDEPLOY_C_TEST_DEVICE", "cpu")


def notebook_cells(path: Path) -> list[str]:
    """The code of a notebook, cell by cell, on a tiny model in place of the embedded one."""
    cells = json.loads(path.read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    tiny = f"MODEL = {str(GOLDEN / 'gguf' / 'llama-float.gguf')!r}\n"
    assert sum("MODEL = None" in cell for cell in code) == 1
    return [cell.replace("MODEL = None", tiny, 1) for cell in code]


def device_name() -> str:
    """Of the device that DEVICE stands for: "cpu" or "cuda"."""
    return str(_C.device_info(DEVICE)["name"])


def exact_kv_bits() -> int:
    """kv_bits of the most exact KV cache that the device has."""
    return {"cpu": 32, "cuda": 16}[device_name()]


def logits_tolerance() -> float:
    """How far logits with that cache may be from exact ones, as a part of the largest of these.

    A GPU rounds activations, and what its KV cache holds, to halves.
    """
    return {"cpu": 1e-3, "cuda": 6e-3}[device_name()]


def load_model(path: Path, num_threads: int | None = None) -> _C.Model:
    checkpoint = open_checkpoint(path)
    return _C.Model(checkpoint.config, checkpoint.source, device=DEVICE, num_threads=num_threads)


def make_engine(model: _C.Model, **options: Any) -> _C.Engine:
    defaults: dict[str, Any] = {"session_len": 640, "n_blocks": 64, "max_batch_size": 32}
    return _C.Engine(model, **{**defaults, **options})


@dataclass
class Answer:
    """Everything a request produced."""

    token_ids: list[int]
    logprobs: list[dict[int, float]]
    logits: np.ndarray | None  # [n_rows, vocab_size]
    finish_reason: str
    ppl: float | None


def read_all(request: _C.Request) -> Answer:
    """Reads a request to its end; fails the test on an error."""
    tokens: list[int] = []
    logprobs: list[dict[int, float]] = []
    logits: list[np.ndarray] = []
    while True:
        output = request.read(300)
        assert output is not None, "no output within 300 s"
        assert output.finish_reason != "error", output.error_message
        tokens += output.token_ids
        logprobs += output.logprobs or []
        if output.logits is not None:
            logits.append(output.logits)
        if output.finish_reason is not None:
            rows = np.concatenate(logits) if logits else None
            return Answer(tokens, logprobs, rows, output.finish_reason, output.ppl)


def greedy(engine: _C.Engine, prompt: Sequence[int], n: int) -> list[int]:
    return read_all(engine.submit(prompt, max_new_tokens=n)).token_ids


@pytest.fixture(scope="session", autouse=True)
def _away_from_the_sources() -> None:
    """Python programs that tests start then import the installed package, not the folder here."""
    os.chdir(Path(__file__).parent)


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_reaches_python() -> None:
    """A shell starts background jobs with SIGINT ignored, and child processes inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_model() -> _C.Model:
    return load_model(GOLDEN / "models" / "llama-gqa-tied", num_threads=2)


@pytest.fixture
def tiny_engine(tiny_model: _C.Model) -> Iterator[_C.Engine]:
    engine = make_engine(tiny_model)
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    return resolve_model(None)


@pytest.fixture(scope="session")
def smollm2(smollm2_path: Path) -> _C.Model:
    return load_model(smollm2_path)
