"""What a tokenizer.json may say: every known model's steps, and bounds on everything else."""

import base64
import functools
import json
import unicodedata
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_dirs import KINDS, METASPACE, PREFIX, SPACES, STRIP, TO_SPACES, steps
from tokenizers import pre_tokenizers

from lmdeploy_c.text import tokenizer_json, tokenizers_library
from lmdeploy_c.text.patterns import check_pattern
from lmdeploy_c.text.tokenizer_json import checked_added_tokens, checked_model, checked_part, growth
from lmdeploy_c.text.tokenizers_library import LibraryTokenizer


def table(*texts: str, units: dict[int, int] | None = None) -> str:
    """A table of SentencePiece's; units: of its trie of 512, where others are 0."""
    trie = np.zeros(512, "<u4")
    for i, unit in (units or {}).items():
        trie[i] = unit
    size = len(trie.tobytes()).to_bytes(4, "little")
    return base64.b64encode(size + trie.tobytes() + "\0".join(texts).encode()).decode()


def a_becomes(place: int) -> dict[int, int]:
    """Units of a trie in which "a" ends at a place: root, the node of "a", its end."""
    node = 1 ^ ord("a")
    return {0: 1 << 10, node: 2 << 10 | 1 << 8 | ord("a"), node ^ 2: 1 << 31 | place}


