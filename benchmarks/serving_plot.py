"""Draws the newest run in benchmarks/serving.csv as docs/serving.svg: bars by users and engine.

python benchmarks/serving_plot.py [CSV [SVG]]
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from plot import ROOT, Cells, Row, document, newest_run

#: title, and the columns of the bar and of its range.
PANELS = [
    ("Output, tokens a second: longer is better",
     ("output_tok_s", "output_tok_s_min", "output_tok_s_max")),
    ("Between two tokens, p99 in milliseconds: shorter is better", ("itl_p99_ms",) * 3),
    ("To the first token, p99 in milliseconds: shorter is better", ("ttft_p99_ms",) * 3),
]  # fmt: skip


def cells(rows: list[Row], columns: tuple[str, ...]) -> Cells:
    """The bars of the closed loop."""
    return {
        (row["case"], row["engine"]): {
            **row,
            **dict(zip(("median", "min", "max"), (row[c] for c in columns), strict=True)),
        }
        for row in rows
        if re.fullmatch(r"\d+ users?", row["case"]) and row.get(columns[0])
    }


def draw(source: Path, target: Path) -> None:
    """Nothing where the newest run has no closed loop."""
    rows = newest_run(source)
    panels = {title: bars for title, columns in PANELS if (bars := cells(rows, columns))}
    if panels:
        title = f"{rows[-1]['model']} with many users"
        note = "each column has its own scale"
        target.write_text(document(title, note, rows[-1], panels))


if __name__ == "__main__":
    paths = [Path(argument) for argument in sys.argv[1:]]
    defaults = [ROOT / "benchmarks" / "serving.csv", ROOT / "docs" / "serving.svg"]
    draw(*(paths + defaults[len(paths) :]))
