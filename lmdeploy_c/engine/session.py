"""A conversation as a value: what was said, its tokens, and their KV in the engine.

The engine computes no position twice: a turn begins with the tokens of the turns before, whose KV
it finds. Forking and rewinding cost nothing; KV that was evicted meanwhile is computed again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import textwrap
import threading
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from ..messages import GenerationConfig, Interrupted, Response, check_flag, wrong_type
from ..output_cache import NotKept
from ..text.chat_template import template_kwargs
from ..text.prompts import Message, Prompt, as_turn, parse_prompts
from .answer import Answer, interleave
from .choices import n_choices
from .text_engine import History, TextEngine, check_gen_configs

if TYPE_CHECKING:
    from .. import _C

_ids = itertools.count(1)
#: What the repr of a Session shows: its last turns, and so many characters of each text.
_SHOWN_TURNS, _SHOWN_CHARS = 3, 80


@dataclass(frozen=True)
class Turn:
    """One prompt and its answer, and where they end in the conversation's tokens."""

    prompt: Prompt
    text: str  # the answer
    prompt_end: int
    end: int
    #: The text of all tokens up to `end`; None where text and tokens disagree (an answer that was
    #: cut inside a token), so that the next turn is tokenised from its text.
    rendered: str | None


def check_one_answer(config: GenerationConfig | None) -> None:
    """Raises ValueError for a configuration that asks for several."""
    if n_choices(config) > 1:
        raise ValueError(
            f"n={n_choices(config)}: a turn of a conversation has one answer; `fork` the session, "
            "or ask for several with infer, stream_infer or generate"
        )


