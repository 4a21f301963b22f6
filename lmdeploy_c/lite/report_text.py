"""A report as a compact text for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..units import format_size

if TYPE_CHECKING:
    from .evaluate import Comparison, Mean
    from .report_values import LinearReport, ReportValues

N_NEEDS = 3


def short(name: str) -> str:
    """A linear's name without what all of them have: "3.mlp.down_proj"."""
    return name.removesuffix(".weight").removeprefix("model.").removeprefix("layers.")


def mean_text(mean: Mean, form: str = ".3f", times: float = 1.0) -> str:
    """A mean with its interval, where there is one."""
    return format(replace(mean, value=times * mean.value, half_width=times * mean.half_width), form)


def percent(part: float) -> str:
    """Two digits behind the point, or as many as show something."""
    return f"{part:.2%}" if part == 0 or part >= 0.001 else f"{100 * part:.2g}%"


def rise(found: Comparison) -> float:
    """What the cross-entropy rises by, as a part of the original's."""
    before = found.reference.cross_entropy.value
    return found.model.cross_entropy.value / before - 1 if before else math.nan


def seconds_text(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{seconds:.1f} s"


def bits_text(linears: Sequence[LinearReport]) -> str:
    """ "4 bits", or "4 bits (22 of 30 linears) and 8 bits"."""
    bits = sorted({linear.bits for linear in linears})
    if len(bits) < 2:
        return f"{bits[0]} bits" if bits else "floats"
    fewest = sum(linear.bits == bits[0] for linear in linears)
    others = " and ".join(f"{b} bits" for b in bits[1:])
    return f"{bits[0]} bits ({fewest} of {len(linears)} linears) and {others}"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows in columns: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _evaluation(report: ReportValues) -> list[str]:
    if not report.evaluation:
        return [f"not evaluated: {report.not_evaluated}"] if report.not_evaluated else []
    rows = [["held-out text", "KL, nats", "same token", "cross-entropy", "as written", ""]]
    for name, found in report.evaluation.items():
        before, after = found.reference.cross_entropy, found.model.cross_entropy
        rows.append([
            name, mean_text(found.kl), mean_text(found.same_top, ".1f", 100) + " %",
            f"{before.value:.3f}", mean_text(after), f"{rise(found):+.1%}",
        ])  # fmt: skip
    return [*_table(rows), ""]


def _worst(report: ReportValues) -> list[str]:
    head = ["worst linears", "error", "min-max", "bits/weight", "first tokens", "outliers"]
    rows = [head]
    for linear in report.worst():
        rows.append([
            short(linear.name), percent(linear.error), percent(linear.min_max_error),
            f"{linear.bits_per_weight:.2f}", f"{linear.first_token_mass:.0%}",
            str(linear.n_outliers),
        ])  # fmt: skip
    return _table(rows)


def text_of(report: ReportValues) -> str:
    n_weights = sum(linear.n_weights for linear in report)
    head = f"{len(report)} linears in {bits_text(report)}"
    if len(report):
        head += (
            f", {report.bits_per_weight:.2f} bits/weight; squared error {percent(report.error)} of "
            f"the outputs', on average (min-max grids: {percent(report.min_max_error)})"
        )
    lines = [head, "", *_evaluation(report), *(_worst(report) if len(report) else []), ""]
    needs = report.needs()[:N_NEEDS]
    if needs:
        told = ", ".join(f"{need.unit} ({format_size(need.extra_bytes)})" for need in needs)
        lines.append(f"8 bits would help most in {told}")
    total = sum(report.seconds.values())
    lines.append(
        f"{format_size(report.before_bytes)} -> {format_size(report.after_bytes)}, "
        f"{seconds_text(total)} for {n_weights / 1e6:.0f} million weights, "
        f"{format_size(report.peak_bytes)} of memory at most"
    )
    return "\n".join(lines)
