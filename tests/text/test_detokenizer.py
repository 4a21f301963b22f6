"""Text as it comes, against the text of the whole: for every kind of decoder, and random tokens."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from conftest import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_dirs import KINDS, write

from lmdeploy_c.tokenizer import DetokenizeState, Tokenizer

GGUF = ["llama-spm.gguf", "llama-q4_1.gguf"]
ALL = [*KINDS, *GGUF]
FEW = settings(max_examples=25, deadline=None)


@cache
def tokenizer_of(kind: str) -> Tokenizer:
    if kind in GGUF:
        return Tokenizer(GOLDEN / "gguf" / kind)
    with TemporaryDirectory() as path:
        names = {"bos_token": None, "eos_token": None}
        return Tokenizer(write(Path(path), tokenizer=KINDS[kind], tokenizer_config=names))


def any_ids(kind: str) -> st.SearchStrategy[list[int]]:
    """Lists of ids; some are beyond the vocabulary, as those of a padded one."""
    n = tokenizer_of(kind).vocab_size_with_added
    # The last ids are the words: half of the list is made of them.
    return st.lists(st.integers(0, n + 2) | st.integers(max(0, n - 16), n - 1), max_size=30)


def whole_characters(kind: str) -> st.SearchStrategy[list[int]]:
    """Lists of ids without half a character: those of texts, and added tokens."""
    tokenizer = tokenizer_of(kind)
    n = tokenizer.vocab_size_with_added
    added = st.integers(n - 3, n + 2).map(lambda i: [i])
    texts = st.text("ab é北!. ", max_size=6)
    if kind == "WordPiece":
        texts = st.sampled_from(["helloing", "world.", "do n't", "北", "x"])
    spelled = texts.map(lambda text: tokenizer.encode(text, add_special_tokens=False))
    return st.lists(added | spelled, max_size=6).map(
        lambda parts: [i for part in parts for i in part]
    )


def in_pieces(tokenizer: Tokenizer, ids: list[int], skip: bool, before: list[int]) -> str:
    detokenizer = tokenizer.detokenizer(skip, before=before)
    return "".join(detokenizer.add([i]) for i in ids) + detokenizer.finish()


@pytest.mark.parametrize("kind", ALL)
def test_pieces_are_the_whole(kind: str) -> None:
    tokenizer = tokenizer_of(kind)

    @FEW
    @given(any_ids(kind), st.booleans())
    def check(ids: list[int], skip: bool) -> None:
        assert in_pieces(tokenizer, ids, skip, []) == tokenizer.decode(ids, None, skip)

    check()


@pytest.mark.parametrize("kind", ALL)
def test_an_answer_goes_on(kind: str) -> None:
    """Its text is that of prompt and answer, less the prompt's. So it is in one piece, in pieces,
    and in sections of any length as LMDeploy asks for them."""
    tokenizer = tokenizer_of(kind)

    @FEW
    @given(whole_characters(kind), any_ids(kind), st.booleans(), st.integers(0, 5))
    def check(before: list[int], ids: list[int], skip: bool, step: int) -> None:
        prompt = tokenizer.decode(before, None, skip)
        whole = tokenizer.decode(before + ids, None, skip)
        assert prompt + in_pieces(tokenizer, ids, skip, before) == whole
        if before:
            assert prompt + tokenizer.decode(before + ids, len(before), skip) == whole
        state, text = DetokenizeState(ids_offset=len(before)), ""
        for end in [*range(len(before), len(before + ids), step or 1), *[len(before + ids)] * 2]:
            section = (before + ids)[:end]
            piece, state = tokenizer.detokenize_incrementally(section, state, skip)
            text += piece
        assert whole.startswith(prompt + text)
        assert prompt + text == whole or whole.endswith("\ufffd")

    check()


@pytest.mark.parametrize("kind", ALL)
def test_whole_texts_are_the_librarys(kind: str) -> None:
    tokenizer = tokenizer_of(kind)

    @FEW
    @given(whole_characters(kind), st.booleans())
    def check(ids: list[int], skip: bool) -> None:
        text = tokenizer.decode(ids, None, skip)
        library = tokenizer._tokenizer._real.decode(ids, skip_special_tokens=skip)
        if kind == "bytes and Metaspace":  # the library strips all spaces of the first token
            text, library = text.lstrip(" "), library.lstrip(" ")
        assert text == library

    check()
