"""The base of the configurations: fields that are served, refused or out of range."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field, fields
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, TypeVar, cast

T = TypeVar("T")


def unsupported(message: str) -> ValueError:
    """The exception for something known that this release does not serve."""
    from .._C import UnsupportedError  # only when needed: it brings NumPy

    return UnsupportedError(message)


def nearest(name: str, known: Sequence[str]) -> str:
    """The end of a message about a name that is not known: the one that was meant; "" if none is
    near."""
    import difflib  # only for a mistake

    near = difflib.get_close_matches(name, known, 1) or [k for k in known if name in k.split("_")]
    return f"; did you mean {near[0]!r}?" if near else ""


class WrongValue(ValueError, AssertionError):
    """A value that a configuration's field cannot have. LMDeploy's configurations assert theirs,
    so that scripts catch an AssertionError."""


def core(default: T) -> T:
    """A field that the C core has under the same name; None leaves the core's own default."""
    return field(default=default, metadata={"core": True})


def only(default: T, *also: T, hint: str = "") -> T:
    """A dataclass field whose only served values are the default and `also`."""
    return field(default=default, metadata={"served": (default, *also), "hint": hint})


def _same(a: object, b: object) -> bool:
    """a == b, but 1 is not True."""
    return a == b and isinstance(a, bool) == isinstance(b, bool)


class Named:
    """Base of dataclasses that have the attributes they declare and no others, so that a misspelled
    one is not lost: TypeError when one is made, AttributeError when one is set, with the name that
    was meant."""

    if not TYPE_CHECKING:  # the dataclass's own __init__ says what it takes

        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            known = cls.__dataclass_fields__
            for name in kwargs:
                if name not in known and cls._takes_fields():
                    raise TypeError(f"{cls.__name__} has no {name!r}{nearest(name, list(known))}")
            return super().__new__(cls)

        @classmethod
        def _takes_fields(cls) -> bool:
            """Whether __init__ is a dataclass's, and not that of a subclass with arguments of its
            own."""
            owner = next(c for c in cls.__mro__ if "__init__" in vars(c))
            return "__dataclass_fields__" in vars(owner)

        def __setattr__(self, name: str, value: Any) -> None:
            if not hasattr(type(self), name):
                near = nearest(name, list(self.__dataclass_fields__))
                raise AttributeError(f"{type(self).__name__} has no {name!r}{near}")
            object.__setattr__(self, name, value)


class Checked(Named):
    """Base of the configurations: `check()` runs when one is made and again before it is used."""

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Raises UnsupportedError for a field that is not served, ValueError for a wrong value."""
        for f in fields(cast(Any, self)):
            if "served" not in f.metadata:
                continue
            value, served = getattr(self, f.name), f.metadata["served"]
            if not any(_same(value, s) for s in served):
                hint = f.metadata["hint"]
                raise unsupported(
                    f"{type(self).__name__}.{f.name}={value!r} is not served by this release; "
                    f"served: {', '.join(map(repr, served))}" + (f" ({hint})" if hint else "")
                )

    def _wrong(self, name: str, wanted: str) -> WrongValue:
        value = getattr(self, name)
        return WrongValue(f"{type(self).__name__}.{name} must be {wanted}, not {value!r}")

    def _check_number(self, name: str, low: float, high: float) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, Real) or value != value:
            raise self._wrong(name, "a number")
        if not low <= getattr(self, name) <= high:  # exactly, however large an integer is
            raise self._wrong(name, f"between {low:.15g} and {high:.15g}")

    def _check_int(self, name: str, low: int, optional: bool = False) -> None:
        value = getattr(self, name)
        if value is None and optional:
            return
        if isinstance(value, bool) or not isinstance(value, Integral) or value < low:
            none = "None or " if optional else ""
            raise self._wrong(name, f"{none}an integer of at least {low}")

    def _check_bool(self, *names: str) -> None:
        for name in names:
            if not isinstance(getattr(self, name), bool):
                raise self._wrong(name, "True or False")

    def _check_list(self, name: str, kind: type, of: str) -> None:
        value = getattr(self, name)
        if value is None:
            return
        is_list = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
        if not is_list or not all(isinstance(v, kind) and not isinstance(v, bool) for v in value):
            raise self._wrong(name, f"None or a list of {of}")
