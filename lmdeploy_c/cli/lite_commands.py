"""`lmdeploy_c lite auto_awq | auto_gptq | smooth_quant | calibrate`: LMDeploy's commands, with its
flags."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .output import PROG

#: A flag, its type, its default, its help. It sets the argument of its name; bool: without a value.
Flag = tuple[str, Callable[[str], Any], Any, str]

CALIBRATION: tuple[Flag, ...] = (
    ("--calib-dataset", str, "builtin", "What the model reads first: builtin, a text that comes "
     "with the package; self, its own samples; a .txt, .jsonl or .json file; or one of LMDeploy's "
     "names, of which there is a copy. Nothing is downloaded."),
    ("--calib-samples", int, None, "Most windows of it; None: 4 tokens for each column of the "
     "widest linear, and 24 at least. 0: no calibration, where the method can do without."),
    ("--calib-seqlen", int, 512, "Tokens of a window."),
    ("--dtype", str, "auto", "Of what stays a float: auto (bfloat16 where the model is, or "
     "float16), float16, bfloat16, float32."),
    ("--num-threads", int, None, "Threads; None: all usable ones."),
    ("--batch-size", int, 1, "Changes nothing: texts are read in steps of many tokens."),
    ("--trust-remote-code", bool, False, "Changes nothing: a model's code is never run."),
)  # fmt: skip
REVISION: Flag = ("--revision", str, None, "Of a model id: a branch, a tag or a commit.")
DOWNLOAD_DIR: Flag = ("--download-dir", str, None, "Where model ids are fetched to; None: the "
                      "hub's own cache.")  # fmt: skip
DEVICE: Flag = ("--device", str, "cpu", "Changes nothing: models are compressed on the CPU.")
SEARCH: Flag = ("--search-scale", bool, False, "Search the columns' scales.")
WEIGHTS: tuple[Flag, ...] = (
    ("--w-bits", int, 4, "Bits of a weight."),
    ("--w-group-size", int, None, "Columns that share a scale; -1: a whole row; None: the largest "
     "of 128, 64, 32 that fits the model."),
)  # fmt: skip
METHOD = "best, or another method of `lite quantize`"

#: Command -> what it does, and its flags besides CALIBRATION.
COMMANDS: dict[str, tuple[str, tuple[Flag, ...]]] = {
    "auto_awq": (
        "write a model with 4-bit weights in AWQ's format, by AWQ's scales",
        (
            *WEIGHTS,
            ("--w-sym", bool, False, "Zero is the middle code."),
            SEARCH,
            ("--method", str, None, f"{METHOD}; None: awq."),
            *(DEVICE, REVISION, DOWNLOAD_DIR),
        ),
    ),
    "auto_gptq": (
        "write a model with 3-bit, 4-bit or 8-bit weights in GPTQ's format, by GPTQ",
        (
            *WEIGHTS,
            (
                "--desc-act",
                bool,
                False,
                "Columns that carry most come first, and share groups.",
            ),
            ("--method", str, "gptq", f"{METHOD}."),
            REVISION,
        ),
    ),
    "smooth_quant": (
        "write a model with 8-bit weights and smoothed activations (W8A8)",
        (
            ("--quant-dtype", str, "int8", "int8."),
            ("--alpha", float, 0.5, "How much of the range goes from activations into weights."),
            *(SEARCH, DEVICE, REVISION, DOWNLOAD_DIR),
        ),
    ),
    "calibrate": (
        "write what a model's linears read, column by column, and the ranges of keys and values",
        (
            ("--search-scale", bool, False, "Changes nothing: scales are the other commands'."),
            DEVICE,
        ),
    ),
}
SHOWN = 5  # outliers


def add_parsers(add_command: Callable[[str, str], argparse.ArgumentParser]) -> None:
    """add_command: adds one with a name and a text, MODEL and --work-dir."""
    for name, (text, own) in COMMANDS.items():
        parser = add_command(name, text)
        for flag, kind, default, help_text in (*own, *CALIBRATION):
            if kind is bool:
                parser.add_argument(flag, action="store_true", help=help_text)
            else:
                parser.add_argument(flag, type=kind, default=default, help=help_text)
        flags = [flag for flag, *_ in (*own, *CALIBRATION)]
        parser.set_defaults(run=functools.partial(run, name, flags))


def run(name: str, flags: list[str], args: argparse.Namespace) -> int:
    from .. import lite

    fields = [flag[2:].replace("-", "_") for flag in flags]
    given = {field: getattr(args, field) for field in fields}
    if given["calib_dataset"] == "none":
        given |= {"calib_dataset": "builtin", "calib_samples": 0}
    done = getattr(lite, name)(args.model_path, work_dir=args.work_dir, **given)
    if name == "calibrate":
        print(_measured(done, Path(args.work_dir)))
    else:
        print(result_of(done, Path(args.work_dir)))
    return 0


def _measured(found: Any, folder: Path) -> str:
    from ..lite.statistics import FILE, KV_FILE

    worst = sorted(found.inputs, key=lambda report: -float(report.outlier_ratio))[:SHOWN]
    lines = [f"{folder / FILE}: what {len(found.inputs)} inputs carry. Largest outliers:"]
    lines += [f"  {report}" for report in worst]
    return "\n".join([*lines, f"{folder / KV_FILE}: ranges of keys and values.", f"  {found.kv}"])


def result_of(report: Any, folder: Path) -> str:
    """What a command says of a model that it wrote."""
    return f"{report}\n{folder}: {size_of(folder)}. Try it: {PROG} chat {folder}"


def size_of(made: Path) -> str:
    """Of a file, or of a directory's weights, as people read it."""
    from ..units import format_size

    weights = [*made.glob("*.safetensors"), *made.glob("*.gguf")] if made.is_dir() else [made]
    return format_size(sum(file.stat().st_size for file in weights))
