"""A conversation: what was said, and the tokens it was said in."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .messages import GenerationConfig, Response
from .prompts import Message, Prompt

if TYPE_CHECKING:
    from .answer import Answer, Failed
    from .pipeline import Pipeline

_ids = itertools.count(1)


def _turn(prompt: Prompt) -> list[Message]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


class Session:
    """One conversation with a pipeline; `Pipeline.session()` makes one.

    session_id: unique in the process. history: (prompt, answer) of the turns so far. prompt,
    response: the last turn's. gen_config: used where a turn brings none. token_ids: tokens of the
    whole conversation, as the model read and wrote them.
    One turn at a time; `abort` may be called from any thread.
    """

    def __init__(self, pipeline: Pipeline, gen_config: GenerationConfig | None = None) -> None:
        self.session_id = next(_ids)
        self.gen_config = gen_config
        self.prompt: Prompt | None = None
        self.response: Response | None = None
        self.history: list[tuple[Prompt, str]] = []
        self.token_ids: list[int] = []
        self._pipeline = pipeline
        self._answer: Answer | Failed | None = None
        self._turn = threading.Lock()
        self._closed = False

    def __call__(
        self,
        prompt: Prompt,
        gen_config: GenerationConfig | None = None,
        stream_response: bool = True,
        do_preprocess: bool = True,
    ) -> Response | Iterator[Response]:
        """The next turn: an iterator of Response deltas, or with stream_response=False the whole
        Response. Raises RuntimeError when closed or while another turn runs."""
        chat = self._pipeline.chat
        if stream_response:
            return chat(prompt, self, gen_config, stream_response=True, do_preprocess=do_preprocess)
        chat(prompt, self, gen_config, do_preprocess=do_preprocess)
        assert self.response is not None
        return self.response

    def messages(self, prompt: Prompt) -> list[Message]:
        """The history and the next prompt as one conversation."""
        said: list[Message] = []
        for asked, text in self.history:
            said += [*_turn(asked), {"role": "assistant", "content": text}]
        return said + _turn(prompt)

    def abort(self) -> None:
        """Ends the running answer, if there is one; it keeps what it has. Any thread."""
        answer = self._answer
        if answer is not None:
            answer.cancel()

    async def async_abort(self) -> None:
        """`abort`, for callers that await it."""
        self.abort()

    def reset(self) -> None:
        """Forgets the conversation; the session goes on under its id."""
        self.abort()
        self.prompt = self.response = None
        self.history, self.token_ids = [], []

    def close(self) -> None:
        """Ends the session: later turns raise RuntimeError. Idempotent."""
        self.reset()
        self._closed = True

    def update(self, **kwargs: Any) -> None:
        """Sets attributes: prompt, response, history, gen_config, token_ids. AttributeError."""
        known = ("prompt", "response", "history", "gen_config", "token_ids")
        for name, value in kwargs.items():
            if name not in known:
                raise AttributeError(f"a session has no {name!r} to set; it has {known}")
            setattr(self, name, value)

    def begin(self, prompt: Prompt) -> None:
        """Starts a turn; for Pipeline. Raises RuntimeError when closed or busy."""
        if self._closed:
            raise RuntimeError(f"session {self.session_id} is closed")
        if not self._turn.acquire(blocking=False):
            raise RuntimeError(f"session {self.session_id} is still answering")
        self.prompt, self.response = prompt, None

    def running(self, answer: Answer | Failed) -> None:
        """Notes what `abort` has to cancel; for Pipeline."""
        self._answer = answer

    def end(self, answer: Answer | Failed | None) -> None:
        """Ends a turn and keeps it, unless it failed; for Pipeline."""
        try:
            if answer is None:
                return
            self.response = answer.response
            if self.response.finish_reason is None:
                self.response.finish_reason = "abort"
            if self.response.finish_reason != "error" and self.prompt is not None:
                self.history.append((self.prompt, self.response.text))
                self.token_ids = answer.input_ids + self.response.token_ids
        finally:
            self._answer = None
            self._turn.release()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        turns = "".join(f"\nuser: {p}\nassistant: {t}" for p, t in self.history)
        return f"<Session {self.session_id}, {len(self.history)} turns>{turns}"
