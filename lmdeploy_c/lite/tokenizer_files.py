"""A model's tokenizer, chat template and generation settings in a new directory."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ..tokenizer import Tokenizer
from .shards import write_json
from .source import Source

COPIED = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json",
    "generation_config.json",
)  # fmt: skip
COPIED_FOLDERS = ("additional_chat_templates",)


def _copy(path: Path, folder: Path) -> None:
    for name in COPIED:
        if (path / name).is_file():
            shutil.copyfile(path / name, folder / name)
    for name in COPIED_FOLDERS:
        if (path / name).is_dir():
            shutil.copytree(path / name, folder / name, dirs_exist_ok=True)


def _templates(tokenizer: Tokenizer) -> Any:
    found = tokenizer.chat_templates
    if set(found) == {"default"}:
        return found["default"]
    return [{"name": name, "template": text} for name, text in found.items()]


def _write_gguf(source: Source, folder: Path) -> None:
    tokenizer = Tokenizer.from_gguf(source.checkpoint.metadata, source.path)
    tokenizer.save(folder / "tokenizer.json")
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    named = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token}
    config |= {name: token for name, token in named.items() if token is not None}
    if tokenizer.chat_templates:
        config["chat_template"] = _templates(tokenizer)
    write_json(folder / "tokenizer_config.json", config)
    ids = {"bos_token_id": source.config.get("bos_token_id")}
    ids["eos_token_id"] = source.config.get("eos_token_id")
    write_json(folder / "generation_config.json", {k: v for k, v in ids.items() if v is not None})


def _remove_others(folder: Path) -> None:
    """Files of another model that was in the directory would count beside this one's."""
    for name in COPIED:
        (folder / name).unlink(missing_ok=True)
    for name in COPIED_FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)


def write(source: Source, folder: Path) -> None:
    """Copies a directory's files; writes those that say what a GGUF file does; removes what another
    model has left of such files. OSError."""
    _remove_others(folder)
    if source.is_gguf:
        _write_gguf(source, folder)
    else:
        _copy(source.path, folder)
