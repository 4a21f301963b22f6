"""Objects that lie, raise, or change what holds them, for every argument that there is.

All of them are made anew for each call. None is endless or large: what a caller's own code takes
before the binding sees a value is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np


class HostileError(Exception):
    """What a hostile object raises; no handler of the binding may turn it into a success."""


#: What an object may be asked on its way into C.
ASKED = [
    "__index__", "__int__", "__float__", "__bool__", "__len__", "__iter__", "__getitem__", "__eq__",
    "__hash__", "__str__", "__repr__", "__fspath__", "__contains__", "__array__",
    "__length_hint__", "__call__", "items", "keys",
]  # fmt: skip


def _class(name: str, base: type, answer: Callable[..., Any], *asked: str) -> type:
    members: dict[str, Any] = {method: answer for method in asked or ASKED}
    return type(name, (base,), members)


def _raise(self: object, *args: object, **kwargs: object) -> Any:
    raise HostileError


Raises = _class("Raises", object, _raise)
RaisesInStr = _class("RaisesInStr", str, _raise)
RaisesInInt = _class("RaisesInInt", int, _raise)
RaisesInDict = _class("RaisesInDict", dict, _raise)
RaisesInList = _class("RaisesInList", list, _raise)
RaisesInTuple = _class("RaisesInTuple", tuple, _raise)
#: Every answer is an object of a kind that nobody asked for.
Wrong = _class("Wrong", object, lambda self, *args, **kwargs: object())
LongLength = _class("LongLength", list, lambda self, *args: 2**60, "__len__", "__length_hint__")
NegativeLength = _class("NegativeLength", list, lambda self, *args: -1, "__len__")


class Clears:
    """Empties a container when it is asked for anything; then answers with a small number."""

    def __init__(self, container: Any = None) -> None:
        self.container = container

    def clear(self) -> int:
        if self.container is not None:
            self.container.clear()
        return 1

    def __index__(self) -> int:
        return self.clear()

    def __float__(self) -> float:
        return float(self.clear())

    def __bool__(self) -> bool:
        return bool(self.clear())

    def __eq__(self, other: object) -> bool:
        return bool(self.clear()) and self is other

    def __hash__(self) -> int:
        return self.clear()

    def __fspath__(self) -> str:
        self.clear()
        return "nowhere"

    def __iter__(self) -> Iterator[int]:
        self.clear()
        return iter([1])


def _clearing_list() -> list[Any]:
    values: list[Any] = [float("1.5"), [7], "text of its own"]
    values.insert(0, Clears(values))
    return values


def _clearing_dict() -> dict[Any, Any]:
    values: dict[Any, Any] = {}
    values[1] = Clears(values)
    values.update({2: float("2.5"), "arch": "llama", 3: [7]})
    return values


class Pairs(dict[Any, Any]):
    """A mapping whose items are given."""

    def __init__(self, *pairs: Any) -> None:
        self.pairs = list(pairs)

    def items(self) -> Any:
        return self.pairs


class Resizes:
    """An array that becomes another one while it is converted."""

    def __init__(self) -> None:
        self.values = np.arange(4)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        self.values.resize(1000, refcheck=False)
        return self.values


def _array_of_objects() -> Any:
    values = np.zeros(2, object)
    values[0] = Raises()
    return values


def _cycle() -> list[Any]:
    values: list[Any] = []
    values.append(values)
    return values


NUMBERS: list[Any] = [
    -1, 0, True, 2**31, 2**32 + 1, 2**63, 2**64 - 1, 2**64, -(2**63) - 1, 10**400,
    0.5, -0.0, float("nan"), float("inf"), 1e300, 1j,
    np.int8(-1), np.uint64(2**64 - 1), np.float32("nan"), np.bool_(True),
]  # fmt: skip
TEXTS: list[Any] = ["", "a\0b", "\ud800", "cpu\0", "x" * 1000, "%s%n", b"cpu", b"\xff"]
MAKERS: list[Callable[[], Any]] = [
    object, Raises, RaisesInStr, RaisesInInt, RaisesInDict, RaisesInList, RaisesInTuple, Wrong,
    LongLength, NegativeLength, Clears, Resizes, Pairs, _clearing_list, _clearing_dict, _cycle,
    lambda: None, lambda: type, lambda: print, lambda: iter([1]), lambda: range(3),
    list, dict, tuple, set,
    lambda: RaisesInStr("cpu"), lambda: RaisesInInt(1), lambda: RaisesInDict({1: 1.0}),
    lambda: RaisesInList([1]), lambda: RaisesInTuple((1, 2)), lambda: LongLength([1]),
    lambda: [[]], lambda: [()], lambda: [5], lambda: ["ab"], lambda: [None], lambda: [Raises()],
    lambda: [[1, Raises()]], lambda: [[Clears()]], lambda: [2**70], lambda: [2**63, -1],
    lambda: (5,), lambda: ((),), lambda: (8, 4), lambda: (8, Raises()), lambda: {1: Raises()},
    lambda: {Raises: 1.0}, lambda: {2**70: 1.0}, lambda: {1: 10**400}, lambda: {"a": "b"},
    lambda: [("n", "F32", (1,), "nowhere", 0, 4)],
    lambda: [("n", "F32", (Clears(), 2**70), "nowhere", 0, 4)],
    lambda: [("n", "F32", (1,), "nowhere", -1, 2**64)],
    lambda: [("n", "F32", (1,), Clears(), 0, 4)],
    lambda: [("n", "F32", (Raises(),), "nowhere", 0, 4)], lambda: [("n\0", 5, [1], 5, "0", None)],
    lambda: [("n",) * 7], lambda: [("\ud800", "F32", (), "nowhere", 0, 4)],
    lambda: Pairs(5), lambda: Pairs(()), lambda: Pairs("ab"), lambda: Pairs([1, 2.0]),
    lambda: Pairs((1,)), lambda: Pairs((1, 2, 3)), lambda: Pairs((Clears(), 1.0)),
    lambda: bytearray(b"abcd"), lambda: memoryview(b"abcd"), lambda: memoryview(bytearray(8)),
    lambda: np.zeros(0), lambda: np.zeros((2, 3)), lambda: np.zeros((2, 2), np.uint8),
    lambda: np.arange(3, dtype=np.int16)[::-1], lambda: np.array([2**64 - 1], np.uint64),
    lambda: np.array([1, 2], ">i4"), lambda: np.array([1, 2], ">u8"), lambda: np.array(3),
    _array_of_objects, lambda: np.array(["a"]), lambda: np.zeros(2, "M8[s]"),
    lambda: np.zeros(2, [("a", int)]), lambda: np.zeros((1,) * 32), lambda: np.ma.array([1, 2]),
    lambda: np.broadcast_to(np.int64(1), (0, 5)), lambda: np.zeros((2, 0)),
    lambda: np.zeros((0, 2)),
]  # fmt: skip


def every_object() -> list[Any]:
    """All of them, new ones."""
    return [*NUMBERS, *TEXTS, *(make() for make in MAKERS)]
