"""A report as one page of HTML, which reads nothing else: no script, no font, no network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from ..units import format_size
from ..version import __version__
from .report_plots import pictures
from .report_text import bits_text, mean_text, percent, rise, seconds_text, short

if TYPE_CHECKING:
    from .report_values import LinearReport, ReportValues

N_NEEDS = 10
STYLE = """
.lmd { font: 14px/1.5 system-ui, sans-serif; color: #1f2933; max-width: 960px; margin: 0 auto; }
.lmd h1 { font-size: 24px; margin: 0 0 2px; overflow-wrap: anywhere; }
.lmd h2 { font-size: 17px; margin: 32px 0 8px; }
.lmd p { color: #5f6c7b; margin: 2px 0 10px; }
.lmd .tiles { display: flex; flex-wrap: wrap; gap: 12px; margin: 18px 0; }
.lmd .tile { flex: 1 1 130px; border: 1px solid #e4e8ee; border-radius: 8px; padding: 10px 14px;
  background: #fff; }
.lmd .tile b { display: block; font-size: 20px; line-height: 1.3; }
.lmd .tile span { color: #5f6c7b; font-size: 12.5px; }
.lmd svg { width: 100%; height: auto; display: block; margin: 14px 0; }
.lmd .wide { overflow-x: auto; }
.lmd table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums;
  color: inherit; }
.lmd th { text-align: right; color: #5f6c7b; font-weight: 600; border-bottom: 2px solid #e4e8ee;
  padding: 4px 8px; white-space: nowrap; }
.lmd td { text-align: right; border-bottom: 1px solid #eef1f5; padding: 3px 8px;
  white-space: nowrap; }
.lmd th:first-child, .lmd td:first-child { text-align: left; }
.lmd summary { cursor: pointer; color: #2f6db5; margin: 8px 0; }
"""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(row(cells, "td") for cells in rows)
    return (
        f'<div class="wide"><table><thead>{row(head, "th")}</thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _tiles(report: ReportValues) -> str:
    tiles = [
        (
            f"{format_size(report.before_bytes)} → {format_size(report.after_bytes)}",
            f"{report.bits_per_weight:.2f} bits per weight of the linears",
        ),
        (
            percent(report.error),
            f"mean squared error of outputs (min-max grids: {percent(report.min_max_error)})",
        ),
    ]
    if report.evaluation:
        found = report.evaluation["all"]
        tiles += [
            (f"{found.kl.value:.3f} nats", "KL to the original, held-out texts"),
            (f"{rise(found):+.1%}", "cross-entropy, held-out texts"),
        ]
    tiles.append(
        (
            seconds_text(sum(report.seconds.values())),
            f"{format_size(report.peak_bytes)} of memory at most",
        )
    )
    cells = (
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(text)}</span></div>'
        for value, text in tiles
    )
    return f'<div class="tiles">{"".join(cells)}</div>'


def _evaluation(report: ReportValues) -> str:
    if not report.evaluation:
        return f"<p>Not evaluated: {escape(report.not_evaluated or 'it was not asked for')}.</p>"
    head = ["text", "tokens", "KL, nats", "same likeliest token", "cross-entropy", "as written", ""]
    rows = (
        [
            name,
            str(found.model.n_tokens),
            mean_text(found.kl),
            mean_text(found.same_top, ".1f", 100) + " %",
            mean_text(found.reference.cross_entropy),
            mean_text(found.model.cross_entropy),
            f"{rise(found):+.1%}",
        ]
        for name, found in report.evaluation.items()
    )
    return _table(head, rows)


def _outliers(linear: LinearReport) -> str:
    named = ", ".join(f"{c.column} ({max(c.largest, c.rms):.0f}x)" for c in linear.outliers[:2])
    return f"{linear.n_outliers}: {named}" if named else "0"


def _linears(linears: Iterable[LinearReport]) -> str:
    head = ["linear", "bits", "bits/weight", "error", "min-max", "first tokens", "outlier columns",
            "before", "after"]  # fmt: skip
    rows = (
        [
            short(linear.name),
            str(linear.bits),
            f"{linear.bits_per_weight:.2f}",
            percent(linear.error),
            percent(linear.min_max_error),
            f"{linear.first_token_mass:.1%}",
            _outliers(linear),
            format_size(linear.before_bytes),
            format_size(linear.after_bytes),
        ]
        for linear in linears
    )
    return _table(head, rows)


def _needs(report: ReportValues) -> str:
    needs = report.needs()[:N_NEEDS]
    if not needs:
        return ""
    rows = (
        [need.unit, f"{need.error:.3%}", format_size(need.extra_bytes), f"{need.gain:.3%}"]
        for need in needs
    )
    return (
        "<h2>What 8 bits would help most</h2><p>Linears that engines load as one matrix, by the "
        "error that would go away for each MiB; <code>mixed</code> chooses among them.</p>"
        + _table(["linears", "error", "more bytes", "error per MiB"], rows)
    )


def _plots(report: ReportValues, needs_plots: bool) -> str:
    try:
        return "".join(pictures(report))
    except ImportError as error:
        if needs_plots:
            raise
        return f"<p>{escape(str(error))}</p>"


def fragment(report: ReportValues, needs_plots: bool = False) -> str:
    """The report as a part of a page, such as a notebook. needs_plots: without matplotlib there is
    an ImportError; else a sentence stands in the pictures' place."""
    took = ", ".join(f"{what} {seconds_text(s)}" for what, s in report.seconds.items())
    return (
        f'<div class="lmd"><style>{STYLE}</style><h1>{escape(Path(report.model).name)}</h1>'
        f"<p>{len(report)} linears in {bits_text(report)}, method {escape(report.method)}, format "
        f"{escape(report.format)}: {escape(report.model)}, written to {escape(report.work_dir)}</p>"
        f"{_tiles(report)}<h2>Held-out texts</h2>{_evaluation(report)}"
        f"{_plots(report, needs_plots) if len(report) else ''}"
        f"<h2>The linears with the largest errors</h2>{_linears(report.worst(10))}"
        f"<details><summary>All linears</summary>{_linears(report)}</details>"
        f"{_needs(report)}"
        f"<p>Errors are of outputs on tokens that no linear was calibrated by, as a part of the "
        f"outputs' squares; “min-max” is that of grids from the smallest to the largest weight. "
        f"Intervals are of 95 %. Time: {escape(took)}. lmdeploy_c {escape(__version__)}.</p></div>"
    )


def page(report: ReportValues) -> str:
    """The whole page. ImportError where there is no matplotlib."""
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report.model)}: what quantisation did</title></head>"
        '<body style="margin: 28px; background: #fafbfc">'
        f"{fragment(report, needs_plots=True)}</body></html>\n"
    )
