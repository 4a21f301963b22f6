"""What a chat template's steps cost. Each is charged before it is taken, to one meter.

A step may read (a comparison, a search) and make (a text, a list). What it will read is charged,
and what it will make must fit; then it is taken, and the bytes of its result are charged. The total
is bounded, and so are time and memory: no step runs for long inside Python, and a rendering makes
no more than MAX_WORK bytes. Steps on short texts are free: as many as a turn of a loop has are
quick, and each turn and each call looks at the clock.
"""

from __future__ import annotations

import re
import time
from collections.abc import ItemsView, Iterable, Iterator, KeysView, ValuesView
from itertools import chain
from sys import getsizeof
from typing import Any, NoReturn

from jinja2.exceptions import SecurityError
from jinja2.runtime import Macro

from .conversation import JsonObject

MAX_SECONDS = 3.0  # of processor time: on a busy machine a template takes longer, and is as right
MAX_SIZE = 4_000_000  # characters of a text, weight of a list or mapping
MAX_WORK = 128_000_000  # bytes made, and an eighth of the characters read, by one rendering
MAX_DEPTH = 100  # of lists and mappings in one another
MAX_CALLS = 100  # macros that call one another
MAX_BITS = 4096  # of a whole number
MAX_WIDTH = 10_000  # of a field, an indentation, a batch
MAX_DIGITS = 10_000  # characters of a text that is read as a number
MANY_KEYS = 1000  # of a mapping: more of them must be texts or numbers below MAX_KEY
MAX_KEY = 1 << 53
SHORT = 256  # characters: a step on less is free
ITEM = 88  # bytes of an item of a list or mapping, with what holds it
ITEM_WEIGHT = 16  # characters that an item is written with, besides its own, for each level
ESCAPED = 6  # characters that one becomes where it is escaped
_SCALARS = frozenset((str, int, float, bool, type(None)))
_CONTAINERS = (list, tuple, set, frozenset, KeysView, ValuesView, ItemsView)
_WIDE_FORMAT = re.compile(r"\d{4}|\*|\{[^{}]*\{")  # widths of four digits, or computed ones
_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"


class TimeOutError(BaseException):
    """Not an Exception: filters such as `int` swallow those."""


_WHAT_TO_DO = "shorten the conversation, or name another chat template"


def too_large(what: str) -> SecurityError:
    return SecurityError(f"the template builds something too large: {what}; {_WHAT_TO_DO}")


def _children(value: Any) -> Iterator[Any] | None:
    """The values inside a value: they are written out, compared and hashed with it."""
    if isinstance(value, dict):
        return chain(value, value.values())
    return iter(value) if isinstance(value, _CONTAINERS) else None


def _own_length(value: Any) -> int:
    """The characters that a value is written with, besides its children's and a few."""
    if isinstance(value, int):
        if value.bit_length() > MAX_BITS:
            raise too_large("a whole number")
        return value.bit_length() >> 1
    if isinstance(value, (str, JsonObject)):
        return len(str(value))
    return len(value.name or "") if isinstance(value, Macro) else 0


