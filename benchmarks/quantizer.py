"""How good the quantizer's methods are, what they cost, and how near they come to the arithmetic.

    python benchmarks/quantizer.py [MODEL ...] [--calibration NAME] [--only WORDS] [--again]
                                   [--tables]

Each method writes a model, which is compared with the original on texts that it was not calibrated
by: modules and the licence of Python's own library. MODEL is "embedded", "trained" (the small one
of tests/golden/trained) or a path; none: the first two. A method that --csv has a row of is not
measured again without --again; --tables measures nothing. Seconds are divided by those that the
counted operations would take at the fp32 peak, which NumPy's product of two matrices measures
beside them. Appends CSV rows, prints tables, and writes those of all rows into docs/quantizer.md.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, Neighbours, append_csv, machine
from quantizer_models import LENGTH, MODELS, WINDOWS, Model, model_of, quality
from quantizer_report import (
    AWQ,
    BEST,
    MIN_MAX,
    MINIMA,
    UNCALIBRATED,
    Key,
    newest,
    print_tables,
    write_tables,
)

from lmdeploy_c import lite
from lmdeploy_c.lite.commands import smooth_recipe
from lmdeploy_c.lite.recipe import METHODS, Recipe
from lmdeploy_c.lite.source import Source


@dataclass(frozen=True)
class Case:
    """A method as it is asked for. group: of columns; None: each of 64 and 128 that fits."""

    name: str
    method: str | Recipe
    bits: int = 4
    group: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    is_calibrated: bool = True


MIN_MAX_RECIPE = Recipe(search=False)
AWQ_RECIPE = Recipe(scales="searched", search=False)
THREE = {"format": "compressed-tensors"}
CASES = (
    Case(MIN_MAX, MIN_MAX_RECIPE, is_calibrated=False),
    Case(AWQ, AWQ_RECIPE),
    Case(BEST, "best"),
    Case(MINIMA, "best", group=32, options={"format": "gguf", "w_type": "q4_1"}),
    Case(MIN_MAX, MIN_MAX_RECIPE, bits=3, options=THREE, is_calibrated=False),
    Case(AWQ, AWQ_RECIPE, bits=3, options=THREE),
    Case(BEST, "best", bits=3, options=THREE),
    Case("rtn", "rtn"),
    Case("AWQ, plain scales", "awq"),
    Case("AWQ, 20 ratios", "awq-searched"),
    Case("GPTQ", "gptq"),
    Case("GPTQ, desc_act, symmetric", "gptq",
         options={"format": "gptq", "desc_act": True, "w_sym": True}),
    Case("SmoothQuant", smooth_recipe(), bits=8, group=-1,
         options={"format": "int-quantized", "w_sym": True}),
)  # fmt: skip


def peak_flops() -> float:
    """Of fp32, on all threads: the best of some products of two matrices."""
    a = np.ones((2048, 2048), np.float32)
    best = 0.0
    for _ in range(6):
        began = time.perf_counter()
        a @ a
        best = max(best, 2 * 2048**3 / (time.perf_counter() - began))
    return best


def counted_flops(source: Source, recipe: Recipe, n_tokens: int, seqlen: int) -> float:
    """Operations of the method: the texts through the layers, grams of the inputs (half of each,
    by symmetry), a Cholesky factor of each, and the solver; and where linears make up for drift,
    the texts through the quantised model, what is wanted of its inputs, and six products of a
    weight with a matrix of its inputs. Searches of grids are not counted."""
    config = source.checkpoint.config
    shapes = [source.tensors[name].shape for name in source.linears()]
    widths = [config["hidden_dim"]] * 2 + [config["n_head"] * config["head_dim"], config["ffn_dim"]]
    attention = 2 * config["n_head"] * config["head_dim"] * seqlen * n_tokens
    forward = 2.0 * n_tokens * sum(rows * cols for rows, cols in shapes)
    forward += config["n_layer"] * attention
    total = forward
    if recipe.reads_grams:
        total += config["n_layer"] * sum(n_tokens * k * k for k in widths)
    if recipe.solver:
        rounds = recipe.solver.rounds
        products = 0.5 + (1 + 0.5 + rounds * 2.5 if rounds else 0)  # of a weight with its H
        total += sum(2 * products * rows * cols * cols for rows, cols in shapes)
        total += config["n_layer"] * sum(k**3 / 3 for k in widths)
    if recipe.damp is not None:
        wanted = sum(2 * n_tokens * config["hidden_dim"] * k for k in widths)
        total += forward + config["n_layer"] * (wanted + sum(k**3 / 3 for k in widths))
        total += sum(2 * 6 * rows * cols * cols for rows, cols in shapes)
    return total


def group_sizes(source: Source) -> list[int]:
    widths = {source.tensors[name].shape[1] for name in source.linears()}
    return [size for size in (64, 128) if all(width % size == 0 for width in widths)]


def measure(model: Model, case: Case, calibration: str, group: int) -> dict[str, object]:
    source, read = Source(model.path), model.calibrations.get(calibration)
    recipe = case.method if isinstance(case.method, Recipe) else METHODS[case.method]
    options = dict(case.options)
    if options.get("format") != "gguf":  # whose groups are of 32 without being told
        options.update(w_bits=case.bits, w_group_size=group)
    peak, neighbours = peak_flops(), Neighbours()
    with tempfile.TemporaryDirectory() as folder:
        began, processor_began = time.perf_counter(), sum(os.times()[:2])
        done = lite.quantize(
            model.path, folder, method=case.method, calib_dataset=read() if read else None,
            calib_seqlen=LENGTH, calib_samples=WINDOWS, evaluate=False, **options,
        )  # fmt: skip
        seconds = time.perf_counter() - began
        processor_seconds = sum(os.times()[:2]) - processor_began
        busy = neighbours.share()
        found = lite.divergence(model.path, folder, model.held_out())
    n_tokens = WINDOWS * LENGTH if case.is_calibrated else 0
    ideal = counted_flops(source, recipe, n_tokens, LENGTH) / peak
    return {
        **quality(found),
        "output_error": float(np.mean([linear.error for linear in done])),
        "seconds": seconds,
        "processor_seconds": processor_seconds,
        "over_ideal": seconds / ideal if n_tokens else "",
        "peak_gflops": peak / 1e9,
        "neighbours": busy,
    }


def jobs(
    models: Sequence[str], calibration: str | None, words: str
) -> Iterator[tuple[Key, Model, Case]]:
    """What is asked for, once each: a method without calibration is one job for all of them."""
    keys = set()
    for name in models:
        model = model_of(name)
        for asked in [calibration] if calibration else model.calibrations:
            for case in CASES:
                read = asked if case.is_calibrated else UNCALIBRATED
                for group in [case.group] if case.group else group_sizes(Source(model.path)):
                    key = Key(name, read, case.bits, group, case.name)
                    if words in str(key) and key not in keys:
                        keys.add(key)
                        yield key, model, case


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--calibration", choices=("builtin", "library"))
    parser.add_argument("--only", default="", metavar="WORDS",
                        help="rows in whose name they are: best, '3 bits'")  # fmt: skip
    parser.add_argument("--again", action="store_true", help="whatever rows there are")
    parser.add_argument("--tables", action="store_true", help="of the rows that there are")
    parser.add_argument("--csv", type=Path, default=ROOT / "benchmarks" / "quantizer.csv")
    args = parser.parse_args()
    found = newest(args.csv)
    for key, model, case in jobs(args.models or MODELS, args.calibration, args.only):
        if args.tables or (key in found and not args.again):
            continue
        row = measure(model, case, key.calibration, key.group)
        append_csv(args.csv, [{**machine(), **key.row(), **row}])
        print(f"{key}: KL {row['kl']:.4f} nats, {row['processor_seconds']:.0f} s", flush=True)
        if row["neighbours"] > 0.1:  # type: ignore[operator]
            print(f"others took {row['neighbours']:.0%} of the processors", file=sys.stderr)
    rows = newest(args.csv)
    print_tables(rows)
    write_tables(rows, ROOT / "docs" / "quantizer.md")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
