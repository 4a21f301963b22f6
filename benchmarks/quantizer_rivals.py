"""Other quantizers and ours on the same machine, model and tokens (developers alone):

    python benchmarks/quantizer_rivals.py FOLDER [MODEL] [--calibration NAME] [--only NAME]
                                          [--threads N] [--layers N] [--again]

FOLDER keeps the tools' environments (some 4 GB, made by tests/golden/tools/run.py) and what they
write. Each runs alone, in a process of its own, with their defaults: 4 bits, groups of 64 with a
zero, 24 windows of 512 tokens. AutoRound takes an hour and a half of two cores for the embedded
model. What is in FOLDER is not made again without --again. Quality is measured as in quantizer.py;
rows go into --csv.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, append_csv, machine
from quantizer_models import GOLDEN, LENGTH, MODELS, WINDOWS, Model, model_of, quality
from safetensors.numpy import load_file, save_file

from lmdeploy_c import lite
from lmdeploy_c.lite import calibration_data
from lmdeploy_c.lite.layers import layer_of
from lmdeploy_c.lite.source import Source

WORKER = ROOT / "benchmarks" / "workers" / "quantize.py"
BITS, GROUP = 4, 64
#: Name -> the environment that it runs in; None: this one. The packages whose versions count.
RIVALS = {
    "auto_awq": None,
    "auto_awq --search-scale": None,
    "best": None,
    "llm-compressor's AWQ": "llmcompressor",
    "AutoRound": "gptqmodel",
}
PACKAGES = {
    "llmcompressor": ("llmcompressor", "torch"),
    "gptqmodel": ("auto-round", "torch"),
}


def prepare(model: Model, calibration: str, folder: Path) -> tuple[Path, Path]:
    """A directory that every tool reads, and the tokens; beside these the texts they are of."""
    exact = Path(model.path) if model.path else folder.parent / "embedded"
    if not exact.exists():
        lite.export(model.path, exact)
    dataset, tokens = model.calibrations[calibration](), folder / "tokens.npy"
    windows = calibration_data.windows(Source(exact), dataset, samples=WINDOWS, seqlen=LENGTH)
    np.save(tokens, np.array(windows, np.int64))
    tokens.with_suffix(".json").write_text(json.dumps(dataset))
    return exact, tokens


def first_layers(exact: Path, n: int, folder: Path) -> Path:
    """A directory of the model's first layers: enough for times and memory, which are those of a
    layer as often as there are layers."""
    short = folder / f"layers-{n}"
    if not short.exists():
        shutil.copytree(exact, short, ignore=shutil.ignore_patterns("*.safetensors"))
        config = json.loads((exact / "config.json").read_text())
        (short / "config.json").write_text(json.dumps({**config, "num_hidden_layers": n}))
        names = {
            name: tensor
            for name, tensor in load_file(exact / "model.safetensors").items()
            if layer_of(name) < n
        }
        save_file(names, short / "model.safetensors", {"format": "pt"})
    return short


def python_of(folder: Path, env: str | None) -> Path:
    if env is None:
        return Path(sys.executable)
    sys.path.insert(0, str(GOLDEN / "tools"))
    made: Path = import_module("run").environment(folder, env)
    return made


def versions(python: Path, env: str | None) -> str:
    if env is None:
        return ""
    names = PACKAGES[env]
    code = f"from importlib.metadata import version; print(*map(version, {names!r}))"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return ", ".join(map(" ".join, zip(names, found.stdout.split(), strict=True)))


def run(
    python: Path, name: str, exact: Path, tokens: Path, out: Path, threads: int
) -> dict[str, Any]:
    """What a tool took. Its talk goes into a file beside what it writes."""
    unfinished = out.with_name(f"{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    call = [python, WORKER, name, exact, tokens, unfinished, str(BITS), str(GROUP)]
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with out.with_suffix(".log").open("wb") as log:
        subprocess.run(
            call, cwd=out.parent, env=env, stdout=log, stderr=subprocess.STDOUT, check=True
        )
    cost: dict[str, Any] = json.loads(out.with_suffix(".log").read_text().splitlines()[-1])
    shutil.rmtree(out, ignore_errors=True)
    unfinished.rename(out)
    return cost


def checkpoint_in(folder: Path) -> Path:
    """AutoRound writes into a folder of its own in the one that it is given."""
    [config] = folder.rglob("config.json")
    return config.parent


def print_table(rows: list[dict[str, Any]]) -> None:
    print("\n| | processor s | peak MB | KL, nats | same token | cross-entropy |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        line = (
            f"| {row['method']} {row['versions']} | {row['processor_seconds']:.1f} "
            f"| {row['peak_memory'] / 1e6:.0f} |"
        )
        if "kl" in row:
            line += (
                f" {row['kl']:.5f} ± {row['kl_half_width']:.5f} | {row['same_top']:.1%} "
                f"| {row['rise']:+.2%} ± {row['rise_half_width']:.2%} |"
            )
        print(line)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("model", nargs="?", default=MODELS[0])
    parser.add_argument("--calibration", choices=("builtin", "library"), default="library")
    parser.add_argument("--only", action="append", choices=RIVALS)
    parser.add_argument(
        "--threads", type=int, default=len(os.sched_getaffinity(0)),
        help="1 where others use the machine: threads that wait burn time",
    )  # fmt: skip
    parser.add_argument("--layers", type=int, metavar="N", help="the first N, for costs alone")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--csv", type=Path, default=ROOT / "benchmarks" / "quantizer_rivals.csv")
    args = parser.parse_args()
    model, home = model_of(args.model), args.folder.absolute()
    folder = home / f"{Path(args.model).name}-{args.calibration}"
    folder.mkdir(parents=True, exist_ok=True)
    exact, tokens = prepare(model, args.calibration, folder)
    if args.layers:
        exact, folder = first_layers(exact, args.layers, folder), folder / f"{args.layers}"
        folder.mkdir(exist_ok=True)
    rows = []
    for name in args.only or RIVALS:
        env = RIVALS[name]
        python = python_of(home, env)
        out = folder / name.replace(" ", "_")
        cost_file = out.with_suffix(".json")
        if args.again or not cost_file.exists():
            cost_file.write_text(json.dumps(run(python, name, exact, tokens, out, args.threads)))
        row = {
            **machine(),
            "threads": args.threads,
            "model": args.model,
            "calibration": args.calibration,
            "bits": BITS,
            "group": GROUP,
            "method": name,
            "versions": versions(python, env),
            "layers": args.layers or "all",
            **json.loads(cost_file.read_text()),
        }
        if not args.layers:
            row |= quality(lite.divergence(exact, checkpoint_in(out), model.held_out()))
        rows.append(row)
        append_csv(args.csv, [row])
    print_table(rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
