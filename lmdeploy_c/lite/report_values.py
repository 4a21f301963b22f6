"""What quantisation did to a model, as values: to each linear, to each layer, and in all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from .evaluate import Comparison
from .layers import input_of, layer_of

if TYPE_CHECKING:
    from .._C import InputSums

#: A column stands out whose size is so many times the median column's.
OUTLIER = 6.0
MAX_CHANNELS = 8  # that are named
N_WORST = 5  # linears in the table


# ---- a linear ----


@dataclass(frozen=True)
class Channel:
    """A column of a linear's input that stands out: its largest |input| and its root mean square,
    as times the median column's."""

    column: int
    largest: float
    rms: float


@dataclass(frozen=True)
class LinearReport:
    """What quantisation did to one linear.

    Attributes:
        name: its tensor in the original model.
        min_max_error, error: the squared error of its outputs on tokens that it was not calibrated
            by, as a part of the outputs' squares (without calibration: of its weights), on grids of
            w_bits from the smallest to the largest weight, and as written.
        tried: alternatives by name, "8 bits" for one, and their errors; what was kept has `error`.
        shape: rows and columns.
        bits, group_size: of its codes; -1: a group is a row.
        before_bytes, after_bytes: in the original file, and as written with scales and zeros.
        n_outliers, outliers: columns of its input that stand out, and the foremost of them.
        first_token_mass: the part of its inputs' squares that texts' first tokens carry, 0 to 1.
    """

    name: str
    min_max_error: float
    error: float
    tried: Mapping[str, float] = field(default_factory=dict)
    shape: tuple[int, int] = (0, 0)
    bits: int = 0
    group_size: int = 0
    before_bytes: int = 0
    after_bytes: int = 0
    n_outliers: int = 0
    outliers: tuple[Channel, ...] = ()
    first_token_mass: float = 0.0

    @property
    def n_weights(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.after_bytes / max(self.n_weights, 1)

    @property
    def unit(self) -> str:
        """Linears of a layer that read the same input, which engines load as one matrix: "3.qkv",
        "3.o", "3.gate_up" or "3.down"."""
        return f"{layer_of(self.name)}.{input_of(self.name)}"


def channels(sums: InputSums) -> tuple[int, tuple[Channel, ...]]:
    """How many columns of an input stand out, and the MAX_CHANNELS foremost of them."""

    def of_median(sizes: Any) -> Any:
        middle = float(np.median(sizes))
        return sizes / middle if middle > 0 else np.zeros(len(sizes))

    largest, rms = of_median(sums.largest().astype(float)), of_median(np.sqrt(sums.squares()))
    size = np.maximum(largest, rms)
    order = np.argsort(-size, kind="stable")[:MAX_CHANNELS]
    named = (Channel(int(i), float(largest[i]), float(rms[i])) for i in order if size[i] >= OUTLIER)
    return int((size >= OUTLIER).sum()), tuple(named)


# ---- a layer, a model ----


@dataclass(frozen=True)
class LayerReport:
    """A layer: its linears, the seconds that it took, and the process's peak memory so far."""

    linears: tuple[LinearReport, ...]
    seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class Need:
    """What 8 bits in place of fewer would do for linears that are loaded as one matrix.

    unit: "3.qkv" and the like. error: the sum of its linears' errors, which would go away, but for
    what 8 bits leave of it. extra_bytes: what it costs.
    """

    unit: str
    error: float
    extra_bytes: int

    @property
    def gain(self) -> float:
        """Error that goes away for a MiB."""
        return self.error * (1 << 20) / max(self.extra_bytes, 1)


@dataclass(frozen=True, repr=False)
class ReportValues(Sequence[LinearReport]):
    """The fields of a `Report`, and what they come to."""

    model: str
    work_dir: str
    method: str
    format: str
    layers: tuple[LayerReport, ...]
    before_bytes: int
    after_bytes: int
    seconds: Mapping[str, float]
    evaluation: Mapping[str, Comparison] = field(default_factory=dict)
    not_evaluated: str = ""

    @property
    def linears(self) -> list[LinearReport]:
        return [linear for layer in self.layers for linear in layer.linears]

    def __len__(self) -> int:
        return sum(len(layer.linears) for layer in self.layers)

    @overload
    def __getitem__(self, i: int) -> LinearReport: ...
    @overload
    def __getitem__(self, i: slice) -> list[LinearReport]: ...
    def __getitem__(self, i: int | slice) -> LinearReport | list[LinearReport]:
        return self.linears[i]

    @property
    def error(self) -> float:
        """The mean of the linears' errors."""
        return sum(linear.error for linear in self) / max(len(self), 1)

    @property
    def min_max_error(self) -> float:
        """The mean of the linears' errors on grids from the smallest to the largest weight."""
        return sum(linear.min_max_error for linear in self) / max(len(self), 1)

    @property
    def bits_per_weight(self) -> float:
        """Of the linears, with scales and zeros."""
        n_weights = sum(linear.n_weights for linear in self)
        return 8 * sum(linear.after_bytes for linear in self) / max(n_weights, 1)

    @property
    def peak_bytes(self) -> int:
        """The most memory that the process had while layers were quantised."""
        return max((layer.peak_bytes for layer in self.layers), default=0)

    def worst(self, n: int = N_WORST) -> list[LinearReport]:
        """The linears with the largest errors."""
        return sorted(self, key=lambda linear: -linear.error)[:n]

    def needs(self) -> list[Need]:
        """What to keep at 8 bits, what gains most for its bytes first. Units that have 8 bits
        already are left out."""
        units: dict[str, list[LinearReport]] = {}
        for linear in self:
            if linear.bits < 8:
                units.setdefault(linear.unit, []).append(linear)
        found = [
            Need(
                unit,
                sum(linear.error for linear in linears),
                sum((8 - linear.bits) * linear.n_weights // 8 for linear in linears),
            )
            for unit, linears in units.items()
        ]
        return sorted(found, key=lambda need: -need.gain)
