"""One form of a message: null is absent, reasoning under its names, arguments as objects."""

from __future__ import annotations

import dataclasses
import enum
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmdeploy_c.text.chat_template import ChatTemplateConfig, JinjaChatTemplate, template_kwargs
from lmdeploy_c.text.conversation import JsonObject, normalize, plain
from lmdeploy_c.text.prompts import as_messages

USER = {"role": "user", "content": "a"}


class Tokens:
    bos_token, eos_token = "<s>", "</s>"


def render(source: str, *messages: dict[str, Any], **kwargs: Any) -> str:
    return JinjaChatTemplate(source, Tokens()).messages2prompt([USER, *messages], **kwargs)


def call(arguments: Any, **fields: Any) -> dict[str, Any]:
    return {"id": "c1", "type": "function", **fields,
            "function": {"name": "f", "arguments": arguments}}  # fmt: skip


# ---- null is absent ----


def test_null_fields_are_absent() -> None:
    asks = "{% for m in messages[1:] %}{{ m.keys() | sort | join(',') }};{% endfor %}"
    nulls = {"role": "assistant", "content": "b", "refusal": None, "tool_calls": None}
    assert render(asks, nulls, USER) == "content,role;content,role;"
    assert render(asks, {**nulls, "tool_calls": []}, USER) == "content,role;content,role;"


@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": ""}])
def test_a_content_that_may_be_missing_is_empty(content: dict[str, Any]) -> None:
    writes = "{% for m in messages[1:] %}{{ '[' + m['content'] + ']' }}{% endfor %}"
    called = {"role": "assistant", "tool_calls": [call({})], **content}
    thought = {"role": "assistant", "reasoning_content": "hm", "tool_calls": None, **content}
    silent = {"role": "tool", "tool_call_id": "c1", **content}
    assert render(writes, called, silent, thought, USER) == "[][][][a]"


def test_null_inside_a_call_is_absent() -> None:
    asks = "{{ messages[1].tool_calls[0] | tojson }}"
    given = call(None, index=None)
    said = json.loads(render(asks, {"role": "assistant", "tool_calls": [given]}, USER))
    assert said == {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {}}}


def test_null_keywords_are_absent() -> None:
    source = "{{ 'default' if enable_thinking is not defined else enable_thinking }}"
    for kwargs in ({"enable_thinking": None}, {"chat_template_kwargs": {"enable_thinking": None}}):
        assert render(source, **template_kwargs(kwargs)) == "default"
    both = {"enable_thinking": False, "chat_template_kwargs": {"enable_thinking": None}}
    assert render(source, **template_kwargs(both)) == "False"
    assert render(source, enable_thinking=None) == "default"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v, max_size=3),
    max_leaves=5,
)
FIELDS = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "system"])},
    optional={
        "content": st.none() | st.text(max_size=9),
        "name": st.none() | st.text(max_size=5),
        "reasoning": st.none() | st.text(max_size=5),
        "thinking": st.none() | st.text(max_size=5),
        "reasoning_content": st.none() | st.text(max_size=5),
        "refusal": st.none() | st.text(max_size=5),
        "tool_call_id": st.none() | st.text(max_size=5),
        "tool_calls": st.none()
        | st.lists(
            st.fixed_dictionaries(
                {"function": st.fixed_dictionaries({"name": st.text(max_size=5)},
                                                   optional={"arguments": JSON})},
                optional={"id": st.none() | st.text(max_size=5), "index": st.none()},
            ),
            max_size=2,
        ),
    },
)  # fmt: skip
TEMPLATES = [
    JinjaChatTemplate(source, Tokens())
    for source in (
        "{% for m in messages %}{{ m | tojson }}{% endfor %}",
        "{% for m in messages %}{% for k, v in m | dictsort %}{{ k ~ '=' ~ v }}{% endfor %}"
        "{% endfor %}",
        "{% for m in messages %}{% if m.tool_calls is defined %}{{ m.tool_calls | length }}"
        "{% endif %}"
        "{{ m.content + '.' }}{% if 'name' in m %}{{ m.name + '.' }}{% endif %}{% endfor %}",
    )
] + [ChatTemplateConfig("vicuna", tool="T").template()]  # fmt: skip


def outcome(template: Any, messages: list[dict[str, Any]]) -> str:
    try:
        return str(template.messages2prompt(messages))
    except ValueError as error:
        return f"{type(error).__name__}: {error}"


def without_nulls(message: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in message.items() if value is not None}
    if "tool_calls" in kept:
        kept["tool_calls"] = [
            {name: value for name, value in c.items() if value is not None}
            for c in kept["tool_calls"]
        ]
    return kept


@settings(max_examples=40, deadline=None)
@given(st.lists(FIELDS, min_size=1, max_size=4))
def test_null_and_absent_fields_give_equal_prompts(messages: list[dict[str, Any]]) -> None:
    fields = ("content", "name", "reasoning", "refusal", "tool_calls", "tool_call_id", "audio")
    filled = [{**m, **{name: None for name in fields if name not in m}} for m in messages]
    absent = [without_nulls(message) for message in messages]
    for template in TEMPLATES:
        assert outcome(template, filled) == outcome(template, absent)
        assert outcome(template, messages) == outcome(template, absent)


@settings(max_examples=40, deadline=None)
@given(FIELDS)
def test_the_one_form_stays_as_it_is(message: dict[str, Any]) -> None:
    try:
        once = normalize(message)
    except ValueError:
        return
    assert normalize(once) == once


