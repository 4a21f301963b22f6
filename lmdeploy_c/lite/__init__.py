"""Compressing models, LMDeploy's `lite`: `quantize` and `export` write a model, and so do its own
`auto_awq`, `auto_gptq` and `smooth_quant`; `calibrate` says what linears read, `perplexity` and
`divergence` how good the result is."""

from .commands import auto_awq, auto_gptq, smooth_quant
from .driver import quantize
from .evaluate import Comparison, Mean, TextScore, divergence, perplexity
from .report import Report
from .report_values import LayerReport, LinearReport, Need
from .rewrite import export
from .statistics import Calibration, InputReport, KvRanges, calibrate

__all__ = [
    "Calibration",
    "Comparison",
    "InputReport",
    "KvRanges",
    "LayerReport",
    "LinearReport",
    "Mean",
    "Need",
    "Report",
    "TextScore",
    "auto_awq",
    "auto_gptq",
    "calibrate",
    "divergence",
    "export",
    "perplexity",
    "quantize",
    "smooth_quant",
]