class Session(NotKept):
    """One conversation; `Pipeline.session()` makes one.

    session_id: unique in the process. history: (prompt, answer) of the turns so far. prompt,
    response: the last turn's. gen_config: used where a turn brings none. token_ids: tokens of the
    whole conversation, as the model read and wrote them. engine: the `TextEngine` that answers; a
    pipeline given in its place has one.
    One turn at a time; `abort` may be called from any thread.
    """

    def __init__(
        self, engine: TextEngine | Any, gen_config: GenerationConfig | None = None
    ) -> None:
        self.session_id = next(_ids)
        (self.gen_config,) = check_gen_configs(gen_config, 1)
        self.prompt: Prompt | None = None
        self.response: Response | None = None
        self.history: list[tuple[Prompt, str]] = []
        self.token_ids: list[int] = []
        self.engine: TextEngine = getattr(engine, "engine", engine)
        if not isinstance(self.engine, TextEngine):
            raise wrong_type("engine", "a TextEngine or a Pipeline", engine)
        self._turns: list[Turn] = []
        self._answer: Answer | None = None  # what `abort` cancels
        self._last: _C.Request | None = None  # the last turn's, until its snapshot is known
        self._snapshot: _C.Snapshot | None = None
        self._busy = threading.Lock()
        self._closed = False

    # ---- turns ----

    @overload
    def __call__(
        self,
        prompt: Prompt,
        gen_config: GenerationConfig | None = None,
        stream_response: Literal[True] = True,
        do_preprocess: bool = True,
        **kwargs: Any,
    ) -> Generator[Response, None, None]: ...
    @overload
    def __call__(
        self,
        prompt: Prompt,
        gen_config: GenerationConfig | None = None,
        *,
        stream_response: Literal[False],
        do_preprocess: bool = True,
        **kwargs: Any,
    ) -> Response: ...
    @overload
    def __call__(
        self,
        prompt: Prompt,
        gen_config: GenerationConfig | None = None,
        stream_response: bool = True,
        do_preprocess: bool = True,
        **kwargs: Any,
    ) -> Response | Generator[Response, None, None]: ...
    def __call__(
        self,
        prompt: Prompt,
        gen_config: GenerationConfig | None = None,
        stream_response: bool = True,
        do_preprocess: bool = True,
        **kwargs: Any,
    ) -> Response | Generator[Response, None, None]:
        """The next turn: an iterator of Response deltas, or with stream_response=False the whole
        Response. gen_config: holds for later turns too. kwargs: for the chat template.

        A turn that fails is not kept in the history; one that is cut off is kept as far as it came;
        Ctrl-C cuts it off and raises `Interrupted`. Raises TypeError for what is no prompt of one
        turn, RuntimeError when closed or while another turn runs.
        """
        items, single = parse_prompts(prompt)
        if not single:
            raise TypeError("a turn takes one prompt: a text, or the messages of one turn")
        check_flag("stream_response", stream_response)
        check_flag("do_preprocess", do_preprocess)
        (config,) = check_gen_configs(self.gen_config if gen_config is None else gen_config, 1)
        check_one_answer(config)
        self.gen_config = config
        options = template_kwargs(kwargs)
        _ = self.engine.core  # a closed engine raises here, not with the first delta

        def answer_to(index: int) -> Answer:
            return self.start(
                items[index], config, do_preprocess=do_preprocess, template_kwargs=options
            )

        if stream_response:
            return interleave(answer_to, 1)
        answer = answer_to(0)
        try:
            return answer.read_all()
        except KeyboardInterrupt:
            raise Interrupted([answer.end()]) from None
        finally:
            answer.close()

    def start(
        self,
        prompt: Prompt,
        gen_config: GenerationConfig | None = None,
        *,
        do_preprocess: bool = True,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> Answer:
        """Starts the next turn, which the answer's `close` ends. Arguments as for
        `TextEngine.ask`. Raises ValueError for a gen_config with n > 1, RuntimeError when closed or
        while another turn runs."""
        gen_config = gen_config or self.gen_config
        check_one_answer(gen_config)
        self._begin()
        try:
            self.prompt, self.response = prompt, None
            answer = self.engine.ask(
                prompt,
                gen_config,
                do_preprocess=do_preprocess,
                template_kwargs=template_kwargs,
                history=self._past(),
                keep_snapshot=True,
            )
            answer.on_close = self._end
            self._answer = answer
            return answer
        except BaseException:
            self._busy.release()
            raise

    def messages(self, prompt: Prompt) -> list[Message]:
        """The history and the next prompt as one conversation."""
        return self._said() + as_turn(prompt)

    def text_so_far(self) -> str:
        """The text of token_ids: what a prompt without the chat template goes on from."""
        return self.engine.text_of(self._past())

    # ---- a value: forked, rewound, saved ----

    def fork(self) -> Session:
        """A session of its own that has said the same so far. Costs no time and no KV: the two
        share what was computed, and each writes its later turns for itself. RuntimeError while a
        turn runs."""
        with self._idle():
            twin = Session(self.engine, self.gen_config)
            twin.prompt, twin.response = self.prompt, self.response
            twin.history, twin.token_ids = list(self.history), list(self.token_ids)
            twin._turns, twin._snapshot = list(self._turns), self._last_snapshot()
            return twin

    def rewind(self, n_turns: int = 1, *, tokens: int | None = None) -> None:
        """Takes back the last n_turns turns, or with `tokens` that many tokens from the end.

        Of an answer that is cut, the tokens before the cut stay; a cut in a prompt takes its whole
        turn. What is left need not be computed again. Raises ValueError when there is less than
        that, RuntimeError while a turn runs.
        """
        for name, value in (("n_turns", n_turns), ("tokens", 0 if tokens is None else tokens)):
            if isinstance(value, bool) or not isinstance(value, Integral):
                raise wrong_type(name, "an integer", value)
        with self._idle():
            turns = self._known_turns()
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
        """The turns that their first n_tokens tokens hold, the last one cut there."""
        left = [turn for turn in turns if turn.end <= n_tokens]
        if len(left) == len(turns) or turns[len(left)].prompt_end >= n_tokens:
            return left
        turn = turns[len(left)]
        text = self.engine.tokenizer.decode(self.token_ids[:n_tokens], turn.prompt_end)
        asked = turn.rendered and turn.rendered.removesuffix(turn.text)
        rendered = asked + text if asked and turn.text.startswith(text) else None
        return [*left, dataclasses.replace(turn, text=text, end=n_tokens, rendered=rendered)]

    def save(self, path: str | Path, kv: bool = True) -> None:
        """Writes the conversation to a file, which `Pipeline.load_session` reads, also in another
        process. kv: with the KV that the engine still has, so that it need not be computed again
        there.

        The file appears whole or not at all. gen_config is not saved. Raises OSError,
        RuntimeError while a turn runs, TypeError for prompts that JSON does not know.
        """
        from . import session_file  # brings NumPy

        with self._idle():
            snapshot = self._last_snapshot()
            conversation = session_file.Conversation(
                history=self.history,
                turns=[(t.prompt_end, t.end, t.rendered) for t in self._known_turns()],
                token_ids=self.token_ids,
                kv=session_file.export_kv(snapshot) if kv and snapshot else None,
            )
            session_file.write(conversation, Path(path), self.engine.session_tags())

    @classmethod
    def load(cls, engine: TextEngine, path: str | Path) -> Session:
        """A conversation that `save` wrote: `Pipeline.load_session` describes it."""
        from . import session_file

        saved = session_file.read(Path(path), engine.session_tags(), engine.vocab_size)
        session = cls(engine)
        session.history, session.token_ids = saved.history, saved.token_ids
        session._turns = [
            Turn(prompt, text, *place)
            for (prompt, text), place in zip(saved.history, saved.turns, strict=False)
        ]
        if saved.kv is not None:
            tokens, kv = saved.kv.token_ids, saved.kv
            session._snapshot = engine.import_snapshot(tokens, kv.layout, len(tokens), kv.blocks)
        return session

    # ---- ending ----

    def watch(self, answer: Answer) -> None:
        """Makes `abort` end an answer that is no turn of this session."""
        self._answer = answer

    def abort(self) -> None:
        """Ends the running answer, if there is one; it keeps what it has. Any thread."""
        answer = self._answer
        if answer is not None:
            answer.cancel()

    async def async_abort(self) -> None:
        """`abort`, for callers that await it."""
        self.abort()

    def reset(self) -> None:
        """Forgets the conversation, a running turn too; the session goes on under its id."""
        self.abort()
        self.prompt = self.response = None
        self.history, self.token_ids, self._turns = [], [], []
        self._last = self._snapshot = None

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

    # ---- between the turns ----

    def _begin(self) -> None:
        if self._closed:
            raise RuntimeError(f"session {self.session_id} is closed")
        if not self._busy.acquire(blocking=False):
            raise RuntimeError(
                f"session {self.session_id} is still answering: read its stream to the end, "
                "`close` the stream, or `abort` the session"
            )

    @contextlib.contextmanager
    def _idle(self) -> Iterator[None]:
        """A time in which no turn begins."""
        self._begin()
        try:
            yield
        finally:
            self._busy.release()

    def _said(self) -> list[Message]:
        said: list[Message] = []
        for asked, text in self.history:
            said += [*as_turn(asked), {"role": "assistant", "content": text}]
        return said

    def _past(self) -> History:
        """What the next turn goes on from."""
        turns = self._known_turns()
        text = turns[-1].rendered if turns else None
        return History(self._said(), self.token_ids, text, self._last_snapshot())

    def _last_snapshot(self) -> _C.Snapshot | None:
        """The KV snapshot of the last turn. If a stop word ended the answer, its request is still
        being cancelled: waits for that, at most one step of the engine."""
        if self._last is not None:
            while not self._last.done:
                self._last.read()
            self._snapshot = self._last.snapshot or self._snapshot
            self._last = None
        return self._snapshot

    def _end(self, answer: Answer) -> None:
        """Ends a turn and keeps it, unless it failed."""
        try:
            response = answer.response
            if response.finish_reason is None:
                response.finish_reason = "abort"
            if self.prompt is None:  # `reset` was called meanwhile
                return
            self.response = response
            if response.finish_reason != "error":
                self._keep(self.prompt, answer)
        finally:
            self._answer = None
            self._busy.release()

    def _keep(self, prompt: Prompt, answer: Answer) -> None:
        response, asked = answer.response, answer.input_ids
        ids, turns = asked + response.token_ids, self._known_turns()
        tokenizer, n_said = self.engine.tokenizer, len(self.token_ids)
        went_on = len(turns) == len(self.history) and asked[:n_said] == self.token_ids
        written = tokenizer.decode(ids, len(asked), answer.skip_special_tokens)
        rendered = answer.prompt_text + response.text if written == response.text else None
        turn = Turn(prompt, response.text, len(asked), len(ids), rendered)
        self._turns = [*turns, turn] if went_on else []
        self.history.append((prompt, response.text))
        self.token_ids, self._last = ids, answer.request

    def _known_turns(self) -> list[Turn]:
        """The turns with their places in token_ids; [] when history or tokens were changed."""
        turns = self._turns
        same = [(t.prompt, t.text) for t in turns] == self.history
        return turns if same and turns and turns[-1].end == len(self.token_ids) else []

    def _set_turns(self, turns: list[Turn]) -> None:
        self._turns = turns
        self.history = [(t.prompt, t.text) for t in turns]
        self.token_ids = self.token_ids[: turns[-1].end if turns else 0]

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        lines = [
            f"<Session {self.session_id}: {len(self.history)} turns, {len(self.token_ids)} tokens"
        ]
        shown = self.history[-_SHOWN_TURNS:]
        if len(shown) < len(self.history):
            lines.append("  ...")
        for prompt, answer in shown:
            last = prompt[-1] if isinstance(prompt, list) and prompt else prompt
            said = last.get("content") if isinstance(last, Mapping) else prompt
            lines += [f"  user: {_line(said)}", f"  assistant: {_line(answer)}"]
        return "\n".join(lines) + ">"


def _line(text: object) -> str:
    """A text in one line of a terminal."""
    return textwrap.shorten(str(text), _SHOWN_CHARS, placeholder=" ...")
