"""peers.py's results, and its words: tables in Markdown, as docs/benchmarks.md holds them."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

from common import Work
from roofline import Roofline, Turn, share_of_limit

W4A16, FAST = "lmdeploy_c W4A16", "lmdeploy_c fast activations"


@dataclass
class Result:
    """One engine, one case. No turns: it did not run, and reason says why."""

    model: str
    case: str
    engine: str
    version: str
    turns: list[Turn] = field(default_factory=list)
    reason: str = ""
    note: str = ""
    unit: str = "tok/s"

    @property
    def rates(self) -> list[float]:
        return [turn.rate for turn in self.turns]

    @property
    def median(self) -> float | None:
        return statistics.median(self.rates) if self.rates else None

    def row(self, machine_row: dict[str, str]) -> dict[str, object]:
        rates = self.rates
        read = statistics.median(t.read_bytes_s for t in self.turns) / 1e9 if rates else 0.0
        return {
            **machine_row,
            "model": self.model,
            "case": self.case,
            "engine": self.engine,
            "version": self.version,
            "median": self.median if rates else "",
            "min": min(rates) if rates else "",
            "max": max(rates) if rates else "",
            "rounds": len(rates),
            "unit": self.unit,
            "read_gb_s": read or "",
            "note": self.note or self.reason,
        }


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
            used, limit = share_of_limit(cases[case], r.turns, work, limits)
            of = f"{used:.0%} of {limit}" if limit else ""
            print(f"| {case} | {r.engine} | {rate} | {' | '.join(ratios)} | {of} | {r.note} |")
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
