"""Files that another program changes while they are open: an error or a model, never a signal.

A file that shrinks under a map is a SIGBUS, so nothing is mapped; and what was checked is what is
used, so a file that is written anew can give wrong weights, but no index out of bounds.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import packed_models as pm
import pytest
from conftest import DEVICE, GOLDEN, greedy, make_engine

from lmdeploy_c import _C
from lmdeploy_c.files.checkpoint import Checkpoint, open_checkpoint

PROMPT = [1, 2, 3, 4, 5]
DOCUMENTED = (_C.CheckpointError, _C.UnsupportedError)


def copy_gguf(tmp_path: Path) -> Path:
    return Path(shutil.copy(GOLDEN / "gguf" / "llama-kmix.gguf", tmp_path / "model.gguf"))


def copy_directory(tmp_path: Path) -> Path:
    return shutil.copytree(GOLDEN / "models" / "llama-bias", tmp_path / "model")


def make_packed(tmp_path: Path, form: str) -> Path:
    """A packed model in which gptq's columns have an order of their own (g_idx)."""
    rng = np.random.default_rng(0)
    config = pm.config_of("llama", form, 32)
    tensors = pm.packed_tensors(rng, form, config)
    if form == "gptq":
        config["quantization_config"]["desc_act"] = True
        for name in [name for name in tensors if name.endswith(".qweight")]:
            groups = np.arange(tensors[name].shape[0] * 8) // 32
            tensors[name.replace("qweight", "g_idx")] = rng.permutation(groups).astype(np.int32)
    return pm.write_model(tmp_path / form, config, tensors)


def make_awq(tmp_path: Path) -> Path:
    return make_packed(tmp_path, "awq")


def make_gptq(tmp_path: Path) -> Path:
    return make_packed(tmp_path, "gptq")


def make_compressed(tmp_path: Path) -> Path:
    return make_packed(tmp_path, "compressed")


Maker = Callable[[Path], Path]
MAKERS: list[Maker] = [copy_gguf, copy_directory, make_awq, make_gptq, make_compressed]


def weights_of(path: Path) -> Path:
    return path if path.is_file() else path / "model.safetensors"


def load(checkpoint: Checkpoint, progress: Callable[[int, int], object] | None = None) -> _C.Model:
    return _C.Model(
        checkpoint.config, checkpoint.source, device=DEVICE, num_threads=2, progress=progress
    )


def answer(model: _C.Model) -> list[int]:
    engine = make_engine(model)
    try:
        return greedy(engine, PROMPT, 8)
    finally:
        engine.close()


def count_reports(path: Path) -> int:
    reports: list[int] = []
    load(open_checkpoint(path), lambda done, total: reports.append(done))
    return len(reports)


@pytest.mark.parametrize("make", MAKERS)
def test_no_file_is_mapped(tmp_path: Path, make: Maker) -> None:
    path = make(tmp_path)
    seen: list[str] = []
    checkpoint = open_checkpoint(path)
    model = load(checkpoint, lambda *_: seen.append(Path("/proc/self/maps").read_text()))
    seen.append(Path("/proc/self/maps").read_text())
    assert len(seen) > 2 and not any(weights_of(path).name in maps for maps in seen)
    del model, checkpoint


@pytest.mark.parametrize("make", MAKERS)
def test_a_file_that_shrinks_is_refused(tmp_path: Path, make: Maker) -> None:
    path = make(tmp_path)
    size = weights_of(path).stat().st_size
    for left in (0, 1, 4096, size // 2, size - 1):
        checkpoint = open_checkpoint(path)
        content = weights_of(path).read_bytes()
        os.truncate(weights_of(path), left)
        with pytest.raises(_C.CheckpointError, match="has no byte|is empty|truncated"):
            load(checkpoint)
        weights_of(path).write_bytes(content)


def test_a_tensor_of_a_file_that_has_shrunk_is_refused(tmp_path: Path) -> None:
    file = _C.Gguf(copy_gguf(tmp_path))
    before = (file.metadata, file.tensors, file.specs)
    os.truncate(file.path, 100)
    for name in file.tensors:
        with pytest.raises(_C.CheckpointError, match="another program has changed it"):
            file.dequantize(name)
    assert str((file.metadata, file.tensors, file.specs)) == str(before)


@pytest.mark.parametrize("make", MAKERS)
def test_a_file_that_shrinks_during_a_load(tmp_path: Path, make: Maker) -> None:
    """Whatever was read before is right; what is read afterwards is refused."""
    path = make(tmp_path)
    weights = weights_of(path)
    content = weights.read_bytes()
    expected = answer(load(open_checkpoint(path)))
    n_reports, n_refused = count_reports(path), 0
    for i in range(n_reports):
        reports = 0

        def shrink(done: int, total: int, last: int = i) -> None:
            nonlocal reports
            if reports == last:
                os.truncate(weights, 64)
            reports += 1

        try:
            assert answer(load(open_checkpoint(path), shrink)) == expected
        except _C.CheckpointError:
            n_refused += 1
        weights.write_bytes(content)
    assert n_refused >= n_reports - 1


@pytest.mark.parametrize("make", MAKERS)
def test_a_file_that_shrinks_at_any_moment(tmp_path: Path, make: Maker) -> None:
    path = make(tmp_path)
    weights = weights_of(path)
    content = weights.read_bytes()
    expected = answer(load(open_checkpoint(path)))
    rng = np.random.default_rng(0)
    for _ in range(30):
        delay, left = float(rng.uniform(0, 0.004)), int(rng.integers(len(content)))
        timer = threading.Timer(delay, os.truncate, (weights, left))
        timer.start()
        with contextlib.suppress(*DOCUMENTED):
            assert answer(load(open_checkpoint(path))) == expected
        timer.join()
        weights.write_bytes(content)


@pytest.mark.parametrize("make", MAKERS)
def test_a_file_that_is_written_anew_during_a_load(tmp_path: Path, make: Maker) -> None:
    """Its weights may be any mixture; nothing is out of bounds."""
    path = make(tmp_path)
    weights = weights_of(path)
    content = weights.read_bytes()
    rng = np.random.default_rng(0)
    for i in range(count_reports(path)):
        reports = 0

        def write(done: int, total: int, last: int = i) -> None:
            nonlocal reports
            if reports == last:
                weights.write_bytes(rng.bytes(len(content)))
            reports += 1

        try:
            engine = make_engine(load(open_checkpoint(path), write))
            output = engine.submit(PROMPT, max_new_tokens=4).read(60)
            assert output is not None
            engine.close()
        except DOCUMENTED:
            pass
        weights.write_bytes(content)


def test_an_order_of_columns_is_checked_again_when_it_is_read_again(tmp_path: Path) -> None:
    """g_idx is an index: sizes are added up with one content, and loading finds another."""
    path = make_gptq(tmp_path)
    weights = weights_of(path)
    checkpoint = open_checkpoint(path)
    orders = [spec for spec in checkpoint.source if spec[0].endswith("g_idx")]  # type: ignore[union-attr]

    def write(done: int, total: int) -> None:
        with weights.open("r+b") as file:
            for spec in orders:
                file.seek(spec[4])
                file.write(np.full(spec[5] // 4, 2**30, np.int32).tobytes())

    assert orders
    with pytest.raises(_C.CheckpointError, match=r"g_idx.*into group 1073741824"):
        load(checkpoint, write)
