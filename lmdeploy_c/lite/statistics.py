"""`calibrate`: what each linear of a model reads, column by column, and the ranges of keys and
values, as files."""

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
KV_FILE = "kv_stats.npz"


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


@dataclass(frozen=True)
class KvRanges:
    """The smallest and the largest key and value of each channel, over all tokens. Keys are those
    that attention compares, behind their norm and RoPE, as a cache keeps them.

    Attributes:
        key_min, key_max, value_min, value_max: fp32 [n_layer, n_kv_head, head_dim].
    """

    key_min: NDArray[np.float32]
    key_max: NDArray[np.float32]
    value_min: NDArray[np.float32]
    value_max: NDArray[np.float32]

    def __str__(self) -> str:
        return f"{_reach('keys', self.key_min, self.key_max)}; " + _reach(
            "values", self.value_min, self.value_max
        )


def _reach(name: str, least: NDArray[np.float32], most: NDArray[np.float32]) -> str:
    largest = np.maximum(-least, most)
    layer, head, channel = np.unravel_index(largest.argmax(), largest.shape)
    return (
        f"{name} reach {largest.max():.4g} in layer {layer}, head {head}, channel {channel}, "
        f"{largest.max() / np.median(largest):.4g} times the median channel"
    )


@dataclass(frozen=True)
class Calibration:
    """What `calibrate` measured.

    Attributes:
        inputs: Of each layer the four inputs, as `INPUTS` has them.
        kv: The ranges of keys and values.
    """

    inputs: list[InputReport]
    kv: KvRanges


def _write(folder: Path, found: Calibration) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        f"{kind}.{name}": getattr(report, kind)
        for kind in ("absmax", "absmean")
        for report in found.inputs
        for name in report.linears
    }
    with whole_file(folder / FILE) as file:
        np.savez(file, **arrays)
    with whole_file(folder / KV_FILE) as file:
        np.savez(file, **vars(found.kv))


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
) -> Calibration:
    """Writes what a model's linears read into work_dir/inputs_stats.npz, for numpy.load: for each
    linear "absmax.NAME" and "absmean.NAME", fp32 [n_in], where LMDeploy has a pickle of these; and
    into work_dir/kv_stats.npz the ranges of keys and values, as `KvRanges` names them. Returns the
    same.

    model, work_dir, calib_dataset, calib_samples, calib_seqlen, num_threads: as `quantize`. w_bits,
    w_group_size, search_scale, dtype and batch_size are LMDeploy's and change nothing: texts are
    read in steps of many tokens, in the engine's own precision. Raises what `quantize` raises for
    a model and for data.
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
    found = _read(source, windows, num_threads)
    _write(Path(work_dir), found)
    return found


def _read(source: Source, windows: list[list[int]], num_threads: int | None) -> Calibration:
    from .._C import Quantizer

    layers = Layers(source, windows, Quantizer(num_threads), held_out=0, num_threads=num_threads)
    config = source.checkpoint.config
    n_layer: int = config["n_layer"]
    reports, least, most = [], [], []
    with layers_progress("calibrating", n_layer) as progress:
        for layer in range(n_layer):
            sums = layers.run(layer, gram=False)
            assert sums is not None
            reports += [_report(source, layer, g, sums.calibration[g]) for g in INPUTS]
            least.append(sums.kv.least())
            most.append(sums.kv.most())
            progress(1, "")
    shape = (n_layer, 2, config["n_kv_head"], config["head_dim"])
    low, high = (np.stack(rows).reshape(shape) for rows in (least, most))
    return Calibration(reports, KvRanges(low[:, 0], high[:, 0], low[:, 1], high[:, 1]))
