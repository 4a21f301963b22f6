"""A GGUF's weights, dequantised exactly, as a Hugging Face directory, for engines without GGUF.

Written once into build/peers/models by whichever environment needs it first (torch, transformers).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

FOLDER = Path(__file__).parent.parent.parent / "build" / "peers" / "models"


def made_once(name: str, make: Callable[[Path], None]) -> Path:
    """FOLDER/name, filled by make(folder) if it is not there; a failed one is not kept."""
    folder = FOLDER / name
    if not folder.exists():
        unfinished = FOLDER / f"{name}.{os.getpid()}"
        unfinished.mkdir(parents=True)
        try:
            make(unfinished)
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def hf_directory(path: str) -> Path:
    """config.json, fp32 safetensors and the tokenizer's files."""
    gguf = Path(path)

    def make(folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32
        )
        del model.config.quantization_config  # what it was read from; the weights are plain now
        plain = AutoModelForCausalLM.from_config(model.config, dtype=torch.float32)
        plain.load_state_dict(model.state_dict())
        plain.save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        tokenizer.save_pretrained(folder)

    return made_once(f"{gguf.stem}-hf", make)
