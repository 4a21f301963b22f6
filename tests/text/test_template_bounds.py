"""The bounds of the template sandbox, with limits so low that little work meets them."""

from __future__ import annotations

import copy
import time
import types
from typing import Any

import pytest
import template_grammar

from lmdeploy_c.text import jinja_code, jinja_meter, jinja_sandbox
from lmdeploy_c.text.jinja_sandbox import ChatTemplateError, render

N_TEMPLATES = 200


def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MAX_SECONDS": 0.1, "MAX_SIZE": 100_000, "MAX_WORK": 2_000_000}.items():
        monkeypatch.setattr(jinja_meter, name, value)


def test_random_templates_end_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """`make fuzz` renders many more, with the limits of use, and measures memory."""
    small_limits(monkeypatch)
    before = copy.deepcopy(template_grammar.VALUES)
    ends = {"text": 0, "too large": 0, "longer than": 0}  # the machine's speed decides between two
    for seed in range(N_TEMPLATES):
        source = template_grammar.Grammar(seed).template()
        start = time.thread_time()
        try:
            said = f"text {render(source, template_grammar.VALUES)}"
        except ChatTemplateError as error:
            said = str(error)
        assert time.thread_time() - start < jinja_meter.MAX_SECONDS + 1, f"seed {seed}"
        assert before == template_grammar.VALUES, f"seed {seed}"
        for end in ends:
            ends[end] += end in said
    assert ends["text"] > 3 and ends["too large"] + ends["longer than"] > 40, ends


LOOP = "{% set ns = namespace(l=(), t='xy', m=none) %}{% for i in range(150) %}"
DEEP = "nested deeper|value of more than"
COSTS = {
    "deep tuples": (LOOP + "{% set ns.l = (ns.l,) %}{% endfor %}", "nested deeper"),
    "deep mappings": (LOOP + "{% set ns.l = dict(a=ns.l) %}{% endfor %}", DEEP),
    "deep views": (LOOP + "{% set ns.l = {'a': ns.l}.items() %}{% endfor %}", DEEP),
    "deep batches": (LOOP + "{% set ns.l = [ns.l] | batch(1) | list %}{% endfor %}", DEEP),
    "deep arguments": (LOOP + "{% macro m() %}{% set ns.l = varargs %}{% endmacro %}{{ m(ns.l) }}"
                       "{% endfor %}", DEEP),
    "calls": ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "calls within one another"),
    "a search backwards": ("{{ ('x' * 9000).rfind('y' ~ 'x' * 3000) }}", "all its values"),
    "a strip": ("{{ ('x' * 9000).strip('y' * 3000 ~ 'x') }}", "all its values"),
    "a trim": ("{{ ('x' * 9000) | trim('y' * 3000 ~ 'x') }}", "all its values"),
    "a comparison": ("{% set a, b = 'x' * 90000, 'x' * 90000 %}"
                     "{% for i in range(999) if a == b %}{% endfor %}", "all its values"),
    "a search in a list": ("{% set a = [['x']] * 900 %}{% for i in range(2999) %}"
                           "{{ ['y'] in a }}{% endfor %}", "all its values"),
    "items of a method": ("{{ ('-' * 999).join('x' * 200) }}", "join gives"),
    "items of a call": ("{{ dict.fromkeys(range(30000)) | length }}", "all its values"),
    "items that are spread": ("{{ '{}'.format(*range(30000)) }}", "all its values"),
    "long numbers": ("{% set ns = namespace(n=7) %}{% for i in range(20) %}"
                     "{% set ns.n = ns.n * ns.n %}{% endfor %}", "a whole number by"),
    "a remainder": ("{{ (10 ** 1000) % (10 ** 999) }}", "a whole number by %"),
    "a power": ("{{ 2 ** 5000 }}", "a whole number by"),
    "digits": ("{{ ('7' * 20000) | int }}", "a number of more"),
    "a format of a remainder": ("{{ '%s' is divisibleby 2 }}", "a number is wanted"),
    "numbers of one hash": ("{{ dict.fromkeys(range(0, 2 ** 72, 2 ** 61)) }}", "long num"),
    "unique numbers of one hash": ("{{ range(0, 2 ** 72, 2 ** 61) | unique | list }}",
                                   "long numbers"),
    "a product of slow filters": ("{{ ('x ' * 1000) | wordwrap(1) }}", "all its values"),
    "a wide field": ("{{ '{:>20000}'.format(1) }}", "a wide format"),
    "written often": ("{% set a = 'x' * 90000 %}{{ a }}{{ a }}", "the output gives"),
    "many short texts": ("{% set t %}{% for i in range(99999) %}x{% endfor %}{% endset %}",
                         "all its values"),
}  # fmt: skip


