"""The base of the configurations: fields that are served, refused or out of range."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import field, fields
from numbers import Integral, Real
from typing import Any, TypeVar, cast

T = TypeVar("T")


def unsupported(message: str) -> ValueError:
    """The exception for something known that this release does not serve."""
    from .._C import UnsupportedError  # only when needed: it brings NumPy

    return UnsupportedError(message)


def warn_of_unknown(keyword: str, call: str) -> None:
    """Says, once for each keyword, that a call ignores one that it does not know, as LMDeploy's
    calls do."""
    warnings.warn(
        f"{call} ignores the unknown keyword {keyword!r}: options of an answer belong into "
        "gen_config, those of the engine into backend_config",
        stacklevel=2,
    )


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


class Checked:
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
        if isinstance(value, bool) or not isinstance(value, Real) or math.isnan(value):
            raise self._wrong(name, "a number")
        if not low <= float(value) <= high:
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
