"""Renders a model's jinja template, which is untrusted: no escapes, bounded time and memory.

jinja2's immutable sandbox keeps a template from files, modules and the attributes of Python's own
objects. Here a template has no more than what is listed: the attributes and methods of plain data,
jinja2's filters and globals. Every step is charged to a meter before it is taken (`jinja_meter`),
and code is made so that every step comes here (`jinja_code`). None of this needs a signal, a tracer
or the main thread.
"""

from __future__ import annotations

import datetime
import functools
import threading
from collections.abc import Iterator, Mapping
from sys import getsizeof
from types import BuiltinMethodType, MethodType
from typing import Any

from jinja2 import TemplateError
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols
from jinja2.runtime import (
    BlockReference,
    LoopContext,
    Macro,
    TemplateReference,
    Undefined,
)
from jinja2.sandbox import (
    ImmutableSandboxedEnvironment,
    SandboxedEscapeFormatter,
    SandboxedFormatter,
)
from jinja2.utils import Cycler, Joiner, missing
from markupsafe import escape

from .._C import watched
from .jinja_code import BoundedCode, BoundedParser, Generation, check_length
from .jinja_filters import bounded_filters, bounded_tests
from .jinja_meter import (
    ITEM,
    MAX_CALLS,
    SHORT,
    Meter,
    TimeOutError,
    charge_operator,
    charge_text_method,
    formatted,
    too_large,
)
from .jinja_values import (
    FORMAT_NAMES,
    LOOP_NAMES,
    NAMES_OF_DICTS,
    SEQUENCE_NAMES,
    DictMaker,
    TemplateNamespace,
    TextMethod,
    names_of,
)

HANGS_SECONDS = 60  # of the clock on the wall, after which a template is said to hang


class ChatTemplateError(ValueError):
    """A chat template is wrong, refuses the conversation, or runs too long."""


# ---- the sandbox ----


