"""The layers that are done of a model being quantised, in a folder of its work_dir: what a killed
run leaves, and the next one continues from."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files import safetensors
from .report import layer_of_json, plain
from .report_values import LayerReport
from .shards import Part, Tensor, whole_file, write_json, write_shard

FOLDER = "unfinished"
REMOVED = "unfinished.removed"
JOB = "job.json"
WIDE = "-wide"
#: Types of what is kept: halves are never rounded again, so that bf16 is not needed.
DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I32": np.int32, "I64": np.int64,
          "I8": np.int8, "U8": np.uint8}  # fmt: skip


class Unfinished:
    """The folder. job: all that the result depends on; a folder of another job is emptied."""

    def __init__(self, work_dir: Path, job: Mapping[str, Any]) -> None:
        self.folder = work_dir / FOLDER
        shutil.rmtree(work_dir / REMOVED, ignore_errors=True)
        if not self._is_of(job):
            if self.folder.exists():
                self.remove()
            self.folder.mkdir(parents=True)
            write_json(self.folder / JOB, job)

    def _is_of(self, job: Mapping[str, Any]) -> bool:
        try:
            found = json.loads((self.folder / JOB).read_text("utf-8"))
        except (OSError, ValueError):
            return False
        return bool(found == json.loads(json.dumps(job)))

    def _path(self, layer: int, kind: str = "") -> Path:
        return self.folder / f"layer-{layer:05}{kind}.safetensors"

    # ---- windows ----

    def windows(self) -> list[list[int]] | None:
        """The calibration's tokens, where they are known already."""
        try:
            with np.load(self.folder / "windows.npz", allow_pickle=False) as file:
                ids, lengths = file["ids"], file["lengths"]
        except (OSError, ValueError, KeyError):
            return None
        ends = np.cumsum(lengths)
        return [ids[end - n : end].tolist() for end, n in zip(ends, lengths, strict=True)]

    def keep_windows(self, windows: Sequence[Sequence[int]]) -> None:
        ids = np.array([i for window in windows for i in window], np.int32)
        with whole_file(self.folder / "windows.npz") as file:
            np.savez(file, ids=ids, lengths=np.array([len(window) for window in windows]))

    # ---- layers ----

    def has(self, layer: int) -> bool:
        """Whether the layer is done. Its tensors are written last, so that all is there."""
        return self._path(layer).is_file()

    def n_done(self) -> int:
        """How many layers are done before the first that is not."""
        return next(layer for layer in itertools.count() if not self.has(layer))

    def states(self, layer: int) -> Path:
        """The file of the hidden states that a layer begins with."""
        return self.folder / f"states-{layer:05}.f32"

    def keep(
        self, layer: int, tensors: Mapping[Tensor, NDArray[Any]],
        wide: Mapping[Tensor, NDArray[Any]], report: LayerReport,
    ) -> None:  # fmt: skip
        """wide: the linears' tensors in more bits, where it is decided later what is written."""
        write_json(self._path(layer).with_suffix(".json"), plain(report))
        for kind, arrays in (((WIDE, wide),) if wide else ()) + (("", tensors),):
            parts = [Part((tensor,), lambda a=array: [a]) for tensor, array in arrays.items()]  # type: ignore[misc]
            write_shard(self._path(layer, kind), parts)

    def report(self, layer: int) -> LayerReport:
        return layer_of_json(json.loads(self._path(layer).with_suffix(".json").read_text("utf-8")))

    def tensors(self, layer: int, kind: str = "") -> list[Part]:
        """The layer's tensors, each read when its turn comes. kind: WIDE: those in more bits."""
        parts, file = [], self._path(layer, kind)
        for name, dtype, shape, path, offset, n_bytes in safetensors.read_specs(file):

            def read(
                dtype: str = dtype, shape: tuple[int, ...] = shape, path: str = path,
                offset: int = offset, n_bytes: int = n_bytes,
            ) -> list[NDArray[Any]]:  # fmt: skip
                kind = np.dtype(DTYPES[dtype])
                count = n_bytes // kind.itemsize
                return [np.fromfile(path, kind, count, offset=offset).reshape(shape)]

            parts.append(Part((Tensor(name, dtype, tuple(shape)),), read))
        return parts

    def remove(self) -> None:
        """All at once, whenever a kill comes."""
        removed = self.folder.rename(self.folder.with_name(REMOVED))
        shutil.rmtree(removed)
