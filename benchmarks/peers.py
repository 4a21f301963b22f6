"""Compares lmdeploy_c with other engines on this machine: the same file, the same tokens, in turn.

    python benchmarks/peers.py [--quick] [--long] [--rounds N] [--peers NAMES] [--models NAMES]

Each engine is a process of its own that lives as long as a model is measured, and is stopped while
another runs. A round runs every engine once for a case, beginning with another one each time;
medians, ranges and ratios of medians go to the terminal, rows to benchmarks/peers.csv, and the plot
to docs/peers.svg.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import peer_report
import plot
import shapes
from common import BUILD, ROOT, Neighbours, append_csv, machine, work_of
from peer_envs import PEERS, environment
from peer_process import PeerError, PeerProcess
from peer_report import Result
from roofline import Turn, roofline, timed

from lmdeploy_c.files.checkpoint import resolve_model

OURS = "lmdeploy_c"
PATIENCE_S = 240  # an engine that took longer on a case has run its last round of it
QUIET, TRIES, RETRY_S = 0.1, 3, 30  # a turn beside busier neighbours is repeated, if it is short
GOLDEN = ROOT / "tests" / "golden" / "smollm2" / "golden.npz"

CASES: dict[str, dict[str, object]] = {
    "prefill 512": {"kind": "prefill", "context": 0, "n": 512, "n_seqs": 1},
    "decode": {"kind": "decode", "context": 0, "n": 128, "n_seqs": 1},
    "decode at 4k": {"kind": "decode", "context": 4096, "n": 32, "n_seqs": 1},
    "decode at 16k": {"kind": "decode", "context": 16384, "n": 16, "n_seqs": 1},
    "16 sequences": {"kind": "batch", "context": 64, "n": 64, "n_seqs": 16},
    "short decode": {"kind": "decode", "context": 0, "n": 24, "n_seqs": 1},
}
COMMON = ["prefill 512", "decode", "decode at 4k", "16 sequences"]
GGUF_PEERS = ["llama.cpp"]


@dataclass
class Model:
    """name: a shape of shapes.py, or SmolLM2 itself. long_cases: with --long alone."""

    name: str
    title: str
    peers: list[str]
    cases: list[str] = field(default_factory=lambda: list(COMMON))
    long_cases: list[str] = field(default_factory=list)
    is_long: bool = False  # the whole model with --long alone

    def path(self) -> Path:
        return resolve_model(None) if self.name == "smollm2" else shapes.model_file(self.name)


MODELS = [
    Model("smollm2", "SmolLM2-135M Q4_1", list(PEERS)),
    Model("smollm2-q4_0", "SmolLM2's shape Q4_0", GGUF_PEERS, long_cases=["decode at 16k"]),
    Model("1b-q4_0", "Llama-3.2-1B's shape Q4_0", [*GGUF_PEERS, "openvino-genai"]),
    Model("1b-q4_1", "Llama-3.2-1B's shape Q4_1", GGUF_PEERS, ["prefill 512", "decode"]),
    Model("7b-q4_0", "Llama-2-7B's shape Q4_0", GGUF_PEERS, ["short decode"]),
    Model("7b-q4_1", "Llama-2-7B's shape Q4_1", GGUF_PEERS, ["short decode"], is_long=True),
]


@dataclass
class Engine:
    """A worker, and what it calls its ways to run."""

    name: str
    process: PeerProcess
    variants: list[str]
    how: str

    def label(self, variant: str) -> str:
        return f"{OURS} {variant}" if self.name == OURS else self.name


def start_engines(
    model: Model, names: list[str], threads: int, cases: list[str]
) -> tuple[list[Engine], list[Result]]:
    """The engines that took the model; and a row with the reason for each that did not."""
    path = model.path()
    longest = max(int(str(CASES[c]["context"])) + int(str(CASES[c]["n"])) for c in cases)
    most = max(int(str(CASES[c]["n_seqs"])) for c in cases)
    request = {"path": str(path), "threads": threads, "max_context": longest + 128,
               "max_seqs": most}  # fmt: skip
    engines, failed = [], []
    for name in [OURS, *names]:
        python, worker, how = Path(sys.executable), "run_ours.py", ""
        if name != OURS:
            env = environment(PEERS[name])
            if env.python is None:
                failed.append(Result(model.title, "all", name, "", reason=env.reason))
                continue
            python, worker, how = env.python, PEERS[name].worker, env.how
        process = PeerProcess(python, worker, BUILD / "peers" / f"{name}.stderr")
        try:
            loaded = process.ask({"op": "load", **request})
        except PeerError as error:
            process.close()
            failed.append(Result(model.title, "all", name, "", reason=str(error)))
            continue
        process.version = str(loaded["version"])
        engines.append(Engine(name, process, loaded["variants"], how))
    return engines, failed


def quiet_turn(engine: Engine, variant: str, case: str) -> Turn:
    """One run. Beside busy neighbours it is repeated, and the quietest run counts: chosen by what
    others took of the machine, never by the rate."""
    pid, request = engine.process.pid, {"op": "run", "variant": variant, "case": CASES[case]}
    tries: list[Turn] = []
    for _ in range(TRIES):
        start = time.perf_counter()
        tries.append(timed(CASES[case], lambda: float(engine.process.ask(request)["tok_s"]), [pid]))
        if tries[-1].others < QUIET or time.perf_counter() - start > RETRY_S:
            break
    return min(tries, key=lambda turn: turn.others)


def measure(model: Model, case: str, engines: list[Engine], rounds: int) -> list[Result]:
    """Every engine once a round; a round begins with another engine than the last."""
    results = {
        (engine.name, variant): Result(
            model.title, case, engine.label(variant), engine.process.version, note=engine.how
        )
        for engine in engines
        for variant in engine.variants
    }
    spent = dict.fromkeys(results, 0.0)
    turns = [(engine, variant) for engine in engines for variant in engine.variants]
    for i in range(rounds):
        first = i % len(turns)
        for engine, variant in turns[first:] + turns[:first]:
            result = results[engine.name, variant]
            if result.reason or spent[engine.name, variant] > PATIENCE_S:
                continue
            start = time.perf_counter()
            try:
                result.turns.append(quiet_turn(engine, variant, case))
            except PeerError as error:
                result.reason, result.turns = str(error), []
            spent[engine.name, variant] += time.perf_counter() - start
    return list(better_variants(engines, results))


def better_variants(
    engines: list[Engine], results: dict[tuple[str, str], Result]
) -> Iterator[Result]:
    """Ours: every variant. Of a peer the better one, which the note names."""
    for engine in engines:
        rows = [results[engine.name, variant] for variant in engine.variants]
        if engine.name == OURS or len(rows) == 1:
            yield from rows
            continue
        best = max(range(len(rows)), key=lambda i: rows[i].median or 0)
        rows[best].note = ", ".join(filter(None, [engine.how, engine.variants[best]]))
        yield rows[best]


def quality(model: Model, engines: list[Engine]) -> Iterator[Result]:
    """Mean cross-entropy of the golden texts over that of the exact weights, in per cent."""
    data = np.load(GOLDEN)
    texts = [data["text_ids"][a:b].tolist() for a, b in pairwise(data["text_ids_offsets"])]
    golden = data["cross_entropy"]
    for engine in engines:
        for variant in engine.variants:
            result = Result(
                model.title, "cross-entropy", engine.label(variant), engine.process.version,
                note=variant, unit="% over the exact weights",
            )  # fmt: skip
            try:
                reply = engine.process.ask(
                    {"op": "cross_entropy", "variant": variant, "texts": texts}
                )
                losses = np.array(reply["losses"])
                result.turns = [Turn(float((losses.mean() / golden.mean() - 1) * 100))]
                each = ", ".join(f"{x:+.3f}" for x in (losses / golden - 1) * 100)
                result.note = f"{variant}; each text {each}"
            except PeerError as error:
                result.reason = str(error)
            yield result


def run_model(
    model: Model, peers: list[str], rounds: int, is_long: bool, threads: int
) -> list[Result]:
    cases = model.cases + (model.long_cases if is_long else [])
    names = [name for name in model.peers if name in peers]
    engines, results = start_engines(model, names, threads, cases)
    try:
        for case in cases:
            results += measure(model, case, engines, rounds)
            peer_report.progress(results, case)
        if model.name == "smollm2":
            results += quality(model, engines)
    finally:
        for engine in engines:
            engine.process.close()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="SmolLM2 alone, 2 rounds")
    parser.add_argument("--long", action="store_true", help="with the slow cases and models")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--peers", default=",".join(PEERS), help="default: %(default)s")
    parser.add_argument("--models", default=",".join(m.name for m in MODELS))
    parser.add_argument("--csv", type=Path, default=ROOT / "benchmarks" / "peers.csv")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "peers.svg")
    options = parser.parse_args()
    wanted, peers = options.models.split(","), options.peers.split(",")
    unknown = {*peers} - {*PEERS, ""} | {*wanted} - {m.name for m in MODELS}
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    rounds = options.rounds or (2 if options.quick else 5)
    explicit = options.models != parser.get_default("models")
    row = machine()
    limits = roofline()
    peer_report.header(row, rounds)
    for model in MODELS:
        if model.name not in wanted or (options.quick and model.name != "smollm2"):
            continue
        if model.is_long and not (options.long or explicit):
            continue
        neighbours = Neighbours()
        results = run_model(model, peers, rounds, options.long, int(row["threads"]))
        others = f"{neighbours.share():.2f}"
        append_csv(options.csv, [{**result.row(row), "others": others} for result in results])
        limits = limits.or_better(roofline())
        peer_report.table(model.title, results, CASES, work_of(model.path()), limits)
        print(f"The machine {limits}. Other processes took {float(others):.0%} of its time.\n")
    if not options.quick:
        plot.draw(options.csv, options.plot)


if __name__ == "__main__":
    main()