class _Environment(ImmutableSandboxedEnvironment):
    """One thread's: it has the meter of the rendering that goes on there."""

    code_generator_class = BoundedCode

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[loopcontrols, Generation],
            optimized=False,
        )
        self.meter = meter = Meter()
        self.read, self.searched, self.nested = meter.read, meter.searched, meter.nested
        self.searched_for_short = functools.partial(meter.searched, deep=False)
        self.globals = {
            "cycler": Cycler,
            "dict": DictMaker(),
            "joiner": Joiner,
            "namespace": TemplateNamespace,
            "raise_exception": _raise_exception,
            "range": self.globals["range"],
            "strftime_now": _strftime_now,
        }
        self._functions = frozenset(id(value) for value in self.globals.values())
        self.filters = bounded_filters(meter, self.filters)
        self.tests = bounded_tests(meter, self.tests)
        self.rendered: dict[str, Any] = {}

    def _parse(self, source: str, name: Any, filename: Any) -> Any:
        return BoundedParser(self, source, name, filename).parse()

    # ---- statements ----

    def turn(self) -> bool:
        """A turn of a loop begins."""
        self.meter.look()
        return True

    def refuse_other_templates(self) -> None:
        raise SecurityError("a chat template stands alone: it includes and imports no other")

    # ---- output ----

    def emit(self, value: Any) -> str:
        """What is written of a value, charged: the same text written often is as much output."""
        text = value if type(value) is str else self.text(value)
        meter = self.meter
        meter.left -= getsizeof(text) + 8
        if meter.left < 0:
            meter.charge(0)
        return text

    def text(self, value: Any) -> str:
        if value is not None and not (type(value) is int and value.bit_length() <= 64):
            self.meter.weigh(value)
        return self.meter.made(str(value))

    def concat(self, parts: Any) -> str:  # jinja2's is "".join
        parts = list(parts)
        self.meter.fits(sum(map(len, parts)), "the output")
        return self.meter.made("".join(parts))

    def join_texts(self, *parts: Any) -> str:
        """`~`"""
        texts = [part if type(part) is str else self.text(part) for part in parts]
        n_chars = sum(map(len, texts))
        if n_chars <= SHORT:
            return "".join(texts)
        self.meter.fits(n_chars, "~")
        return self.meter.made("".join(texts))

    # ---- operators ----

    def add(self, left: Any, right: Any) -> Any:
        if type(left) is str and type(right) is str:
            n_chars = len(left) + len(right)
            if n_chars <= SHORT:
                return left + right
            self.meter.fits(n_chars, "+")
            return self.meter.made(left + right)
        return self.operate("+", left, right)

    def operate(self, operator: str, left: Any, right: Any) -> Any:
        if not isinstance(left, Undefined) and (
            operator == "%" or not isinstance(right, Undefined)
        ):
            charge_operator(self.meter, operator, left, right)
        return self.meter.flat(self.binop_table[operator](left, right))

    def slice(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        for bound in (start, stop, step):
            if not (bound is None or isinstance(bound, (int, Undefined))):
                raise TypeError("slice indices must be whole numbers")
        if isinstance(value, dict):
            raise TypeError("a mapping has no slices")
        if isinstance(value, (str, list, tuple)):
            self.meter.charge(len(value) >> 3)
        return self.meter.flat(value[start:stop:step])

    def spread(self, values: Any) -> Any:
        """What follows * or ** in a call."""
        if isinstance(values, Iterator):
            values = list(values)
        self.meter.items(values, 2 * ITEM)
        return values

    # ---- attributes ----

    def getattr(self, obj: Any, attribute: str) -> Any:
        kind = type(obj)
        if kind is dict:
            if attribute not in NAMES_OF_DICTS:
                return (
                    obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
                )
        elif kind is TemplateNamespace:
            values = obj.__dict__["values"]
            return (
                values[attribute]
                if attribute in values
                else self.undefined(obj=obj, name=attribute)
            )
        elif kind is LoopContext and attribute in LOOP_NAMES:
            return getattr(obj, attribute)
        value = self._attribute(obj, attribute)
        if value is missing:
            try:
                return obj[attribute]
            except (TypeError, LookupError):
                return self.undefined(obj=obj, name=attribute)
        return value

    def getitem(self, obj: Any, argument: Any) -> Any:
        kind = type(argument)
        if kind is not str and kind is not int:
            self.meter.read(argument)
        try:
            return obj[argument]
        except (TypeError, LookupError):
            if isinstance(argument, str):
                value = self._attribute(obj, argument)
                if value is not missing:
                    return value
        return self.undefined(obj=obj, name=argument)

    def _attribute(self, obj: Any, attribute: str) -> Any:
        """The attribute; `missing` where there is none."""
        if isinstance(obj, TemplateNamespace):
            return obj.__dict__["values"].get(attribute, missing)
        if isinstance(obj, TemplateReference):  # `self`: blocks by name
            return missing
        if not hasattr(obj, attribute):
            return missing
        if attribute not in names_of(obj):
            return self.unsafe_undefined(obj, attribute)
        if isinstance(obj, str) and (attribute in FORMAT_NAMES or type(obj) is not str):
            return TextMethod(obj, attribute)
        return getattr(obj, attribute)

    # ---- calls ----

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        return __self._call(__obj, args, kwargs)

    def _call(self, obj: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        meter = self.meter
        meter.look()
        kind = type(obj)
        if kind is Macro or kind is LoopContext or kind is BlockReference:
            return self._call_macro(obj, args, kwargs)
        if kind is BuiltinMethodType or kind is MethodType:
            return self._call_method(obj, obj.__self__, args, kwargs)
        if kind is TextMethod:
            if obj.name in FORMAT_NAMES:
                return self._format(obj, args, kwargs)
            return self._call_method(getattr(obj.text, obj.name), obj.text, args, kwargs)
        if isinstance(obj, Undefined):
            return obj(*args, **kwargs)
        if kind is not Joiner and id(obj) not in self._functions:
            raise SecurityError(f"a template may not call {kind.__name__!r} objects")
        if kind is DictMaker:
            return self._make_dict(obj, args, kwargs)
        meter.weigh(*args, *kwargs.values())
        return obj(*args, **kwargs)

    def _call_macro(self, obj: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        meter = self.meter
        if type(obj) is Macro and (obj.catch_varargs or obj.catch_kwargs):
            meter.nested(args)
            meter.nested(kwargs)
        meter.calls += 1
        if meter.calls > MAX_CALLS:
            raise too_large(f"more than {MAX_CALLS} calls within one another")
        try:
            return obj(*args, **kwargs)
        finally:
            meter.calls -= 1

    def _call_method(
        self, method: Any, owner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        meter, name = self.meter, method.__name__
        if isinstance(owner, str):
            if name == "join" and args and not isinstance(args[0], (list, tuple)):
                meter.items(args[0], 2 * ITEM)
                args = (list(args[0]), *args[1:])
            charge_text_method(meter, name, owner, args, kwargs)
            value = method(*args, **kwargs)
            return meter.made(value) if isinstance(value, str) else value
        if isinstance(owner, dict) and name == "get":
            if args and type(args[0]) is not str:
                meter.read(args[0])
            return method(*args, **kwargs)
        if name == "fromkeys":
            return self._make_dict(method, args, kwargs)
        if name == "copy":
            meter.items(owner)
        elif name in SEQUENCE_NAMES or name == "changed":
            meter.weigh(*args, *kwargs.values())
            if name in SEQUENCE_NAMES:
                meter.weigh(owner)
        return method(*args, **kwargs)

    def _make_dict(self, make: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = [list(arg) if isinstance(arg, Iterator) else arg for arg in args]
        for value in given:
            self.meter.items(value, 2 * ITEM)
        self.meter.weigh(*given, *kwargs.values())
        if given and not isinstance(given[0], dict) and hasattr(given[0], "__len__"):
            pairs = make.__class__ is DictMaker
            keys = [key for key, _ in given[0]] if pairs else given[0]
            self.meter.keys(keys, len(given[0]))
        return self.meter.nested(make(*given, **kwargs))

    def _format(self, method: TextMethod, args: Any, kwargs: Any) -> str:
        text = method.text
        if method.name == "format_map":
            if len(args) != 1 or kwargs or not isinstance(args[0], dict):
                raise TypeError("format_map takes one mapping")
            args, kwargs = (), args[0]
        formatted(self.meter, text, *args, *kwargs.values())
        if type(text) is str:
            return self.meter.made(SandboxedFormatter(self).vformat(text, args, kwargs))
        escaping = SandboxedEscapeFormatter(self, escape=escape)
        return type(text)(escaping.vformat(text, args, kwargs))


def _raise_exception(message: str) -> None:
    raise TemplateError(str(message))


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern[:200])


# ---- rendering ----


class _Thread(threading.local):
    def __init__(self) -> None:
        self.environment = _Environment()
        self.template = functools.lru_cache(maxsize=64)(self._template)

    def _template(self, source: str) -> Any:
        return self.environment.template_class.from_code(
            self.environment, _compiled(source), self.environment.make_globals(None)
        )


_thread = _Thread()


@functools.lru_cache(maxsize=64)
def _compiled(source: str) -> Any:
    check_length(source)
    return _thread.environment.compile(source)


_rendered: set[int] = set()  # hashes of the templates that ended once


def render(source: str, values: Mapping[str, Any]) -> str:
    """The template's text. ChatTemplateError says what went wrong, in the template's words. The
    first time a template is rendered, a thread waits that reports one that does not end."""
    if hash(source) in _rendered:
        return _render(source, values)
    text = (
        f"lmdeploy_c: the chat template that begins with {source[:60]!a} has not ended after "
        f"{HANGS_SECONDS} s; end this process, and name another chat template\n"
    )
    try:
        return watched(lambda: _render(source, values), HANGS_SECONDS, text)
    finally:
        _rendered.add(hash(source))


def _render(source: str, values: Mapping[str, Any]) -> str:
    environment = _thread.environment
    try:
        environment.meter.start()
        template = _thread.template(source)
        context = template.new_context(values)
        return environment.concat(template.root_render_func(context))
    except TimeOutError as error:
        raise ChatTemplateError(f"the chat template {error}") from None
    except RecursionError:
        raise ChatTemplateError("the chat template calls itself too deeply") from None
    except Exception as error:  # a template can make any operation fail
        reason = str(error) or type(error).__name__
        raise ChatTemplateError(f"the chat template failed: {reason:.1000}") from None
