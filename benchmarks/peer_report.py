"""peers.py's words: tables in Markdown, as docs/benchmarks.md holds them."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from common import Work
from roofline import Roofline

if TYPE_CHECKING:
    from peers import Result

W4A16, FAST = "lmdeploy_c W4A16", "lmdeploy_c fast activations"


def header(row: dict[str, str], rounds: int) -> None:
    print(
        f"{row['machine']}, {row['threads']} threads, kernels {row['isa']}, {row['date']}, commit "
        f"{row['commit']}; medians of {rounds} rounds [min-max]\n",
        flush=True,
    )


def progress(results: list[Result], case: str) -> None:
    """One line for a case, while the rest is measured."""
    rates = [f"{r.engine} {r.median:.1f}" for r in results if r.case == case and r.rates]
    print(f"  {case}: {', '.join(rates)}", flush=True)


def number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def ratio(ours: Result | None, theirs: Result) -> str:
    if ours is None or not ours.median or not theirs.median:
        return ""
    return f"{ours.median / theirs.median:.2f} x"


def share(result: Result, case: dict[str, Any], work: Work, limits: Roofline) -> str:
    """Of the limit that a case has: in decode the bandwidth, which changes with who shares the
    memory, as it was read beside each turn; multiply-adds in prefill."""
    if not result.median:
        return ""
    if case["kind"] == "decode":
        n_bytes = work.decode_bytes(case["context"] + case["n"] / 2)
        turns = zip(result.rates, result.read_bytes_s, strict=True)
        used = statistics.median(n_bytes * rate / bandwidth for rate, bandwidth in turns)
        return f"{used:.0%} of {statistics.median(result.read_bytes_s) / 1e9:.0f} GB/s"
    if case["kind"] == "prefill":
        macs = work.prefill_macs(case["n"]) / case["n"] * result.median
        return f"{macs / limits.int8_macs_s:.0%} of int8 peak"
    return ""


def table(
    title: str,
    results: list[Result],
    cases: dict[str, dict[str, object]],
    work: Work,
    limits: Roofline,
) -> None:
    print(f"\n### {title}\n")
    print("| case | engine | tok/s | W4A16 / it | fast / it | share of the machine | |")
    print("|---|---|---|---|---|---|---|")
    for case in dict.fromkeys(r.case for r in results if r.case in cases):
        rows = [r for r in results if r.case == case]
        ours = {r.engine: r for r in rows}
        for r in rows:
            if not r.rates:
                print(f"| {case} | {r.engine} | not run | | | | {r.reason} |")
                continue
            rate = f"{number(r.median or 0)} [{number(min(r.rates))}-{number(max(r.rates))}]"
            ratios = [ratio(ours.get(name), r) for name in (W4A16, FAST)]
            if r.engine == W4A16:
                ratios = ["", ratio(ours.get(FAST), r)]
            elif r.engine == FAST:
                ratios = [ratio(ours.get(W4A16), r), ""]
            limit = share(r, dict(cases[case]), work, limits)
            print(f"| {case} | {r.engine} | {rate} | {' | '.join(ratios)} | {limit} | {r.note} |")
    for r in results:
        if r.case == "all":
            print(f"| all | {r.engine} | not run | | | | {r.reason} |")
    losses = [r for r in results if r.case == "cross-entropy"]
    if losses:
        print("\n| engine | cross-entropy over the exact weights | |\n|---|---|---|")
    for r in losses:
        value = f"{r.rates[0]:+.3f} %" if r.rates else "not known"
        print(f"| {r.engine} | {value} | {r.note if r.rates else r.reason} |")
    print(flush=True)
