"""A SentencePiece model (tokenizer.model) as a GGUF file has it: pieces, scores and types.

What llama.cpp's converter makes of the file, from which `text.gguf_vocab` makes a tokenizer. The
file is a protocol buffer (sentencepiece_model.proto), of which only what is used is read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..messages import unsupported
from .safetensors import bad_file

MAX_BYTES = 64 << 20
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # types of a piece, the same in GGUF
MODEL_TYPES = {1: "unigram", 2: "BPE", 3: "words", 4: "characters"}
HOW_ELSE = "save it as tokenizer.json with transformers' AutoTokenizer and save_pretrained"

Fields = Iterator[tuple[int, Any]]


def _fields(data: bytes) -> Fields:
    """The fields of a message: (number, value); an integer or bytes. ValueError."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while at < len(data) and shift < 64:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
        raise ValueError("a number is cut off")

    while at < len(data):
        key = varint()
        kind = key & 7
        if kind == 0:
            yield key >> 3, varint()
            continue
        size = {1: 8, 2: -1, 5: 4}.get(kind)
        if size is None:
            raise ValueError(f"a field of wire type {kind}")
        size = varint() if size < 0 else size
        if size > len(data) - at:
            raise ValueError("a field is cut off")
        yield key >> 3, data[at : at + size]
        at += size


def _piece(data: bytes) -> tuple[str, float, int]:
    """A piece's text, score and type."""
    text, score, kind = "", 0.0, NORMAL
    for number, value in _fields(data):
        if number == 1:
            text = value.decode()
        elif number == 2:
            (score,) = struct.unpack("<f", value)
        elif number == 3:
            kind = int(value)
    return text, score, kind


def _message(data: Any, names: Mapping[int, str]) -> dict[str, Any]:
    return {names[number]: value for number, value in _fields(data) if number in names}


def _refuse_unserved(trainer: Mapping[str, Any], normalizer: Mapping[str, Any]) -> None:
    kind = trainer.get("model_type", 1)
    found = {
        f"a model of {MODEL_TYPES.get(kind, kind)}": kind != 2,
        f"the normaliser {normalizer.get('name', b'')!r:.40}": normalizer.get("charsmap"),
        "remove_extra_whitespaces": normalizer.get("removes_spaces", 1),
        "treat_whitespace_as_suffix": trainer.get("suffix"),
    }
    for what, is_there in found.items():
        if is_there:
            raise unsupported(f"tokenizer.model: {what} is not served; {HOW_ELSE}")


def read(path: Path, named: Mapping[int, tuple[str, bool]]) -> dict[str, Any]:
    """tokenizer.ggml.* of the file. named: id -> the text that other files give to it, and whether
    it is special. CheckpointError, UnsupportedError."""
    if path.stat().st_size > MAX_BYTES:
        raise bad_file(path, f"larger than {MAX_BYTES} bytes")
    pieces: list[tuple[str, float, int]] = []
    trainer: dict[str, Any] = {}
    normalizer: dict[str, Any] = {}
    try:
        for number, value in _fields(path.read_bytes()):
            if number == 1:
                pieces.append(_piece(value))
            elif number == 2:
                names = {3: "model_type", 24: "suffix", 40: "unknown", 41: "bos", 42: "eos"}
                trainer = _message(value, names)
            elif number == 3:
                names = {1: "name", 2: "charsmap", 3: "prefix", 4: "removes_spaces"}
                normalizer = _message(value, names)
    except (ValueError, TypeError, AttributeError, struct.error) as error:
        raise bad_file(path, f"it is no SentencePiece model: {error}; {HOW_ELSE}") from None
    _refuse_unserved(trainer, normalizer)
    for i in range(len(pieces), min(max(named, default=-1), 2 * len(pieces)) + 1):
        pieces.append((f"[PAD{i}]", 0.0, UNUSED))
    for i, (text, special) in named.items():
        if i < len(pieces):
            pieces[i] = (text, pieces[i][1], CONTROL if special else USER_DEFINED)
    ids = {name: trainer.get(name, i) for i, name in enumerate(("unknown", "bos", "eos"))}
    ids = {name: i for name, i in ids.items() if i < len(pieces)}  # -1 is none
    values = {
        "model": "llama",
        "tokens": [text for text, _, _ in pieces],
        "scores": [score for _, score, _ in pieces],
        "token_type": [kind for _, _, kind in pieces],
        "add_space_prefix": bool(normalizer.get("prefix", 1)),
        **{f"{name}_token_id": i for name, i in ids.items()},
    }
    return {f"tokenizer.ggml.{key}": value for key, value in values.items()}
