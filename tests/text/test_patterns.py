"""Expressions of a model's files: which are run, and that their time is bounded."""

import re
import time

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmdeploy_c.text.patterns import check_pattern, matches_nothing
from lmdeploy_c.text.pre_tokenizers import TABLE

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
#: Of tokenizer.json files of well-known models.
KNOWN = {
    "GPT-2": GPT2,
    "Llama 3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "Qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "o200k": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "tekken": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "DeepSeek V3": r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|"
    r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "DeepSeek's numbers": r"\p{N}{1,3}",
    "CJK": "[一-龥぀-ゟ゠-ヿ]+",
    "Bloom": " ?[^(\\s|[.,!?…。，、।۔،])]+",
    "CLIP": r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|"
    r"[^\s\p{L}\p{N}]+",
    "cl100k": r"(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+|"
    r" ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
    "numbers from the right": r"\d{1,3}(?=(?:\d{3})*\b)",
    "spaces": " {2,}",
    "ChatGLM's spaces": r"\s+$",
    "EXAONE": r"[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}|\s+",
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_expressions_are_run(name: str) -> None:
    check_pattern(KNOWN[name])
    tokenizers.Regex(KNOWN[name])


def test_every_expression_of_a_gguf_vocabulary_is_run() -> None:
    for row in TABLE:
        for split in row.splits:
            check_pattern(split)


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("(?:a|b)*c", "several ways"),
        ("(?:ab?)+c", "several ways"),
        ("(?:a+b)*(?!c)", "several ways"),
        ("(?:(?:a|b)*c)*", "several ways"),
        ("(?:c(?:a|b)*){2}", "several ways"),
        ("(?:a|b){3}", "several ways"),
        ("(?:(?:a|b){1,9}c|d)", "several ways"),
        ("(?=(?:a|b)*c)", "several ways"),
        ("(a)\\1", "no tokenizer needs"),
        ("(?<n>a)\\k<n>", "no tokenizer needs"),
        ("(?<n>a)\\g<n>", "no tokenizer needs"),
        ("(?(1)a|b)", "no tokenizer needs"),
        ("(?~a)", "no tokenizer needs"),
        ("(?x: a)", "no tokenizer needs"),
        ("(?#a)", "no tokenizer needs"),
        ("(*FAIL)", "no tokenizer needs"),
        ("\\X", "no tokenizer needs"),
        ("a{1,3}+b", "several ways"),
        ("(?:a*){2}b", "several ways"),
        ("a" + "{1}" * 3, "three repetitions"),
        ("a{1025}", "count above 1024"),
        ("a*b*c", "too many ways"),
        ("(?:a*|b)c*d", "too many ways"),
        ("a?b?c?d?e?f?g?h", "too many ways"),
        ("[ab]{1,65}c", "too many ways"),
        ("[a", "class without its end"),
        ("(a", "group without its end"),
        ("a)", "closes nothing"),
        ("(" * 34 + ")" * 34, "groups more than 32 deep"),
        ("a" * 16_385, "16385 characters"),
    ],
)
def test_what_is_refused(pattern: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        check_pattern(pattern)


ATOMS = st.sampled_from(["a", "b", "[ab]", "[^a]", "\\w", ".", "(?=a)", "(?!b)", "\\b"])
QUANTIFIERS = st.sampled_from(["", "", "*", "+", "?", "{2}", "{0,3}", "{2,}", "*?", "++"])


def joined(parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    group = st.lists(parts, min_size=1, max_size=3).map("|".join).map(lambda s: f"(?:{s})")
    piece = st.tuples(group | ATOMS, QUANTIFIERS).map("".join)
    return st.lists(piece, min_size=1, max_size=4).map("".join)


EXPRESSIONS = st.recursive(ATOMS, joined, max_leaves=8)
#: So short that an expression with ways without end takes a second, and no more.
TEXTS = ["a" * 22, "ab" * 11, "a" * 21 + "b", " ".join("aab" * 7)]


@settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
@given(EXPRESSIONS)
def test_what_is_run_takes_no_long_time(pattern: str) -> None:
    """Oniguruma's own time, on texts of a few characters."""
    try:
        check_pattern(pattern)
    except ValueError:
        return
    try:
        expression = tokenizers.Regex(pattern)
    except Exception:  # Oniguruma knows why
        return
    split = tokenizers.pre_tokenizers.Split(expression, "isolated")
    start = time.process_time()
    for text in TEXTS:
        split.pre_tokenize_str(text)
    assert time.process_time() - start < 0.1, pattern


@settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
@given(EXPRESSIONS)
def test_what_may_match_nothing_is_known(pattern: str) -> None:
    """Python's expressions are the oracle: these mean the same there."""
    try:
        check_pattern(pattern)
        found = re.compile(pattern.replace("++", "+"))
    except (ValueError, re.error):
        return
    empty = [
        m for text in ("", "a", "b", "ab", "a b", "bb") for m in found.finditer(text) if not m[0]
    ]
    assert matches_nothing(pattern) or not empty


@pytest.mark.parametrize("pattern", ["a", " {2,}", r"\s+", "(?:a|b)", "^a", r"a\b", "(?=a)a", "``"])
def test_what_finds_a_character_each_time(pattern: str) -> None:
    assert not matches_nothing(pattern)
