"""`calibrate`: what each linear of a model reads, column by column, as a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..progress import layers_progress
from .calibration_data import windows as windows_of
from .commands import logger, open_source
from .documents import Dataset
from .layers import INPUTS, Layers, input_of, layer_of
from .shards import whole_file
from .source import Source

FILE = "inputs_stats.npz"


@dataclass(frozen=True)
class InputReport:
    """What the linears of one input read.

    Attributes:
        layer: From 0.
        linears: The modules that read it.
        absmax: [n_in] the largest |x| of each column.
        absmean: [n_in] the mean |x| of each column.
    """

    layer: int
    linears: tuple[str, ...]
    absmax: NDArray[np.float32]
    absmean: NDArray[np.float32]

    @property
    def outlier(self) -> int:
        """The column with the largest value."""
        return int(self.absmax.argmax())

    @property
    def outlier_ratio(self) -> float:
        """The largest value, over the largest of the median column; inf where that is 0."""
        middle = float(np.median(self.absmax))
        return float(self.absmax.max()) / middle if middle else float("inf")

    def __str__(self) -> str:
        return (
            f"{', '.join(self.linears)}: column {self.outlier} reaches {self.absmax.max():.4g}, "
            f"{self.outlier_ratio:.4g} times the median column"
        )


def _report(source: Source, layer: int, group: str, sums: object) -> InputReport:
    from .._C import InputSums

    assert isinstance(sums, InputSums)
    names = [n for n in source.linears() if layer_of(n) == layer and input_of(n) == group]
    mean = (sums.absolute() / sums.n_tokens).astype(np.float32)
    modules = tuple(name.removesuffix(".weight") for name in names)
    return InputReport(layer, modules, sums.largest(), mean)


def _write(folder: Path, reports: list[InputReport]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        f"{kind}.{name}": getattr(report, kind)
        for kind in ("absmax", "absmean")
        for report in reports
        for name in report.linears
    }
    with whole_file(folder / FILE) as file:
        np.savez(file, **arrays)


def calibrate(
    model: str | Path | None = None,
    calib_dataset: Dataset = "builtin",
    calib_samples: int | None = None,
    calib_seqlen: int = 512,
    work_dir: str | Path = "./work_dir",
    device: str = "cpu",
    w_bits: int = 4,
    w_group_size: int | None = None,
    search_scale: bool = False,
    dtype: str = "auto",
    batch_size: int = 1,
    trust_remote_code: bool = False,
    *,
    num_threads: int | None = None,
) -> list[InputReport]:
    """Writes what a model's linears read into work_dir/inputs_stats.npz, for numpy.load: for each
    linear "absmax.NAME" and "absmean.NAME", fp32 [n_in], where LMDeploy has a pickle of these.
    Returns the same, an item for each input of each layer.

    model, work_dir, calib_dataset, calib_samples, calib_seqlen, num_threads: as `quantize`. w_bits,
    w_group_size, search_scale, dtype and batch_size are LMDeploy's and change nothing: texts are
    read one after another, in the engine's own precision. Raises what `quantize` raises for a model
    and for data.
    """
    del w_bits, w_group_size, dtype
    if search_scale:
        logger.warning("search_scale is for auto_awq and smooth_quant; calibrate writes no scales")
    source = open_source(
        model, device=device, batch_size=batch_size, trust_remote_code=trust_remote_code
    )
    windows = windows_of(
        source, calib_dataset, samples=calib_samples, seqlen=calib_seqlen, num_threads=num_threads
    )
    reports = _read(source, windows, num_threads)
    _write(Path(work_dir), reports)
    return reports


def _read(source: Source, windows: list[list[int]], num_threads: int | None) -> list[InputReport]:
    from .._C import Quantizer

    layers = Layers(source, windows, Quantizer(num_threads), held_out=0, num_threads=num_threads)
    n_layer: int = source.checkpoint.config["n_layer"]
    reports = []
    with layers_progress("calibrating", n_layer) as progress:
        for layer in range(n_layer):
            sums = layers.run(layer, gram=False)
            assert sums is not None
            reports += [_report(source, layer, g, sums.calibration[g]) for g in INPUTS]
            progress(1, "")
    return reports
