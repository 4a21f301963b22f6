"""Which linears get 8 bits, so that a size is met and the error is least.

The linears of a layer that read the same input (q, k and v; gate and up) are loaded as one matrix,
so they share their bits: a unit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..units import format_size, parse_size
from .packing import Scheme
from .report_values import LayerReport, LinearReport
from .source import Source
from .target import Directory, GgufFile

DIGITS = 12  # by which a linear's larger sizes may lengthen a file's header
MAX_STEPS = 1 << 16  # of a budget: costs are rounded up to its steps


@dataclass(frozen=True)
class Unit:
    """Linears that share their bits. gain: the error that 8 bits take away. cost: in bytes."""

    name: str
    gain: float
    cost: int


def budget(text: str, *, n_weights: int, least: int, most: int, others: int) -> int:
    """The bytes that the linears may have.

    text: "4.5bpw", bits for each of their n_weights weights, scales and zeros included; or
    "110MB", of the file. least, most: the linears' in few bits and in 8. others: the
    bytes of all else. ValueError for what is neither, and for less than the least.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*bpw\s*", text.lower())
    if found:
        allowed = int(float(found[1]) * n_weights / 8)
    else:
        try:
            allowed = parse_size(text) - others
        except ValueError:
            raise ValueError(
                f"mixed must be a size such as '110MB' or '4.5bpw', not {text!r}"
            ) from None
    if allowed < least:
        raise ValueError(
            f"mixed {text!r} is less than all linears in few bits take: "
            f"{format_size(least + others)}, or {8 * least / n_weights:.3f}bpw; all in many bits "
            f"take {format_size(most + others)}, or {8 * most / n_weights:.3f}bpw"
        )
    return allowed


def room(size: str, source: Source, target: Directory | GgufFile, wide: Scheme) -> int:
    """The bytes that a size leaves for linears in the wide scheme: see `budget`. ValueError."""
    shapes = [source.tensors[name].shape for name in target.linears]
    least, most = (
        sum(target.form.n_bytes(scheme, *shape) for shape in shapes)
        for scheme in (target.scheme, wide)
    )
    allowed = budget(
        size,
        n_weights=sum(map(math.prod, shapes)),
        least=least,
        most=most,
        others=target.n_bytes() + DIGITS * len(shapes) - least,
    )
    return allowed - least


def units(reports: Sequence[LayerReport], wide: Mapping[str, LinearReport]) -> list[Unit]:
    """What there is to choose from. wide: by their names, linears in more bits."""
    gains: dict[str, float] = {}
    costs: dict[str, int] = {}
    for linear in (linear for report in reports for linear in report.linears):
        other = wide[linear.name]
        gains[linear.unit] = gains.get(linear.unit, 0.0) + linear.error - other.error
        cost = other.after_bytes - linear.after_bytes
        costs[linear.unit] = costs.get(linear.unit, 0) + cost
    return [Unit(name, gains[name], costs[name]) for name in gains]


def choose(units: Sequence[Unit], room: int) -> set[str]:
    """The units with the greatest sum of gains whose costs fit into `room` bytes together: a
    knapsack, exact where costs have a common step (as models' shapes have); else they are rounded
    up to 65536ths of the room."""
    worth = [unit for unit in units if unit.gain > 0 and unit.cost <= room]
    if sum(unit.cost for unit in worth) <= room:
        return {unit.name for unit in worth}
    step = max(math.gcd(*(unit.cost for unit in worth)), -(-room // MAX_STEPS))
    n_steps = room // step
    best = np.zeros(n_steps + 1)  # by the steps that are used at most
    is_taken = np.zeros((len(worth), n_steps + 1), bool)
    for i, unit in enumerate(worth):
        cost = -(-unit.cost // step)
        with_it = best[: n_steps + 1 - cost] + unit.gain
        is_taken[i, cost:] = with_it > best[cost:]
        best[cost:] = np.maximum(best[cost:], with_it)
    chosen, left = set(), n_steps
    for i in reversed(range(len(worth))):
        if is_taken[i, left]:
            chosen.add(worth[i].name)
            left -= -(-worth[i].cost // step)
    return chosen
