"""A run that is killed continues where it stopped, with the same bits; nothing half-done loads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import GOLDEN

from lmdeploy_c.lite import driver, quantize
from lmdeploy_c.lite.commands import smooth_recipe
from lmdeploy_c.lite.report import FILE
from lmdeploy_c.lite.unfinished import FOLDER

GGUF = GOLDEN / "gguf" / "llama-float.gguf"
TEXT = "the quick brown fox jumps over the lazy dog, and so on; " * 20
OPTIONS: dict[str, Any] = {"w_group_size": 32, "calib_seqlen": 64, "num_threads": 2}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text").write_text(TEXT)
    return tmp_path / "text"


def files_of(folder: Path) -> dict[str, bytes]:
    """All but the report, which has times."""
    files = (p for p in sorted(folder.iterdir()) if p.is_file() and p.name != FILE)
    return {p.name: p.read_bytes() for p in files}


class Stop(Exception):
    pass


def stop_after(monkeypatch: Any, n: int) -> list[int]:
    """Makes the n-th layer's quantisation fail; the layers that are quantised go into the list."""
    seen: list[int] = []
    original = driver._Job._made

    def quantise(self: Any, layer: int, *args: Any) -> Any:
        if len(seen) == n:
            raise Stop
        seen.append(layer)
        return original(self, layer, *args)

    monkeypatch.setattr(driver._Job, "_made", quantise)
    return seen


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "best"},
        {"method": "best", "format": "gguf", "w_group_size": None},
        {"method": "awq"},
        {"method": "gptq"},
        {"method": "gptq", "format": "gptq", "desc_act": True},
        {"method": smooth_recipe(), "format": "int-quantized", "w_bits": 8, "w_sym": True,
         "w_group_size": -1},
    ],
    ids=["best", "gguf", "awq", "gptq", "desc_act", "smooth_quant"],
)  # fmt: skip
def test_a_stopped_run_continues_with_the_same_bits(
    tmp_path: Path, text: Path, monkeypatch: Any, changes: dict[str, Any]
) -> None:
    options = {**OPTIONS, **changes, "calib_dataset": text}
    whole = quantize(GGUF, tmp_path / "whole", **options)
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(Stop):
            quantize(GGUF, out, **options)
    assert [p.name for p in out.iterdir()] == [FOLDER]
    with monkeypatch.context() as patch:
        seen = stop_after(patch, 99)
        again = quantize(GGUF, out, **options)
        assert list(again) == list(whole) and again.evaluation == whole.evaluation
        assert seen == [1]
    assert files_of(out) == files_of(tmp_path / "whole")
    assert not (out / FOLDER).exists()


def test_ctrl_c_says_how_to_continue(
    tmp_path: Path, text: Path, monkeypatch: Any, caplog: Any
) -> None:
    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(driver._Job, "_made", stop)
    with pytest.raises(KeyboardInterrupt):
        quantize(GGUF, tmp_path / "out", calib_dataset=text, **OPTIONS)
    assert f"continues with what is in {tmp_path / 'out' / FOLDER}" in caplog.text


def test_another_job_begins_anew(tmp_path: Path, text: Path, monkeypatch: Any) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(Stop):
            quantize(GGUF, out, method="rtn", calib_dataset=text, **OPTIONS)
    with monkeypatch.context() as patch:
        seen = stop_after(patch, 99)
        quantize(GGUF, out, method="rtn", calib_dataset=None, **OPTIONS)
        assert seen == [0, 1]


def test_kills_at_any_moment(tmp_path: Path, text: Path) -> None:
    """SIGKILL after ever longer: what is there never loads half-done, and the end is the same."""
    code = (
        "import sys; from lmdeploy_c.lite import quantize; "
        f"quantize({str(GGUF)!r}, sys.argv[1], calib_dataset={str(text)!r}, **{OPTIONS!r})"
    )
    whole, out = tmp_path / "whole", tmp_path / "out"
    command = [sys.executable, "-c", code]
    began = time.monotonic()
    subprocess.run([*command, str(whole)], check=True, timeout=300)
    took = time.monotonic() - began
    for i in range(1, 9):
        process = subprocess.Popen([*command, str(out)])
        time.sleep(took * i / 8 * 0.95)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if (out / "config.json").exists():
            assert files_of(out) == files_of(whole)
    subprocess.run([*command, str(out)], check=True, timeout=300)
    assert files_of(out) == files_of(whole)
    assert sorted(os.listdir(out)) == sorted(os.listdir(whole))
