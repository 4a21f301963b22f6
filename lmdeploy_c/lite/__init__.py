"""Compressing models, LMDeploy's `lite`: `quantize` and `export` write a model, `perplexity` and
`divergence` say how good the result is."""

from .evaluate import Comparison, Mean, TextScore, divergence, perplexity
from .rewrite import LinearReport, export, quantize

__all__ = [
    "Comparison",
    "LinearReport",
    "Mean",
    "TextScore",
    "divergence",
    "export",
    "perplexity",
    "quantize",
]