class Meter:
    """The time and the work that are left to the rendering of this thread."""

    __slots__ = ("calls", "end", "left", "thread_end")

    def start(self) -> None:
        self.end = time.monotonic() + MAX_SECONDS
        self.thread_end = time.thread_time() + MAX_SECONDS
        self.left = MAX_WORK
        self.calls = 0

    def look(self) -> None:
        """At the clock: the wall's is the cheaper one, and no thread works longer than that."""
        if time.monotonic() > self.end and time.thread_time() > self.thread_end:
            raise TimeOutError(f"runs longer than {MAX_SECONDS:g} s; {_WHAT_TO_DO}")

    def charge(self, cost: int) -> None:
        self.left -= cost
        if self.left < 0:
            raise too_large("all its values together")
        if cost > SHORT:
            self.look()

    def fits(self, size: int, what: str) -> None:
        """Refuses a result of this size."""
        if size > MAX_SIZE:
            raise too_large(f"{what} gives more than {MAX_SIZE} characters")

    def made(self, text: str) -> str:
        """A new text, which is charged and returned."""
        if len(text) > SHORT:
            self.charge(getsizeof(text))
        return text

    # ---- what a value weighs ----

    def weigh(self, *values: Any) -> int:
        """About the characters of the values written out as text, where a value that is in two
        places counts twice. Refuses too many, and too deep a nesting. Charges the walk itself."""
        total = 0
        stack = [iter(values)]
        while stack:
            item_weight = ITEM_WEIGHT * len(stack)
            for item in stack[-1]:
                total += item_weight
                kind = type(item)
                if kind is str:
                    total += len(item)
                    continue
                if kind in _SCALARS:
                    total += _own_length(item) if kind is int else 0
                    continue
                total += _own_length(item)
                if total > MAX_SIZE:
                    raise too_large(f"a value of more than {MAX_SIZE} characters")
                children = _children(item)
                if children is not None:
                    if len(stack) > MAX_DEPTH:
                        raise too_large(f"a value nested deeper than {MAX_DEPTH}")
                    stack.append(children)
                    break
            else:
                stack.pop()
        if total > MAX_SIZE:
            raise too_large(f"a value of more than {MAX_SIZE} characters")
        self.charge(total >> 3)
        return total

    def size(self, value: Any) -> int:
        """The characters of a value as text, at most; charged as read."""
        if type(value) is str:
            n = len(value)
            if n > SHORT:
                self.charge(n >> 3)
            return n
        return self.weigh(value)

    def number(self, value: Any) -> None:
        """Refuses what no quick number can be made of: long digits, or a value that is none."""
        if isinstance(value, int):
            if value.bit_length() > MAX_BITS:
                raise too_large("a whole number")
        elif self.size(value) > MAX_DIGITS:
            raise too_large(f"a number of more than {MAX_DIGITS} characters")

    def width(self, *values: Any) -> None:
        for value in values:
            if isinstance(value, (int, float)) and not abs(value) <= MAX_WIDTH:
                raise too_large(f"a width above {MAX_WIDTH}")

    def items(self, value: Any, cost: int = ITEM) -> int:
        """How many items a value has; charges as many new ones. An iterator's are not known."""
        n = len(value) if hasattr(value, "__len__") else 0
        self.charge(cost * n)
        return n

    # ---- values for what comes next ----

    def read(self, value: Any) -> Any:
        """A value that is to be compared or hashed."""
        if type(value) is str:
            if len(value) > SHORT:
                self.charge(len(value) >> 3)
        elif type(value) not in _SCALARS or type(value) is int:
            self.weigh(value)
        return value

    def keys(self, values: Iterable[Any], n_values: int) -> None:
        """Refuses many keys of a new mapping or set that may all have one hash: the time is the
        square of their number. Python's hashes of texts are secret, those of numbers are not."""
        if n_values > MANY_KEYS:
            for key in values:
                if isinstance(key, (int, float)):
                    if not abs(key) < MAX_KEY:
                        raise too_large("a mapping of long numbers")
                elif not (key is None or isinstance(key, str)):
                    raise too_large(f"a mapping of more than {MANY_KEYS} lists")

    def searched(self, value: Any, deep: bool = True) -> Any:
        """A value that something is to be looked for in, for items of more than a few characters
        if it is deep."""
        if isinstance(value, dict):
            return value
        if isinstance(value, (str, range)):
            self.charge(len(value) >> 3)
            return value
        if isinstance(value, Iterator):
            value = list(value)
        if deep:
            self.weigh(value)
        else:
            self.items(value, 2)
        return value

    def nested(self, value: Any) -> Any:
        """A new list, tuple or mapping, which is charged; refuses too deep a nesting."""
        self.charge(ITEM * (len(value) + 1))
        for item in chain(value, value.values()) if isinstance(value, dict) else value:
            if type(item) not in _SCALARS:
                self.weigh(value)
                break
        return value

    def flat(self, value: Any) -> Any:
        """A new value of items that were there before, or a text; charged and returned."""
        if isinstance(value, str):
            return self.made(value)
        if isinstance(value, (list, tuple, dict)):
            self.charge(8 * len(value))
        return value


# ---- what the methods of texts make ----


def _joined(meter: Meter, separator: str, items: Any) -> None:
    n_chars = sum(len(item) if isinstance(item, str) else meter.weigh(item) for item in items)
    scale = 1 if type(separator) is str else ESCAPED
    meter.fits((n_chars + len(separator) * len(items)) * scale, "join")


def replaced(meter: Meter, text: str, old: Any, new: Any) -> None:
    old, new = str(old), str(new)
    meter.charge((len(text) + len(old)) >> 3)
    found = text.count(old) * max(len(new) - len(old), 0)
    meter.fits((len(text) + found) * (1 if type(text) is str else ESCAPED), "replace")


