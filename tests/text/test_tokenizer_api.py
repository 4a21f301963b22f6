"""LMDeploy 0.18's Tokenizer: its methods, and what their arguments mean."""

import logging
from pathlib import Path

import numpy as np
import pytest
from tokenizer_dirs import KINDS, WANTED, write

from lmdeploy_c import tokenizer as module
from lmdeploy_c.tokenizer import Tokenizer

CASES = WANTED["cases"]
SPM = {"tokenizer": KINDS["SentencePiece, bytes"],
       "tokenizer_config": {"bos_token": "<s>", "eos_token": "</s>"}}  # fmt: skip


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    """<|endoftext|> is bos and comes in front, with <|im_start|>; <|im_end|> comes behind."""
    return Tokenizer(write(tmp_path, **CASES["around a text"]["files"]))


@pytest.fixture
def spm(tmp_path: Path) -> Tokenizer:
    return Tokenizer(write(tmp_path, **SPM))


def test_what_is_put_around_a_text(tokenizer: Tokenizer, tmp_path: Path) -> None:
    a = tokenizer.get_vocab()["a"]
    assert (tokenizer.before_text, tokenizer.after_text) == ((256, 257), (258,))
    assert tokenizer.encode("a") == [256, 257, a, 258]
    assert tokenizer.encode("a", add_bos=False) == [257, a, 258]
    assert tokenizer.encode("a", add_special_tokens=False) == [a]
    assert tokenizer.encode("a", False, False) == [a]
    assert tokenizer.encode("") == [256, 257, 258]


def test_special_tokens_in_the_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("<|im_end|>", add_bos=False, add_special_tokens=False) == [258]
    letters = tokenizer.encode("<|im_end|>", add_special_tokens=False, split_special_tokens=True)
    assert len(letters) == len("<|im_end|>") and tokenizer.decode(letters) == "<|im_end|>"


def test_one_bos_is_enough(tmp_path: Path) -> None:
    tokenizer = Tokenizer(write(tmp_path, **CASES["bos around a text"]["files"]))
    a = tokenizer.get_vocab()["a"]
    assert tokenizer.encode("<|endoftext|>a") == tokenizer.encode("a") == [256, a]
    assert tokenizer.encode("<|endoftext|>a", add_bos=False) == [256, a]


def test_a_call_puts_nothing_around(tokenizer: Tokenizer) -> None:
    a, b = (tokenizer.get_vocab()[c] for c in "ab")
    one, two = tokenizer("ab"), tokenizer(["ab", "b"])
    assert one == {"input_ids": [a, b], "attention_mask": [1, 1]}
    assert one.input_ids == [a, b]
    assert two == {"input_ids": [[a, b], [b]], "attention_mask": [[1, 1], [1]]}
    with pytest.raises(AttributeError, match="logits"):
        _ = one.logits


def test_decode_from_an_offset(tokenizer: Tokenizer, spm: Tokenizer) -> None:
    ids = tokenizer.encode("abc", add_special_tokens=False)
    assert tokenizer.decode(ids, 1) == "bc"
    assert tokenizer.decode(np.array(ids), -1) == "c"
    assert tokenizer.decode([258, *ids], 0, skip_special_tokens=False) == "<|im_end|>abc"
    ids = [spm.get_vocab()["▁Paris"]] * 2
    assert (spm.decode(ids), spm.decode(ids, 1)) == ("Paris Paris", " Paris")


def test_names(tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert tokenizer.model is tokenizer and module.HuggingFaceTokenizer is Tokenizer
    assert (tokenizer.vocab_size, tokenizer.vocab_size_with_added) == (256, 259)
    vocab = tokenizer.get_vocab()
    assert len(vocab) == 259 and vocab["<|im_end|>"] == 258
    assert Tokenizer(write(tmp_path), trust_remote_code=True).eos_token == "<|im_end|>"


def test_prefix_space_tokens(tokenizer: Tokenizer, spm: Tokenizer) -> None:
    assert tokenizer.prefix_space_tokens == set()
    spelled = {spm._tokenizer.token_of(i) for i in spm.prefix_space_tokens}
    assert spelled == {"▁", "▁▁", "▁a", "▁Paris", "▁ c"}


def test_indexes_containing_token(
    tokenizer: Tokenizer, spm: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    vocab = spm.get_vocab()
    assert spm.indexes_containing_token("Paris") == []  # its tokens are many, as ordinary bytes
    assert spm.indexes_containing_token("b") == [vocab["<0x62>"], vocab["b"]]
    assert spm.indexes_containing_token(" ") == [vocab["<0x20>"], vocab["▁"]]
    with caplog.at_level(logging.WARNING, "lmdeploy_c"):
        assert tokenizer.indexes_containing_token("ab") == []
    assert "'ab' is 2 tokens" in caplog.text
    assert tokenizer.indexes_containing_token("<|im_end|>") == [258]
    assert len(tokenizer.indexes_containing_token("")) <= 5


def test_a_word_inside_a_text(spm: Tokenizer, tokenizer: Tokenizer) -> None:
    """As it is spelled there, also where the vocabulary puts a space before every text."""
    vocab = spm.get_vocab()
    assert spm.token_ids_of("b") == [vocab["b"]]
    assert spm.token_ids_of("\n") == [vocab["<0x0A>"]]
    assert spm.token_ids_of("<s>") == [vocab["<s>"]]
    assert tokenizer.token_ids_of("a") == tokenizer("a").input_ids


# ---- text that is no UTF-8 ----


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("a\0b", "a\0b"),
        ("\0", "\0"),
        ("a\ud800b", "a\ufffdb"),
        ("\0a\udc00", "\0a\ufffd"),
        ("\ud83d\ude00", "\U0001f600"),
        ("\ude00\ud83d", "\ufffd\ufffd"),
        ("\0\ud83d\ude00\ud83d é", "\0\U0001f600\ufffd é"),
        ("<|im_start|>\ud800", "\ufffd"),
    ],
)
def test_surrogates_and_nul(tokenizer: Tokenizer, text: str, read: str) -> None:
    """Pairs are put together, and what is left is no character, as in tiktoken."""
    assert tokenizer.decode(tokenizer.encode(text)) == read
    assert tokenizer.decode(tokenizer(text).input_ids) == read


def test_what_is_no_text(tokenizer: Tokenizer) -> None:
    with pytest.raises(TypeError, match="str"):
        tokenizer.encode(5)  # type: ignore[arg-type]


def test_a_text_that_cannot_be_spelled(tmp_path: Path) -> None:
    words = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[none]"}
    tokenizer = Tokenizer(write(tmp_path, tokenizer={"model": words, "pre_tokenizer": None}))
    for text in ("b", "b\ud800"):
        with pytest.raises(ValueError, match="cannot read the text"):
            tokenizer.encode(text)
