"""LMDeploy's older way to say that a request goes on from an earlier one: session_id,
sequence_start, sequence_end and step. A number names a `Session`.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

from .session import Session
from .text_engine import TextEngine

#: The keywords, with their values in a request without a session.
KEYWORDS = {"session_id": None, "sequence_start": True, "sequence_end": True, "step": 0}


class Numbered(NamedTuple):
    """What a request's keywords say of its session."""

    number: int
    starts: bool  # with a new conversation
    ends: bool  # with this request
    step: int  # goes on from the conversation's first `step` tokens; 0: from all of it


def read_keywords(kwargs: Mapping[str, Any]) -> Numbered | None:
    """None where the keywords ask for no session. Raises TypeError or ValueError for wrong ones."""
    asked = {name: kwargs.get(name, value) for name, value in KEYWORDS.items()}
    number, step = asked["session_id"], asked["step"]
    if number is None:
        if asked != KEYWORDS:
            raise ValueError("sequence_start, sequence_end and step need a session_id")
        return None
    for name, value in (("session_id", number), ("step", step)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise TypeError(f"{name}: an integer that is not negative, not {value!r}")
    return Numbered(number, bool(asked["sequence_start"]), bool(asked["sequence_end"]), step)


class NumberedSessions:
    """Sessions by the caller's numbers. Any thread."""

    def __init__(self, engine: TextEngine) -> None:
        self.engine = engine
        self._sessions: dict[int, Session] = {}
        self._lock = threading.Lock()

    def resolve(self, numbered: Numbered) -> Session:
        """The session whose next turn a request is; the last request of a session frees its number.

        Raises LookupError for a session that was not begun, ValueError for a step beyond its end.
        """
        number = numbered.number
        with self._lock:
            session = Session(self.engine) if numbered.starts else self._sessions.get(number)
            if session is None:
                raise LookupError(
                    f"session {number} does not exist; begin it with sequence_start=True"
                )
            if numbered.step:
                n_tokens = len(session.token_ids)
                if numbered.step > n_tokens:
                    raise ValueError(
                        f"step={numbered.step}, but session {number} has {n_tokens} tokens"
                    )
                session.rewind(tokens=n_tokens - numbered.step)
            if numbered.ends:
                self._sessions.pop(number, None)
            else:
                self._sessions[number] = session
        return session
