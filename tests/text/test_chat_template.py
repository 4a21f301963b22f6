"""Chat templates: against transformers' rendering, and against hostile ones."""

from __future__ import annotations

import itertools
import json
import sys
import threading
from pathlib import Path
from typing import Any, ClassVar

import pytest
from conftest import GOLDEN

from lmdeploy_c.engine.loading import make_chat_template
from lmdeploy_c.text import jinja_filters, jinja_meter
from lmdeploy_c.text.chat_template import ChatTemplateConfig, JinjaChatTemplate
from lmdeploy_c.text.jinja_meter import MAX_SECONDS, Meter
from lmdeploy_c.text.jinja_sandbox import ChatTemplateError, render
from lmdeploy_c.tokenizer import Tokenizer

GOLDEN_TEMPLATES = json.loads((GOLDEN / "smollm2" / "tokenizer.json").read_text())["chat_templates"]
MESSAGES = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def tokenizer(smollm2_path: Path) -> Tokenizer:
    return Tokenizer(smollm2_path)


@pytest.mark.parametrize("case", GOLDEN_TEMPLATES, ids=lambda c: f"{len(c['messages'])} messages")
def test_like_transformers(tokenizer: Tokenizer, case: dict) -> None:  # type: ignore[type-arg]
    template = ChatTemplateConfig().template(tokenizer)
    text = template.messages2prompt(case["messages"], case["add_generation_prompt"])
    assert text == case["text"]
    assert tokenizer.encode(text, add_bos=not template.adds_bos) == case["ids"]


def test_a_last_answer_is_continued(tokenizer: Tokenizer) -> None:
    template = ChatTemplateConfig().template(tokenizer)
    said = [*MESSAGES, {"role": "assistant", "content": "The answer is"}]
    assert template.messages2prompt(said).endswith("<|im_start|>assistant\nThe answer is")
    for start in ("e", "<|im_", " "):  # also where the text behind it holds the same
        said[-1]["content"] = start
        assert template.messages2prompt(said).endswith(f"<|im_start|>assistant\n{start}")
        assert said[-1]["content"] == start
    closed = template.messages2prompt(said, add_generation_prompt=False)
    assert closed.endswith("<|im_end|>\n")


def test_json_round_trip(tmp_path: Path) -> None:
    config = ChatTemplateConfig("vicuna", user="Q: ", stop_words=["Q:"])
    path = tmp_path / "template.json"
    assert ChatTemplateConfig.from_json(config.to_json(path)) == config
    assert ChatTemplateConfig.from_json(path) == config
    with pytest.raises(ValueError, match="'colour'"):
        ChatTemplateConfig.from_json('{"colour": "red"}')


class Tokens:
    bos_token, eos_token = "<s>", "</s>"

    def __init__(self, **chat_templates: str) -> None:
        self.chat_templates = chat_templates


def test_templates_write_every_named_token() -> None:
    class Named(Tokens):
        named_tokens: ClassVar = {"bos_token": "<s>", "image_token": "<image>"}

    source = "{{ bos_token }} {{ image_token }}{% if pad_token is defined %} a pad{% endif %}"
    assert JinjaChatTemplate(source, Named()).messages2prompt("hi") == "<s> <image>"
    assert JinjaChatTemplate(source, Tokens()).messages2prompt("hi") == "<s> "


TOOLS: list[dict[str, Any]] = [{"type": "function", "function": {"name": "now"}}]


def test_tools_take_the_template_for_tools() -> None:
    named = Tokens(default="plain", tool_use="{{ tools | length }} tools", rag="rag")
    template = ChatTemplateConfig().template(named)
    assert template.messages2prompt("hi") == "plain"
    assert template.messages2prompt("hi", tools=None) == "plain"
    assert template.messages2prompt("hi", tools=TOOLS) == "1 tools"
    assert template.messages2prompt("hi", tools=[]) == "0 tools"  # as transformers chooses
    other = ChatTemplateConfig().template(Tokens(first="first", second="second"))
    assert other.messages2prompt("hi") == other.messages2prompt("hi", tools=TOOLS) == "first"


