"""In IPython and in a real kernel, where those are installed: `make test-notebook`."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from queue import Empty
from typing import Any

import pytest
from conftest import notebook_cells
from scripted_models import write_directory

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.ipynb"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Says "tick tock" for ever."""
    says, longer = ["tick", " tock", "tick"], {"max_position_embeddings": 1 << 17}
    return write_directory(tmp_path_factory.mktemp("model"), says[:2], says, config=longer)[0]


SETUP = """
from lmdeploy_c import *
MODEL = {!r}
ENGINE = TurbomindEngineConfig(session_len=100000, num_threads=1)
FEW, ENDLESS = GenerationConfig(max_new_tokens=4), GenerationConfig(max_new_tokens=None)
"""


def test_the_output_cache_keeps_no_engine(model: Path) -> None:
    """A cell that ends in `pipe`, run again, leaves one engine."""
    shell = pytest.importorskip("IPython").InteractiveShell.instance()

    def run(cell: str) -> Any:
        done = shell.run_cell(cell, store_history=True)
        assert done.success

    run(SETUP.format(str(model)))
    engines = []
    for _ in range(3):
        run("pipe = pipeline(MODEL, ENGINE)\npipe")
        engines.append(weakref.ref(shell.user_ns["pipe"].engine))
        assert shell.user_ns["_"] == "" and shell.user_ns["_oh"] == {}
    run("session = pipe.chat('Hi', gen_config=FEW)\nsession")
    run("1 + 1")
    assert shell.user_ns["_"] == shell.user_ns["Out"][6] == 2, "other outputs are kept"
    gc.collect()
    assert [engine() is None for engine in engines] == [True, True, False]
    run("pipe.close(); del pipe, session")
    gc.collect()
    assert engines[2]() is None


@pytest.fixture(scope="module")
def kernel() -> Iterator[Any]:
    pytest.importorskip("ipykernel")
    manager, client = pytest.importorskip("jupyter_client").manager.start_new_kernel(
        kernel_name="python3"
    )
    try:
        yield manager, client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def execute(kernel: Any, cell: str, stop_after: str = "") -> tuple[str, str]:
    """Runs a cell: what it printed, and the name of its exception. stop_after: presses the
    notebook's stop once it has printed that."""
    manager, client = kernel
    sent, printed, error = client.execute(cell), "", ""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            message = client.get_iopub_msg(timeout=1)
        except Empty:
            continue
        if message["parent_header"].get("msg_id") != sent:
            continue
        kind, content = message["msg_type"], message["content"]
        if kind == "stream":
            printed += content["text"]
            if stop_after and stop_after in printed:
                stop_after = ""
                time.sleep(0.2)
                manager.interrupt_kernel()
        elif kind == "execute_result":
            printed += content["data"]["text/plain"]
        elif kind == "error":
            error = content["ename"]
        elif kind == "status" and content["execution_state"] == "idle":
            return printed, error
    raise AssertionError(f"the cell does not end: {printed}")


CALLS = {
    "a loop": "for i in range(9):\n    print('asked', i, flush=True)\n    pipe('Hi', ENDLESS)",
    "a stream": "print('asked 0', flush=True)\nfor piece in pipe.stream_infer('Hi', "
    "gen_config=ENDLESS): pass",
    "a session": "print('asked 0', flush=True)\npipe.chat('Hi', session, ENDLESS)",
}


def test_stop_in_a_kernel(model: Path, kernel: Any) -> None:
    begin = SETUP.format(str(model)) + "pipe = pipeline(MODEL, ENGINE)\nsession = pipe.session()"
    assert execute(kernel, begin) == ("", "")
    for cell in CALLS.values():
        assert execute(kernel, cell, stop_after="asked 0") == ("asked 0\n", "Interrupted")
        assert execute(kernel, "pipe('Hi', FEW).text") == ("'tick tocktick tock'", "")
    printed, error = execute(kernel, "len(session.history), session.response.finish_reason")
    assert (printed, error) == ("(1, 'abort')", "")


def test_stop_in_a_kernels_event_loop(model: Path, kernel: Any) -> None:
    cell = (
        "print('asked', flush=True)\nasync for piece in pipe.generate('Hi', ENDLESS, "
        "session=session): pass"
    )
    printed, error = execute(kernel, cell, stop_after="asked")
    assert printed == "asked\n" and error in ("CancelledError", "KeyboardInterrupt")
    assert execute(kernel, "pipe('Hi', FEW).text, len(session.history)") == (
        "('tick tocktick tock', 2)",
        "",
    )


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_example(path: Path, kernel: Any, tmp_path: Path) -> None:
    """Cell by cell, on a tiny model; what a cell ends in is shown."""
    assert execute(kernel, f"import os; os.chdir({str(tmp_path)!r})") == ("", "")
    for cell in notebook_cells(path):
        printed, error = execute(kernel, cell)
        assert error == "", printed
        assert printed or cell.startswith("from ")
