"""Answers that go round in a circle, as small models' do without sampling."""

from __future__ import annotations

from collections.abc import Sequence

#: A loop is a cycle of at most so many tokens, ...
_LONGEST = 64
#: ... which has come so many times in a row, and fills so many tokens.
_TIMES, _TOKENS = 6, 120


class LoopGuard:
    """Watches the tokens of one answer."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        #: For each length of a cycle, how many tokens in a row are those of one cycle before.
        self._same = [0] * (_LONGEST + 1)

    def add(self, token_ids: Sequence[int]) -> int:
        """The length of the cycle that the answer goes round in with these tokens; 0: in none."""
        before, same = self._tokens, self._same
        for token in token_ids:
            for n in range(1, min(len(before), _LONGEST) + 1):
                same[n] = same[n] + 1 if before[-n] == token else 0
                if same[n] + n >= max(_TIMES * n, _TOKENS):
                    return n
            before.append(token)
        return 0
