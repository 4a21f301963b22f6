"""A conversation as a value: what was said, the tokens it was said in, and their KV in the engine.

The engine computes no position twice: a turn begins with the tokens of the turns before, whose KV
it finds. Forking and rewinding cost nothing; KV that was evicted meanwhile is computed again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..messages import GenerationConfig, Response
from ..text.prompts import Message, Prompt
from .answer import Answer, Failed

if TYPE_CHECKING:
    from .. import _C
    from ..pipeline import Pipeline

_ids = itertools.count(1)


def _as_turn(prompt: Prompt) -> list[Message]:
    """The messages of a turn's prompt."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


@dataclass(frozen=True)
class Turn:
    """One prompt and its answer, and where they end in the conversation's tokens.

    rendered: the text that all tokens so far stand for; None where tokens and text disagree (an
    answer cut inside a token), so that the next turn is tokenised from its text.
    """

    prompt: Prompt
    text: str
    prompt_end: int
    end: int
    rendered: str | None


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
        self.pipeline = pipeline
        self._turns: list[Turn] = []
        self._prompt_text = ""  # of the running turn, from the conversation's beginning on
        self._answer: Answer | Failed | None = None
        self._last: _C.Request | None = None  # the last turn's, until its KV is known
        self._kept: _C.Snapshot | None = None
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
        chat = self.pipeline.chat
        if stream_response:
            return chat(prompt, self, gen_config, stream_response=True, do_preprocess=do_preprocess)
        chat(prompt, self, gen_config, do_preprocess=do_preprocess)
        assert self.response is not None
        return self.response

    def messages(self, prompt: Prompt) -> list[Message]:
        """The history and the next prompt as one conversation."""
        said: list[Message] = []
        for asked, text in self.history:
            said += [*_as_turn(asked), {"role": "assistant", "content": text}]
        return said + _as_turn(prompt)

    # A value: forked, rewound, saved

    def fork(self) -> Session:
        """A session of its own that has said the same so far. Costs no time and no KV: the two
        share what was computed, and each writes behind it for itself. RuntimeError while a turn
        runs."""
        with self._idle():
            twin = Session(self.pipeline, self.gen_config)
            twin.prompt, twin.response = self.prompt, self.response
            twin.history, twin.token_ids = list(self.history), list(self.token_ids)
            twin._turns, twin._kept = list(self._turns), self.kept()
            return twin

    def rewind(self, n_turns: int = 1, *, tokens: int | None = None) -> None:
        """Takes back the last n_turns turns, or with `tokens` that many tokens from the end.

        An answer that tokens cut stays as far as they go; a cut in a prompt takes its whole turn.
        What is left need not be computed again. Raises ValueError when there is less than that,
        RuntimeError while a turn runs.
        """
        with self._idle():
            turns = self.known_turns()
            if tokens is not None:
                if not turns or not 0 <= tokens <= len(self.token_ids):
                    known = len(self.token_ids) if turns else 0
                    raise ValueError(f"rewind: {known} tokens are known, not {tokens}")
                self._set_turns(self._cut(turns, len(self.token_ids) - tokens))
                return
            if not 0 <= n_turns <= len(self.history):
                raise ValueError(f"rewind: there are {len(self.history)} turns, not {n_turns}")
            n_left = len(self.history) - n_turns
            if turns:
                self._set_turns(turns[:n_left])
            else:  # the history was changed from outside: its tokens come from its text
                self.history, self.token_ids = self.history[:n_left], []
            self.prompt = self.response = None

    def _cut(self, turns: list[Turn], n_tokens: int) -> list[Turn]:
        """The turns as far as their first n_tokens tokens go."""
        left = [turn for turn in turns if turn.end <= n_tokens]
        if len(left) == len(turns) or turns[len(left)].prompt_end >= n_tokens:
            return left
        turn = turns[len(left)]
        text = self.pipeline.tokenizer.decode(self.token_ids[turn.prompt_end : n_tokens])
        asked = turn.rendered and turn.rendered.removesuffix(turn.text)
        rendered = asked + text if asked and turn.text.startswith(text) else None
        return [*left, dataclasses.replace(turn, text=text, end=n_tokens, rendered=rendered)]

    def save(self, path: str | Path, kv: bool = True) -> None:
        """Writes the conversation to a file, which `Pipeline.load_session` reads, also in another
        process. kv: with the KV that is left of it, so that nothing need be computed again there.

        The file appears whole or not at all. gen_config is not saved. Raises OSError,
        RuntimeError while a turn runs, TypeError for prompts that JSON does not know.
        """
        from . import session_file

        with self._idle():
            session_file.write(self, Path(path), kv=kv)

    # Ending

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
        self.history, self.token_ids, self._turns = [], [], []
        self._last = self._kept = None

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

    # For Pipeline and session_file

    def begin(self, prompt: Prompt) -> None:
        """Starts a turn. Raises RuntimeError when closed or busy."""
        self._take_turn()
        self.prompt, self.response = prompt, None

    def encode(self, text: str, add_bos: bool) -> list[int]:
        """The tokens of a conversation's text: those it was read and written in so far, as far as
        the text goes on from them, and new ones for the rest."""
        self._prompt_text = text
        tokenizer, said = self.pipeline.tokenizer, self.said()
        if said is not None and text.startswith(said):
            rest = text[len(said) :]
            ids = self.token_ids + tokenizer.encode(rest, add_bos=False)
            so_far = tokenizer.decode(self.token_ids, skip_special_tokens=False)
            if tokenizer.decode(ids, skip_special_tokens=False) == so_far + rest:
                return ids
        return tokenizer.encode(text, add_bos=add_bos)

    def said(self) -> str | None:
        """The text that token_ids stand for; None when that is not known."""
        turns = self.known_turns()
        return turns[-1].rendered if turns else None

    def text_so_far(self) -> str:
        """What a prompt without the chat template goes on from."""
        said = self.said()
        return (
            self.pipeline.tokenizer.decode(self.token_ids, skip_special_tokens=False)
            if said is None
            else said
        )

    def kept(self) -> _C.Snapshot | None:
        """The KV of the last turn. Waits for that to end: a step, where a stop word ended it."""
        if self._last is not None:
            while not self._last.done:
                self._last.read()
            self._kept = self._last.snapshot or self._kept
            self._last = None
        return self._kept

    def running(self, answer: Answer | Failed) -> None:
        """Notes what `abort` has to cancel."""
        self._answer = answer

    def end(self, answer: Answer | Failed | None) -> None:
        """Ends a turn and keeps it, unless it failed."""
        try:
            if answer is None:
                return
            self.response = answer.response
            if self.response.finish_reason is None:
                self.response.finish_reason = "abort"
            if isinstance(answer, Answer) and self.response.finish_reason != "error":
                self._keep(answer, answer.response)
        finally:
            self._answer = None
            self._turn.release()

    def _keep(self, answer: Answer, response: Response) -> None:
        assert self.prompt is not None
        asked = answer.input_ids
        ids, turns = asked + response.token_ids, self.known_turns()
        tokenizer, n_said = self.pipeline.tokenizer, len(self.token_ids)
        went_on = len(turns) == len(self.history) and asked[:n_said] == self.token_ids
        written = tokenizer.decode(response.token_ids, answer.skip_special_tokens)
        rendered = self._prompt_text + response.text if written == response.text else None
        turn = Turn(self.prompt, response.text, len(asked), len(ids), rendered)
        self._turns = [*turns, turn] if went_on else []
        self.history.append((self.prompt, response.text))
        self.token_ids, self._last = ids, answer.request

    def restore(
        self,
        history: list[tuple[Prompt, str]],
        turns: list[Turn],
        token_ids: list[int],
        kept: _C.Snapshot,
    ) -> None:
        """Fills an empty session with what a file held."""
        self.history, self._turns = history, turns
        self.token_ids, self._kept = token_ids, kept

    def known_turns(self) -> list[Turn]:
        """The turns with their places in token_ids; [] when history or tokens were changed."""
        turns = self._turns
        same = [(t.prompt, t.text) for t in turns] == self.history
        return turns if same and turns and turns[-1].end == len(self.token_ids) else []

    def _set_turns(self, turns: list[Turn]) -> None:
        self._turns = turns
        self.history = [(t.prompt, t.text) for t in turns]
        self.token_ids = self.token_ids[: turns[-1].end if turns else 0]

    def _take_turn(self) -> None:
        if self._closed:
            raise RuntimeError(f"session {self.session_id} is closed")
        if not self._turn.acquire(blocking=False):
            raise RuntimeError(f"session {self.session_id} is still answering")

    @contextlib.contextmanager
    def _idle(self) -> Iterator[None]:
        self._take_turn()
        try:
            yield
        finally:
            self._turn.release()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        turns = "".join(f"\nuser: {p}\nassistant: {t}" for p, t in self.history)
        return f"<Session {self.session_id}, {len(self.history)} turns>{turns}"
