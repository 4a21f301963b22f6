"""What quantisation did to a model: to each linear, to each layer, and in all; as a value that is
kept as JSON and shown as text."""

from __future__ import annotations

import dataclasses
import json
import math
import resource
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from .evaluate import Comparison, Mean, TextScore
from .layers import input_of, layer_of
from .shards import whole_file

if TYPE_CHECKING:
    from .._C import InputSums

FILE = "report.json"
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
    min_max_error, error: the squared error of its outputs on tokens that it was not calibrated by,
        as a part of the outputs' squares (without calibration: of its weights), on grids from the
        smallest to the largest weight, and as written.
    tried: alternatives by name, "8 bits" for one, and their errors; what was kept has `error`.
    shape: rows and columns.
    bits, group_size: of its codes; -1: a group is a row.
    before_bytes, after_bytes: in the original file, and as written with scales and zeros.
    n_outliers, outliers: columns of its input that stand out, and the foremost of them.
    first_token_mass: the part of its inputs' squares that the first tokens of texts carry, 0 to 1.
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


@dataclass(frozen=True)
class Report(Sequence[LinearReport]):
    """What `quantize` did: a sequence of `LinearReport`, with what is said of the whole.

    Attributes:
    model, work_dir: what was quantised, and where it was written.
    method, format: as `quantize` was called.
    layers: of linears.
    before_bytes, after_bytes: the model's tensors in its files, and the files that were written.
    seconds: by what took them: texts (the calibration's), layers, writing, evaluating.
    evaluation: the new model beside the original one on held-out texts, by their names; "all"
        is of all. Empty: it was not asked for, or could not be (`not_evaluated` says why).
    """

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

    def save(self, path: str | Path) -> Path:
        """Writes the report as JSON or as one page of HTML, by the end of the name. ValueError for
        another end, ImportError where a page has no matplotlib to draw with, OSError."""
        path = check_file(path)
        if path.suffix == ".html":
            from .report_html import page

            text = page(self)
        else:
            text = json.dumps(plain(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        with whole_file(path) as file:
            file.write(text.encode())
        return path

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """The report of a JSON file that `save` wrote. OSError, ValueError for another file."""
        try:
            value = json.loads(Path(path).read_text("utf-8"))
            layers = tuple(layer_of_json(layer) for layer in value["layers"])
            evaluation = {k: _comparison(v) for k, v in value["evaluation"].items()}
            return cls(**{**value, "layers": layers, "evaluation": evaluation})
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f'"{path}" is no report of quantize: {error}') from None

    def __str__(self) -> str:
        from .report_text import text_of

        return text_of(self)

    def _repr_html_(self) -> str:
        from .report_html import fragment

        return fragment(self)


def check_file(path: str | Path) -> Path:
    """A report's file, which can be written: ValueError for the end of its name, ImportError where
    a page has no matplotlib to draw with."""
    path = Path(path)
    if path.suffix not in (".json", ".html"):
        raise ValueError(f'a report is FILE.json or FILE.html, not "{path}"')
    if path.suffix == ".html":
        from .report_plots import matplotlib

        matplotlib()
    return path


def peak_memory() -> int:
    """The most bytes that this process has had in memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# ---- JSON ----


def plain(value: Any) -> Any:
    """A report or a part of one as JSON has it; what is no number is null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _linear(value: Mapping[str, Any]) -> LinearReport:
    outliers = tuple(Channel(**channel) for channel in value["outliers"])
    return LinearReport(**{**value, "shape": tuple(value["shape"]), "outliers": outliers})


def layer_of_json(value: Mapping[str, Any]) -> LayerReport:
    """A layer's report as `plain` gave it."""
    linears = tuple(_linear(linear) for linear in value["linears"])
    return LayerReport(linears, value["seconds"], value["peak_bytes"])


def _mean(value: Mapping[str, Any]) -> Mean:
    return Mean(_number(value["value"]), _number(value["half_width"]))


def _comparison(value: Mapping[str, Any]) -> Comparison:
    scores = (value["reference"], value["model"])
    return Comparison(
        _mean(value["kl"]),
        _mean(value["same_top"]),
        *(TextScore(_mean(score["cross_entropy"]), score["n_tokens"]) for score in scores),
    )
