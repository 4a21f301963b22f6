"""README's table of what is loaded, against the code that loads it."""

import re
from pathlib import Path

from lmdeploy_c.files.model_config import ARCHITECTURES, ROPE_TYPES

ROOT = Path(__file__).parents[2]


def row(start: str) -> str:
    lines = (ROOT / "README.md").read_text().splitlines()
    [line] = [line for line in lines if line.startswith(f"| {start}")]
    return line


def test_every_stored_type_is_named() -> None:
    header = (ROOT / "csrc/quant/weight_codec.h").read_text()
    define = header.split("#define LMD_WEIGHT_TYPES", 1)[1].split("\n\n", 1)[0]
    types = re.findall(r"\b[A-Z]+\d\w*\b", define)
    assert len(types) == 15
    assert set(types) <= set(re.findall(r"\w+", row("GGUF")))


def test_every_architecture_is_named() -> None:
    named = row("Architectures")
    for name in ARCHITECTURES:
        assert name.removesuffix("ForCausalLM") in named, name


def test_every_kind_of_rope_is_named() -> None:
    assert all(kind in row("RoPE") for kind in ROPE_TYPES)