def test_an_empty_template_is_none() -> None:
    with pytest.raises(ValueError, match="brings no chat template"):
        ChatTemplateConfig().template(Tokens(default=" \n"))
    with pytest.raises(ValueError, match="brings no chat template"):
        ChatTemplateConfig().template(Tokens())
    named = Tokens(default="", tool_use="", other="other")
    assert ChatTemplateConfig().template(named).messages2prompt("hi", tools=TOOLS) == "other"
    assert make_chat_template(None, Tokens(default="")).messages2prompt("hi") == "hi"  # type: ignore


def test_a_trimmed_answer_is_continued_as_it_is_shown() -> None:
    said = [*MESSAGES, {"role": "assistant", "content": "So "}]
    for source, wanted in (
        ("{% for m in messages %}{{ m.content | trim }}.{% endfor %}", "Hi.So"),
        ("{% for m in messages %}{{ m.content }}.{% endfor %}", "Hi.So "),
    ):
        assert ChatTemplateConfig().template(Tokens(a=source)).messages2prompt(said) == wanted


def test_calls_of_a_last_answer_are_shown() -> None:
    source = (
        "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}"
        "<{{ c.function.name }}>{% endfor %}</end>{% endfor %}"
    )
    called = {"role": "assistant", "content": "So.", "tool_calls": TOOLS}
    template = ChatTemplateConfig().template(Tokens(a=source))
    assert template.messages2prompt([*MESSAGES, called]) == "Hi</end>So.<now>"


def test_a_template_that_hides_the_last_answer() -> None:
    template = ChatTemplateConfig().template(Tokens(a="{{ messages[0].content }}"))
    with pytest.raises(ChatTemplateError, match="does not show the answer"):
        template.messages2prompt([*MESSAGES, {"role": "assistant", "content": "So"}])
    with pytest.raises(ChatTemplateError, match="no messages"):
        template.messages2prompt([])


def test_what_templates_of_models_use() -> None:
    source = """{%- for m in messages %}{% if m.role == 'user' %}
{{- '[' ~ m['content'] | trim ~ ']' }}{% continue %}{% endif %}{% generation %}{{ m.content }}
{%- endgeneration %}
{%- endfor %}{{ {'a': '<&é'} | tojson }}{{ strftime_now('%Y') | length }}"""
    said = [{"role": "user", "content": " x "}, {"role": "assistant", "content": "y"}]
    assert render(source, {"messages": said}) == '[x]y{"a": "<&é"}4'
    with pytest.raises(ChatTemplateError, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}", {})


def test_what_is_set_in_a_generation_stays_in_it() -> None:
    """As in transformers, which makes a macro of it."""
    source = (
        "{% set x = 1 %}{% for m in messages %}{% generation %}{% set x = x + loop.index %}"
        "{% set ns.y = x %}{{ x }}{% endgeneration %}{{ x }}{% endfor %}{{ ns.y }}"
    )
    assert render("{% set ns = namespace() %}" + source, {"messages": [0, 0]}) == "21313"


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("{{ 'ab' | center(6) }}|", "  ab  |"),
        ("{{ 1500 | filesizeformat }}", "1.5 kB"),
        ("{{ '<' | safe | forceescape }}", "&lt;"),
        ("{{ {'b': [1]} | pprint }}", "{'b': [1]}"),
        ("{{ ['a'] | random }}", "a"),
        ("{{ '<b>x</b>  y' | striptags }}", "x y"),
        ("{{ 'one two three' | truncate(8, leeway=0) }}", "one..."),
        ("{{ 'a b/ä' | urlencode }}", "a%20b/%C3%A4"),
        ("{{ 'see http://example.org' | urlize }}",
         'see <a href="http://example.org" rel="noopener">http://example.org</a>'),
        ("{{ 'a b, c' | wordcount }}", "3"),
        ("{{ 'aaa bbb' | wordwrap(3) }}", "aaa\nbbb"),
        ("{{ {'id': 'x', 'no': none} | xmlattr }}", ' id="x"'),
        ("{{ dict(a=1) | tojson ~ dict.fromkeys(['k']) }}", '{"a": 1}{\'k\': None}'),
        ("{% set n = namespace({'a': 1}, self=2) %}{{ n.a ~ n.self }}", "12"),
    ],
)  # fmt: skip
def test_jinja_has_its_filters_and_globals(source: str, wanted: str) -> None:
    """The values are those of jinja2's documentation and of transformers' environment."""
    assert render(source, {}) == wanted


