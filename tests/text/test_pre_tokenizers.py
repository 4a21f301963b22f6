"""Every pre-tokenizer that llama.cpp knows, against llama.cpp's ids on a vocabulary of ours."""

import json
import time

import pytest
from conftest import GOLDEN, SLOWER

from lmdeploy_c import _C
from lmdeploy_c.text.gguf_vocab import OTHER_MODELS
from lmdeploy_c.text.pre_tokenizers import PRE_TOKENIZERS, REFUSED, TABLE
from lmdeploy_c.tokenizer import Tokenizer

LLAMA_CPP = json.loads((GOLDEN / "pre_tokenizers.json").read_text())
GROUPS = LLAMA_CPP["groups"]
DOCS = GOLDEN.parent.parent / "docs" / "tokenizers.md"


def tokenizer_with(pre: str) -> Tokenizer:
    vocabulary = LLAMA_CPP["byte_level" if PRE_TOKENIZERS[pre].byte_level else "spelled"]
    tokens = vocabulary["tokens"]
    return Tokenizer.from_gguf(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": pre,
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [3] + [1] * (len(tokens) - 1),
            "tokenizer.ggml.merges": vocabulary["merges"],
            "tokenizer.ggml.bos_token_id": 0,
        }
    )


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group["names"][0])
def test_ids(group: dict) -> None:  # type: ignore[type-arg]
    """With bos, where the pre-tokenizer asks for it."""
    for name in group["names"]:
        tokenizer = tokenizer_with(name)
        for text, ids, which in zip(
            LLAMA_CPP["texts"], LLAMA_CPP["ids"], group["which"], strict=True
        ):
            assert tokenizer.encode(text) == ids[which], (name, text)
            without_bos = tokenizer.encode(text, add_bos=False)
            assert tokenizer.decode(without_bos) == text, (name, text)


def test_names_and_groups() -> None:
    assert {name for group in GROUPS for name in group["names"]} == set(PRE_TOKENIZERS)
    assert sum(len(row.names) for row in TABLE) == len(PRE_TOKENIZERS)
    assert not set(PRE_TOKENIZERS) & set(REFUSED)
    # Each row of the table does something of its own.
    assert len(GROUPS) == len(TABLE)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_why(name: str) -> None:
    metadata = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": name}
    with pytest.raises(_C.UnsupportedError, match=REFUSED[name]):
        Tokenizer.from_gguf(metadata)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.names[0])
def test_long_runs(row) -> None:  # type: ignore[no-untyped-def]
    """No expression takes time that grows with the square of a number, or of a run of spaces."""
    tokenizer = tokenizer_with(row.names[0])
    start = time.process_time()
    for text in ("7" * 60_000, " " * 30_000 + "7", "a " * 1000 + "'" * 1000):
        tokenizer.encode(text)
    assert time.process_time() - start < 1 * SLOWER


def test_documented() -> None:
    page = DOCS.read_text()
    for row in TABLE:
        flags = [
            *(["whole words first"] if row.ignore_merges else []),
            *(["bos"] if row.add_bos else []),
            *([] if row.byte_level else ["spelled as in SentencePiece"]),
        ]
        first, *others = (f"`{name}`" for name in row.names)
        assert f"| {first} | {', '.join(others)} | {', '.join(flags)} |" in page
    for name, reason in {**REFUSED, **OTHER_MODELS}.items():
        assert f"| `{name}` | {reason} |" in page
