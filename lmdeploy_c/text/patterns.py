r"""Regular expressions of a model's files, which are untrusted: only those whose time is bounded.

The tokenizers library gives them to Oniguruma, which tries every way to match. The number of ways
grows without end where a repeated group can match one text in several ways, and something behind it
fails: such expressions are refused, and so is what needs a memory of its own (references,
recursion, conditions). What remains is `x*` with something behind it, whose time may grow with the
square of a text's length, and texts have a bound.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

MAX_PATTERN = 16_384  # characters; the longest known has 2,000
MAX_COUNT = 1024  # of {n,m}; known ones reach 512
MAX_GROUPS = 32  # inside one another
#: Of one way through an expression: ways to match parts of a bounded length, and parts of any
#: length, that something behind them may have to try again. Known ones have 4 and 1.
MAX_WAYS, MAX_LOOPS = 64, 1

_QUANTIFIER = re.compile(r"[*+?]|\{(\d*)(,?)(\d*)\}")
_GROUP = re.compile(r"\((?:\?(?:[:=!>]|<[=!]|<[A-Za-z]\w*>|[imd]*(?:-[imd]+)?:))?(?![?*])")
_FLAGS = re.compile(r"\(\?[imd]*(?:-[imd]+)?\)")  # for the rest of the group that they stand in
_ESCAPE = re.compile(r"\\(?:[pPxuo]\{[^{}]*\}|[^1-9kgX])", re.DOTALL)
_PLACES = "AbBGyYzZ"  # escapes
_ZERO_WIDTH = ("(?=", "(?!", "(?<=", "(?<!")


@dataclass
class _Part:
    """A character, a class or a group, with the quantifier that may follow it."""

    alternatives: list[list[_Part]] = field(default_factory=list)  # of a group
    is_atomic: bool = False  # once it has matched, it is not tried again in another way
    is_place: bool = False  # it matches no character, as a look ahead or the end of a line
    least: int = 1
    most: int | None = 1  # None: any number of times

    @property
    def has_choice(self) -> bool:
        """Whether one repetition may match in several ways."""
        return len(self.alternatives) > 1 or any(
            part.least != part.most or part.has_choice for way in self.alternatives for part in way
        )

    @property
    def may_fail(self) -> bool:
        return self.least > 0

    @property
    def may_be_empty(self) -> bool:
        inner = bool(self.alternatives) and _may_be_empty(self.alternatives)
        return self.is_place or self.least == 0 or inner


def _may_be_empty(ways: list[list[_Part]]) -> bool:
    return any(all(part.may_be_empty for part in way) for way in ways)


def check_pattern(pattern: str) -> None:
    """ValueError for an expression that may take time without end, or is not understood."""
    if len(pattern) > MAX_PATTERN:
        raise ValueError(f"an expression of {len(pattern)} characters; at most {MAX_PATTERN}")
    ways, end = _parse(pattern, 0, 0)
    if end < len(pattern):
        raise _refused(pattern, end, "a ) that closes nothing")
    for way in ways:
        _check_way(pattern, way, is_last=True)


def matches_nothing(pattern: str) -> bool:
    """Whether a checked expression may match between two characters."""
    return _may_be_empty(_parse(pattern, 0, 0)[0])


def _refused(pattern: str, at: int, why: str) -> ValueError:
    return ValueError(f"an expression that is not run, {why}: {pattern[at : at + 40]!r}")


# ---- reading ----


def _parse(pattern: str, at: int, depth: int) -> tuple[list[list[_Part]], int]:
    """The alternatives from a place up to the group's end, and that place."""
    if depth > MAX_GROUPS:
        raise _refused(pattern, at, f"with groups more than {MAX_GROUPS} deep")
    ways: list[list[_Part]] = [[]]
    while at < len(pattern) and pattern[at] != ")":
        flags = _FLAGS.match(pattern, at)
        if pattern[at] == "|":
            ways.append([])
            at += 1
        elif flags:
            at = flags.end()
        else:
            part, at = _part(pattern, at, depth)
            part, at = _repeat(pattern, at, part)
            ways[-1].append(part)
    return ways, at