def test_no_filter_of_jinja_is_missing() -> None:
    from jinja2.filters import FILTERS

    assert set(FILTERS) == set(jinja_filters._COSTS)


NESTED = (
    "{% set ns = namespace(a=['x'], b=['x']) %}{% for i in range(40) %}"
    "{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}{% endfor %}"
)
HOSTILE = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{{ range(10**9) | list }}",
    "{{ 'x' * 10**10 }}",
    "{{ 10**10 * 'x' }}",
    "{{ [0] * 10**9 }}",
    "{{ 2 ** (10**8) }}",
    "{{ 9 ** 9 ** 9 ** 9 ** 9 }}",
    *(
        f"{{% set ns = namespace(x={start}) %}}{{% for i in range(60) %}}"
        f"{{% set ns.x = {step} %}}{{% endfor %}}"
        for start, step in (
            ("'x'", "ns.x ~ ns.x"),
            ("'x'", "ns.x + ns.x"),
            ("[1]", "ns.x + ns.x"),
            ("'x'", "ns.x.replace('x', 'xx')"),
            ("7", "ns.x * ns.x"),
        )
    ),
    "{{ 'x' | center(10**9) }}",
    "{{ 'x'.zfill(10**9) }}",
    "{{ ('x' * 999999) | wordwrap(1) }}",
    "{{ ('<>' * 99999) | striptags }}",
    "{{ ('(' * 999999) | urlize }}",
    "{{ ([[1] * 999] * 999) | pprint }}",
    "{{ ('x ' * 9) | wordwrap(2, wrapstring='y' * 9999999) }}",
    "{{ ('ä' * 9999999) | urlencode }}",
    "{{ ('a ' * 7999999) | wordcount }}",
    "{{ dict.update(messages[0], {'role': 'x'}) }}",
    "{{ dict.mro() }}",
    "{{ namespace(__class__=1) }}",
    "{% set ns = namespace() %}{% set ns._x = 1 %}",
    "{{ 'x'.rjust(1000000000) }}",
    "{{ '%1000000000d' | format(1) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ 'x' | indent(10**9) }}",
    "{{ ''.__class__.__mro__ }}",
    "{{ messages.__class__.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.system('true') }}",
    "{{ self.__init__.__globals__ }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ (" + "(" * 5000 + "1" + ")" * 5000 + ") }}",
    "{% for",
    "{{ undefined.attribute.of }}",
    "{{ messages.append(1) }}",
    "{% include 'x' %}",
    "{% import 'os' as os %}",
    "{{ 1 / 0 }}",
    "{% for i in range(90000) %}{{ 'y' * 1000 }}{% endfor %}",
    "x" * 2_000_000,
    # what runs in Python's core, between two looks at the clock, is bounded by itself
    NESTED + "{{ ns.a }}",
    NESTED + "{{ ns.a | tojson }}",
    NESTED + "{{ ns }}",
    NESTED + "{{ [[ns.a]] | map(attribute=0) | join }}",
    NESTED + "{{ ns.a == ns.b }}",
    NESTED + "{{ ns.a in [ns.b] }}",
    NESTED + "{{ [ns.a, ns.b] | unique | list | length }}",
    "{{ ('x' * 99999) | list | join('y' * 99999) | length }}",
    "{{ ('y' * 99999).join(('x' * 99999) | list) | length }}",
    "{{ ('x\n' * 99999) | indent('y' * 99999) | length }}",
    "{{ ('\t' * 20000).expandtabs(99999) | length }}",
    "{{ ('a' * 99999) | replace(new='b' * 99999, old='a') | length }}",
    "{{ ('%(a)s' * 99999) % {'a': 'x' * 99999} }}",
    "{{ ('{0}' * 99999).format('x' * 99999) }}",
    "{{ ([range(1000) | list] * 90000) | sum(start=[]) | length }}",
    "{% set ns = namespace(x='xxxx') %}{% for i in range(60) %}{% set ns.x %}{{ ns.x }}{{ ns.x }}"
    "{% endset %}{% endfor %}",
    "{% set ns = namespace(l=[]) %}{% for i in range(9999) %}{% set ns.l = [ns.l, 'x' * 9999999] %}"
    "{% endfor %}",
    "{% set b = 'x' * 9999999 %}{% set ns = namespace(l=[]) %}{% for i in range(9999) %}"
    "{% set ns.l = [ns.l, b[1:]] %}{% endfor %}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    # an exception for time that a filter would swallow
    "{% for i in range(99999) %}{% for j in range(99999) %}{{ 'x' | int | int | int | int }}"
    "{% endfor %}{% endfor %}",
]