def sequence(field: str, *parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", field: list(parts)}


def kind(name: str, **fields: Any) -> dict[str, Any]:
    return {"type": name, **fields}


def replace(pattern: Any, content: str) -> dict[str, Any]:
    pattern = {"String": pattern} if isinstance(pattern, str) else pattern
    return kind("Replace", pattern=pattern, content=content)


BERT = kind(
    "BertNormalizer", clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=True
)
BYTE_LEVEL = kind("ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True)
SPECIAL = {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}
TEMPLATE = kind(
    "TemplateProcessing",
    single=[{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    pair=[{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    special_tokens=SPECIAL,
)
NMT = "صلى الله عليه وسلم"  # the longest that nmt_nfkc writes for one character
NMT_NFKC = kind("Precompiled", precompiled_charsmap=table(NMT))
#: Steps as the files of known models have them, and how they grow.
KNOWN: dict[str, tuple[str, dict[str, Any], int]] = {
    "BERT": ("normalizer", BERT, 9),
    "Llama 2": ("normalizer", PREFIX, 3),
    "Gemma": ("normalizer", TO_SPACES, 3),
    "Qwen2": ("normalizer", kind("NFC"), 3),
    "T5": ("normalizer", sequence("normalizers", NMT_NFKC,
                                  replace({"Regex": " {2,}"}, "▁")), 99),
    "ALBERT": ("normalizer", sequence("normalizers", replace("``", '"'), replace("''", '"'),
                                      kind("NFKD"), kind("StripAccents"), kind("Lowercase"),
                                      NMT_NFKC,
                                      replace({"Regex": " {2,}"}, " ")), 726),
    "CLIP": ("normalizer", sequence("normalizers", kind("NFC"), replace({"Regex": r"\s+"}, " "),
                                    kind("Lowercase")), 6),
    "XLNet": ("normalizer", kind("Strip", strip_left=False, strip_right=True), 1),
    "ModernBERT's words": ("pre_tokenizer", sequence(
        "pretokenizers", kind("WhitespaceSplit"), METASPACE,
        kind("Digits", individual_digits=True), kind("Punctuation", behavior="Isolated")), 1),
    "older Metaspace": ("pre_tokenizer", kind("Metaspace", replacement="▁", add_prefix_space=True,
                                              str_rep="▁"), 1),
    "GPT-2": ("pre_tokenizer", BYTE_LEVEL, 1),
    "BERT's words": ("pre_tokenizer", kind("BertPreTokenizer"), 1),
    "Falcon": ("pre_tokenizer", sequence(
        "pretokenizers", kind("Punctuation", behavior="Contiguous"), BYTE_LEVEL,
        kind("Digits", individual_digits=False),
        kind("Split", pattern={"Regex": "[0-9][0-9][0-9]"}, behavior="Isolated", invert=False)), 1),
    "Mistral": ("pre_tokenizer", kind("Split", pattern={"String": " "},
                                      behavior="MergedWithPrevious", invert=False), 1),
    "Llama 3": ("post_processor", sequence("processors", BYTE_LEVEL, TEMPLATE), 1),
    "RoBERTa": ("post_processor", kind("RobertaProcessing", sep=["</s>", 2], cls=["<s>", 0],
                                       trim_offsets=True, add_prefix_space=False), 1),
    "SentencePiece": ("decoder", steps(SPACES, kind("ByteFallback"), kind("Fuse"), STRIP), 1),
    "WordPiece": ("decoder", kind("WordPiece", prefix="##", cleanup=True), 1),
    "Wav2Vec2": ("decoder", kind("CTC", pad_token="<pad>", word_delimiter_token="|",
                                 cleanup=True), 1),
}  # fmt: skip


@pytest.mark.parametrize("model", KNOWN)
def test_steps_of_known_models_are_kept(model: str) -> None:
    name, part, factor = KNOWN[model]
    checked = checked_part(name, part)
    without_null = {key: value for key, value in part.items() if value is not None}
    assert checked == without_null
    if name in ("normalizer", "decoder"):
        assert growth(name, checked) == factor
    LibraryTokenizer({"model": {"type": "BPE", "vocab": {}, "merges": []}, name: part}, [])


@functools.cache
def changed_characters() -> list[str]:
    """Characters that Unicode changes in some way, and some others."""
    every = map(chr, [*range(0x3400), *range(0xA000, 0xAC80), *range(0xF900, 0x30000)])
    return [
        c for c in every if ord(c) < 0x500 or unicodedata.decomposition(c) or c.lower() != c
    ] + ["中", "文"]  # fmt: skip


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(alphabet=" \n\t\r\u3000ab\u0301", max_size=30))
def test_linear_expressions_match_what_others_do(text: str) -> None:
    for pattern, linear in tokenizer_json._LINEAR.items():
        check_pattern(linear)
        ways = [
            pre_tokenizers.Split(tokenizers.Regex(p), "isolated").pre_tokenize_str(text)
            for p in (pattern, linear)
        ]
        assert ways[0] == ways[1]
        split = kind("Split", pattern={"Regex": pattern}, behavior="Isolated", invert=False)
        assert checked_part("pre_tokenizer", split) == {**split, "pattern": {"Regex": linear}}


GROWING = ["NFC", "NFD", "NFKC", "NFKD", "Lowercase", "ByteLevel", "Nmt", "StripAccents"]


@pytest.mark.parametrize("part", [*map(kind, GROWING), BERT], ids=lambda part: part["type"])
def test_no_character_grows_more_than_is_said(part: dict[str, Any]) -> None:
    """As the library's own normaliser has it."""
    checked = checked_part("normalizer", part)
    normalizer = LibraryTokenizer({"model": BPE, "normalizer": part}, [])._real.normalizer
    most = growth("normalizer", checked)
    for c in changed_characters():
        assert len(normalizer.normalize_str(c).encode()) <= most * len(c.encode()), ascii(c)


def test_tables_whose_tries_are_closed_are_read() -> None:
    """The library walks through the trie as it is described, and so do the checks."""
    normalizer = kind("Precompiled", precompiled_charsmap=table("x", "b", units=a_becomes(2)))
    assert LibraryTokenizer({"model": BPE, "normalizer": normalizer}, []).encode("a") == [1]
    node = 1 ^ ord("a")
    wrong = {
        "a place behind the texts": a_becomes(3),
        "a node outside": {**a_becomes(2), 0: 512 << 10},
        "no end": {**a_becomes(2), node ^ 2: 5},
    }
    for case, units in wrong.items():
        with pytest.raises(ValueError, match="no table of SentencePiece's"):
            text = table("x", "b", units=units)
            checked_part("normalizer", kind("Precompiled", precompiled_charsmap=text))
            pytest.fail(case)
    with pytest.raises(ValueError, match="no table"):  # the middle of a character
        inside = table("é", units=a_becomes(1))
        checked_part("normalizer", kind("Precompiled", precompiled_charsmap=inside))


def test_fields_that_are_not_known_do_not_reach_the_library() -> None:
    assert checked_part("normalizer", kind("NFC", extra=1)) == kind("NFC")
    model = {"type": "BPE", "vocab": {"a": 0}, "merges": [], "dropout": 0.5, "extra": 1}
    assert checked_model(model) == {"type": "BPE", "vocab": {"a": 0}, "merges": []}
    (token,) = checked_added_tokens([{"id": 7, "content": "a", "extra": 1}])
    assert token["content"] == "a" and "id" not in token and "extra" not in token


def nested(depth: int) -> dict[str, Any]:
    part = kind("NFC")
    for _ in range(depth):
        part = sequence("normalizers", part)
    return part


SPLIT = kind("Split", pattern={"String": "a"}, behavior="Removed", invert=False)
LARGE_ID = {"id": "a", "tokens": ["a"], "ids": [1 << 24]}
WRONG_STEPS: dict[str, tuple[str, Any, str]] = {
    "no object": ("normalizer", [], "None is not served"),
    "no kind": ("normalizer", {}, "None is not served"),
    "a kind of another part": ("normalizer", kind("Split"), "'Split' is not served; served: Seq"),
    "a list for a kind": ("normalizer", kind(["NFC"]), "is not served"),  # type: ignore[arg-type]
    "too deep": ("normalizer", nested(5), "at most 4 deep"),
    "too many": ("normalizer", sequence("normalizers", *[kind("NFC")] * 65), "at most 64 steps"),
    "no steps": ("normalizer", kind("Sequence"), "must be a list"),
    "a null step": ("normalizer", sequence("normalizers", None), "None is not served"),  # type: ignore[arg-type]
    "a long text": ("normalizer", kind("Prepend", prepend="a" * 129), "at most 128"),
    "a surrogate": ("normalizer", kind("Prepend", prepend="\ud800"), "at most 128"),
    "no flag": ("normalizer", {**BERT, "lowercase": "yes"}, "lowercase must be true or false"),
    "an empty pattern": ("normalizer", replace("", "a"), "Replace: pattern must have a text"),
    "a pattern of nothing": ("normalizer", replace({"Regex": "a|b*"}, "c"), "between two char"),
    "two patterns": ("normalizer", replace({"String": "a", "Regex": "b"}, "a"), "must have"),
    "growing": ("normalizer", sequence("normalizers", *[replace("a", "a" * 64)] * 3), "more than"),
    "growing by an expression": (
        "normalizer", sequence("normalizers", *[replace({"Regex": "a"}, "b" * 65)] * 2), "more"),
    "growing by a table": (
        "normalizer", kind("Precompiled", precompiled_charsmap=table("a", "b" * 4097)), "more"),
    "no table": ("normalizer", kind("Precompiled", precompiled_charsmap="AAAA"), "charsmap is no"),
    "a table that ends early": (
        "normalizer", kind("Precompiled", precompiled_charsmap="//8AAAAA"), "is no table"),
    "two characters": ("pre_tokenizer", kind("CharDelimiterSplit", delimiter="ab"), "a character"),
    "another behaviour": ("pre_tokenizer", {**SPLIT, "behavior": "New"}, "behavior must be one of"),
    "another scheme": ("pre_tokenizer", {**METASPACE, "prepend_scheme": 1}, "scheme must"),
    "pieces of no length": ("pre_tokenizer", kind("FixedLength", length=0), "must be 1 to"),
    "an expression": ("pre_tokenizer", {**SPLIT, "pattern": {"Regex": "(?:a|b)*c"}}, "several"),
    "no id": ("post_processor", kind("BertProcessing", sep=["a", -1], cls=["a", 1]), "be 0 to"),
    "no pair": ("post_processor", kind("BertProcessing", sep=["a"], cls=["a", 1]), "a token and"),
    "no piece": ("post_processor", {**TEMPLATE, "single": [{"New": {}}]}, "has no piece"),
    "many pieces": ("post_processor", {**TEMPLATE, "single": [{}] * 65}, "at most 64"),
    "a third sequence": (
        "post_processor", {**TEMPLATE, "single": [{"Sequence": {"id": "C", "type_id": 0}}]}, "A, "),
    "a token that is not there": (
        "post_processor", {**TEMPLATE, "special_tokens": {}}, "special_tokens has no '<s>'"),
    "an id that is none": (
        "post_processor", {**TEMPLATE, "special_tokens": {"a": LARGE_ID}},
        "must be 0 to"),
    "a cut without end": ("decoder", {**STRIP, "start": 1025}, "start must be 0 to 1024"),
    "a cut at the end": ("decoder", {**STRIP, "stop": 1}, "stop must be 0 to 0"),
    "a decoder that grows": ("decoder", steps(*[replace("a", "b" * 5)] * 2), "more than"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_STEPS)
def test_wrong_steps_are_named(case: str) -> None:
    name, part, message = WRONG_STEPS[case]
    with pytest.raises(ValueError, match=message):
        growth(name, checked_part(name, part))


BPE = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
UNIGRAM = {"type": "Unigram", "vocab": [["a", -1.0], ["b", -2.0]], "unk_id": 0}
WORDPIECE = {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "a",
             "max_input_chars_per_word": 100, "continuing_subword_prefix": "##"}  # fmt: skip
WRONG_MODELS: dict[str, tuple[Any, str]] = {
    "none": (None, "no model"),
    "another": ({"type": "New"}, "'New' is not served; served: BPE"),
    "no vocabulary": ({**BPE, "vocab": []}, "vocab must be an object"),
    "a text for an id": ({**BPE, "vocab": {"a": "0"}}, "an id below"),
    "a large id": ({**BPE, "vocab": {"a": 1 << 24}}, "an id below"),
    "a negative id": ({**BPE, "vocab": {"a": -1}}, "library refuses its vocabulary"),
    "half an id": ({**BPE, "vocab": {"a": 0.5, "b": 1}}, "library refuses its vocabulary"),
    "a long token": ({**BPE, "vocab": {"a" * 4097: 0}}, "4097 characters"),
    "a surrogate": ({**BPE, "vocab": {"\ud800": 0}}, "library refuses its vocabulary"),
    "no merges": ({**BPE, "merges": None}, "merges must be a list"),
    "three parts": ({**BPE, "merges": [["a", "b", "c"]]}, "merges must be pairs"),
    "three parts in a text": ({**BPE, "merges": ["a b c"]}, "merges must be pairs"),
    "numbers": ({**BPE, "merges": [5]}, "merges must be pairs"),
    "texts and lists": ({**BPE, "merges": ["a b", ["a", "b"]]}, "merges must be pairs"),
    "pairs of numbers": ({**BPE, "merges": [[1, 2]]}, "library refuses its vocabulary"),
    "an unknown merge": ({**BPE, "merges": [["a", "c"]]}, "library refuses its vocabulary"),
    "another prefix": ({**BPE, "continuing_subword_prefix": "##"}, "what begins with '##'"),
    "no flag": ({**BPE, "byte_fallback": 1}, "byte_fallback must be true or false"),
    "no scores": ({**UNIGRAM, "vocab": [["a"]]}, "a token and its score"),
    "a text for a score": ({**UNIGRAM, "vocab": [["a", "b"]]}, "a token and its score"),
    "no number": ({**UNIGRAM, "vocab": [["a", float("nan")]]}, "scores must be finite"),
    "a huge number": ({**UNIGRAM, "vocab": [["a", 10**400]]}, "scores must be finite"),
    "an empty list": ({**UNIGRAM, "vocab": []}, "a list of 1 to"),
    "an unk_id outside": ({**UNIGRAM, "unk_id": 2}, "unk_id 2 is no token"),
    "a long piece": ({**UNIGRAM, "vocab": [["a" * 4097, 0.0]]}, "4097 characters"),
    "long words": ({**WORDPIECE, "max_input_chars_per_word": 1025}, "must be 0 to 1024"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_MODELS)
def test_wrong_models_are_named(case: str) -> None:
    model, message = WRONG_MODELS[case]
    with pytest.raises(ValueError, match=message):
        LibraryTokenizer({"model": model}, [])


@pytest.mark.parametrize(
    "model", [BPE, UNIGRAM, WORDPIECE, {"type": "WordLevel", "vocab": {"a": 0}}]
)
def test_right_models_are_made(model: dict[str, Any]) -> None:
    assert LibraryTokenizer({"model": model}, []).encode("a") == [0]
    old = {key: value for key, value in model.items() if key != "type"}
    assert checked_model(old) == checked_model(model), "files from before models had types"


def test_merges_of_older_files() -> None:
    old = {**BPE, "merges": ["#version: 0.2", "a b"]}
    assert checked_model(old)["merges"] == checked_model(BPE)["merges"] == [("a", "b")]


def test_added_tokens_are_checked() -> None:
    assert checked_added_tokens(None) == []
    for tokens, message in (
        ({}, "must be a list"), ([5], "must be an object"), ([{}], "a token must have"),
        ([{"content": "a" * 4097}], "at most 4096"), ([{"content": "a", "special": 1}], "true or"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            checked_added_tokens(tokens)


# ---- the door ----


def test_every_kind_of_tokenizer_is_the_librarys() -> None:
    """What the parts make is what the library makes of the file."""
    for name, parts in KINDS.items():
        mine = LibraryTokenizer(parts, parts["added_tokens"])
        whole = {"version": "1.0", "truncation": None, "padding": None, "post_processor": None}
        theirs = tokenizers.Tokenizer.from_str(json.dumps({**whole, **parts}))
        assert json.loads(mine.rules()) == json.loads(theirs.to_str()), name


class PanicException(BaseException):
    """As the library's looks from outside."""

    __module__ = "pyo3_runtime"


class Failing:
    """Stands for an object of the library each use of which fails."""

    def __init__(self, error: BaseException) -> None:
        self.__dict__["error"] = error

    def __getattr__(self, name: str) -> Any:
        raise self.error

    def __setattr__(self, name: str, value: Any) -> None:
        raise self.error


USES = {
    "encode": lambda t: t.encode("a"),
    "pieces": lambda t: t.pieces("a"),
    "around": lambda t: t.around(),
    "decode": lambda t: t.decode([0]),
    "id_of": lambda t: t.id_of("a"),
    "token_of": lambda t: t.token_of(0),
    "vocabulary": lambda t: t.vocabulary(with_added_tokens=True),
    "size": lambda t: t.size(with_added_tokens=True),
    "added_tokens": lambda t: t.added_tokens(),
    "add_tokens": lambda t: t.add_tokens([{"content": "x"}]),
    "rules": lambda t: t.rules(),
    "without_special_tokens": lambda t: t.without_special_tokens(),
}


@pytest.mark.parametrize("use", USES)
def test_errors_after_loading_are_ours(use: str) -> None:
    tokenizer = LibraryTokenizer({"model": BPE}, [])
    USES[use](tokenizer)
    methods = {name for name in vars(LibraryTokenizer) if not name.startswith("_")}
    assert methods - {"fewest_tokens"} == set(USES), "that one asks nothing of the library"
    for error in (PanicException("it panics"), Exception("it fails")):
        tokenizer._real = Failing(error)  # type: ignore[assignment]
        with pytest.raises(ValueError, match=str(error)):
            USES[use](tokenizer)
    for passed in (KeyboardInterrupt(), SystemExit(), MemoryError()):
        tokenizer._real = Failing(passed)  # type: ignore[assignment]
        with pytest.raises(type(passed)):
            USES[use](tokenizer)


def test_texts_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizers_library, "MAX_TEXT_BYTES", 8)
    monkeypatch.setattr(tokenizers_library, "MAX_NORMALIZED_BYTES", 12)
    plain, growing = (
        LibraryTokenizer({"model": BPE, "normalizer": n}, []) for n in (None, TO_SPACES)
    )
    assert plain.encode("a" * 8) == [0] * 8
    assert plain.max_text_bytes == 8 and growing.max_text_bytes == 4
    for tokenizer, text in ((plain, "a" * 9), (plain, "é" * 5), (growing, "a" * 5)):
        with pytest.raises(ValueError, match=f"{len(text.encode())} bytes, of which"):
            tokenizer.encode(text)


def test_slow_models_take_shorter_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizers_library, "MAX_LOOKS", 1000)
    longer = {**UNIGRAM, "vocab": [*UNIGRAM["vocab"], ["a" * 50, -9.0]]}
    for model, most in ((BPE, 1000), (UNIGRAM, 1000), (longer, 20), (WORDPIECE, 10)):
        assert LibraryTokenizer({"model": model}, []).max_text_bytes == most


def test_ids_that_are_none_have_no_text() -> None:
    tokenizer = LibraryTokenizer({"model": BPE}, [])
    assert tokenizer.decode([0, -1, 7, 1 << 32, 1 << 70]) == "a"
    assert [tokenizer.token_of(i) for i in (0, -1, 7, 1 << 32, 1 << 70)] == ["a", *[None] * 4]
