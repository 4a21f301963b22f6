"""How many tokens a text has at least: never more than it has."""

import sys
import unicodedata
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from conftest import GOLDEN
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizer_dirs import BASE, KINDS, PREFIX, added

from lmdeploy_c.text.token_bounds import NFC_SHRINKS
from lmdeploy_c.text.tokenizers_library import LibraryTokenizer
from lmdeploy_c.tokenizer import Tokenizer

BYTE_LEVEL, SENTENCEPIECE = BASE["tokenizer"], KINDS["SentencePiece, bytes"]
STRIPPING = {**added(300, "<m>", True), "lstrip": True, "rstrip": True}
NORMALIZED = {**added(300, "a b", True), "normalized": True}
KELVIN = "\u212a"


def of(parts: dict[str, Any], *tokens: dict[str, Any], **changes: Any) -> LibraryTokenizer:
    return LibraryTokenizer({**parts, **changes}, [*parts["added_tokens"], *tokens])


def without(model: dict[str, Any], token: str) -> dict[str, Any]:
    vocab = {text: i for text, i in model["vocab"].items() if text != token}
    return {**model, "vocab": vocab}


BOUNDED = {
    "byte-level": of(BYTE_LEVEL),
    "byte-level, NFC": of(BYTE_LEVEL, normalizer={"type": "NFC"}),
    "spaces are taken": of(BYTE_LEVEL, STRIPPING),
    "a byte is not spelled": of(BYTE_LEVEL, model=without(BYTE_LEVEL["model"], "r")),
    "normalised": of(BYTE_LEVEL, NORMALIZED, normalizer={"type": "NFC"}),
    "SentencePiece": of(SENTENCEPIECE),
    "SentencePiece, normalised": of(SENTENCEPIECE, NORMALIZED, STRIPPING),
}
GGUFS = {path.stem: path for path in sorted((GOLDEN / "gguf").glob("*.gguf"))}
TEXTS = st.lists(
    st.text(max_size=20)
    | st.sampled_from(["<m>", "a b", " " * 40, "<|im_start|>", "<s>", "▁a", KELVIN * 9, "<0x41>",
                       "Å\u0301" * 5, "\u1100\u1161\u11a8" * 5, "\ud800", "word " * 20]),
    max_size=12,
).map("".join)  # fmt: skip


def check(tokenizer: Any) -> None:
    @settings(
        max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(TEXTS)
    def never_more(text: str) -> None:
        assert tokenizer.fewest_tokens(text) <= len(tokenizer.encode(text))

    never_more()


@pytest.mark.parametrize("kind", BOUNDED)
def test_it_is_never_more(kind: str) -> None:
    check(BOUNDED[kind])
    assert BOUNDED[kind].fewest_tokens("ab" * 10_000) > 100, "it says something"


@pytest.mark.parametrize("name", ["llama-spm", "qwen2", "llama-q4_1"])
def test_of_gguf_vocabularies(name: str) -> None:
    check(Tokenizer(GGUFS[name]))


def test_of_a_real_vocabulary(smollm2_path: Path) -> None:
    tokenizer = Tokenizer(smollm2_path)
    check(tokenizer)
    text = "word " * 100_000
    assert 1000 < tokenizer.fewest_tokens(text) <= len(tokenizer.encode(text, False))


OPEN: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a byte is not spelled": (
        BYTE_LEVEL, {"model": without(BYTE_LEVEL["model"], "a"), "normalizer": {"type": "NFC"}}),
    "a byte has no token": (SENTENCEPIECE, {"model": without(SENTENCEPIECE["model"], "<0x00>")}),
    "no byte tokens": (
        SENTENCEPIECE, {"model": {**SENTENCEPIECE["model"], "byte_fallback": False}}),
    "a suffix": (BYTE_LEVEL, {"model": {**BYTE_LEVEL["model"], "end_of_word_suffix": "</w>"}}),
    "words that may be unknown": (KINDS["WordPiece"], {}),
    "spaces are stripped": (BYTE_LEVEL, {"normalizer": {"type": "Strip", "strip_left": True,
                                                        "strip_right": True}}),
    "texts become shorter": (BYTE_LEVEL, {"normalizer": {"type": "Replace", "content": "a",
                                                         "pattern": {"String": "aa"}}}),
    "texts become shorter by an expression": (
        BYTE_LEVEL, {"normalizer": {"type": "Replace", "content": "a", "pattern": {"Regex": "a"}}}),
    "spaces are dropped": (BYTE_LEVEL, {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        {"type": "WhitespaceSplit"}, BYTE_LEVEL["pre_tokenizer"]]}}),
    "words are dropped": (BYTE_LEVEL, {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"String": "a"}, "behavior": "Removed", "invert": False},
        BYTE_LEVEL["pre_tokenizer"]]}}),
}  # fmt: skip


@pytest.mark.parametrize("case", OPEN)
def test_where_nothing_is_certain_nothing_is_said(case: str) -> None:
    parts, changes = OPEN[case]
    assert of(parts, **changes).fewest_tokens("ab" * 10_000) == 0


def test_a_prefix_in_front_of_a_normalised_token_counts() -> None:
    token = {**added(300, "xyz" * 100, True), "normalized": True}
    long = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "y" * 100}, PREFIX]}
    tokenizer = of(SENTENCEPIECE, token, normalizer=long)
    text = ("y" * 100 + "xyz" * 100) * 3
    assert tokenizer.fewest_tokens(text) <= len(tokenizer.encode(text))


def test_how_much_shorter_nfc_makes_a_text() -> None:
    """Of every character, the longest text that becomes it."""
    longest: dict[str, int] = defaultdict(int)
    characters = [
        c for c in map(chr, range(sys.maxunicode + 1)) if not unicodedata.is_normalized("NFD", c)
    ]
    decomposed = {c: unicodedata.normalize("NFD", c) for c in characters}
    for c, nfd in decomposed.items():
        longest[nfd] = max(longest[nfd], len(c.encode()))
    worst = 0.0
    for c in characters:
        whole = sum(longest[d] or len(d.encode()) for d in decomposed[c])
        n_bytes = len(unicodedata.normalize("NFC", c).encode())
        worst = max(worst, max(whole, len(c.encode())) / n_bytes)
    assert 3 <= worst <= NFC_SHRINKS
