"""What today's quantizers and lmdeploy_c make of each other's files (developers alone):

    python tests/golden/tools/run.py FOLDER [write]

FOLDER keeps the tools' environments, some 4 GB. Random codes, scales and zeros are packed by
lmdeploy_c.lite.packing as a tiny Llama in every format, each tool's own code decodes those that it
knows, and the values are compared exactly. With `write`, the tools quantise the tiny Llama first,
and tests/golden/packed, which tests/core/test_tool_files.py reads, is made afresh.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from lmdeploy_c.lite import packing
from lmdeploy_c.lite.source import LINEARS

HERE = Path(__file__).parent
PACKED = HERE.parent / "packed"
#: Environment -> its packages. llmcompressor asks for compressed-tensors 0.19, whose successor is
#: in one of its own; gptqmodel asks for a newer torch than it needs.
ENVIRONMENTS = {
    "llmcompressor": ["llmcompressor==0.14.0.1"],
    "compressed-tensors": ["compressed-tensors==0.20.0"],
    "gptqmodel": [
        "auto-round==0.16.1", "defuser>=0.0.28", "device-smi>=0.5.7", "dill>=0.4.1",
        "logbar>=0.4.15", "ninja", "pypcre>=0.6.4", "threadpoolctl>=3.7.0", "tokenicer>=0.0.14",
        "torchao>=0.18.0",
    ],
}  # fmt: skip
WITHOUT_DEPENDENCIES = {"gptqmodel": ["gptqmodel==7.7.0"]}
TORCH = "torch==2.13.0"
#: Script -> the environment that writes by it, and those that read by it.
SCRIPTS = {
    "llm_compressor": ("llmcompressor", ["llmcompressor", "compressed-tensors"]),
    "gptqmodel_files": ("gptqmodel", ["gptqmodel"]),
    "auto_round_files": ("gptqmodel", ["gptqmodel"]),
}
#: Format, bits, group size (-1: rows), symmetric.
OURS = [
    *(("awq", 4, group, symmetric) for group in (32, -1) for symmetric in (True, False)),
    *(
        (form, bits, group, symmetric)
        for form in ("gptq", "compressed-tensors")
        for bits in (3, 4, 8)
        for group in (32, -1)
        for symmetric in (True, False)
    ),
    ("int-quantized", 8, -1, True),
]


def environment(folder: Path, name: str) -> Path:
    """An environment's Python; it is made where it is not there."""
    python = folder / name / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder / name], check=True)
        for packages in ([TORCH], [TORCH, *ENVIRONMENTS[name]]):
            subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
        for package in WITHOUT_DEPENDENCIES.get(name, []):
            command = [python, "-m", "pip", "install", "-q", "--no-deps", package]
            subprocess.run(command, check=True)
    return python


def run_script(folder: Path, env: str, script: str, command: str, at: Path) -> None:
    """The tools' talk goes into a file, and what they leave where they run into the folder."""
    with (folder / f"{env}-{script}-{command}.log").open("wb") as log:
        call = [environment(folder, env), HERE / f"{script}.py", command, at]
        subprocess.run(call, cwd=folder, stdout=log, stderr=subprocess.STDOUT, check=True)


def random_codes(
    rng: np.random.Generator, scheme: packing.Scheme, shape: tuple[int, ...]
) -> packing.Codes:
    """Every code and zero occurs."""
    n_out, n_in = shape
    most, n_groups = 2**scheme.bits, scheme.n_groups(n_in)
    zeros = rng.integers(0, most, (n_out, n_groups), np.uint8)
    if scheme.symmetric:
        zeros[:] = most // 2
    scales = rng.uniform(0.001, 0.01, zeros.shape).astype(np.float16)
    return packing.Codes(scheme, rng.integers(0, most, shape, np.uint8), scales, zeros)


def values_of(made: packing.Codes) -> NDArray[np.float32]:
    n_out, n_in = made.codes.shape
    groups = made.codes.reshape(n_out, made.scales.shape[1], -1).astype(np.float32)
    values = made.scales[..., None].astype(np.float32) * (groups - made.zeros[..., None])
    return values.reshape(n_out, n_in)


def write_ours(base: Path, at: Path, form: str, scheme: packing.Scheme) -> None:
    """The base with random linears, as a directory, and what they mean in ours.npz."""
    rng = np.random.default_rng(scheme.bits)
    tensors = load_file(base / "model.safetensors")
    expected: dict[str, NDArray[np.float32]] = {}
    for name in [name for name in tensors if LINEARS.fullmatch(name)]:
        made = random_codes(rng, scheme, tensors.pop(name).shape)
        expected[name] = values_of(made)
        for suffix, array in packing.FORMATS[form].pack(made).items():
            tensors[name.removesuffix("weight") + suffix] = array
    shutil.copytree(base, at, ignore=shutil.ignore_patterns("*.safetensors"))
    save_file(tensors, at / "model.safetensors", {"format": "pt"})
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = packing.FORMATS[form].config(scheme)
    (at / "config.json").write_text(json.dumps(config))
    np.savez(at / "ours.npz", **expected)


def compare(at: Path, script: str) -> str:
    """What a tool made of a directory: "exact", or in how many values it differs. "-": nothing."""
    file = at / f"{script}.npz"
    if not file.exists():
        return "-"
    expected, got = np.load(at / "ours.npz"), np.load(file)
    if sorted(expected) != sorted(got):
        return f"has {sorted(got)}"
    differ = sum(int((expected[name] != got[name]).sum()) for name in expected)
    return f"{differ} values differ" if differ else "exact"


def main(folder: Path, write: bool) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    if write:
        shutil.rmtree(PACKED, ignore_errors=True)
        for script, (env, _) in SCRIPTS.items():
            run_script(folder, env, script, "write", PACKED)
            shutil.rmtree(PACKED.parent / f"base-{script}")
    ours, wrong = folder / "ours", 0
    shutil.rmtree(ours, ignore_errors=True)
    base = folder / "base"
    run_script(folder, "llmcompressor", "common", "base", base)  # with the tokenizer
    for form, bits, group, symmetric in OURS:
        name = f"{form}-{bits}-{'rows' if group == -1 else group}-{'sym' if symmetric else 'asym'}"
        write_ours(base, ours / name, form, packing.Scheme(bits, group, symmetric))
    for script, (_, readers) in SCRIPTS.items():
        for env in readers:
            for old in [*ours.glob(f"*/{script}.npz"), *ours.glob(f"*/{script}.txt")]:
                old.unlink()
            run_script(folder, env, script, "read", ours)
            for at in sorted(ours.iterdir()):
                found = compare(at, script)
                wrong += found not in ("exact", "-")
                if found != "-":
                    loaded = (at / f"{script}.txt").read_text()
                    print(f"{at.name:30} {env:18} {script:16} {found}; {loaded}")
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).absolute(), "write" in sys.argv[2:]))
