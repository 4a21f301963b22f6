"""How much of a text one token can stand for, at most: from it follows, before a text is tokenised,
how many tokens it has at least.

Certain, or not said: only for vocabularies that spell bytes, and rules that drop no text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .tokenizer_json import steps_of

#: Bytes that Unicode's NFC makes one of, at most; the Kelvin sign's three become a K.
NFC_SHRINKS = 4
#: Pre-tokenizers that keep every character; a Split does unless it removes what it finds.
_KEEPING = {"ByteLevel", "Digits", "FixedLength", "Metaspace", "UnicodeScripts", "Split",
            "Punctuation"}  # fmt: skip
_NEVER = {0xC0, 0xC1, *range(0xF5, 0x100)}  # bytes that UTF-8 does not have
_HEX = [f"<0x{i:02X}>" for i in range(256)]


def byte_characters() -> dict[str, int]:
    """The characters that stand for bytes in byte-level vocabularies (GPT-2's encoder.py)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


class TokenBound:
    """The most bytes of a text for one token of a tokenizer of these checked parts."""

    def __init__(self, model: Mapping[str, Any], steps: Mapping[str, Any], growth: int) -> None:
        self._growth = growth  # of the normaliser, which puts so many bytes in front
        self._prepended = sum(
            len(step.get("prepend", "").encode())
            for step in steps_of("normalizer", steps["normalizer"])
        )
        self._shrinks = _shrinks(steps["normalizer"])
        self._uncounted, self._longest = b"", 0  # bytes that have no token; 0: nothing is certain
        if model["type"] == "BPE" and _keeps(steps["pre_tokenizer"]):
            self._uncounted = _unspelled(model["vocab"]) if _is_byte_level(steps) else b""
            if not self._uncounted or steps["normalizer"] is None:
                self._longest = _longest(model, steps)
        self._takes_spaces = False  # an added token may take all spaces beside it

    def add(self, tokens: Iterable[Mapping[str, Any]]) -> None:
        """Takes added tokens into account."""
        for token in tokens:
            n_bytes = len(token["content"].encode("utf-8", "replace"))
            if token.get("normalized", True):  # it is looked for as the normaliser writes it
                n_bytes = (n_bytes + self._prepended) * self._growth
            if self._longest:
                self._longest = max(self._longest, n_bytes)
            if token.get("lstrip") or token.get("rstrip"):
                self._takes_spaces = True

    def fewest_tokens(self, text: str) -> int:
        """Tokens that a text has at least, without what is put around it; 0 where that is open."""
        if not self._longest or not self._shrinks:
            return 0
        counted = "".join(text.split()) if self._takes_spaces else text
        n_bytes = len(counted.encode("utf-8", "replace").translate(None, self._uncounted))
        return -(-n_bytes // (self._longest * self._shrinks))


def _shrinks(normalizer: Mapping[str, Any] | None) -> int:
    """Bytes that the normaliser makes one of, at most; 0: it may drop text."""
    factor = 1
    for step in steps_of("normalizer", normalizer):
        kind = step["type"]
        found = step.get("pattern", {}).get("String")
        if kind == "NFC":
            factor *= NFC_SHRINKS  # again after another step, which may bring what is joined
        elif (
            kind == "Replace"
            and found
            and len(step.get("content", "").encode()) >= len(found.encode())
        ):
            pass
        elif kind not in ("Prepend", "ByteLevel"):
            return 0
    return factor


def _keeps(pre_tokenizer: Mapping[str, Any] | None) -> bool:
    return all(
        step["type"] in _KEEPING and step.get("behavior") != "Removed"
        for step in steps_of("pre_tokenizer", pre_tokenizer)
    )


def _longest(model: Mapping[str, Any], steps: Mapping[str, Any]) -> int:
    """Bytes of the longest token; 0: some text may have fewer tokens, or none."""
    vocab = model["vocab"]
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return 0
    n_characters = max(map(len, vocab), default=0)
    if _is_byte_level(steps):
        return n_characters
    spells = model.get("byte_fallback") and vocab.keys() >= set(_HEX)
    return 4 * n_characters if spells else 0


def _is_byte_level(steps: Mapping[str, Any]) -> bool:
    parts = ("normalizer", "pre_tokenizer")
    return any(s["type"] == "ByteLevel" for name in parts for s in steps_of(name, steps[name]))


def _unspelled(vocab: Mapping[str, int]) -> bytes:
    """Bytes that a byte-level vocabulary lacks, which it drops, as far as texts have them."""
    lacking = (byte for c, byte in byte_characters().items() if c not in vocab)
    return bytes(byte for byte in lacking if byte not in _NEVER)
