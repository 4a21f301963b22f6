"""A device that fails: what was asked gets its error, later requests are refused, the process
lives.

Faults are the emulated runtime's (EMU_FAIL), so these run where LMDEPLOY_C_CUDA_LIBRARY names an
emulated library (`make test-device`, `make test-emu`).
"""

import os
import subprocess
import sys

import pytest
from conftest import DEVICE, GOLDEN

from lmdeploy_c import _C


def _is_emulated() -> bool:
    return DEVICE != "cpu" and _C.gpu_info(0)["name"] == "Emulated GPU"


pytestmark = pytest.mark.skipif(not _is_emulated(), reason="the device is not an emulated one")

SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from conftest import DEVICE, GOLDEN, load_model, make_engine
try:
    model = load_model(GOLDEN / "models" / {model!r})
    engine = make_engine(model, n_blocks=40)
except Exception as e:
    print("refused", type(e).__name__, e)
    raise SystemExit
requests = [engine.submit([5, 6, 7], max_new_tokens=40) for _ in range(3)]
for request in requests:
    while True:
        output = request.read(60)
        if output.finish_reason is not None:
            break
    print(output.finish_reason, output.error_message)
try:
    engine.submit([5], max_new_tokens=1)
    print("accepted")
except RuntimeError as e:
    print("later", e)
engine.close()
"""


def _run(**environment: str) -> list[str]:
    code = SCRIPT.format(tests=str(GOLDEN.parent), model="llama-f16-hd64-gqa1")
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_without_faults() -> None:
    assert _run() == ["length None"] * 3 + ["accepted"]


#: Calls that steps make, and the one of each that fails: late enough for all requests to run.
CALLS_OF_A_STEP = {
    "cudaMemcpyAsync": 90,
    "cudaStreamBeginCapture": 1,
    "cudaStreamEndCapture": 1,
    "cudaGraphInstantiate": 1,
    "cudaGraphLaunch": 5,
    "cudaEventRecord": 30,
    "cudaEventSynchronize": 30,
    "run": 300,
}


@pytest.mark.parametrize(("call", "n"), CALLS_OF_A_STEP.items())
def test_a_call_that_fails_in_a_step(call: str, n: int) -> None:
    *answers, later = _run(EMU_FAIL=f"{n}:{call}")
    assert len(answers) == 3
    for answer in answers:
        assert answer.startswith("error ") and "cuda:0 failed" in answer
    assert later.startswith("later ")


@pytest.mark.parametrize("call", ["cudaMalloc", "cudaHostAlloc", "cudaStreamCreateWithFlags"])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_call_that_fails_before(call: str, n: int) -> None:
    lines = _run(EMU_FAIL=f"{n}:{call}")
    assert lines[-1].startswith(("refused", "accepted"))
    if lines[-1].startswith("refused"):
        assert len(lines) == 1


def test_too_little_memory_says_how_much() -> None:
    (line,) = _run(EMU_MEMORY_MB="1", LMDEPLOY_C_CUDA_KERNELS="sm80")
    assert line.startswith("refused MemoryError") and "MiB" in line
