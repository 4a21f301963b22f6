"""serving.py's results, and its words: tables in Markdown, as docs/benchmarks.md holds them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from peer_report import FAST, W4A16, number
from serving_load import percentile


@dataclass
class Result:
    """One engine in one case. turns: what its worker answered, of each round; none: reason says
    why. others: the largest share of the machine that other processes took in a turn."""

    case: str
    engine: str
    version: str = ""
    turns: list[dict[str, Any]] = field(default_factory=list)
    reason: str = ""
    note: str = ""
    others: float = 0.0

    def rates(self, what: str) -> list[float]:
        """Of each round, a second: "n_output", "n_requests", or "n_total" for all tokens."""
        counts = [
            turn["n_prompt"] + turn["n_output"] if what == "n_total" else turn[what]
            for turn in self.turns
        ]
        return [n / turn["seconds"] for n, turn in zip(counts, self.turns, strict=True)]

    def rate(self, what: str) -> float:
        return statistics.median(self.rates(what)) if self.turns else 0.0

    def latency(self, what: str, q: float) -> float:
        """Milliseconds, of the turns together: "ttft", "gaps", "quiet" or "disturbed"."""
        return 1e3 * percentile([x for turn in self.turns for x in turn[what]], q)

    @property
    def client(self) -> float:
        """Cores that the client took."""
        seconds = sum(turn["seconds"] for turn in self.turns)
        return sum(turn["client_s"] for turn in self.turns) / seconds if seconds else 0.0

    @property
    def cpu_ms(self) -> float:
        """CPU time for each token of output, prompts included, and what waits by spinning, too."""
        n = sum(turn["n_output"] for turn in self.turns)
        return 1e3 * sum(turn["cpu_s"] for turn in self.turns) / n if n else 0.0

    def latencies(self) -> dict[str, float]:
        names = {"ttft": "ttft", "gaps": "itl", "quiet": "quiet", "disturbed": "disturbed"}
        return {
            f"{name}_p{q}_ms": self.latency(what, q)
            for what, name in names.items()
            if self.turns and what in self.turns[0]
            for q in (50, 90, 99)
        }

    def row(self, base: dict[str, str]) -> dict[str, object]:
        row: dict[str, object] = {
            **base, "case": self.case, "engine": self.engine, "version": self.version,
            "rounds": len(self.turns), "others": self.others, "note": self.reason or self.note,
            **self.latencies(),
        }  # fmt: skip
        if self.turns and "n_output" in self.turns[0]:
            rates = self.rates("n_output")
            row |= {
                "n_requests": self.turns[0]["n_requests"], "output_tok_s": self.rate("n_output"),
                "output_tok_s_min": min(rates), "output_tok_s_max": max(rates),
                "total_tok_s": self.rate("n_total"), "requests_s": self.rate("n_requests"),
                "client_cores": self.client, "cpu_ms_per_token": self.cpu_ms,
            }  # fmt: skip
        return row


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
