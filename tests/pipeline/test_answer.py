"""From tokens to text: stop words wherever tokens begin and end, and what is held back."""

import random
from collections import deque
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from lmdeploy_c import GenerationConfig, UnsupportedError
from lmdeploy_c._C import Output
from lmdeploy_c.engine.answer import Answer
from lmdeploy_c.messages import ResponseType
from lmdeploy_c.text.prompts import as_messages, parse_prompts, per_prompt
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


def test_special_tokens_stop_as_tokens() -> None:
    matcher = StopMatcher(ids={2: "<end>"}, include=True)
    assert run(matcher, ["a", "b", "", "c"])[:3] == ("ab<end>", [0, 1, 2], True)
    assert run(StopMatcher(ids={2: "<end>"}), ["a", "b", "", "c"])[:3] == ("ab", [0, 1], True)


def test_logprobs_go_with_their_tokens() -> None:
    matcher = StopMatcher(["xy"])
    assert matcher.add(7, {7: -1.0}, "x") == ("", [], [], False)
    assert matcher.add(8, {8: -2.0}, "z") == ("xz", [7, 8], [{7: -1.0}, {8: -2.0}], False)


def test_against_a_search_in_the_whole_text() -> None:
    rng = random.Random(0)
    for _ in range(2000):
        words = ["".join(rng.choices("ab", k=rng.randint(1, 4))) for _ in range(rng.randint(1, 3))]
        pieces = ["".join(rng.choices("abc", k=rng.randint(0, 3))) for _ in range(12)]
        include = rng.random() < 0.5
        text, tokens, stopped, _ = run(StopMatcher(words, include=include), pieces)
        whole, ends = "", []
        for piece in pieces:  # the answer ends with the token that completes a word
            whole += piece
            ends.append(len(whole))
            found = [(whole.find(w), -len(w), w) for w in words if w in whole]
            if found:
                start, _, word = min(found)
                whole = whole[: start + (len(word) if include else 0)]
                break
        assert (text, stopped) == (whole, bool(found))
        starts = [0, *ends][: len(ends)]
        if stopped:
            assert tokens == [i for i, start in enumerate(starts) if start < len(whole)]
        else:
            assert tokens == list(range(len(pieces)))


# A request without an engine


class FakeRequest:
    """Gives prepared outputs."""

    random_seed = 5

    def __init__(self, *outputs: Output) -> None:
        self.outputs = deque(outputs)
        self.cancelled = self.done = False

    def read(self, timeout: float | None = None) -> Output | None:
        output = self.outputs.popleft()
        self.done = output.finish_reason is not None
        return output

    def cancel(self) -> None:
        self.cancelled = True


class Letters:
    """A detokenizer: token i is the i-th letter; token 99 has no text until the end."""

    def __init__(self) -> None:
        self.rest = ""

    def add(self, token_ids: Sequence[int]) -> str:
        self.rest = "?" if 99 in token_ids else ""
        return "".join(chr(97 + i) for i in token_ids if i != 99)

    def finish(self) -> str:
        return self.rest


def output(*token_ids: int, reason: Any = None, **fields: Any) -> Output:
    nothing = dict.fromkeys(("logprobs", "logits", "error_message", "ppl"))
    values: dict[str, Any] = {**nothing, "cached_tokens": 3, **fields}
    return cast(Output, SimpleNamespace(token_ids=list(token_ids), finish_reason=reason, **values))


def answer(*outputs: Output, stop: Sequence[str] = ()) -> tuple[Answer, FakeRequest]:
    request = FakeRequest(*outputs)
    return Answer(request, Letters(), StopMatcher(stop), input_ids=[1, 2, 3]), request  # type: ignore[arg-type]


def test_answer_collects_deltas() -> None:
    it, _ = answer(output(0, 1), output(2, reason="length", ppl=1.5))
    first = it.read()
    assert first is not None
    assert (first.text, first.generate_token_len, first.finish_reason) == ("ab", 2, None)
    whole = it.read_all()
    assert (whole.text, whole.token_ids, whole.input_token_len) == ("abc", [0, 1, 2], 3)
    assert (whole.finish_reason, whole.ppl, whole.random_seed) == ("length", 1.5, 5)
    assert whole.cached_tokens == 3


def test_answer_cancels_the_request_at_a_stop_word() -> None:
    it, request = answer(output(0, 1, 2), output(3, 4), stop=["cd"])
    whole = it.read_all()
    assert (whole.text, whole.token_ids, whole.finish_reason) == ("ab", [0, 1], "stop")
    assert request.cancelled


