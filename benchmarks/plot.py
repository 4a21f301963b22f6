"""Draws the newest run in benchmarks/peers.csv as docs/peers.svg: bars of tok/s by case and engine.

    python benchmarks/plot.py [CSV [SVG]]

The SVG is written by hand, so it needs nothing, and follows the reader's light or dark scheme.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path

from peer_report import FAST, W4A16, number

ROOT = Path(__file__).parent.parent
WIDTH, LEFT, ROW, BAR = 960, 196, 22, 12  # pixels; LEFT holds the engines' names
NUMBER = 62  # room for the number after the longest bar
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #24292f; }
.title { font-size: 15px; font-weight: 600; } .model { font-weight: 600; }
.soft { fill: #57606a; } .line { stroke: #d0d7de; } .range { stroke: #24292f; }
.w4a16 { fill: #0a5fc2; } .fast { fill: #63a7f5; } .peer { fill: #a9b1ba; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; } .soft { fill: #9198a1; } .line { stroke: #3d444d; }
  .range { stroke: #e6edf3; }
  .w4a16 { fill: #2f81f7; } .fast { fill: #8cc2ff; } .peer { fill: #6e7681; }
}
"""

Row = dict[str, str]
#: (case, engine) -> its row.
Cells = dict[tuple[str, str], Row]


def newest_run(path: Path) -> list[Row]:
    """The rows of the last machine, kernels and commit; of one repeated, the last."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    keys = ("machine", "isa", "commit")
    last = [row for row in rows if [row[k] for k in keys] == [rows[-1][k] for k in keys]]
    return list({(r["model"], r["case"], r["engine"]): r for r in last}.values())


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    attributes = f' class="{kind}"' if kind else ""
    return (
        f'<text x="{x:.0f}" y="{y:.0f}"{attributes} text-anchor="{anchor}">{escape(words)}</text>'
    )


def bar(x: float, y: float, width: float, row: Row, scale: float) -> Iterator[str]:
    """A bar, its range from min to max, and its number. scale: tok/s of the full width."""
    kind = {W4A16: "w4a16", FAST: "fast"}.get(row["engine"], "peer")
    median, low, high = (float(row[key]) / scale * width for key in ("median", "min", "max"))
    top, middle = y + (ROW - BAR) / 2, y + ROW / 2
    yield (
        f'<rect x="{x:.1f}" y="{top:.1f}" width="{max(median, 1):.1f}" height="{BAR}" '
        f'class="{kind}"/>'
    )
    if high - low >= 1:
        yield (
            f'<line x1="{x + low:.1f}" x2="{x + high:.1f}" y1="{middle:.1f}" y2="{middle:.1f}" '
            'class="range"/>'
        )
    yield text(x + max(median, high) + 5, middle + 4, number(float(row["median"])))


def panel(model: str, cells: Cells, y: float) -> Iterator[str]:
    """A model's bars: a row for each engine, a column for each case with a scale of its own."""
    cases = list(dict.fromkeys(case for case, _ in cells))
    engines = list(dict.fromkeys(engine for _, engine in cells))
    engines.sort(key=lambda engine: (engine != W4A16, engine != FAST))
    column = (WIDTH - LEFT) / max(len(cases), 4)
    yield text(0, y + 14, model, "model")
    for i, case in enumerate(cases):
        yield text(LEFT + i * column, y + 14, case, "soft")
    top = y + 20
    for n, engine in enumerate(engines):
        yield text(LEFT - 8, top + n * ROW + ROW / 2 + 4, engine, anchor="end")
    for i, case in enumerate(cases):
        x = LEFT + i * column
        rows = [cells.get((case, engine)) for engine in engines]
        scale = max(float(row["max"]) for row in rows if row)
        bottom = top + len(engines) * ROW
        yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}" class="line"/>'
        for n, row in enumerate(rows):
            if row:
                yield from bar(x, top + n * ROW, column - NUMBER, row, scale)


def document(title: str, note: str, about: Row, panels: dict[str, Cells]) -> str:
    """A whole picture; about: any row of the run. note: what the subtitle ends with."""
    parts = [
        text(0, 18, title, "title"),
        text(0, 36, f"{about['machine']}, {about['threads']} threads, kernels {about['isa']}, "
             f"{about['date']}, commit {about['commit']}; {note}", "soft"),
    ]  # fmt: skip
    y = 52.0
    for name, cells in panels.items():
        parts += panel(name, cells, y)
        y += 20 + ROW * len({engine for _, engine in cells}) + 18
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-8 0 {WIDTH + 16} {y:.0f}" '
        f'width="{WIDTH + 16}" height="{y:.0f}">\n<style>{STYLE}</style>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def svg(rows: list[Row]) -> str:
    models: dict[str, Cells] = {}
    for row in rows:
        if row["unit"] == "tok/s" and row["median"]:
            models.setdefault(row["model"], {})[row["case"], row["engine"]] = row
    return document(
        "Tokens a second, medians and ranges",
        "longer is faster, each column has its own scale",
        rows[-1],
        models,
    )


def draw(source: Path, target: Path) -> None:
    target.write_text(svg(newest_run(source)))


if __name__ == "__main__":
    paths = [Path(argument) for argument in sys.argv[1:]]
    defaults = [ROOT / "benchmarks" / "peers.csv", ROOT / "docs" / "peers.svg"]
    draw(*(paths + defaults[len(paths) :]))
