"""jinja2's filters and tests, each with what it may cost.

A filter's cost is charged before it runs (`jinja_meter`). Filters that return generators return an
iterator over a list: a chain of generators has no bound of its own.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from sys import getsizeof
from typing import Any

from jinja2.runtime import Undefined

from .jinja_meter import (
    ESCAPED,
    ITEM,
    ITEM_WEIGHT,
    Meter,
    formatted,
    lines,
    replaced,
    too_large,
)

MAX_PATH = 1000  # characters of the path of an attribute
MAX_PRECISION = 300  # digits

Arguments = tuple[Any, ...]
#: Charges a filter on a value with arguments; named ones come after the others, without names.
Cost = Callable[[Meter, Any, Arguments, Mapping[str, Any]], None]


def _free(meter: Meter, value: Any, args: Arguments, kwargs: Mapping[str, Any]) -> None:
    pass


def _text(times: int, sized: bool = False) -> Cost:
    """A filter that reads its value as a text and makes one of as many times its characters. sized:
    its arguments are widths."""

    def cost(meter: Meter, value: Any, args: Arguments, kwargs: Mapping[str, Any]) -> None:
        if sized:
            meter.width(*args, *kwargs.values())
        n_chars = meter.size(value) + sum(len(a) for a in args if isinstance(a, str))
        meter.fits(times * n_chars, "a filter")

    return cost


def _bytes(each: int) -> Cost:
    """A filter that makes so many bytes of each character of its value."""

    def cost(meter: Meter, value: Any, args: Arguments, kwargs: Mapping[str, Any]) -> None:
        meter.charge(each * meter.size(value))

    return cost


def _items(meter: Meter, value: Any, args: Arguments, kwargs: Mapping[str, Any]) -> None:
    """A filter that goes through its value and makes as many items. One by attributes, which are a
    path of names, asks each item for each."""
    n_items = meter.items(value)
    _path(meter, n_items, kwargs.get("attribute"))


def _path(meter: Meter, n_items: int, *paths: Any) -> None:
    for path in paths:
        if isinstance(path, str):
            if len(path) > MAX_PATH:
                raise too_large(f"a path of more than {MAX_PATH} characters")
            meter.charge(n_items * ITEM * (1 + path.count(".") + path.count(",")))


def _sized(meter: Meter, value: Any, args: Arguments, kwargs: Mapping[str, Any]) -> None:
    meter.width(*args[:1], *(v for k, v in kwargs.items() if k in ("linecount", "slices")))
    meter.items(value)


def _by_attribute(meter: Meter, value: Any, args: Arguments, kwargs: Mapping[str, Any]) -> None:
    _path(meter, meter.items(value), *args[:1])


def _sorted(meter: Meter, value: Any, args: Arguments, kwargs: Mapping[str, Any]) -> None:
    """A filter that compares the items of its value with one another."""
    n_items = meter.items(value, 2 * ITEM)
    _path(meter, n_items, *args, *kwargs.values())
    meter.charge(
        20 * meter.size(value) >> 3
    )  # about the logarithm of as many items as there can be


def _number(meter: Meter, value: Any, args: Arguments, kwargs: Mapping[str, Any]) -> None:
    meter.number(value)


def _round(meter: Meter, value: Any, args: Arguments, kwargs: Mapping[str, Any]) -> None:
    meter.number(value)
    for a in (*args, *kwargs.values()):
        if isinstance(a, int) and abs(a) > MAX_PRECISION:
            raise too_large(f"a precision above {MAX_PRECISION}")


def _square(meter: Meter, value: Any, args: Arguments, kwargs: Mapping[str, Any]) -> None:
    """A filter of quadratic time."""
    n_chars = meter.size(value) + meter.weigh(*args, *kwargs.values())
    meter.charge(n_chars * n_chars)


def _trim(meter: Meter, value: Any, args: Arguments, kwargs: Mapping[str, Any]) -> None:
    n_chars = meter.size(value)
    for chars in (*args, *kwargs.values()):
        if isinstance(chars, str):
            meter.charge(n_chars * len(chars) >> 3)


def _replace(meter: Meter, value: Any, args: Arguments, kwargs: Mapping[str, Any]) -> None:
    old, new, *_ = (*args, *(kwargs[k] for k in ("old", "new") if k in kwargs), "", "")
    meter.size(value)
    replaced(meter, value if isinstance(value, str) else str(value), old, new)


def _format(meter: Meter, value: Any, args: Arguments, kwargs: Mapping[str, Any]) -> None:
    meter.size(value)
    formatted(meter, value if isinstance(value, str) else str(value), *args, *kwargs.values())


def _indent(meter: Meter, value: Any, args: Arguments, kwargs: Mapping[str, Any]) -> None:
    given = (*args, *kwargs.values())
    meter.width(*given)
    n_chars = meter.size(value)
    width = max([4, *(a if isinstance(a, int) else len(a) for a in given
                      if isinstance(a, (int, str)))])  # fmt: skip
    n_lines = lines(value if isinstance(value, str) else str(value))
    meter.charge(ITEM * n_lines + n_chars)
    meter.fits((n_chars + n_lines * width) * ESCAPED ** (type(value) is not str), "indent")


def _join(meter: Meter, value: Any, args: Arguments, kwargs: Mapping[str, Any]) -> None:
    if isinstance(value, Undefined):
        return
    separator = (*args, *(kwargs[k] for k in ("d",) if k in kwargs), "")[0]
    n_items = meter.items(value)
    n_chars = meter.size(value)
    meter.fits(n_chars + n_items * meter.size(separator), "join")
    _path(meter, n_items, kwargs.get("attribute"), *args[1:])


def _sum(meter: Meter, value: Any, args: Arguments, kwargs: Mapping[str, Any]) -> None:
    start = kwargs.get("start", args[1] if len(args) > 1 else 0)
    if not isinstance(start, (int, float)):
        raise TypeError("sum adds numbers, and starts with one")
    meter.size(value)
    _path(meter, meter.items(value, 8), kwargs.get("attribute"), *args[:1])


def _unique(meter: Meter, value: Any, args: Arguments, kwargs: Mapping[str, Any]) -> None:
    _sorted(meter, value, args, kwargs)
    if hasattr(value, "__len__"):
        path = kwargs.get("attribute", args[1] if len(args) > 1 else None)
        meter.keys([()] if path is not None else value, len(value))


def _tojson(meter: Meter, value: Any, args: Arguments, kwargs: Mapping[str, Any]) -> None:
    weight = meter.size(value)
    meter.weigh(*args, *kwargs.values())
    meter.charge(4 * weight)  # the pieces that it is joined of
    names = ("ensure_ascii", "indent", "separators", "sort_keys")
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    indent = given.get("indent")
    if isinstance(indent, int) and not 0 <= indent <= ITEM_WEIGHT:
        raise too_large("tojson with a wide indent")
    if isinstance(indent, str):
        weight += weight * len(indent)
    if given.get("ensure_ascii"):
        weight *= ESCAPED
    for separator in given.get("separators") or ():
        weight += weight * len(separator)
    meter.fits(weight, "tojson")


_COSTS: dict[str, Cost] = {
    **dict.fromkeys(("attr", "count", "d", "default", "first", "last", "length", "random"), _free),
    **dict.fromkeys(("abs", "filesizeformat", "float", "int"), _number),
    **dict.fromkeys(("batch", "slice"), _sized),
    **dict.fromkeys(("capitalize", "lower", "upper"), _text(3)),
    **dict.fromkeys(("dictsort", "groupby", "max", "min", "sort"), _sorted),
    **dict.fromkeys(("e", "escape", "forceescape", "xmlattr"), _text(ESCAPED)),
    **dict.fromkeys(("items", "list", "map", "reject", "reverse", "select"), _items),
    **dict.fromkeys(("pprint", "striptags", "urlize", "wordwrap"), _square),
    **dict.fromkeys(("rejectattr", "selectattr"), _by_attribute),
    **dict.fromkeys(("safe", "string", "truncate"), _text(1)),
    **dict.fromkeys(("title", "urlencode", "wordcount"), _bytes(2 * ITEM)),
    "center": _text(1, sized=True),
    "format": _format,
    "indent": _indent,
    "join": _join,
    "replace": _replace,
    "round": _round,
    "sum": _sum,
    "tojson": _tojson,
    "trim": _trim,
    "unique": _unique,
}  # fmt: skip

#: Filters of which an argument may be any value: the others' are weighed.
_ANY_ARGUMENT = frozenset(("d", "default"))
#: Filters whose result is nested deeper than their value.
_NESTING = frozenset(("batch", "dictsort", "groupby", "items", "map", "slice"))


def _bounded_filter(meter: Meter, function: Callable[..., Any], name: str) -> Callable[..., Any]:
    # Some filters get an argument of jinja2's own before the value.
    first = 1 if hasattr(function, "jinja_pass_arg") else 0
    cost, nests, weighs = _COSTS[name], name in _NESTING, name not in _ANY_ARGUMENT

    @functools.wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        value, rest = args[first], args[first + 1 :]
        if type(value) not in _PLAIN and isinstance(value, Iterator):
            if name in _KEPT:
                meter.look()
            else:
                value = list(value)
                args = (*args[:first], value, *rest)
        if (rest or kwargs) and weighs:
            meter.weigh(*rest, *kwargs.values())
        cost(meter, value, rest, kwargs)
        result = function(*args, **kwargs)
        if isinstance(result, (str, int)):
            meter.charge(getsizeof(result))
            return result
        lazy = isinstance(result, Iterator) and name not in _ONE
        if lazy:
            result = list(result)
        if nests:
            meter.nested(result)
        return iter(result) if lazy else result

    return bounded


_PLAIN = frozenset((str, int, list, dict))
#: Filters that leave the rest of an iterator in it, or do not look at their value.
_KEPT = frozenset(("attr", "d", "default", "first", "count", "length"))
#: Filters that return one of their values.
_ONE = frozenset(("attr", "d", "default", "first", "last", "max", "min", "random"))


def _tojson_filter(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers' filter: without escapes for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def bounded_filters(meter: Meter, filters: Mapping[str, Any]) -> dict[str, Any]:
    """Those of jinja2 that are known here, with tojson as transformers has it."""
    known = {**filters, "tojson": _tojson_filter}
    return {name: _bounded_filter(meter, known[name], name) for name in _COSTS}


# ---- tests ----

_COMPARING = frozenset(("==", "eq", "equalto", "!=", "ne", ">", "gt", "greaterthan", ">=", "ge",
                        "<", "lt", "lessthan", "<=", "le"))  # fmt: skip


def bounded_tests(meter: Meter, tests: Mapping[str, Any]) -> dict[str, Any]:
    def comparing(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: function(*map(meter.read, args))

    def of_numbers(function: Callable[..., Any]) -> Callable[..., Any]:
        def test(*args: Any) -> Any:
            for arg in args:
                if not isinstance(arg, (int, float, Undefined)):
                    raise TypeError(f"a number is wanted, not {type(arg).__name__!r}")
                if isinstance(arg, int):
                    meter.number(arg)
            return function(*args)

        return test

    def of_text(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda value: (meter.size(value), function(value))[1]

    def named(names: Mapping[str, Any]) -> Callable[..., Any]:
        return lambda value: meter.read(value) in names

    bounded = {**tests}
    for name in _COMPARING:
        bounded[name] = comparing(tests[name])
    for name in ("divisibleby", "even", "odd"):
        bounded[name] = of_numbers(tests[name])
    for name in ("lower", "upper"):
        bounded[name] = of_text(tests[name])
    bounded["in"] = lambda value, seq: meter.read(value) in meter.searched(seq)
    bounded["filter"] = named(_COSTS)
    bounded["test"] = named(tests)
    return bounded
