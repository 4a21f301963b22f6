"""Renders a model's jinja template, which is untrusted: no escapes, bounded time and size.

jinja2's immutable sandbox keeps a template from reaching what it should not. Here it is also kept
from running long or building something large: each step looks at the clock, and every operation
that could make a large value in one step is checked before it runs.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
import sys
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_SECONDS = 2.0
MAX_SIZE = 20_000_000  # characters or items of any one value, and of the output
MAX_TEMPLATE = 1_000_000  # characters
MAX_COUNT = 100_000  # a width, an exponent, or another number that sizes something


class ChatTemplateError(ValueError):
    """A chat template is wrong, refuses the conversation, or runs too long."""


def _refuse(what: str) -> SecurityError:
    return SecurityError(f"the template builds something too large: {what}")


def _size(value: Any) -> int:
    return len(value) if isinstance(value, (str, bytes, list, tuple, dict, set)) else 1


def _check_arguments(owner: Any, name: str, args: tuple[Any, ...]) -> None:
    """Before a filter or a method runs: nothing it is given may size a value beyond bounds."""
    for value in args:
        if isinstance(value, int) and abs(value) > MAX_COUNT:
            raise _refuse(f"{name} with {value}")
    if isinstance(owner, str):
        largest = max((_size(a) for a in args), default=1)
        if name == "join" and args:
            largest = sum(_size(item) for item in args[0]) if isinstance(args[0], list) else largest
        if (len(owner) + 1) * max(1, largest) > MAX_SIZE and name in (
            "replace",
            "join",
            "translate",
        ):
            raise _refuse(name)


def _check_result(value: Any) -> Any:
    if _size(value) > MAX_SIZE:
        raise _refuse("a value")
    return value


class _BoundedCode(CodeGenerator):
    """Compiles `a ~ b` to a call that is checked; jinja2's own is not interceptable."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.concat_bounded(")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write(")")


class _Generation(Extension):
    """`{% generation %}` marks the assistant's words for training: here it only shows them."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    code_generator_class = _BoundedCode
    intercepted_binops = frozenset(["*", "**", "%", "+"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
        )
        self.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
        self.globals.pop("lipsum", None)
        self.filters = {name: _bounded_filter(name, f) for name, f in self.filters.items()}
        self.filters["tojson"] = _tojson

    def concat_bounded(self, *parts: Any) -> str:
        texts = [str(part) for part in parts]
        if sum(map(len, texts)) > MAX_SIZE:
            raise _refuse("~")
        return "".join(texts)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            _check_arguments(None, "**", (left, right))
            if isinstance(right, int) and right > 64:
                raise _refuse("**")
        elif operator == "*":
            for a, b in ((left, right), (right, left)):
                if isinstance(a, int) and not isinstance(b, (int, float)):
                    if _size(b) * max(a, 0) > MAX_SIZE:
                        raise _refuse("*")
                elif isinstance(a, int) and a.bit_length() > 4096:
                    raise _refuse("*")
        elif operator == "%" and isinstance(left, str):
            if re.search(r"\d{5,}|\*", left):
                raise _refuse("%")
        elif operator == "+" and _size(left) + _size(right) > MAX_SIZE:
            raise _refuse("+")
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        # A format's width sizes its result, and hides inside the text.
        if isinstance(obj, str) and attr in ("format", "format_map"):
            return False
        return super().is_safe_attribute(obj, attr, value)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        name = getattr(__obj, "__name__", "call")
        owner = getattr(__obj, "__self__", None)
        _check_arguments(owner, name, (*args, *kwargs.values()))
        return _check_result(super().call(__context, __obj, *args, **kwargs))


def _bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        _check_arguments(None, name, (*args, *kwargs.values()))
        texts = [a for a in args if isinstance(a, str)]
        if name == "format" and texts and re.search(r"\d{5,}|\*", texts[0]):
            raise _refuse(name)
        if name == "replace" and len(texts) == 3 and len(texts[0]) * len(texts[2]) > MAX_SIZE:
            raise _refuse(name)
        return _check_result(function(*args, **kwargs))

    return bounded


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern[:200])


def _tojson(
    value: Any, indent: int | None = None, ensure_ascii: bool = False, **kwargs: Any
) -> str:
    """As transformers': no escapes for HTML."""
    if indent is not None and not 0 <= indent <= 64:
        raise _refuse("tojson")
    kwargs = {k: v for k, v in kwargs.items() if k in ("separators", "sort_keys")}
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **kwargs)


class _Deadline:
    """Raises in this thread, between two lines of Python, once the time is over."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def _trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        if time.monotonic() > self._end:
            raise ChatTemplateError(f"the chat template runs longer than {MAX_SECONDS:g} s")
        return self._trace

    def __enter__(self) -> None:
        self._before = sys.gettrace()
        sys.settrace(self._trace)

    def __exit__(self, *exc_info: object) -> None:
        sys.settrace(self._before)


@functools.lru_cache(maxsize=64)
def _compiled(source: str) -> Any:
    if len(source) > MAX_TEMPLATE:
        raise ChatTemplateError(f"the chat template has more than {MAX_TEMPLATE} characters")
    return _Environment().from_string(source)


def render(source: str, values: Mapping[str, Any]) -> str:
    """The template's text. ChatTemplateError says what went wrong, in the template's words."""
    try:
        template = _compiled(source)
        out: list[str] = []
        n_chars = 0
        with _Deadline(MAX_SECONDS):
            for piece in template.generate(dict(values)):
                n_chars += len(piece)
                if n_chars > MAX_SIZE:
                    raise _refuse("its output")
                out.append(piece)
        return "".join(out)
    except ChatTemplateError:
        raise
    except RecursionError:
        raise ChatTemplateError("the chat template calls itself too deeply") from None
    except Exception as error:  # a template can make any operation fail
        reason = str(error) or type(error).__name__
        raise ChatTemplateError(f"the chat template failed: {reason}") from None
