"""The pictures of a report, as SVG that stands inside a page."""

from __future__ import annotations

import importlib
import io
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .layers import layer_of
from .report_text import short

if TYPE_CHECKING:
    from .report_values import LinearReport, ReportValues

INK, SOFT, GRID = "#1f2933", "#5f6c7b", "#e4e8ee"
BLUE, ORANGE = "#2f6db5", "#d9772b"
STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": SOFT,
    "axes.titlecolor": INK,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "legend.frameon": False,
}


def matplotlib() -> Any:
    """The library. ImportError says how to get it."""
    try:
        return importlib.import_module("matplotlib")
    except ImportError as error:
        raise ImportError(
            "an HTML report is drawn by matplotlib, which is not installed: "
            "pip install 'lmdeploy_c[report]' (a report as FILE.json needs nothing)"
        ) from error


def _svg(
    draw: Callable[[Any, ReportValues], None], report: ReportValues, size: tuple[float, float]
) -> str:
    """A picture of some inches. It is drawn beside pyplot, whose state is the user's."""
    library = matplotlib()
    figures = importlib.import_module("matplotlib.figure")
    with library.rc_context({**STYLE, "svg.hashsalt": draw.__name__}):
        figure = figures.Figure(figsize=size, layout="constrained")
        draw(figure, report)
        out = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    text = out.getvalue()
    return text[text.index("<svg") :]


def _columns(report: ReportValues) -> list[str]:
    """Modules of a layer, in the order of the first one: the columns of the pictures by layer."""
    return list(dict.fromkeys(_module(linear) for linear in report))


def _module(linear: LinearReport) -> str:
    return short(linear.name).partition(".")[2]


def _by_layer(report: ReportValues, value: Callable[[LinearReport], float]) -> np.ndarray[Any, Any]:
    """[modules, layers]; NaN where there is none."""
    columns = _columns(report)
    table = np.full((len(columns), len(report.layers)), np.nan)
    for linear in report:
        table[columns.index(_module(linear)), layer_of(linear.name)] = value(linear)
    return table


def _map(figure: Any, axes: Any, report: ReportValues, table: Any, label: str, **how: Any) -> None:
    columns = [name.rpartition(".")[2] for name in _columns(report)]
    image = axes.pcolormesh(table, edgecolors="white", linewidth=0.8, **how)
    axes.set_yticks(np.arange(len(columns)) + 0.5, columns)
    n_layer = len(report.layers)
    step = max(math.ceil(n_layer / 16), 1)
    axes.set_xticks(np.arange(0, n_layer, step) + 0.5, range(0, n_layer, step))
    axes.tick_params(length=0)
    axes.invert_yaxis()
    axes.set_xlabel("layer")
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = figure.colorbar(image, ax=axes, pad=0.01, aspect=12, format="{x:g}")
    bar.outline.set_visible(False)
    bar.solids.set_rasterized(False)  # no picture of pixels inside
    bar.solids.set_edgecolor("face")
    bar.ax.tick_params(length=0)
    bar.set_label(label)


def _errors(figure: Any, report: ReportValues) -> None:
    colours = importlib.import_module("matplotlib.colors")
    table = 100 * _by_layer(report, lambda linear: linear.error)
    positive = table[table > 0]
    axes = figure.subplots()
    low, high = (positive.min(), positive.max()) if positive.size else (0.1, 1.0)
    norm = colours.LogNorm(low, max(high, low * 1.01))
    _map(figure, axes, report, np.maximum(table, low), "%", cmap="YlOrRd", norm=norm)
    axes.set_title("Squared error of each linear's outputs, in % of their squares")
    for linear in report:
        if linear.bits != min(x.bits for x in report):
            x, y = layer_of(linear.name), _columns(report).index(_module(linear))
            axes.text(x + 0.5, y + 0.5, str(linear.bits), ha="center", va="center", size=7.5)


def _first_tokens(figure: Any, report: ReportValues) -> None:
    table = 100 * _by_layer(report, lambda linear: linear.first_token_mass)
    axes = figure.subplots()
    _map(figure, axes, report, table, "%", cmap="PuBu", vmin=0, vmax=100)
    axes.set_title("What each text's first token carries of the inputs' squares, in %")


def _grids(figure: Any, report: ReportValues) -> None:
    axes = figure.subplots()
    layers = range(len(report.layers))
    for name, colour, value in (
        ("grids from the smallest to the largest weight", ORANGE, "min_max_error"),
        ("as written", BLUE, "error"),
    ):
        means = [
            100 * float(np.mean([getattr(linear, value) for linear in layer.linears]))
            for layer in report.layers
        ]
        axes.plot(layers, means, color=colour, marker="o", markersize=3.5, label=name)
    axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(axis="y", color=GRID)
    axes.set_xlabel("layer")
    axes.legend(loc="best")
    axes.set_title("Mean squared error by layer, in %")


def _texts(figure: Any, report: ReportValues) -> None:
    left, right = figure.subplots(1, 2, sharey=True)
    names = list(report.evaluation)
    at = np.arange(len(names))
    for name, y in zip(names, at, strict=True):
        found = report.evaluation[name]
        bold = {"color": INK if name == "all" else BLUE}
        width = np.nan_to_num(found.kl.half_width)
        left.errorbar(found.kl.value, y, xerr=width, fmt="o", capsize=3, markersize=5, **bold)
        before, after = found.reference.cross_entropy, found.model.cross_entropy
        right.plot([before.value, after.value], [y, y], color=GRID, linewidth=3, zorder=1)
        right.plot(before.value, y, "o", color=SOFT, markersize=6, label="original")
        right.plot(after.value, y, "o", markersize=6, label="as written", **bold)
    left.set_yticks(at, names)
    left.invert_yaxis()
    left.set_xlim(left=0)
    left.set_title("KL to the original, nats (95 %)")
    right.set_title("Cross-entropy, nats: before (grey), after")
    for axes in (left, right):
        axes.grid(axis="x", color=GRID)
        axes.tick_params(length=0)


def pictures(report: ReportValues) -> list[str]:
    """SVG of each. ImportError where there is no matplotlib."""
    rows = max(len(_columns(report)), 3)
    high = 0.9 + 0.27 * rows
    drawn = []
    if report.evaluation:
        tall = 0.9 + 0.28 * len(report.evaluation)
        drawn.append(_svg(_texts, report, (9.4, tall)))
    drawn.append(_svg(_errors, report, (9.4, high)))
    drawn.append(_svg(_grids, report, (9.4, 2.6)))
    if any(linear.first_token_mass for linear in report):
        drawn.append(_svg(_first_tokens, report, (9.4, high)))
    return drawn