def _part(pattern: str, at: int, depth: int) -> tuple[_Part, int]:
    c = pattern[at]
    if c == "(":
        group = _GROUP.match(pattern, at)
        if not group:
            raise _refused(pattern, at, "a kind of group that no tokenizer needs")
        alternatives, end = _parse(pattern, group.end(), depth + 1)
        if end == len(pattern):
            raise _refused(pattern, at, "a group without its end")
        is_place = group[0] in _ZERO_WIDTH
        return _Part(alternatives, is_place or group[0] == "(?>", is_place), end + 1
    if c == "[":
        return _Part(), _class_end(pattern, at)
    if c == "\\":
        escape = _ESCAPE.match(pattern, at)
        if not escape:
            raise _refused(pattern, at, "with what no tokenizer needs")
        return _Part(is_place=escape[0][1] in _PLACES), escape.end()
    return _Part(is_place=c in "^$"), at + 1


def _class_end(pattern: str, at: int) -> int:
    """The place behind a [...], in which others may stand."""
    i, depth = at, 0
    while i < len(pattern):
        c = pattern[i]
        if c == "\\":
            i += 1
        elif c == "[":
            depth += 1
            i += pattern.startswith("^", i + 1)
            i += pattern.startswith("]", i + 1)  # the first one is a character
        elif c == "]":
            depth -= 1
            if not depth:
                return i + 1
        i += 1
    raise _refused(pattern, at, "a class without its end")


def _repeat(pattern: str, at: int, part: _Part, *, is_inner: bool = True) -> tuple[_Part, int]:
    """The part with the quantifiers behind it: none, one, or two as in {1,3}+."""
    found = _QUANTIFIER.match(pattern, at)
    if not found or found[0] in ("{}", "{,}"):
        return part, at
    if found[0][0] == "{":
        part.least = int(found[1] or 0)
        part.most = (int(found[3]) if found[3] else None) if found[2] else part.least
        if max(part.least, part.most or 0) > MAX_COUNT:
            raise _refused(pattern, at, f"with a count above {MAX_COUNT}")
    else:
        part.least, part.most = int(found[0] == "+"), 1 if found[0] == "?" else None
    at = found.end()
    if pattern.startswith("?", at):
        at += 1
    elif pattern.startswith("+", at) and found[0][0] != "{":
        part.is_atomic = True
        at += 1
    if is_inner:
        outer, end = _repeat(pattern, at, _Part([[part]]), is_inner=False)
        return (outer, end) if end > at else (part, at)
    if _QUANTIFIER.match(pattern, at):
        raise _refused(pattern, at, "with three repetitions of one part")
    return part, at


# ---- judging ----


def _check_way(pattern: str, way: list[_Part], *, is_last: bool) -> tuple[int, int]:
    """Ways and loops of a sequence of parts, as MAX_WAYS and MAX_LOOPS count them.

    is_last: nothing behind it can fail, so that its first match is the match."""
    ways, loops = 1, 0
    for i, part in enumerate(way):
        ends = is_last and not any(other.may_fail for other in way[i + 1 :])
        # Once it has matched, nothing makes it match in another way.
        is_settled = part.is_atomic or (ends and part.least <= 1)
        inner = [_check_way(pattern, each, is_last=is_settled) for each in part.alternatives]
        if is_settled:
            continue
        if part.most != 1 and part.has_choice:
            raise _refused(
                pattern, 0, "with a repeated group that has several ways to match, and an end"
            )
        ways *= max(sum(n for n, _ in inner), 1)
        ways *= 1 if part.most is None else part.most - part.least + 1
        loops += max((n for _, n in inner), default=0) + (part.most is None)
        if ways > MAX_WAYS or loops > MAX_LOOPS:
            raise _refused(pattern, 0, "with too many ways to match")
    return ways, loops
