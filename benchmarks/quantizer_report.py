"""What quantizer.py's rows say: tables, and whether the methods are as good as they shall be."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

UNCALIBRATED = "none"
MIN_MAX = "rounded, min-max"
AWQ = "AWQ, 20 ratios, min-max"
BEST = "best"
MINIMA = "best in {scale, min}"  # GGUF's Q4_1
BEGIN, END = "<!-- by benchmarks/quantizer.py -->", "<!-- to here -->"


@dataclass(frozen=True)
class Key:
    """What a row is of."""

    model: str
    calibration: str
    bits: int
    group: int
    method: str

    def __str__(self) -> str:
        return (
            f"{self.model}, {self.calibration}, {self.bits} bits, groups of {self.group}: "
            f"{self.method}"
        )

    def row(self) -> dict[str, object]:
        return dict(vars(self))


Rows = Mapping[Key, Mapping[str, str]]


def newest(path: Path) -> dict[Key, dict[str, str]]:
    """The last row of each key."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {
            Key(r["model"], r["calibration"], int(r["bits"]), int(r["group"]), r["method"]): r
            for r in csv.DictReader(file)
        }


# ---- goals ----


@dataclass(frozen=True)
class Goal:
    """A method's KL or rise of cross-entropy is at most a part of another's."""

    bits: int
    method: str
    other: str
    measure: str  # "kl", "rise"
    at_most: float


GOALS = (
    Goal(4, BEST, MIN_MAX, "kl", 0.3),
    Goal(4, BEST, AWQ, "kl", 0.55),
    Goal(4, BEST, MIN_MAX, "rise", 1 / 5),
    Goal(4, BEST, AWQ, "rise", 1 / 3),
    Goal(4, MINIMA, AWQ, "kl", 0.3),
    Goal(3, BEST, AWQ, "rise", 1 / 3),
)


@dataclass(frozen=True)
class Verdict:
    goal: Goal
    model: str
    calibration: str
    group: int  # of the other method
    ratio: float
    word: str


def verdicts(rows: Rows) -> Iterator[Verdict]:
    """Of each goal that two rows tell of. "within chance": the 95 % intervals allow the other
    word."""
    for key, row in rows.items():
        for goal in GOALS:
            if (key.method, key.bits) != (goal.method, goal.bits):
                continue
            for other, against in rows.items():
                if (
                    (other.method, other.bits, other.model) == (goal.other, goal.bits, key.model)
                    and other.calibration in (key.calibration, UNCALIBRATED)
                    and (other.group == key.group or key.method == MINIMA)
                ):
                    ratio, word = _judged(goal, row, against)
                    yield Verdict(goal, key.model, key.calibration, other.group, ratio, word)


def _judged(goal: Goal, row: Mapping[str, str], against: Mapping[str, str]) -> tuple[float, str]:
    value, other = float(row[goal.measure]), float(against[goal.measure])
    half, other_half = (float(r[f"{goal.measure}_half_width"]) for r in (row, against))
    over = value - goal.at_most * other
    word = "held" if over <= 0 else "missed"
    if abs(over) < math.hypot(half, goal.at_most * other_half):
        word += ", within chance"
    return value / other if other > 0 else math.nan, word


# ---- tables ----


def _results(rows: Rows) -> Iterator[str]:
    tables = dict.fromkeys(k.model for k in rows)
    for model in tables:
        of_model = {k: r for k, r in rows.items() if k.model == model}
        first = next(iter(of_model.values()))
        yield (
            f"\n{model.capitalize()} model: {first['tokens']} tokens, {first['cross_entropy']} nats"
            " as it is.\n"
        )
        yield "| bits, group | calibration | method | KL, nats | same token | cross-entropy | s |"
        yield "|---|---|---|---|---|---|---|"
        for k, r in sorted(of_model.items(), key=_order):
            kl, half, rise, rise_half = (
                float(r[name]) for name in ("kl", "kl_half_width", "rise", "rise_half_width")
            )
            digits = max(3, 2 - math.floor(math.log10(max(kl, 1e-9))))
            yield (
                f"| {k.bits}, {k.group} | {k.calibration} | {k.method} "
                f"| {kl:.{digits}f} ± {half:.{digits}f} | {float(r['same_top']):.1%} "
                f"| {rise:+.2%} ± {rise_half:.2%} | {float(r['processor_seconds']):.0f} |"
            )


def _order(item: tuple[Key, Mapping[str, str]]) -> tuple[object, ...]:
    key, row = item
    return -key.bits, abs(key.group) if key.group != 32 else 65, key.calibration, -float(row["kl"])


def _goals(rows: Rows) -> Iterator[str]:
    yield "\n| of | to | model | calibration | bits, group | at most | is | |"
    yield "|---|---|---|---|---|---|---|---|"
    names = {"kl": "KL", "rise": "rise of cross-entropy"}
    found = sorted(verdicts(rows), key=lambda v: (GOALS.index(v.goal), v.model, v.group))
    for v in found:
        yield (
            f"| {v.goal.method}: {names[v.goal.measure]} | {v.goal.other} | {v.model} "
            f"| {v.calibration} | {v.goal.bits}, {v.group} | {v.goal.at_most:.2f} "
            f"| {v.ratio:.2f} | {v.word} |"
        )


def tables(rows: Rows) -> str:
    return "\n".join([*_goals(rows), *_results(rows)]).strip()


def print_tables(rows: Rows) -> None:
    print(f"\n{tables(rows)}", flush=True)


def write_tables(rows: Rows, path: Path) -> None:
    """Between two comments of a page."""
    before, _, rest = path.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"{path} has no place for tables: {BEGIN} and {END}")
    path.write_text(f"{before}{BEGIN}\n{tables(rows)}\n{END}{after}", "utf-8")
