"""llama.cpp's names for the ways in which well-known tokenizers cut a text into words."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import GOLDEN

from lmdeploy_c.text.pre_tokenizer_names import name_of
from lmdeploy_c.text.pre_tokenizers import PRE_TOKENIZERS, TABLE

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
LAST = {**BYTE_LEVEL, "use_regex": False}
GPT2 = {**BYTE_LEVEL, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
END = r"\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + END
QWEN2 = LLAMA3.replace("{1,3}", "")
CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s|"
)
SLASHES = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|"
DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"""
    r" ?[\p{P}\p{S}]+[\r\n]*|" + END
)
MARKED = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|"


def split(*expressions: str) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [
        {"type": "Split", "pattern": {"Regex": e}, "behavior": "Isolated", "invert": False}
        for e in expressions
    ]
    return {"type": "Sequence", "pretokenizers": [*steps, LAST]}


def vocabulary(with_merges: bool, whole_words_first: bool) -> dict[str, Any]:
    """256 bytes, and merges that know no borders of words."""
    found = json.loads((GOLDEN / "pre_tokenizers.json").read_text())["byte_level"]
    return {
        "type": "BPE",
        "vocab": {token: i for i, token in enumerate(found["tokens"])},
        "merges": [m.split(" ") for m in found["merges"]] if with_merges else [],
        "ignore_merges": whole_words_first,
    }


#: The expressions of tokenizer.json files as their models have them, and whether a word that is a
#: token is taken whole.
KNOWN: dict[str, tuple[dict[str, Any], bool, str]] = {
    "GPT-2": (GPT2, False, "gpt-2"),
    "SmolLM2": ({"type": "Sequence", "pretokenizers": [DIGITS, GPT2]}, False, "smollm"),
    "Llama 3": (split(LLAMA3), True, "llama-bpe"),
    "DBRX": (split(LLAMA3), False, "dbrx"),
    "Qwen 2 and 3": (split(QWEN2), False, "qwen2"),
    "Qwen 3.5": (split(MARKED + END), False, "qwen35"),
    "Mistral Nemo": (split(CASED % ("", "") + r"\p{N}" + SLASHES + END), True, "tekken"),
    "GPT-4o": (split(CASED % (f"{CONTRACTIONS}?", f"{CONTRACTIONS}?") + r"\p{N}{1,3}" + SLASHES
                     + END), False, "gpt-4o"),
    "DeepSeek-V3": (split(r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK3), False, "deepseek-v3"),
}  # fmt: skip


@pytest.mark.parametrize("with_merges", [True, False])
@pytest.mark.parametrize("model", KNOWN)
def test_known_tokenizers(model: str, with_merges: bool) -> None:
    cut, whole, name = KNOWN[model]
    parts = {"model": vocabulary(with_merges, whole), "pre_tokenizer": cut}
    assert name_of(parts) == name


@pytest.mark.parametrize("row", [r for r in TABLE if r.byte_level], ids=lambda r: r.names[0])
def test_every_row_is_told_from_the_others(row: Any) -> None:
    parts = {"model": vocabulary(True, row.ignore_merges), "pre_tokenizer": row.steps()}
    name = name_of(parts)
    assert name is not None
    found = PRE_TOKENIZERS[name]
    assert (found.splits, found.ignore_merges) == (row.splits, row.ignore_merges)


def test_no_name() -> None:
    for cut in (
        {**GPT2, "add_prefix_space": True},
        split(r"\S+|\s+"),
        split(LLAMA3.replace("1,3", "1,4")),
        LAST,
    ):
        assert name_of({"model": vocabulary(True, False), "pre_tokenizer": cut}) is None


def test_where_no_token_shows_it_any_name_does() -> None:
    """Without a token of several digits, numbers may be cut as they like."""
    model = vocabulary(True, False)
    model["merges"] = [m for m in model["merges"] if not any(map(str.isdigit, "".join(m)))]
    cut = split(LLAMA3.replace("1,3", "1,4"))
    assert name_of({"model": model, "pre_tokenizer": cut}) in ("dbrx", "qwen2")