def formatted(meter: Meter, text: str, *values: Any) -> None:
    """For `%`, and for `format` with braces."""
    if meter.size(text) and _WIDE_FORMAT.search(text):
        raise too_large("a wide format")
    fields = text.count("%") + text.count("{")
    scale = 1 if type(text) is str else ESCAPED
    meter.fits((len(text) + fields * (meter.weigh(*values) + 1000)) * scale, "format")


def lines(text: str) -> int:
    return 1 + sum(map(text.count, _LINE_ENDS))


def _split(meter: Meter, text: str, separator: Any, backwards: bool) -> None:
    if isinstance(separator, str) and separator:
        meter.charge(len(text) * (len(separator) if backwards else 1) >> 3)
        pieces = text.count(separator) + 1
    else:
        pieces = len(text) // 2 + 1
    meter.charge(ITEM * pieces + getsizeof(text))


def charge_text_method(meter: Meter, name: str, text: str, args: Any, kwargs: Any) -> None:
    """Charges one of TEXT_METHODS; refuses a result that is too large."""
    for value in (*args, *kwargs.values()):
        meter.read(value)
    n = len(text)
    meter.charge(n >> 3)
    first = args[0] if args else next(iter(kwargs.values()), None)
    if name in ("split", "rsplit"):
        _split(meter, text, kwargs.get("sep", args[0] if args else None), name == "rsplit")
    elif name == "splitlines":
        meter.charge(ITEM * (1 + sum(map(text.count, _LINE_ENDS))) + n)
    elif name == "replace":
        new = args[1] if len(args) > 1 else kwargs.get("new", "")
        replaced(meter, text, args[0] if args else kwargs.get("old", ""), new)
    elif name == "join" and args:
        _joined(meter, text, first)
    elif name in ("center", "ljust", "rjust", "zfill"):
        meter.width(first)
        meter.fits(n * ESCAPED, name)
    elif name in ("lower", "upper", "title", "casefold", "capitalize", "swapcase"):
        meter.fits(3 * n, name)
    elif name in _PRODUCTS and isinstance(first, str):
        meter.charge(n * len(first) >> 3)


#: Methods whose time is the product of two lengths: they look at each character for each.
_PRODUCTS = frozenset(("strip", "lstrip", "rstrip", "rfind", "rindex", "rpartition"))
#: The methods of a text that a template may call; `format` and `format_map` have their own way.
TEXT_METHODS = frozenset((
    "capitalize", "casefold", "center", "count", "endswith", "find", "index", "isalnum", "isalpha",
    "isascii", "isdecimal", "isdigit", "isidentifier", "islower", "isnumeric", "isprintable",
    "isspace", "istitle", "isupper", "join", "ljust", "lower", "lstrip", "partition",
    "removeprefix", "removesuffix", "replace", "rfind", "rindex", "rjust", "rpartition", "rsplit",
    "rstrip", "split", "splitlines", "startswith", "strip", "swapcase", "title", "upper", "zfill",
))  # fmt: skip


# ---- operators ----


def refuse(operator: str, left: Any, right: Any) -> NoReturn:
    raise TypeError(
        f"unsupported operand type(s) for {operator}: {type(left).__name__!r} and "
        f"{type(right).__name__!r}"
    )


def _length(value: Any) -> int:
    """The weight of a text or list without what is inside its items."""
    if isinstance(value, (str, JsonObject)):
        return len(str(value))
    return ITEM_WEIGHT * len(value) if isinstance(value, (list, tuple)) else 0


def charge_operator(meter: Meter, operator: str, left: Any, right: Any) -> None:
    """Charges left operator right; refuses what no template needs, and too large a result."""
    if isinstance(left, (int, float)) and isinstance(right, (int, float)):
        bits = sum(v.bit_length() for v in (left, right) if isinstance(v, int))
        if operator == "**" and isinstance(right, int):
            base = left.bit_length() if isinstance(left, int) else 0
            bits = max(bits, base * abs(right))
        if bits > MAX_BITS:
            raise too_large(f"a whole number by {operator}")
    elif operator == "+":
        scale = 1 if type(left) is type(right) else ESCAPED
        meter.fits((_length(left) + _length(right)) * scale, "+")
    elif operator == "*":
        value, factor = (right, left) if isinstance(left, int) else (left, right)
        if not isinstance(value, (str, list, tuple)) or not isinstance(factor, int):
            refuse(operator, left, right)
        meter.fits(_length(value) * max(factor, 0), "*")
    elif operator == "%" and isinstance(left, str):
        formatted(meter, left, right)
    else:
        refuse(operator, left, right)
