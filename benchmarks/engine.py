"""Measures what the README and docs/benchmarks.md claim, on this machine.

    python benchmarks/engine.py [--quick] [--csv FILE]

Start-up, then speeds through `_C.Engine` in W4A16 and with fast activations, each beside the
machine's limit that binds it (roofline.c, in the same run). Prints tables in Markdown and appends a
CSV row.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import shapes
from common import ROOT, Neighbours, append_csv, machine, work_of
from peer_report import number
from roofline import Roofline, Turn, roofline, share_of_limit, timed
from startup import build_seconds, startup

from lmdeploy_c.files.checkpoint import resolve_model

sys.path.insert(0, str(Path(__file__).parent / "workers"))

from run_ours import FAST, Ours


@dataclass
class Measure:
    """key: the CSV's column, without the unit. rounds: how many runs the median is of."""

    key: str
    title: str
    case: dict[str, Any]
    rounds: int


def prefill(n: int) -> Measure:
    case = {"kind": "prefill", "context": 0, "n": n, "n_seqs": 1}
    return Measure(f"prefill_{n}", f"prefill of {n} tokens", case, 5)


def decode(context: int, n: int, rounds: int) -> Measure:
    case = {"kind": "decode", "context": context, "n": n, "n_seqs": 1}
    if not context:
        return Measure("decode", "decode, one sequence", case, rounds)
    at = f"{context // 1024}k"
    return Measure(f"decode_at_{at}", f"decode at context {at}", case, rounds)


def batch(n_seqs: int) -> Measure:
    case = {"kind": "batch", "context": 64, "n": 32, "n_seqs": n_seqs}
    return Measure(f"decode_{n_seqs}_sequences", f"decode, {n_seqs} sequences", case, 3)


SMOLLM2 = [
    *(prefill(n) for n in (128, 512, 2048)),
    *(decode(context, n, rounds) for context, n, rounds in ((0, 64, 5), (1024, 64, 3))),
    decode(4096, 32, 3),
    *(batch(n) for n in (2, 4, 8, 16, 32, 64)),
]
ONE_B = [prefill(512), decode(0, 32, 3), decode(16384, 16, 1)]


def turns_of(
    path: Path, measures: list[Measure]
) -> tuple[list[str], dict[tuple[str, str], list[Turn]]]:
    """The variants, and the turns by (key, variant)."""
    ours = Ours()
    longest = max(m.case["context"] + m.case["n"] for m in measures)
    most = max(m.case["n_seqs"] for m in measures)
    variants = ours.load(str(path), None, longest + 128, most)["variants"]
    turns: dict[tuple[str, str], list[Turn]] = {}
    for measure in measures:
        for _ in range(measure.rounds):
            for variant in variants:
                turn = timed(measure.case, lambda v=variant, c=measure.case: ours.run(v, c))
                turns.setdefault((measure.key, variant), []).append(turn)
    ours.close()
    return variants, turns


def speeds(
    title: str, prefix: str, path: Path, measures: list[Measure], limits: Roofline
) -> tuple[dict[str, object], Roofline]:
    """Prints a table; returns the CSV's columns, and the limits measured once more."""
    print(f"measuring {title} ...", file=sys.stderr, flush=True)
    variants, all_turns = turns_of(path, measures)
    limits, work = limits.or_better(roofline()), work_of(path)
    columns: dict[str, object] = {}
    print(f"\n### {title}, tok/s\n")
    print(f"| | {' | '.join(f'{variant} | of the limit' for variant in variants)} | the limit |")
    print("|---" * (2 + 2 * len(variants)) + "|")
    for measure in measures:
        cells, limit = [], ""
        for variant in variants:
            turns = all_turns[measure.key, variant]
            rates = [turn.rate for turn in turns]
            rate = statistics.median(rates)
            share, limit = share_of_limit(measure.case, turns, work, limits)
            key = f"{prefix}{measure.key}{'_fast' if variant == FAST else ''}"
            columns[f"{key}_tok_s"] = rate
            if limit:
                columns[f"{key}_share"] = share
            cells += [f"{number(rate)} [{number(min(rates))}-{number(max(rates))}]",
                      f"{share:.0%}" if limit else ""]  # fmt: skip
        print(f"| {measure.title} | {' | '.join(cells)} | {limit} |", flush=True)
    return columns, limits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--csv", type=Path, default=ROOT / "benchmarks" / "engine.csv")
    parser.add_argument("--quick", action="store_true", help="without the build and the 1B shape")
    options = parser.parse_args()
    os.environ.setdefault("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    neighbours = Neighbours()
    row: dict[str, object] = {**machine(), "python": platform.python_version()}
    if not options.quick:
        row["pip_install_s"] = build_seconds()
    row.update(startup())
    for key, value in row.items():
        print(f"{key:33} {value:.3f}" if isinstance(value, float) else f"{key:33} {value}")
    limits = roofline()
    models = [("SmolLM2-135M Q4_1", "", resolve_model(None), SMOLLM2)]
    if not options.quick:
        path = shapes.model_file("1b-q4_0")
        models.append(("Llama-3.2-1B's shape Q4_0", "1b_", path, ONE_B))
    for title, prefix, path, measures in models:
        columns, limits = speeds(title, prefix, path, measures, limits)
        row.update(columns)
    row["read_gb_s"], row["int8_gmacs_s"] = limits.read_bytes_s / 1e9, limits.int8_macs_s / 1e9
    row["int8_isa"], row["others_share"] = limits.int8_isa, neighbours.share()
    print(f"\nThe machine {limits}.")
    print(f"Other processes took {neighbours.share():.0%} of its time.")
    append_csv(options.csv, [row])


if __name__ == "__main__":
    main()
