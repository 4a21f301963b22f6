"""Compressing models, LMDeploy's `lite`: `quantize` and `export` write a model, `perplexity` and
`divergence` say how good the result is."""

from .driver import quantize
from .evaluate import Comparison, Mean, TextScore, divergence, perplexity
from .recipe import LinearReport
from .rewrite import export

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