@pytest.mark.parametrize("source", HOSTILE, ids=lambda s: s[:30])
def test_a_hostile_template_ends_in_an_error(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jinja_meter, "MAX_SECONDS", 0.3)
    caught: list[BaseException] = []

    def run() -> None:
        try:
            render(source, {"messages": list(MESSAGES)})
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=run)  # the limit holds outside of the main thread too
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    assert [type(error) for error in caught] == [ChatTemplateError], caught


def test_a_namespace_may_hold_itself() -> None:
    source = "{% set ns = namespace() %}{% set ns.a = [ns] %}{{ ns.a }}{{ ns.a == [ns] }}"
    assert render(source, {}) == "[<Namespace>]True"


def test_a_tracer_of_the_user_is_put_back() -> None:
    def tracer(*args: object) -> None:
        return None

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        render("{{ 1 }}", {})
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(before)


def test_long_conversations_are_quick() -> None:
    source = """{%- for m in messages %}{%- set rest = messages[loop.index:] %}
{{- m.role ~ ':' ~ m.content.split('</think>')[-1] | trim }}{{ messages | length - loop.index0 }}
{%- if rest | selectattr('role', 'equalto', 'system') | list %}!{% endif %}
{%- set big = dict(id=1732406400123) %}{{- '%s' | format(big.id) ~ '{}'.format(m.role) }}
{%- endfor %}"""
    text = render(source, {"messages": [{"role": "user", "content": "x" * 1000}] * 400})
    assert len(text) > 400_000


def test_variables_of_a_template_are_no_arguments_of_its_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """jinja2 hands them to each call. To weigh them there made a long conversation's calls slow."""
    weighed: list[Any] = []
    weigh = Meter.weigh
    monkeypatch.setattr(
        Meter, "weigh", lambda meter, *values: (weighed.extend(values), weigh(meter, *values))[1]
    )
    source = (
        "{% for m in messages %}{% set rest = messages %}{{ m.split('a') | length }}{% endfor %}"
    )
    assert render(source, {"messages": ["bab", "b"]}) == "21"
    assert weighed == []


def test_a_busy_machine_refuses_no_template(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(0.0, 2 * MAX_SECONDS)
    monkeypatch.setattr(jinja_meter.time, "monotonic", lambda: next(clock))
    assert render("{% for i in range(9) %}{{ i }}{% endfor %}", {}) == "012345678"
