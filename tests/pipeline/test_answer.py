"""From tokens to Responses, and from a caller's prompts to messages."""

from collections import deque
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from lmdeploy_c import UnsupportedError
from lmdeploy_c._C import Output
from lmdeploy_c.engine.answer import Answer
from lmdeploy_c.messages import ErrorCode
from lmdeploy_c.text.prompts import as_messages, parse_prompts, per_prompt
from lmdeploy_c.text.stop_words import StopMatcher

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
    values: dict[str, Any] = {**nothing, "cached_tokens": 3, "prompt_logprobs": None, **fields}
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
        ("LMD_INVALID", ErrorCode.INVALID_REQUEST),
        ("LMD_BUSY", ErrorCode.ENGINE_UNAVAILABLE),
        ("LMD_NO_MEMORY", ErrorCode.INTERNAL_ERROR),
        ("LMD_INTERNAL", ErrorCode.INTERNAL_ERROR),
    ],
)
def test_answer_of_an_error(code: str, shown: ErrorCode) -> None:
    it, _ = answer(output(reason="error", error_message="no", error_code=code))
    whole = it.read_all()
    assert (whole.finish_reason, whole.error_message) == ("error", "no")
    assert type(whole.error_code) is str and whole.error_code == shown


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
    assert as_messages(parts) == [{"role": "user", "content": "h\ni", "name": "x"}]


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
