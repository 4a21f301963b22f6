"""How good the quantizer's methods are, what they cost, and how near they come to the arithmetic.

    python benchmarks/quantizer.py [MODEL] [--quick] [--csv FILE]

Each method writes a model with 4-bit weights (some with 3 or 8 bits), which is compared with the
original on texts that it was not calibrated by: modules and the licence of Python's own library.
Seconds are divided by those that the counted operations would take at the fp32 peak, which NumPy's
product of two matrices measures beside them. Prints a table in Markdown and appends CSV rows.
"""

from __future__ import annotations

import argparse
import resource
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, Neighbours, append_csv, machine

from lmdeploy_c import lite
from lmdeploy_c.lite import calibration_data
from lmdeploy_c.lite.commands import smooth_recipe
from lmdeploy_c.lite.recipe import METHODS, Recipe
from lmdeploy_c.lite.source import Source

LIBRARY = Path(sysconfig.get_path("stdlib"))
HELD_OUT = ("LICENSE.txt", "heapq.py", "textwrap.py")
HELD_OUT_CHARS = 9000  # of each


@dataclass(frozen=True)
class Case:
    """A method as it is asked for."""

    name: str
    method: str | Recipe
    options: Mapping[str, Any]
    is_quick: bool = False


CASES = (
    Case("round to nearest, min-max", Recipe(search=False), {}, True),
    Case("rtn", "rtn", {}, True),
    Case("AWQ, plain scales", "awq", {}, True),
    Case("AWQ, 20 ratios, min-max", Recipe(scales="searched", search=False), {}),
    Case("GPTQ", "gptq", {}),
    Case("GPTQ, desc_act, symmetric", "gptq", {"format": "gptq", "desc_act": True, "w_sym": True}),
    Case("best", "best", {}, True),
    Case("best in {scale, min}, GGUF's Q4_1", "best", {"format": "gguf", "w_type": "q4_1"}),
    Case("AWQ, 20 ratios, min-max, 3 bits", Recipe(scales="searched", search=False),
         {"format": "compressed-tensors", "w_bits": 3}),
    Case("best, 3 bits", "best", {"format": "compressed-tensors", "w_bits": 3}),
    Case("SmoothQuant, 8 bits a row", smooth_recipe(),
         {"format": "int-quantized", "w_bits": 8, "w_group_size": -1, "w_sym": True}),
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
    by symmetry), a Cholesky factor of each, and the solver. Searches of grids are not counted."""
    config = source.checkpoint.config
    shapes = [source.tensors[name].shape for name in source.linears()]
    widths = [config["hidden_dim"]] * 2 + [config["n_head"] * config["head_dim"], config["ffn_dim"]]
    attention = 2 * config["n_head"] * config["head_dim"] * seqlen * n_tokens
    total = 2.0 * n_tokens * sum(rows * cols for rows, cols in shapes)
    total += config["n_layer"] * attention
    if recipe.reads_grams:
        total += config["n_layer"] * sum(n_tokens * k * k for k in widths)
    if recipe.solver:
        rounds = recipe.solver.rounds
        products = 0.5 + (1 + 0.5 + rounds * 2.5 if rounds else 0)  # of a weight with its H
        total += sum(2 * products * rows * cols * cols for rows, cols in shapes)
        total += config["n_layer"] * sum(k**3 / 3 for k in widths)
    return total


def held_out() -> str:
    return "\n".join((LIBRARY / name).read_text("utf-8")[:HELD_OUT_CHARS] for name in HELD_OUT)


def measure(model: str | None, case: Case, n_tokens: int, seqlen: int) -> dict[str, object]:
    source = Source(model)
    recipe = case.method if isinstance(case.method, Recipe) else METHODS[case.method]
    peak, neighbours = peak_flops(), Neighbours()
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        done = lite.quantize(
            model, folder, method=case.method, calib_seqlen=seqlen,
            calib_samples=n_tokens // seqlen, evaluate=False, **case.options,
        )  # fmt: skip
        seconds = time.perf_counter() - began
        busy = neighbours.share()
        found = lite.divergence(model, folder, held_out())
    ideal = counted_flops(source, recipe, n_tokens, seqlen) / peak
    return {
        "method": case.name,
        "kl": found.kl.value,
        "kl_half_width": found.kl.half_width,
        "cross_entropy_rise": found.model.cross_entropy.value / found.reference.cross_entropy.value
        - 1,
        "same_top": found.same_top.value,
        "output_error": float(np.mean([linear.error for linear in done])),
        "seconds": seconds,
        "over_ideal": seconds / ideal,
        "peak_gflops": peak / 1e9,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "neighbours": busy,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", help="a path or an id; none: the embedded model")
    parser.add_argument("--quick", action="store_true", help="few methods")
    parser.add_argument("--csv", type=Path, default=ROOT / "benchmarks" / "quantizer.csv")
    args = parser.parse_args()
    seqlen = 512
    n_tokens = seqlen * len(
        calibration_data.windows(Source(args.model), "builtin", samples=None, seqlen=seqlen)
    )
    print(f"{n_tokens} tokens to calibrate by\n")
    print("| method | KL, nats | same token | cross-entropy | seconds | over the counted work |")
    print("|---|---|---|---|---|---|")
    rows: list[dict[str, object]] = []
    for case in CASES:
        if args.quick and not case.is_quick:
            continue
        row: dict[str, Any] = measure(args.model, case, n_tokens, seqlen)
        rows.append({**machine(), "model": args.model or "embedded", **row})
        print(
            f"| {case.name} | {row['kl']:.3f} ± {row['kl_half_width']:.3f} "
            f"| {100 * row['same_top']:.1f} % | {100 * row['cross_entropy_rise']:+.2f} % "
            f"| {row['seconds']:.0f} | {row['over_ideal']:.2f} |",
            flush=True,
        )
        if row["neighbours"] > 0.1:
            print(f"others took {row['neighbours']:.0%} of the processors", file=sys.stderr)
    append_csv(args.csv, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
