"""Compressing models: LMDeploy's `lite`. See `quantize` and `export`."""

from .rewrite import LinearReport, export, quantize

__all__ = ["LinearReport", "export", "quantize"]
