"""serving.py's words: tables in Markdown, as docs/benchmarks.md holds them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from peer_report import FAST, W4A16, number

if TYPE_CHECKING:
    from serving import Result


def header(base: dict[str, str], rounds: int) -> None:
    print(
        f"{base['model']}: {base['machine']}, {base['threads']} threads, kernels {base['isa']}, "
        f"{base['date']}, commit {base['commit']}; rounds: {rounds}\n",
        flush=True,
    )


def progress(results: Sequence[Result], case: str) -> None:
    """One line for a case, while the rest is measured."""
    words = [f"{r.engine} {r.rate('n_output'):.1f}" for r in results if r.case == case and r.turns]
    print(f"  {case}: {', '.join(words)} tok/s", flush=True)


def milliseconds(result: Result, what: str) -> str:
    return " / ".join(number(result.latency(what, q)) for q in (50, 90, 99))


def ratio(ours: Result | None, theirs: Result) -> str:
    if ours is None or ours is theirs or not ours.turns:
        return ""
    return f"{ours.rate('n_output') / theirs.rate('n_output'):.2f} x"


def table(title: str, load: str, results: Sequence[Result], order: Sequence[str]) -> None:
    """Rates are medians of the rounds [min-max], latencies percentiles of all rounds together."""
    print(f"\n### {title}\n")
    print(
        f"| {load} | engine | output tok/s | W4A16 / it | fast / it | total tok/s | requests/s "
        "| TTFT p50 / p90 / p99, ms | between tokens p50 / p90 / p99, ms "
        "| CPU ms / output token | client, cores | others | |"
    )
    print("|---" * 13 + "|")
    for case in dict.fromkeys(r.case for r in results):
        rows = sorted((r for r in results if r.case == case), key=lambda r: order.index(r.engine))
        ours = {r.engine: r for r in rows}
        for r in rows:
            if not r.turns:
                print(f"| {case} | {r.engine} | not run |{' |' * 9} {r.reason} |")
                continue
            rates = r.rates("n_output")
            cells = [
                case, r.engine,
                f"{number(r.rate('n_output'))} [{number(min(rates))}-{number(max(rates))}]",
                ratio(ours.get(W4A16), r), ratio(ours.get(FAST), r), number(r.rate("n_total")),
                number(r.rate("n_requests")), milliseconds(r, "ttft"), milliseconds(r, "gaps"),
                number(r.cpu_ms), f"{r.client:.3f}", f"{r.others:.0%}", r.note,
            ]  # fmt: skip
            print(f"| {' | '.join(cells)} |")
    print(flush=True)


def smooth_table(results: Sequence[Result]) -> None:
    print("\n### Smoothness\n")
    print(
        "| | engine | alone: p50 / p90 / p99, ms | while the prompt is computed, ms | longest, ms "
        "| its first token after, ms | others | |"
    )
    print("|---" * 8 + "|")
    for r in results:
        if not r.turns:
            print(f"| {r.case} | {r.engine} | not run |{' |' * 4} {r.reason} |")
            continue
        cells = [
            r.case, r.engine, milliseconds(r, "quiet"), milliseconds(r, "disturbed"),
            number(r.latency("disturbed", 100)), number(r.latency("ttft", 50)),
            f"{r.others:.0%}", r.note,
        ]  # fmt: skip
        print(f"| {' | '.join(cells)} |")
    print(flush=True)
