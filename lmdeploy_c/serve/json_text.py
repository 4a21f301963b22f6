"""JSON from strangers, and to them.

What Python's reader takes and JSON does not have is refused: NaN, infinite numbers, halves of
surrogate pairs, and nesting without end.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from .errors import ApiError

#: Arrays and objects inside one another, at most.
MAX_DEPTH = 64


def parse(text: bytes) -> Any:
    """The value of a request's body. ApiError 400 says what is wrong with it."""
    try:
        value = json.loads(text.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise ApiError(400, f"the body is not UTF-8: byte {error.start} is wrong") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON: {error}") from None
    _check(value)
    return value


def dump(value: Any) -> bytes:
    """The value as UTF-8. Characters that are none become question marks."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8", "replace")


def quote(text: str) -> str:
    """A text as JSON."""
    return json.dumps(text, ensure_ascii=False)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _too_deep() -> ApiError:
    return ApiError(400, f"the body is nested too deeply: at most {MAX_DEPTH} levels")


def _check(value: Any) -> None:
    """Looks at every value in turn, without recursion."""
    level, depth = [value], 0
    while level:
        below: list[Any] = []
        for item in level:
            if isinstance(item, str):
                _check_text(item)
            elif isinstance(item, float):
                if not math.isfinite(item):
                    raise ApiError(400, "the body has a number that is too large")
            elif isinstance(item, list):
                below += item
            elif isinstance(item, dict):
                below += item.keys()
                below += item.values()
        level, depth = below, depth + 1
        if depth > MAX_DEPTH:
            raise _too_deep()


def _check_text(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ApiError(400, "the body has a text with half of a surrogate pair") from None
