"""Measures the KV cache in 16, 8 and 4 bits: size, speed of decoding, cross-entropy.

    python benchmarks/kv_cache.py [--quick] [--model FILE] [--csv FILE]

Variants take turns in one run, each in an engine of its own that keeps its contexts in the prefix
cache; ratios are medians of each round's ratio to fp16. Cross-entropy is that of the texts of
tests/golden/smollm2, of the embedded model alone. Prints tables in Markdown, appends a CSV row, and
exits with 1 where int8 decodes below 0.95 of fp16's rate: it must not be slower anywhere.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, Neighbours, append_csv, machine
from peer_report import number

from lmdeploy_c import _C
from lmdeploy_c.files.checkpoint import open_checkpoint, resolve_model

sys.path.insert(0, str(Path(__file__).parent / "workers"))

from run_ours import read_one, read_to_end
from serve import prompt_ids

#: Title -> bits of keys and values; the first is what the others are compared with.
VARIANTS: dict[str, tuple[int, int]] = {
    "fp16": (16, 16),
    "int8": (8, 8),
    "int8 K, int4 V": (8, 4),
    "int4": (4, 4),
}
BASE = "fp16"
CONTEXTS = (256, 1024, 4096, 16384)
BLOCK_LEN = 64
N_STEPS = 32  # of a measurement
LEAST_RATIO = 0.95  # of int8 to fp16
GOLDEN = ROOT / "tests" / "golden" / "smollm2" / "golden.npz"


def key_of(variant: str) -> str:
    """A variant's name in the CSV."""
    return variant.lower().replace(",", "").replace(" ", "_")


def token_bytes(config: dict[str, Any], bits: tuple[int, int]) -> float:
    sizes = (config["n_layer"], config["n_kv_head"], config["head_dim"])
    return _C.kv_block_bytes(*sizes, block_len=BLOCK_LEN, kv_bits=bits) / BLOCK_LEN


def engine_of(model: _C.Model, bits: tuple[int, int], context: int) -> _C.Engine:
    length = context + 2 * N_STEPS
    return _C.Engine(
        model,
        session_len=length,
        n_blocks=-(-length // BLOCK_LEN) + 8,
        max_batch_size=1,
        block_len=BLOCK_LEN,
        kv_bits=bits,
    )


def decode_rate(engine: _C.Engine, ids: list[int]) -> float:
    """Steps a second after this context, which the prefix cache may hold."""
    request = engine.submit(ids, max_new_tokens=N_STEPS + 8)
    read_one(request)
    read_one(request)
    start, n = time.perf_counter(), 0
    while n < N_STEPS:
        n += len(read_one(request).token_ids)
    seconds = time.perf_counter() - start
    request.cancel()
    read_to_end(request)
    return n / seconds


def decode_rates(
    model: _C.Model, contexts: tuple[int, ...], n_rounds: int
) -> dict[tuple[str, int], list[float]]:
    """By variant and context, round by round."""
    engines = {v: engine_of(model, bits, max(contexts)) for v, bits in VARIANTS.items()}
    rates: dict[tuple[str, int], list[float]] = {}
    for context in contexts:
        ids = prompt_ids(model.config["vocab_size"], context)
        for engine in engines.values():
            read_to_end(engine.submit(ids, max_new_tokens=1))
        for _ in range(n_rounds):
            for variant, engine in engines.items():
                rates.setdefault((variant, context), []).append(decode_rate(engine, ids))
    for engine in engines.values():
        engine.close()
    return rates


def cross_entropies(model: _C.Model) -> dict[str, list[float]]:
    """Of each text, by variant."""
    data = np.load(GOLDEN)
    texts = np.split(data["text_ids"], data["text_ids_offsets"][1:-1])
    found = {}
    for variant, bits in VARIANTS.items():
        engine = engine_of(model, bits, max(map(len, texts)))
        outputs = [read_to_end(engine.submit(t, max_new_tokens=0, return_ppl=True)) for t in texts]
        found[variant] = [float(output.ppl or float("nan")) for output in outputs]
        engine.close()
    return found


def report_sizes(config: dict[str, Any], row: dict[str, object]) -> None:
    print("\n| KV cache | bytes per token | tokens in 1 GiB | of fp16's size |\n|---|---|---|---|")
    base = token_bytes(config, VARIANTS[BASE])
    for variant, bits in VARIANTS.items():
        size = token_bytes(config, bits)
        row[f"{key_of(variant)}_token_bytes"] = size
        print(f"| {variant} | {size:.0f} | {int((1 << 30) // size)} | {size / base:.3f} |")


def report_rates(
    rates: dict[tuple[str, int], list[float]], contexts: tuple[int, ...], row: dict[str, object]
) -> float:
    """Returns the least ratio of int8 to fp16."""
    print(f"\n| decode at context, tok/s | {' | '.join(VARIANTS)} |")
    print("|---" * (1 + len(VARIANTS)) + "|")
    least = float("inf")
    for context in contexts:
        cells = []
        for variant in VARIANTS:
            values, base = rates[variant, context], rates[BASE, context]
            ratio = statistics.median(a / b for a, b in zip(values, base, strict=True))
            row[f"{key_of(variant)}_decode_at_{context}_tok_s"] = statistics.median(values)
            row[f"{key_of(variant)}_decode_at_{context}_ratio"] = ratio
            text = (
                f"{number(statistics.median(values))} [{number(min(values))}-{number(max(values))}]"
            )
            cells.append(text if variant == BASE else f"{text}, {ratio:.2f} x")
            if variant == "int8":
                least = min(least, ratio)
        print(f"| {context} | {' | '.join(cells)} |", flush=True)
    return least


def report_losses(losses: dict[str, list[float]], row: dict[str, object]) -> None:
    print("\n| KV cache | cross-entropy, mean | beside fp16 | each text |\n|---|---|---|---|")
    base = losses[BASE]
    for variant, values in losses.items():
        change = statistics.mean(values) / statistics.mean(base) - 1
        row[f"{key_of(variant)}_cross_entropy"] = statistics.mean(values)
        each = ", ".join(f"{a / b - 1:+.3%}" for a, b in zip(values, base, strict=True))
        print(f"| {variant} | {statistics.mean(values):.4f} | {change:+.3%} | {each} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--csv", type=Path, default=ROOT / "benchmarks" / "kv_cache.csv")
    parser.add_argument("--model", type=Path, help="a model file; default: the embedded model")
    parser.add_argument("--quick", action="store_true", help="without the context of 16k")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    neighbours = Neighbours()
    path = resolve_model(options.model)
    checkpoint = open_checkpoint(path)
    model = _C.Model(checkpoint.config, checkpoint.source)
    contexts = CONTEXTS[:-1] if options.quick else CONTEXTS
    row: dict[str, object] = {**machine(), "model": path.stem}
    report_sizes(checkpoint.config, row)
    least = report_rates(decode_rates(model, contexts, options.rounds), contexts, row)
    if options.model is None:
        report_losses(cross_entropies(model), row)
    row["others_share"] = neighbours.share()
    print(f"\n{row['machine']}, {row['isa']}, {row['threads']} threads, commit {row['commit']}.")
    print(f"Other processes took {neighbours.share():.0%} of the machine's time.")
    append_csv(options.csv, [row])
    if least < LEAST_RATIO:
        print(f"int8 decodes at {least:.2f} of fp16's rate: slower than it may be")
    return int(least < LEAST_RATIO)


if __name__ == "__main__":
    sys.exit(main())