# ---- reasoning, arguments, plain data ----


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_has_its_three_names(name: str) -> None:
    asks = (
        "{% set m = messages[1] %}{{ [m.reasoning_content, m.thinking, m.reasoning] | join('|') }}"
    )
    said = {"role": "assistant", "content": "b", "reasoning_content": None, name: "why"}
    assert render(asks, said, USER) == "why|why|why"
    assert render("{{ 'thinking' in messages[1] }}", {**said, name: None}, USER) == "False"


def test_the_first_name_of_reasoning_counts() -> None:
    said = {"role": "assistant", "content": "b", "reasoning": "3", "thinking": "2"}
    asks = "{{ messages[1].reasoning_content ~ messages[1].thinking ~ messages[1].reasoning }}"
    assert render(asks, said, USER) == "223"


def arguments_as(source: str, arguments: Any) -> str:
    said = {"role": "assistant", "content": "", "tool_calls": [call(arguments)]}
    return render("{% set a = messages[1].tool_calls[0].function.arguments %}" + source, said, USER)


@pytest.mark.parametrize("arguments", ['{"city": "Ulm", "n": 2}', {"city": "Ulm", "n": 2}])
def test_arguments_are_an_object(arguments: Any) -> None:
    walks = "{% for k, v in a | items %}{{ k }}={{ v }};{% endfor %}"
    assert arguments_as(walks, arguments) == "city=Ulm;n=2;"
    assert arguments_as("{{ a | tojson }}", arguments) == '{"city": "Ulm", "n": 2}'
    assert arguments_as("{{ a is mapping }}{{ a is string }}", arguments) == "TrueFalse"


def test_arguments_sent_as_text_can_be_written_as_text() -> None:
    sent = '{"city":"Ülm"}'  # as it came, not as Python or tojson write it
    for source in ("{{ a }}", "{{ a | string }}", "{{ '' ~ a }}", "{{ '' + a + '' }}"):
        assert arguments_as(source, sent) == sent


@pytest.mark.parametrize(
    ("arguments", "written"),
    [("Ulm", '"Ulm"'), ("[1]", '"[1]"'), ("{", '"{"'), ("[" * 9999, None), ("", "{}"), (" ", "{}"),
     (None, "{}"), ([1], "[1]")],
)  # fmt: skip
def test_other_arguments(arguments: Any, written: str | None) -> None:
    wanted = json.dumps(arguments) if written is None else written
    assert arguments_as("{{ a | tojson }}", arguments) == wanted


def test_a_function_without_its_frame_is_a_call_too() -> None:
    said = {"role": "assistant", "tool_calls": [{"name": "f", "arguments": '{"a": 1}'}]}
    assert render("{{ messages[1].tool_calls | tojson }}", said, USER) == (
        '[{"name": "f", "arguments": {"a": 1}}]'
    )


def test_templates_meet_plain_data() -> None:
    class Kind(str, enum.Enum):
        USER = "user"

    @dataclasses.dataclass
    class Point:
        x: Any

    class Dumped:
        def model_dump(self) -> dict[str, Any]:
            return {"id": "c1", "index": None, "function": {"name": "f", "arguments": "{}"}}

    assert type(plain(Kind.USER)) is str
    assert plain([Point(np.float32(0.5)), (np.int64(2), np.bool_(False)), 1j]) == [
        {"x": 0.5}, (2, False), "<complex>"
    ]  # fmt: skip
    said = normalize({"role": Kind.USER, "content": "a", "tool_calls": [Dumped()]})
    assert said["tool_calls"] == [{"id": "c1", "function": {"name": "f", "arguments": {}}}]
    assert not isinstance(plain(np.zeros(3)), np.ndarray)
    assert isinstance(plain(JsonObject("{}", {})), JsonObject)


# ---- parts ----

PARTS = [{"type": "text", "text": "b"}, {"type": "text", "text": "c", "cache": None}]
WALKS = (
    "{% for m in messages %}{% if m.content is string %}{{ '[' ~ m.content ~ ']' }}{% else %}"
    "{% for p in m.content %}{{ '<' ~ p.text ~ '>' }}{% endfor %}{% endif %}{% endfor %}"
)


def test_parts_are_lines_of_a_template_that_takes_texts() -> None:
    writes = "{% for m in messages %}{{ m.content }}|{% endfor %}"
    assert render(writes, {"role": "user", "content": PARTS}) == "a|b\nc|"
    assert render(writes, {"role": "user", "content": ["b", "c"]}) == "a|b\nc|"
    assert render(writes, {"role": "user", "content": []}) == "a||"
    as_json = "{% for m in messages %}{{ m.content | tojson }}{% endfor %}"
    assert render(as_json, {"role": "user", "content": PARTS}) == '"a""b\\nc"'


def test_a_template_that_takes_parts_gets_them() -> None:
    assert render(WALKS, {"role": "user", "content": PARTS}) == "[a]<b><c>"
    by_role = (
        "{% for m in messages %}{% if m.role == 'user' and m.content is not string %}"
        "{% for p in m.content %}{{ '<' ~ p.text ~ '>' }}{% endfor %}"
        "{% else %}{{ '[' ~ m.content ~ ']' }}{% endif %}{% endfor %}"
    )
    said = {"role": "assistant", "content": PARTS}
    assert render(by_role, said, {"role": "user", "content": PARTS}) == "[a][b\nc]<b><c>"


def test_an_answer_in_parts_is_continued() -> None:
    assert render(WALKS + "!", {"role": "assistant", "content": PARTS}) == "[a]<b><c"


def test_other_templates_get_texts() -> None:
    mine = ChatTemplateConfig("mine", user="U:").template()
    assert mine.messages2prompt([{"role": "user", "content": PARTS}]) == "U:b\nc"
    assert as_messages([{"role": "user", "content": PARTS}])[0]["content"] == "b\nc"
