"""Small tokenizers in directories of their own: files for the tests, and kinds of decoders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conftest import GOLDEN

WANTED = json.loads((GOLDEN / "tokenizer_files.json").read_text())
#: The files of a byte-level tokenizer: 256 bytes, <|endoftext|>, <|im_start|> and <|im_end|>.
BASE: dict[str, Any] = WANTED["base"]


def write(path: Path, **files: Any) -> Path:
    """A directory: the base, with a file's keys set, a file left out (None), or a file's text.

    files: by name, such as "tokenizer_config" (for its .json) or "chat_template.jinja"."""
    for name, keys in {**BASE, **files}.items():
        file = path / (name if name.endswith(".jinja") else name + ".json")
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(keys, str):
            file.write_text(keys)
        elif keys is not None:
            file.write_text(json.dumps({**BASE.get(name, {}), **keys}))
    return path


# ---- kinds of decoders ----


def added(token_id: int, content: str, special: bool) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": content, "special": special, **flags}


def _kind(words: list[str], decoder: Any, model: str = "BPE", **keys: Any) -> dict[str, Any]:
    """tokenizer.json with these words, then <s>, </s> and <tool>, which is not special."""
    n = len(words)
    vocab = {word: i for i, word in enumerate(words)}
    parts: dict[str, Any] = {"type": model, "vocab": vocab}
    if model == "BPE":
        parts |= {"merges": [], "byte_fallback": True, "unk_token": None, "fuse_unk": True}
    else:
        parts |= {"unk_token": words[0], "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100}  # fmt: skip
    tokens = [added(n, "<s>", True), added(n + 1, "</s>", True), added(n + 2, "<tool>", False)]
    steps = {"normalizer": None, "pre_tokenizer": None, "decoder": decoder}
    return {"model": parts, "added_tokens": tokens, **steps, **keys}


def steps(*decoders: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "decoders": list(decoders)}


BYTES = [f"<0x{i:02X}>" for i in range(256)]
PIECES = [*BYTES, "▁", "▁▁", "▁a", "b", "▁Paris", "é", "北", "!", "<0x>", "▁ c"]
SPACES = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
FALLBACK, FUSE = {"type": "ByteFallback"}, {"type": "Fuse"}
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
TO_SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
PREFIX = {"type": "Sequence",
          "normalizers": [{"type": "Prepend", "prepend": "▁"}, TO_SPACES]}  # fmt: skip
WORDS = ["[UNK]", "hello", "##ing", "world", ".", "n't", "'s", "do", "##é", "北"]
#: tokenizer.json, by the kind of its decoder. Those of "bytes" give half characters.
KINDS: dict[str, dict[str, Any]] = {
    "byte-level, bytes": BASE["tokenizer"],
    "SentencePiece, bytes": _kind(PIECES, steps(SPACES, FALLBACK, FUSE, STRIP), normalizer=PREFIX),
    "SentencePiece without a first space, bytes": _kind(PIECES, steps(SPACES, FALLBACK, FUSE)),
    "bytes and Metaspace": _kind(PIECES, steps(FALLBACK, METASPACE)),
    "Metaspace": _kind(PIECES[256:], METASPACE, pre_tokenizer=METASPACE),
    "two spaces stripped": _kind(
        PIECES[256:], steps(SPACES, FALLBACK, FUSE, {**STRIP, "start": 2})
    ),
    "WordPiece": _kind(WORDS, {"type": "WordPiece", "prefix": "##", "cleanup": True}, "WordPiece"),
    "words with a suffix": _kind(
        ["a</w>", "b", "c</w>", "é"], {"type": "BPEDecoder", "suffix": "</w>"}
    ),
    "no decoder": _kind(["a", "b", "é"], None),
}
