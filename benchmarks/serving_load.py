"""What serving.py asks for: lengths of requests, their prompts, and the times at which they arrive.

    python benchmarks/serving_load.py > benchmarks/serving_lengths.csv

makes the committed distribution afresh. It is like ShareGPT's conversations, as servers are
measured with: 1000 of them have 229.7 tokens of prompt and 203.1 of answer on average
(vLLM's `bench serve`, https://github.com/vllm-project/vllm/pull/18566). Only the two means are
ShareGPT's. The rest is a choice: both log-normal, and together at most 1024 tokens, for small
models.
"""

from __future__ import annotations

import csv
import math
import random
import sys
from collections.abc import Sequence
from pathlib import Path

LENGTHS = Path(__file__).parent / "serving_lengths.csv"
#: (mean, deviation) of the logarithm of a length, before pairs are refused.
PROMPT, OUTPUT = (5.41, 1.3), (5.14, 1.2)
SHORTEST, LONGEST = 4, 1024  # of either; of both together

#: Tokens of a prompt, and of its answer.
Pair = tuple[int, int]


def make_lengths(n: int = 256, seed: int = 4) -> list[Pair]:
    """n pairs; those that are too short or too long are drawn again."""
    rng, pairs = random.Random(seed), list[Pair]()
    while len(pairs) < n:
        prompt, output = (round(rng.lognormvariate(*shape)) for shape in (PROMPT, OUTPUT))
        if min(prompt, output) >= SHORTEST and prompt + output <= LONGEST:
            pairs.append((prompt, output))
    return pairs


def read_lengths(path: Path = LENGTHS) -> list[Pair]:
    with path.open(newline="") as file:
        return [(int(row["prompt"]), int(row["output"])) for row in csv.DictReader(file)]


def sample(pairs: Sequence[Pair], n: int, seed: int = 0) -> list[Pair]:
    """n pairs with about the means of all: at even distances by length, then shuffled."""
    by_length = sorted(pairs, key=lambda pair: (sum(pair), pair))
    chosen = [by_length[int((i + 0.5) * len(pairs) / n) % len(pairs)] for i in range(n)]
    random.Random(seed).shuffle(chosen)
    return chosen


def poisson_arrivals(n: int, rate: float, seed: int = 0) -> list[float]:
    """Seconds from the start at which n requests arrive, `rate` of them a second on average."""
    rng, at, times = random.Random(seed), 0.0, list[float]()
    for _ in range(n):
        at += rng.expovariate(rate)
        times.append(at)
    return times


def percentile(values: Sequence[float], q: float) -> float:
    """The smallest value that at least q per cent do not exceed; NaN of none."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[max(0, math.ceil(q / 100 * len(ordered)) - 1)]


if __name__ == "__main__":
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(("prompt", "output"))
    writer.writerows(make_lengths())
