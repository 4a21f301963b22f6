"""Vocabularies in GGUF metadata that are damaged, or of a kind that is not served."""

import time
from typing import Any

import pytest
from conftest import SLOWER

from lmdeploy_c import _C
from lmdeploy_c.text import gguf_vocab
from lmdeploy_c.text.gguf_vocab import OTHER_MODELS
from lmdeploy_c.tokenizer import Tokenizer

TOKENS = ["<s>", "a", "b", "c", "ab", "bc"]


def byte_level(tokens: list[Any] = TOKENS, merges: Any = ("a b",), **others: Any) -> Tokenizer:
    fields = {"model": "gpt2", "pre": "gpt-2", "tokens": tokens, "merges": list(merges), **others}
    return Tokenizer.from_gguf({f"tokenizer.ggml.{k}": value for k, value in fields.items()})


def sentencepiece(tokens: list[Any], **others: Any) -> Tokenizer:
    fields = {"model": "llama", "tokens": tokens, "scores": [0.0] * len(tokens), **others}
    return Tokenizer.from_gguf({f"tokenizer.ggml.{k}": value for k, value in fields.items()})


@pytest.mark.parametrize("model", OTHER_MODELS)
def test_other_kinds_are_refused_by_name(model: str) -> None:
    with pytest.raises(_C.UnsupportedError, match=rf"'{model}' \({OTHER_MODELS[model]}\) is not"):
        byte_level(model=model)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([*TOKENS, "a"], "tokens 1 and 6 are both 'a'"),
        ([*TOKENS, "\udcff"], "token 6 is no UTF-8"),
        ([*TOKENS, 5], "no list of texts"),
        ([], "no vocabulary"),
    ],
)
def test_damaged_tokens(tokens: list[Any], message: str) -> None:
    for make in (byte_level, sentencepiece):
        with pytest.raises(ValueError, match=message):
            make(tokens)


@pytest.mark.parametrize(
    ("merges", "message"),
    [
        (["a b", "a x"], "'a x' names 'x', which is no token"),
        (["a b", "a c"], "'a c' names 'ac', which is no token"),
        (["ab"], "names ''"),
        ([5], "no list of texts"),
    ],
)
def test_damaged_merges(merges: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"merges.*{message}"):
        byte_level(merges=merges)


def test_of_equal_merges_the_first_counts() -> None:
    """As in llama.cpp, whose table of ranks keeps what it has."""
    assert byte_level(merges=["a b", "b c", "a b"]).encode("abc") == [4, 3]
    assert byte_level(merges=["b c", "a b", "b c"]).encode("abc") == [1, 5]


@pytest.mark.parametrize("text", ["<|fim_prefix|>", "<｜fim▁hole｜>", "<fim_middle>", "<|im_end|>"])
def test_known_texts_are_control_tokens_whatever_the_file_says(text: str) -> None:
    tokens = [*TOKENS, *dict.fromkeys(c for c in text if c not in TOKENS), text]
    tokenizer = byte_level(tokens, [], token_type=[1] * len(tokens))
    assert tokenizer.encode(f"a{text}b") == [1, len(tokens) - 1, 2]
    assert tokenizer.decode([1, len(tokens) - 1, 2]) == "ab"


def test_empty_tokens_have_ids() -> None:
    """llama.cpp names them by their number."""
    tokenizer = byte_level([*TOKENS, "", ""])
    assert tokenizer.vocab_size == len(TOKENS) + 2
    assert tokenizer.decode([1, 7, 2]) == "a[EMPTY_7]b"


@pytest.mark.parametrize("ids", [{}, {"bos_token_id": 999, "eos_token_id": 999}])
def test_ids_that_a_file_does_not_name(ids: dict[str, int]) -> None:
    """Those of SentencePiece's kind have usual ones; llama.cpp takes them, as far as they exist."""
    tokens = ["<unk>", "<s>", "</s>", "▁", "a"]
    tokenizer = sentencepiece(tokens, **ids)
    assert tokenizer.named_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    assert tokenizer.encode("ax") == [1, 3, 4, 0]
    named = sentencepiece(tokens, bos_token_id=3, eos_token_id=4)
    assert (named.bos_token_id, named.eos_token_id) == (3, 4)
    assert sentencepiece(tokens[:2]).eos_token_id is None
    assert byte_level(tokens, [], **ids).named_tokens == {}


@pytest.mark.parametrize("token", ["<0xZZ>", "<0x-1>", "<0x+ >", "<0x 1>", "<0x1>", "<0x041>"])
def test_what_only_resembles_a_byte_is_text(token: str) -> None:
    tokenizer = sentencepiece(
        ["<unk>", "<s>", "</s>", "a", "b", token, "<0x41>", "<0xc3>", "<0xA9>"]
    )
    assert tokenizer.decode([3, 5, 4]) == f"a{token}b"
    assert tokenizer.decode([3, 6, 7, 8, 4]) == "aAéb"


def test_many_long_tokens_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = ["<unk>", "<s>", *("a" * n for n in range(1, 11))]
    squares = sum(len(token) ** 2 for token in tokens)
    monkeypatch.setattr(gguf_vocab, "MAX_SQUARES", squares)
    assert sentencepiece(tokens).vocab_size == 12
    monkeypatch.setattr(gguf_vocab, "MAX_SQUARES", squares - 1)
    with pytest.raises(ValueError, match="12 tokens of up to 10 characters"):
        sentencepiece(tokens)


def test_long_tokens_take_no_long_time() -> None:
    start = time.process_time()
    with pytest.raises(ValueError, match="token 3 has 300000 characters"):
        sentencepiece(["<unk>", "<s>", "a", "a" * 300_000])
    tokens = sentencepiece(["<unk>", "<s>", *("a" * n for n in range(1, 513))])
    assert tokens.encode("a" * 512, add_bos=False) == [0, 513]  # "▁" is no token
    assert byte_level([*TOKENS, "a" * 4096]).vocab_size == len(TOKENS) + 1
    with pytest.raises(ValueError, match="4097 characters.*at most 4096"):
        byte_level([*TOKENS, "a" * 4097])
    assert time.process_time() - start < 5 * SLOWER
