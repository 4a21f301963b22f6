"""Stop words wherever tokens begin and end, what is held back, and which tokens are stop words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmdeploy_c import GenerationConfig
from lmdeploy_c.text.stop_words import StopMatcher, stop_rules


def run(
    matcher: StopMatcher, pieces: Iterable[str], rest: str = ""
) -> tuple[str, list[int], bool, list[str]]:
    """(text, tokens, stopped, what was shown after each token); token i has the text pieces[i]."""
    shown: list[str] = []
    tokens: list[int] = []
    for i, text in enumerate(pieces):
        piece = matcher.add(i, None, text)
        shown.append(piece.text)
        tokens += piece.token_ids
        if piece.stopped:
            return "".join(shown), tokens, True, shown
    piece = matcher.finish(rest)
    shown.append(piece.text)
    return "".join(shown), tokens + piece.token_ids, piece.stopped, shown


def test_nothing_is_held_back_without_stop_words() -> None:
    assert run(StopMatcher(), ["a", "", "b"]) == ("ab", [0, 1, 2], False, ["a", "", "b", ""])


def test_stop_word_inside_one_token() -> None:
    text, tokens, stopped, _ = run(StopMatcher(["lo w"]), ["hel", "lo world", "!"])
    assert (text, tokens, stopped) == ("hel", [0], True)


def test_stop_word_across_tokens_is_held_back_and_dropped() -> None:
    text, tokens, stopped, shown = run(StopMatcher(["END"]), ["say E", "N", "D of", "x"])
    assert (text, tokens, stopped) == ("say ", [0], True)
    assert shown == ["say ", "", ""]


def test_what_was_held_back_comes_when_it_is_no_stop_word() -> None:
    text, tokens, stopped, shown = run(StopMatcher(["END"]), ["E", "N", "ough"])
    assert (text, tokens, stopped) == ("ENough", [0, 1, 2], False)
    assert shown == ["", "", "ENough", ""]


def test_what_is_held_back_at_the_end_is_shown() -> None:
    assert run(StopMatcher(["END"]), ["go E", "N"])[:3] == ("go EN", [0, 1], False)


def test_stop_word_in_the_rest_at_the_end() -> None:
    assert run(StopMatcher(["é"]), ["caf", ""], rest="é")[:3] == ("caf", [0], True)


def test_include_keeps_the_stop_word_and_nothing_behind_it() -> None:
    text, tokens, stopped, _ = run(StopMatcher(["END"], include=True), ["a E", "ND of", "x"])
    assert (text, tokens, stopped) == ("a END", [0, 1], True)


def test_the_first_of_several_stop_words_wins() -> None:
    assert run(StopMatcher(["cd", "abcd", "x"]), ["0abcdx"])[0] == "0"
    assert run(StopMatcher(["aab"]), ["aa", "a", "b"])[0] == "a"


def test_words_do_not_count_before_min_tokens() -> None:
    text, tokens, stopped, _ = run(StopMatcher(["."], min_tokens=2), ["a.", "b.", "c.", "d"])
    assert (text, tokens, stopped) == ("a.b.c", [0, 1, 2], True)


def test_logprobs_go_with_their_tokens() -> None:
    matcher = StopMatcher(["xy"])
    assert matcher.add(7, {7: -1.0}, "x") == ("", [], [], False)
    assert matcher.add(8, {8: -2.0}, "z") == ("xz", [7, 8], [{7: -1.0}, {8: -2.0}], False)


def test_a_word_is_found_with_hidden_tokens_and_without() -> None:
    hidden = {1: "<end>"}
    for word, text in {"<end>": "ab", "b<en": "a", "d>c": "ab", "bc": "a", "b<end>c": "a"}.items():
        pieces = ["ab", "", "c", "d"]
        assert run(StopMatcher([word], hidden), pieces)[::2] == (text, True), word
        kept = run(StopMatcher([word], hidden, include=True), pieces)
        assert kept[0] == text + word and kept[2], word
    text, tokens, stopped, shown = run(StopMatcher(["d>e"], hidden), ["ab", "", "c"])
    assert (text, tokens, stopped) == ("abc", [0, 1, 2], False)
    assert shown == ["ab", "", "c", ""]
    matcher = StopMatcher(["b<end>q", "cx"], hidden)
    pieces = [matcher.add(i, None, text) for i, text in enumerate(["ab", "", "c", "x"])]
    assert [piece.text for piece in pieces] == ["a", "", "b", ""]
    assert [piece.token_ids for piece in pieces] == [[0], [], [1], []]


WORDS = st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3)
#: A token's text, and whether it is hidden.
TOKENS = st.lists(st.tuples(st.text("abc", max_size=3), st.booleans()), min_size=1, max_size=10)
Places = list[tuple[str, int]]  # characters and their places in the text of all tokens


def words_in(view: Places, words: list[str], begin: int) -> Iterator[tuple[int, int, str]]:
    """(place, -length, word) of each word in a text that ends at `begin` or later."""
    text = "".join(c for c, _ in view)
    for word in words:
        for start in range(len(text) - len(word) + 1):
            if text.startswith(word, start) and view[start + len(word) - 1][1] >= begin:
                yield view[start][1], -len(word), word


@settings(max_examples=200, deadline=None)
@given(WORDS, TOKENS, st.booleans(), st.integers(0, 3))
def test_an_answer_ends_where_its_text_first_holds_a_word(
    words: list[str], tokens: list[tuple[str, bool]], include: bool, min_tokens: int
) -> None:
    """Against a search in the whole text after each token, in the text with the hidden tokens and
    in the text without them."""
    hidden = {i: text for i, (text, is_hidden) in enumerate(tokens) if is_hidden and text}
    pieces = ["" if i in hidden else text for i, (text, _) in enumerate(tokens)]
    matcher = StopMatcher(words, hidden, include=include, min_tokens=min_tokens)
    text, ids, stopped, _ = run(matcher, pieces)

    whole: Places = []
    shown: Places = []
    begins: list[int] = []
    found: list[tuple[int, int, str]] = []
    for i, (token, _) in enumerate(tokens):
        begins.append(len(whole))
        new = [(c, len(whole) + n) for n, c in enumerate(token)]
        whole += new
        shown += [] if i in hidden else new
        if i >= min_tokens:
            found = [w for view in (whole, shown) for w in words_in(view, words, begins[i])]
        if found:
            break
    end, _, word = min(found, default=(len(whole), 0, ""))
    expected = "".join(c for c, place in shown if place < end)
    assert (text, stopped) == (expected + word * include, bool(found))
    if found and not include:
        assert ids == [i for i, begin in enumerate(begins) if begin < end]
    else:
        assert ids == list(range(len(begins)))


# Which words are tokens

SPECIAL = SimpleNamespace(
    special_tokens={7: "<end>", 8: "<eot>", 90: "<far>"},
    special_ids={"<end>": 7, "<eot>": 8, "<far>": 90},
)
TEMPLATE = ["<end>", "User:"]


def test_rules_of_words_that_are_tokens() -> None:
    matcher, ids = stop_rules(GenerationConfig(), TEMPLATE, SPECIAL, [2], 50)
    assert (ids, matcher.words) == ([2, 7], ["<end>", "User:"])
    assert matcher.hidden == SPECIAL.special_tokens
    shown = GenerationConfig(skip_special_tokens=False)
    assert stop_rules(shown, TEMPLATE, SPECIAL, [2], 50)[0].hidden == {}


def test_rules_that_ignore_eos_keep_what_was_asked_for() -> None:
    config = GenerationConfig(ignore_eos=True, stop_words=["x", "<eot>"], stop_token_ids=[5])
    matcher, ids = stop_rules(config, TEMPLATE, SPECIAL, [2], 50)
    assert (ids, matcher.words) == ([5, 8], ["x", "<eot>"])


@pytest.mark.parametrize("end_ids", [[2], [2, 8]])
def test_rules_leave_a_word_that_is_to_be_kept_to_the_matcher(end_ids: list[int]) -> None:
    config = GenerationConfig(stop_words=["<eot>"], include_stop_str_in_output=True)
    _, ids = stop_rules(config, ["<end>"], SPECIAL, end_ids, 50)
    assert ids == [2, 7]


def test_rules_leave_a_word_in_which_another_may_end_to_the_matcher() -> None:
    config = GenerationConfig(stop_words=["o<e", "<eot>"])
    assert stop_rules(config, (), SPECIAL, [2], 50)[1] == [2]


def test_rules_pass_over_tokens_that_the_model_does_not_have() -> None:
    config = GenerationConfig(stop_words=["<far>"])
    assert stop_rules(config, ["<far>"], SPECIAL, [2], 50)[1] == [2]