def test_answer_hides_an_empty_delta() -> None:
    it, _ = answer(output(2), output(0, reason="stop"), stop=["cd"])
    assert it.read() is None
    delta = it.read()
    assert delta is not None and (delta.text, delta.finish_reason) == ("ca", "stop")


def test_answer_shows_an_unfinished_character_at_the_end() -> None:
    it, _ = answer(output(0, 99, reason="length"))
    assert it.read_all().text == "a?"


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("LMD_INVALID", ResponseType.BAD_REQUEST),
        ("LMD_BUSY", ResponseType.QUEUE_FULL),
        ("LMD_NO_MEMORY", ResponseType.INTERNAL_ENGINE_ERROR),
        ("LMD_INTERNAL", ResponseType.INTERNAL_ENGINE_ERROR),
    ],
)
def test_answer_of_an_error(code: str, shown: ResponseType) -> None:
    it, _ = answer(output(reason="error", error_message="no", error_code=code))
    whole = it.read_all()
    assert (whole.finish_reason, whole.error_message) == ("error", "no")
    assert whole.error_code is shown


def test_answer_survives_an_interrupt_that_lost_the_last_output() -> None:
    it, request = answer(output(0), output(1, reason="length"))
    it.read()
    request.read()  # what the interrupt threw away
    whole = it.read_all()
    assert (whole.text, whole.finish_reason) == ("a", "abort")


def test_answer_keeps_logits() -> None:
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    it, _ = answer(output(0, logits=rows[:1]), output(1, reason="length", logits=rows[1:]))
    np.testing.assert_array_equal(it.read_all().logits, rows)


# What stops an answer

SPECIAL = {"<end>": 7, "<eot>": 8}


def test_stop_rules_default() -> None:
    matcher, ids = stop_rules(GenerationConfig(), ["<end>", "User:"], SPECIAL, [2])
    assert (ids, matcher.words) == ([2, 7], ["User:"])


def test_stop_rules_ignore_eos_keeps_what_was_asked_for() -> None:
    config = GenerationConfig(ignore_eos=True, stop_words=["x", "<eot>"], stop_token_ids=[5])
    matcher, ids = stop_rules(config, ["<end>", "User:"], SPECIAL, [2])
    assert (ids, matcher.words) == ([5, 8], ["x"])


def test_stop_rules_match_special_tokens_here_to_include_them() -> None:
    config = GenerationConfig(stop_words=["<eot>"], include_stop_str_in_output=True)
    matcher, ids = stop_rules(config, ["<end>"], SPECIAL, [2])
    assert (ids, matcher.ids) == ([2, 7], {8: "<eot>"})


# The forms of prompts

CONVERSATION = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("prompts", "n", "single"),
    [
        ("hi", 1, True),
        (["hi", "ho"], 2, False),
        (CONVERSATION, 1, True),
        ([CONVERSATION, CONVERSATION], 2, False),
        (["hi", CONVERSATION], 2, False),
        ([], 0, False),
    ],
)
def test_prompt_forms(prompts: Any, n: int, single: bool) -> None:
    items, is_single = parse_prompts(prompts)
    assert (len(items), is_single) == (n, single)


@pytest.mark.parametrize("prompts", [1, None, {"role": "user"}, [1], ["a", None], [[1]], b"hi"])
def test_what_is_no_prompt_is_a_type_error(prompts: Any) -> None:
    with pytest.raises(TypeError, match="a prompt is a text"):
        parse_prompts(prompts)


@pytest.mark.parametrize("prompts", [("what?", object()), [("what?", [object()])]])
def test_images_are_refused_in_words(prompts: Any) -> None:
    with pytest.raises(UnsupportedError, match="serves text only"):
        parse_prompts(prompts)


def test_messages() -> None:
    assert as_messages("hi") == CONVERSATION
    parts: list[Any] = [
        {"role": "user", "content": [{"type": "text", "text": "h"}, "i"], "name": "x"}
    ]
    assert as_messages(parts) == [{"role": "user", "content": "hi", "name": "x"}]
    call: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": [{}]}
    assert as_messages([call]) == [call]


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ({"content": "hi"}, "role"),
        ({"role": "user"}, "content"),
        ({"role": "user", "content": 5}, "content"),
        ({"role": "user", "content": [5]}, "part"),
        ({"role": "user", "content": [{"type": "text"}]}, "needs a 'text'"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "serves text only"),
    ],
)
def test_bad_messages(message: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        as_messages([message])


def test_per_prompt() -> None:
    assert per_prompt(1, 2, "x") == [1, 1]
    assert per_prompt([1, 2], 2, "x") == [1, 2]
    with pytest.raises(ValueError, match="x has 3 items for 2 prompts"):
        per_prompt([1, 2, 3], 2, "x")
