"""Renders a model's jinja template, which is untrusted: no escapes, bounded time and memory.

jinja2's immutable sandbox keeps a template from files, modules and the attributes of Python's own
objects. This module adds three bounds. Time: each turn of a loop, each call and each filter checks
the clock. One step: before an operation that may run long inside Python, or make a large value, its
operands are weighed (`_weigh`). All steps: the bytes of the values that are made are added up. None
of this needs a signal, a tracer or the main thread.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
import sys
import threading
import time
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, ValuesView
from itertools import chain
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MAX_SECONDS = 3.0  # of processor time: on a busy machine a template takes longer, and is as right
MAX_SIZE = 16_000_000  # weight (about the characters) of one step's operands and of any value
MAX_BYTES = 512_000_000  # of all values that one rendering makes
MAX_TEMPLATE = 60_000  # characters; the longest known has 17,000
MAX_WIDTH = 10_000  # of a field, an indentation, a batch
MAX_SLOW = 20_000  # weight of a value and arguments, for a filter of quadratic time
ITEM_WEIGHT = 16  # of an item of a list or mapping, besides its characters
_WIDE_FORMAT = re.compile(r"\d{4}|\*|\{[^{}]*\{")  # widths of four digits, or computed ones

#: Filters that do not walk through their value, and filters that return an iterator.
_SHALLOW = {"attr", "count", "d", "default", "first", "items", "last", "length", "random"}
_LAZY = {"batch", "map", "reject", "rejectattr", "select", "selectattr", "slice"}
#: Filters that walk through a value item by item, through a text character by character.
_WALKING = {"groupby", "join", "list", "max", "min", "reverse", "sort", "sum", "title", "unique",
            *_LAZY}  # fmt: skip
_OF_TEXT = {"capitalize", "center", "e", "escape", "filesizeformat", "float", "forceescape",
            "format", "indent", "int", "lower", "replace", "round", "safe", "string", "tojson",
            "trim", "truncate", "upper", "urlencode", "wordcount", "xmlattr"}  # fmt: skip
#: Filters whose time grows with the square of their value's size.
_SLOW = {"pprint", "striptags", "urlize", "wordwrap"}
_FILTERS = _SHALLOW | _WALKING | _OF_TEXT | _SLOW | {"abs", "dictsort"}
_COMPARING = {"==", "eq", "equalto", "!=", "ne", ">", "gt", "greaterthan", ">=", "ge", "<", "lt",
              "lessthan", "<=", "le", "in"}  # fmt: skip
#: Filters and methods with numbers as arguments that set the size of the result.
_SIZING = {"batch", "center", "indent", "ljust", "rjust", "round", "slice", "zfill"}
#: Methods that no known template uses, and that would need bounds of their own.
_NO_METHODS = {"encode", "expandtabs", "maketrans", "to_bytes", "translate"}


class ChatTemplateError(ValueError):
    """A chat template is wrong, refuses the conversation, or runs too long."""


class _TimeOut(BaseException):
    """Not an Exception: filters such as `int` swallow those."""


def _too_large(what: str) -> SecurityError:
    return SecurityError(f"the template builds something too large: {what}")


# ---- one step ----


def _children(value: Any) -> Iterator[Any] | None:
    """The values inside a value: they are written out, compared and hashed with it."""
    if isinstance(value, (str, int)):
        return None
    if isinstance(value, Mapping):
        return chain(value.keys(), value.values())
    if isinstance(value, (list, tuple, set, frozenset, KeysView, ValuesView, ItemsView)):
        return iter(value)
    if isinstance(value, Namespace):
        return iter([value._Namespace__attrs])
    return None


def _weigh(*values: Any) -> int:
    """About the characters of the values written out as text, where a value that is in two places
    counts twice. Refuses more than MAX_SIZE, and with that a value that contains itself."""
    total = 0
    stack = [iter(values)]
    while stack:
        item_weight = ITEM_WEIGHT * len(stack)
        for item in stack[-1]:
            total += item_weight + (len(item) if isinstance(item, str) else 0)
            if total > MAX_SIZE:
                raise _too_large("a value")
            children = _children(item)
            if children is not None:
                stack.append(children)
                break
        else:
            stack.pop()
    return total


def _growth(name: str, value: Any, args: tuple[Any, ...]) -> int:
    """The size of the result of a filter or method, where it may be far from the input's size."""
    if name == "join" and args and hasattr(args[0], "__len__") and hasattr(value, "__len__"):
        return len(value) * len(args[0])
    text = str(value)
    if name == "replace" and len(args) > 1:
        return text.count(str(args[0])) * len(str(args[1]))
    if name in ("urlencode", "wordcount"):  # four bytes as %XX each; a list of words
        return ITEM_WEIGHT * len(text)
    if name == "indent":
        widths = [a if isinstance(a, int) else len(a) for a in args if isinstance(a, (int, str))]
        return (text.count("\n") + 1) * max([4, *widths])
    if name in ("split", "rsplit", "splitlines"):
        separator = args[0] if args and isinstance(args[0], str) and args[0] else None
        return ITEM_WEIGHT * (text.count(separator) if separator else len(text) // 2)
    if _WIDE_FORMAT.search(text):
        raise _too_large("a wide format")
    return (text.count("%") + text.count("{")) * (_weigh(*args) + 1000)


_GROWING = {"join", "replace", "indent", "split", "rsplit", "splitlines", "urlencode", "wordcount",
            "format", "format_map", "%"}  # fmt: skip


def _check_step(name: str, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Refuses a filter or method that may run long or make a large value. value: what it is applied
    to."""
    _limits.check_time()
    if name == "replace" and kwargs:
        args = (*args, *(kwargs[k] for k in ("old", "new") if k in kwargs))
    else:
        args = (*args, *kwargs.values())
    _weigh(*args)
    if name in _SIZING and any(isinstance(a, int) and abs(a) > MAX_WIDTH for a in args):
        raise _too_large(f"{name} with a number above {MAX_WIDTH}")
    if name == "sum" and any(_children(a) is not None for a in args):
        raise _too_large("sum of lists")
    if name in _SLOW and _weigh(value, *args) > MAX_SLOW:
        raise _too_large(f"{name} of more than {MAX_SLOW} characters")
    if name in _GROWING and _growth(name, value, args) > MAX_SIZE:
        raise _too_large(name)


def _weighed(value: Any) -> Any:
    """The value itself, once it is known that writing it out or comparing it is cheap."""
    _limits.check_time()
    if value is not None and not isinstance(value, (str, int, float)):
        _weigh(value)
    return value


def _weight(value: Any) -> int:
    """The weight of a text or list without what is inside its items."""
    if isinstance(value, str):
        return len(value)
    return ITEM_WEIGHT * len(value) if isinstance(value, (list, tuple)) else 0


def _fits(factor: Any, value: Any) -> bool:
    """Whether factor * value is small enough to be computed."""
    if not isinstance(factor, int):
        return True
    return factor.bit_length() <= 4096 and factor * _weight(value) <= MAX_SIZE


# ---- all steps ----


class _Limits(threading.local):
    """The time and the bytes that are left to the rendering in this thread."""

    end = 0.0
    thread_end = 0.0
    n_bytes = 0

    def start(self) -> None:
        self.end = time.monotonic() + MAX_SECONDS
        self.thread_end = time.thread_time() + MAX_SECONDS
        self.n_bytes = MAX_BYTES

    def check_time(self) -> None:
        # The wall clock is the cheaper question, and no thread works longer than that.
        if time.monotonic() > self.end and time.thread_time() > self.thread_end:
            raise _TimeOut

    def charge(self, value: Any, item_bytes: int = 64) -> Any:
        """Counts a new value and returns it."""
        if time.monotonic() > self.end:
            self.check_time()
        if isinstance(value, str):
            self.n_bytes -= sys.getsizeof(value)
            if len(value) <= MAX_SIZE and self.n_bytes >= 0:  # most values: they are done here
                return value
        elif isinstance(value, (list, tuple, set, dict)):
            self.n_bytes -= item_bytes * len(value)
        if _weight(value) > MAX_SIZE or self.n_bytes < 0:
            raise _too_large("its values in all")
        return value


_limits = _Limits()


# ---- the sandbox ----

_OPERATORS = {"eq": "==", "ne": "!=", "gt": ">", "gteq": ">=", "lt": "<", "lteq": "<=", "in": "in",
              "notin": "not in"}  # fmt: skip


class _BoundedCode(CodeGenerator):
    """Compiles the operations that jinja2's sandbox leaves to Python to code that is bounded."""

    def _visit_weighed(self, node: nodes.Node, frame: Frame) -> None:
        self.write("environment.finalize(")
        self.visit(node, frame)
        self.write(")")

    def visit_For(self, node: nodes.For, frame: Frame) -> None:
        clock = nodes.EnvironmentAttribute("check_time", lineno=node.lineno)
        node.body.insert(0, nodes.ExprStmt(clock, lineno=node.lineno))
        super().visit_For(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.concat((")
        for part in node.nodes:
            self.write("str(")
            self._visit_weighed(part, frame)
            self.write("), ")
        self.write("))")

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        self.write("(")
        self._visit_weighed(node.expr, frame)
        for operand in node.ops:
            self.write(f" {_OPERATORS[operand.op]} ")
            self._visit_weighed(operand.expr, frame)
        self.write(")")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        is_slice = isinstance(node.arg, nodes.Slice)
        self.write("environment.charge(" if is_slice else "")
        super().visit_Getitem(node, frame)
        self.write(", 8)" if is_slice else "")


class _Generation(Extension):
    """`{% generation %}` marks the assistant's words for training: here its content is shown. What
    is set inside stays inside, as in the macro that transformers makes of it."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Dict:
    """`dict` in a template: it makes dicts, and has none of the type's methods besides."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """`namespace` in a template, without names of Python's own kind."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # a template may say self=
        namespace, *rest = args
        Namespace.__init__(namespace, {})
        for name, value in dict(*rest, **kwargs).items():
            namespace[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise SecurityError(f"a namespace takes no name that begins with _: {name!r:.50}")
        super().__setitem__(name, value)


class _Environment(ImmutableSandboxedEnvironment):
    code_generator_class = _BoundedCode
    intercepted_binops = frozenset(["*", "**", "%", "+"])
    charge = staticmethod(_limits.charge)
    check_time = property(lambda self: _limits.check_time())  # a statement by itself in loops

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[loopcontrols, _Generation],
            finalize=_weighed,
        )
        self.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
        self.globals.update(dict=_Dict(), namespace=_Namespace)
        self.globals.pop("lipsum", None)
        filters: Mapping[str, Any] = {**self.filters, "tojson": _tojson}
        tests: Mapping[str, Any] = self.tests
        self.filters = {name: _bounded_filter(name, filters[name]) for name in sorted(_FILTERS)}
        self.tests = {
            name: _bounded_test(f) if name in _COMPARING else f for name, f in tests.items()
        }

    def concat(self, parts: Any) -> str:  # jinja2's is "".join
        parts = list(parts)
        if sum(map(len, parts)) > MAX_SIZE:
            raise _too_large("a text")
        return str(_limits.charge("".join(parts)))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "+" and type(left) is type(right) is str:
            if len(left) + len(right) > MAX_SIZE:
                raise _too_large("+")
            return _limits.charge(left + right)
        if operator == "%" and isinstance(left, str):
            _check_step("%", left, (right,), {})
        elif operator == "+" and _weight(left) + _weight(right) > MAX_SIZE:
            raise _too_large("+")
        elif operator == "*" and not (_fits(left, right) and _fits(right, left)):
            raise _too_large("*")
        elif operator == "**" and any(isinstance(v, int) and abs(v) > 64 for v in (left, right)):
            raise _too_large("**")
        return _limits.charge(super().call_binop(context, operator, left, right), 8)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, LoopContext):  # `loop`, of which most templates ask something
            return not attr.startswith("_")
        return attr not in _NO_METHODS and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def checked(*args: Any, **kwargs: Any) -> str:
            _check_step("format", value.__self__, args, kwargs)
            return wrapped(*args, **kwargs)

        return checked

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        _limits.check_time()
        if not isinstance(__obj, (Macro, LoopContext)):
            name, owner = getattr(__obj, "__name__", "call"), getattr(__obj, "__self__", None)
            if name in ("count", "index"):
                _weighed(owner)
            # jinja2 adds the template's variables, which are no arguments.
            given = {k: v for k, v in kwargs.items() if k not in ("_block_vars", "_loop_vars")}
            _check_step(name, owner, args, given)
        return _limits.charge(super().call(__context, __obj, *args, **kwargs))


def _bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    # Some filters get an argument of jinja2's own before the value.
    first = 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        own, value, rest = args[:first], args[first], args[first + 1 :]
        if name not in _SHALLOW | _LAZY:
            value = list(value) if isinstance(value, Iterator) else value
            _weighed(value)
        if name in _WALKING and isinstance(value, str) and len(value) * ITEM_WEIGHT > MAX_SIZE:
            raise _too_large(f"{name} of a long text")
        _check_step(name, value, rest, kwargs)
        return _limits.charge(function(*own, value, *rest, **kwargs))

    return bounded


def _bounded_test(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def bounded(*args: Any) -> Any:
        return function(*map(_weighed, args))

    return bounded


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern[:200])


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers' filter: without escapes for HTML."""
    if indent is not None and not 0 <= indent <= ITEM_WEIGHT:
        raise _too_large("tojson with a wide indent")
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


@functools.lru_cache(maxsize=64)
def _compiled(source: str) -> Any:
    if len(source) > MAX_TEMPLATE:
        raise ChatTemplateError(f"the chat template has more than {MAX_TEMPLATE} characters")
    return _Environment().from_string(source)


def render(source: str, values: Mapping[str, Any]) -> str:
    """The template's text. ChatTemplateError says what went wrong, in the template's words."""
    try:
        _limits.start()  # for constants, which are computed while compiling
        template = _compiled(source)
        _limits.start()
        out: list[str] = []
        n_chars = 0
        for piece in template.generate(dict(values)):
            n_chars += len(piece)
            if n_chars > MAX_SIZE:
                raise _too_large("its output")
            out.append(piece)
        return "".join(out)
    except ChatTemplateError:
        raise
    except _TimeOut:
        raise ChatTemplateError(f"the chat template runs longer than {MAX_SECONDS:g} s") from None
    except RecursionError:
        raise ChatTemplateError("the chat template calls itself too deeply") from None
    except Exception as error:  # a template can make any operation fail
        reason = str(error) or type(error).__name__
        raise ChatTemplateError(f"the chat template failed: {reason}") from None
