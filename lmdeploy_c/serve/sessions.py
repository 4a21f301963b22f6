"""Conversations by the numbers that clients give them. In the event loop's thread."""

from __future__ import annotations

from collections import OrderedDict

from ..engine.session import Session
from ..engine.text_engine import TextEngine


class Sessions:
    """At most so many conversations. Each belongs to the API key that began it: the same number
    with another key is another conversation."""

    def __init__(self, engine: TextEngine, most: int) -> None:
        self._engine, self._most = engine, most
        self._kept: OrderedDict[tuple[str, int], Session] = OrderedDict()

    def find(self, key: str, number: int) -> Session | None:
        return self._kept.get((key, number))

    def find_or_begin(self, key: str, number: int) -> Session:
        """The conversation with this number. Where there are too many, the one that was used least
        recently is forgotten."""
        session = self._kept.setdefault((key, number), Session(self._engine))
        self._kept.move_to_end((key, number))
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)
        return session

    def forget(self, key: str, number: int) -> None:
        self._kept.pop((key, number), None)