@pytest.mark.parametrize("kind", COSTS)
def test_what_costs_is_refused_before_it_is_done(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_limits(monkeypatch)
    source, why = COSTS[kind]
    with pytest.raises(ChatTemplateError, match=why) as raised:
        render(source, {})
    said = str(raised.value)
    assert "too large" not in said or "shorten the conversation" in said


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("{{ " + "(" * 60 + "1" + ")" * 60 + " }}", "nested too deeply"),
        ("{{ " + "not " * 200 + "1 }}", "nested too deeply"),
        ("{{ 1" + " + 1" * 200 + " }}", "nested too deeply"),
        ("{% if x %}" * 200, "nested too deeply"),
        ("{{ [" + "1," * 21_000 + "] }}", "too long"),
        ("x" * (jinja_code.MAX_TEMPLATE + 1), "more than"),
        (
            "".join(f"{{% set v{i} = 1 %}}" for i in range(900))
            + "".join(f"{{% block b{i} scoped %}}{{% endblock %}}" for i in range(300)),
            "too much code",
        ),
        ("{% include 'x' %}", "stands alone"),
        ("{% from 'x' import y %}", "stands alone"),
        ("{% autoescape true %}{% endautoescape %}", "no autoescape"),
    ],
    ids=lambda value: value[:20],
)
def test_a_source_is_bounded_before_it_is_compiled(source: str, why: str) -> None:
    with pytest.raises(ChatTemplateError, match=why):
        render(source, {})


def constants(code: types.CodeType) -> set[Any]:
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return {c for c in code.co_consts if isinstance(c, str)}.union(*map(constants, inner))


def test_nothing_is_computed_while_compiling() -> None:
    source = "{{ 'ab' * 3 }}{{ 'cd' | upper }}{{ 'e' ~ 'f' }}{{ ['gh'][0] }}{{ 'i' < 'j' }}"
    found = constants(jinja_sandbox._compiled(source))
    assert {"ab", "cd", "e", "gh", "i"} <= found
    assert not {"ababab", "CD", "ef", "abababCDefghTrue"} & found
    assert render(source, {}) == "abababCDefghTrue"


def test_no_method_changes_what_the_caller_passed() -> None:
    value: dict[str, Any] = {"l": [3, 1, 2], "d": {"a": 1, "b": 2}}
    before = copy.deepcopy(value)
    n_called = 0
    for name, owner in value.items():
        for method in dir(owner):
            for arguments in ("", "0", "'a'", "0, 5", "[7]", "{'c': 3}", "'c', 3"):
                try:
                    render(f"{{{{ {name}.{method}({arguments}) }}}}", value)
                    n_called += 1
                except ChatTemplateError:
                    pass
                assert value == before, f"{method}({arguments})"
    assert n_called > 10


def test_methods_of_escaped_texts_are_written_short() -> None:
    """Python writes a method with all of its text."""
    source = "{% set t = ('x' * 9999) | safe %}{{ [t.upper, t.format] * 10 }}{{ t.upper()[:2] }}"
    text = render(source, {})
    assert len(text) < 3000 and text.endswith("XX")


def test_other_globals_and_callables_are_not_called() -> None:
    for source in ("{{ f() }}", "{{ lipsum() }}", "{{ range.index(1) }}", "{{ f.upper() }}"):
        with pytest.raises(ChatTemplateError):
            render(source, {"f": lambda: "called"})
