"""What quantisation did to a model, as a report: kept as JSON, shown as text and as HTML."""

from __future__ import annotations

import dataclasses
import json
import math
import resource
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .evaluate import Comparison, Mean, TextScore
from .report_html import fragment, page
from .report_plots import matplotlib
from .report_text import text_of
from .report_values import Channel, LayerReport, LinearReport, ReportValues
from .shards import whole_file

FILE = "report.json"


@dataclass(frozen=True, repr=False)
class Report(ReportValues):
    """What `quantize` did: a sequence of `LinearReport`, with what is said of the whole.

    Attributes:
        model, work_dir: what was quantised, and where it was written.
        method, format: as `quantize` was called.
        layers: of linears.
        before_bytes, after_bytes: the model's tensors in its files, and the written files.
        seconds: by what took them: texts (the calibration's), layers, writing, evaluating.
        evaluation: the new model beside the original one on held-out texts, by their names; "all"
            is of all. Empty: it was not asked for, or could not be (`not_evaluated` says why).
    """

    def save(self, path: str | Path) -> Path:
        """Writes the report as JSON or as one page of HTML, by the end of the name. ValueError for
        another end, ImportError where a page has no matplotlib to draw with, OSError."""
        path = check_file(path)
        if path.suffix == ".html":
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
        return text_of(self)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return fragment(self)


def check_file(path: str | Path) -> Path:
    """A report's file, which can be written: ValueError for the end of its name and for a folder
    that is not there, ImportError where a page has no matplotlib to draw with."""
    path = Path(path)
    if path.suffix not in (".json", ".html"):
        raise ValueError(f'a report is FILE.json or FILE.html, not "{path}"')
    if not path.parent.is_dir():
        raise ValueError(f'there is no folder "{path.parent}" for the report')
    if path.suffix == ".html":
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


def _score(value: Mapping[str, Any]) -> TextScore:
    return TextScore(_mean(value["cross_entropy"]), value["n_tokens"])


def _comparison(value: Mapping[str, Any]) -> Comparison:
    return Comparison(
        kl=_mean(value["kl"]),
        same_top=_mean(value["same_top"]),
        reference=_score(value["reference"]),
        model=_score(value["model"]),
        rise=_mean(value["rise"]),
    )
