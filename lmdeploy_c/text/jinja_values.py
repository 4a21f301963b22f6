"""What a chat template may have of each kind of value: plain data's names, and no others."""

from __future__ import annotations

from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.runtime import BlockReference, LoopContext, Macro
from jinja2.utils import Cycler, Namespace

from .jinja_meter import TEXT_METHODS


class TemplateNamespace(Namespace):
    """`namespace` in a template, without names of Python's own kind."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # a template may say self=
        namespace, *rest = args
        namespace.__dict__["values"] = values = dict(*rest, **kwargs)
        for name in values:
            namespace._check(name)

    def __getattribute__(self, name: str) -> Any:
        return object.__getattribute__(self, name)

    def _check(self, name: Any) -> None:
        if str(name).startswith("_"):
            raise SecurityError(f"a namespace takes no name that begins with _: {name!r:.50}")

    def __setitem__(self, name: str, value: Any) -> None:
        self._check(name)
        self.__dict__["values"][name] = value

    def __repr__(self) -> str:  # its values may be itself
        return "<Namespace>"


class DictMaker:
    """`dict` in a template: it makes dicts, and has none of the type's methods besides."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class TextMethod:
    """A method of a text that is called in a way of ours, or that Python would write with all of
    the text."""

    def __init__(self, text: str, name: str) -> None:
        self.text, self.name = text, name


SEQUENCE_NAMES = frozenset(("count", "index"))
FORMAT_NAMES = frozenset(("format", "format_map"))
_NUMBER = frozenset(("bit_length", "denominator", "imag", "is_integer", "numerator", "real"))
_MAPPING = frozenset(("copy", "fromkeys", "get", "items", "keys", "values"))
_NAMES: dict[type, frozenset[str]] = {
    str: TEXT_METHODS | FORMAT_NAMES,
    dict: _MAPPING,
    list: SEQUENCE_NAMES | {"copy"},
    tuple: SEQUENCE_NAMES | {"grouper", "list"},  # the last two of groupby's
    bool: _NUMBER,
    int: _NUMBER,
    float: _NUMBER,
    range: frozenset(("start", "step", "stop")),
    LoopContext: frozenset((
        "changed", "cycle", "depth", "depth0", "first", "index", "index0", "last", "length",
        "nextitem", "previtem", "revindex", "revindex0",
    )),
    Macro: frozenset(("arguments", "caller", "catch_kwargs", "catch_varargs", "name")),
    Cycler: frozenset(("current", "next", "reset")),
    DictMaker: frozenset(("fromkeys",)),
    BlockReference: frozenset(("super",)),
}  # fmt: skip
NAMES_OF_DICTS = frozenset(dir(dict))
LOOP_NAMES = _NAMES[LoopContext]
_NO_NAMES: frozenset[str] = frozenset()


def names_of(value: Any) -> frozenset[str]:
    found = _NAMES.get(type(value))
    if found is None:  # Markup, groupby's tuples, the objects of a conversation
        found = next((n for kind, n in _NAMES.items() if isinstance(value, kind)), _NO_NAMES)
    return found
