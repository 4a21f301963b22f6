"""Files that today's quantizers wrote: values and logits are those that the tools read there
(tests/golden/tools)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import packed_models as pm
import pytest
from conftest import GOLDEN, exact_kv_bits, load_model, logits_tolerance, make_engine, read_all

from lmdeploy_c.files.checkpoint import open_checkpoint

FILES = sorted((GOLDEN / "packed").iterdir())
DTYPES = {"F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I8": "<i1"}


def read_tensors(path: Path) -> pm.Tensors:
    """As safetensors' own reader, which has no bf16 without torch."""
    data = (path / "model.safetensors").read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    tensors: pm.Tensors = {}
    for name, entry in json.loads(data[8:begin]).items():
        if name != "__metadata__":
            first, end = (begin + at for at in entry["data_offsets"])
            stored = np.frombuffer(data[first:end], DTYPES.get(entry["dtype"], "<u2"))
            values = pm.from_bf16(stored) if entry["dtype"] == "BF16" else stored
            tensors[name] = values.reshape(entry["shape"])
    return tensors


def form_of(path: Path, tensors: pm.Tensors) -> str:
    """The form of packed_models that a directory has."""
    settings = json.loads((path / "config.json").read_text())["quantization_config"]
    method = open_checkpoint(path).config["quant_method"]
    if method == "compressed-tensors":
        [group] = settings["config_groups"].values()
        form = "int-quantized" if group["format"] == "int-quantized" else "compressed"
        return form if group["weights"]["num_bits"] != 3 else f"{form}-3"
    if settings["bits"] == 8:  # no zero is 0, so that nothing borrows
        assert all((t == 0x7F7F7F7F).all() for name, t in tensors.items() if "qzeros" in name)
        return "gptq-8"
    return method if settings["bits"] == 4 else f"{method}-{settings['bits']}"


def test_every_tool_and_format_is_there() -> None:
    written: dict[str, Any] = {}
    for path in FILES:
        config = json.loads((path / "config.json").read_text())["quantization_config"]
        written.setdefault(config["quant_method"], []).append(path.name)
    assert {"gptq", "awq", "compressed-tensors", "auto-round"} <= written.keys(), written
    assert len(FILES) >= 12


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_values_and_logits(path: Path) -> None:
    tensors = read_tensors(path)
    dense = pm.dense_tensors(form_of(path, tensors), tensors)
    sums = json.loads((path / "values.json").read_text())["sha256_of_fp32_values"]
    assert len(sums) == 7  # of the one layer
    for name, checksum in sums.items():
        assert hashlib.sha256((dense[name] + np.float32(0)).tobytes()).hexdigest() == checksum, name
    golden = np.load(path / "golden.npz")
    engine = make_engine(load_model(path), kv_bits=exact_kv_bits())
    got = read_all(engine.submit(golden["input_ids"], max_new_tokens=0, output_logits="all")).logits
    engine.close()
    assert got is not None
    assert (
        np.abs(got - golden["logits"]).max() <= logits_tolerance() * np.abs(golden["logits"]).max()
    )
