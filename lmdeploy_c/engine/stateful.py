"""LMDeploy's older way to say that a request goes on from an earlier one: session_id,
sequence_start, sequence_end and step. A number names a `Session` of the pipeline.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from .session import Session

if TYPE_CHECKING:
    from ..pipeline import Pipeline

#: The keywords, with what stands for a request without state.
KEYWORDS = {"session_id": None, "sequence_start": True, "sequence_end": True, "step": 0}


class Numbered(NamedTuple):
    """The session that a request's keywords name, and what to do with it in the end."""

    session: Session
    number: int
    ends: bool


class NumberedSessions:
    """A pipeline's sessions by the caller's numbers. Any thread."""

    def __init__(self) -> None:
        self._sessions: dict[int, Session] = {}
        self._lock = threading.Lock()

    def take(self, pipeline: Pipeline, kwargs: Mapping[str, Any]) -> Numbered | None:
        """The session of a request; None when its keywords ask for none.

        sequence_start begins the session anew; without it the request goes on from the turns
        before, with step from their first `step` tokens alone. sequence_end forgets the session
        after the answer. Raises LookupError for a session that was not begun, TypeError or
        ValueError for a wrong value.
        """
        asked = {name: kwargs.get(name, value) for name, value in KEYWORDS.items()}
        number, step = asked["session_id"], asked["step"]
        if number is None:
            if asked != KEYWORDS:
                raise ValueError("sequence_start, sequence_end and step need a session_id")
            return None
        for name, value in (("session_id", number), ("step", step)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise TypeError(f"{name}: an integer that is not negative, not {value!r}")
        with self._lock:
            if asked["sequence_start"]:
                self._sessions[number] = pipeline.session()
            session = self._sessions.get(number)
        if session is None:
            raise LookupError(f"session {number} does not exist; begin it with sequence_start=True")
        if step:
            n_tokens = len(session.token_ids)
            if step > n_tokens:
                raise ValueError(f"step={step}, but session {number} has {n_tokens} tokens")
            session.rewind(tokens=n_tokens - step)
        return Numbered(session, number, bool(asked["sequence_end"]))

    def leave(self, numbered: Numbered) -> None:
        """After the answer."""
        if not numbered.ends:
            return
        with self._lock:
            if self._sessions.get(numbered.number) is numbered.session:
                del self._sessions[numbered.number]
