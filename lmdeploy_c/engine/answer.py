"""One running request, seen as text: tokens of the engine become pieces of a Response.

Nothing here is shared between threads: an Answer belongs to the call that made it.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING

from ..messages import ErrorCode, Interrupted, Response
from ..text.detokenizer import IncrementalDetokenizer
from ..text.stop_words import Piece, StopMatcher

if TYPE_CHECKING:
    from .._C import Output, Request

#: Says which requests have failed. A child of "lmdeploy_c", so that it can be silenced by itself.
logger = logging.getLogger("lmdeploy_c.requests")

#: Requests of one stream that are in the engine at once: the first answers come while prompts
#: further on are still to be tokenised.
STREAM_WINDOW = 256


class Answer:
    """A request in the engine, and what was read of its output: `read` gives Response deltas.

    index: position of the prompt. choice: which of its answers this is. input_ids, prompt_text: the
    prompt's tokens and text. error_code, error_message: what the Response of an error says instead
    of what follows from the core's. on_close: called once with the answer by `close`. `response`
    is what came so far.
    """

    def __init__(
        self,
        request: Request,
        detokenizer: IncrementalDetokenizer,
        matcher: StopMatcher,
        *,
        index: int = 0,
        choice: int = 0,
        input_ids: Sequence[int] = (),
        prompt_text: str = "",
        error_code: ErrorCode | None = None,
        error_message: str | None = None,
        skip_special_tokens: bool = True,
    ) -> None:
        self.request = request
        self.input_ids = list(input_ids)
        self.prompt_text = prompt_text
        self.response = Response(
            "", 0, len(self.input_ids), index=index, random_seed=request.random_seed, choice=choice
        )
        self.skip_special_tokens = skip_special_tokens
        #: As Response.logprobs, of the prompt's second token on, where they were asked for and have
        #: come.
        self.prompt_logprobs: list[dict[int, float]] | None = None
        self.on_close: Callable[[Answer], None] | None = None
        self._detokenizer = detokenizer
        self._matcher = matcher
        self.error_code, self.error_message = error_code, error_message
        self._pid = os.getpid()

    @property
    def done(self) -> bool:
        return self.response.finish_reason is not None

    @property
    def stop_word(self) -> str | None:
        """The stop word in its text that has ended the answer."""
        return self._matcher.found

    def read(self, timeout: float | None = None) -> Response | None:
        """Waits for more, at most timeout seconds. None on a timeout, or when nothing may be
        shown yet. The last delta has a finish_reason; do not read after it."""
        if self.request.done:  # an interrupt fell between the engine's last output and its use
            return self._show(self._matcher.finish(""), "abort")
        output = self.request.read(timeout)
        return None if output is None else self._next(output)

    def read_all(self) -> Response:
        """Waits for the end and gives the whole answer."""
        while not self.done:
            self.read()
        return self.response

    async def deltas(self) -> AsyncGenerator[Response, None]:
        """Reads to the end in an event loop. Leaving the iteration does not cancel the request:
        `close` does."""
        from .event_loop import output_event  # asyncio takes 40 ms; who has a loop has it

        with output_event(self.request) as ready:
            while not self.done:
                await ready.wait()
                ready.clear()
                delta = self.read(timeout=0)
                if delta is not None:
                    for piece in delta.pieces():
                        yield piece

    def cancel(self) -> None:
        """Ends the request; the last delta has finish_reason "abort". Does nothing in a forked
        child, for the request is its parent's."""
        if os.getpid() == self._pid:
            self.request.cancel()

    def end(self) -> Response:
        """`close`, and the answer as far as it came, with finish_reason "abort" if it still ran."""
        self.close()
        if not self.done:
            self.response.finish_reason = "abort"
        return self.response

    def close(self) -> None:
        """The caller reads no further: cancels the request if it still runs. Idempotent."""
        if not self.done:
            self.cancel()
        on_close, self.on_close = self.on_close, None
        if on_close is not None:
            on_close(self)

    def _next(self, output: Output) -> Response | None:
        """The delta of an output; None where all of it is held back."""
        self.prompt_logprobs = output.prompt_logprobs or self.prompt_logprobs
        piece = Piece("", [], [], False)
        text, tokens, logprobs = [], [], []
        for i, token_id in enumerate(output.token_ids):
            entry = output.logprobs[i] if output.logprobs else None
            piece = self._matcher.add(token_id, entry, self._detokenizer.add([token_id]))
            text.append(piece.text)
            tokens += piece.token_ids
            logprobs += piece.logprobs
            if piece.stopped:
                break
        reason = output.finish_reason
        if not piece.stopped and reason is not None:
            piece = self._matcher.finish(self._detokenizer.finish())
            text.append(piece.text)
            tokens += piece.token_ids
            logprobs += piece.logprobs
        if piece.stopped:
            self.request.cancel()
            reason = "stop"
        delta = self._show(Piece("".join(text), tokens, logprobs, piece.stopped), reason, output)
        nothing = not (delta.text or delta.token_ids or reason) and delta.logits is None
        return None if nothing else delta

    def _show(self, piece: Piece, reason: object, output: Output | None = None) -> Response:
        so_far = self.response
        delta = Response(
            piece.text,
            so_far.generate_token_len + len(piece.token_ids),
            so_far.input_token_len,
            finish_reason=reason,  # type: ignore[arg-type]
            token_ids=piece.token_ids,
            logprobs=piece.logprobs or None,
            index=so_far.index,
            cached_tokens=output.cached_tokens if output else so_far.cached_tokens,
            random_seed=so_far.random_seed,
            choice=so_far.choice,
        )
        if output is not None:
            delta.logits, delta.ppl = output.logits, output.ppl
            delta.error_message = output.error_message
        if output is not None and reason == "error":
            delta.error_code = self._code_of(output).value
            delta.error_message = self.error_message or output.error_message
            self._warn(delta)
        so_far.extend(delta)
        return delta

    def _warn(self, failed: Response) -> None:
        if failed.choice and self.error_message is not None:
            return  # a prompt that could not be asked: its first choice has said so
        logger.warning("request %d failed: %s", failed.index, failed.error_message)

    def _code_of(self, output: Output) -> ErrorCode:
        if output.error_code == "LMD_BUSY":
            return ErrorCode.ENGINE_UNAVAILABLE
        if self.error_code is not None:
            return self.error_code
        if output.error_code == "LMD_INVALID":
            return ErrorCode.INVALID_REQUEST
        return ErrorCode.INTERNAL_ERROR


def gather(
    start: Callable[[int], Answer], n: int, advance: Callable[[], object] = lambda: None
) -> tuple[list[Response], bool]:
    """n answers, each as a whole, in order, and whether Ctrl-C ended them early: an answer that was
    begun then has what it has, with finish_reason "abort", the others are empty.

    advance: called once for each. A second Ctrl-C raises KeyboardInterrupt.
    """
    answers: list[Answer] = []
    interrupted = False
    try:
        try:
            for i in range(n):
                answers.append(start(i))
            for answer in answers:
                answer.read_all()
                advance()
        except KeyboardInterrupt:
            interrupted = True
            for answer in answers:
                answer.cancel()
        responses = [answer.read_all() for answer in answers]
    finally:
        for answer in answers:
            answer.close()
    _warn_of_failed(sum(r.finish_reason == "error" for r in responses), n)
    for i in range(len(responses), n):
        responses.append(Response("", 0, 0, finish_reason="abort", index=i))
    return responses, interrupted


def interleave(start: Callable[[int], Answer], n: int) -> Generator[Response, None, None]:
    """Pieces of n answers as they come. Ending the iteration cancels what is still running; so does
    Ctrl-C, which raises `Interrupted` with these answers."""
    from .._C import Poller

    poller, waiting = Poller(), deque(range(n))
    running: dict[int, Answer] = {}  # by index
    n_failed = 0
    try:
        while waiting or running:
            while waiting and len(running) < STREAM_WINDOW:
                i = waiting.popleft()
                running[i] = start(i)
                poller.add(running[i].request, i)
            for i in poller.wait():
                answer = running[i]
                delta = answer.read(timeout=0)
                if answer.done:
                    poller.remove(answer.request)
                    del running[i]
                    answer.close()
                    n_failed += answer.response.finish_reason == "error"
                if delta is not None:
                    yield from delta.pieces()
        _warn_of_failed(n_failed, n)
    except KeyboardInterrupt:
        raise Interrupted([answer.end() for answer in running.values()]) from None
    finally:
        for answer in running.values():
            answer.close()


def _warn_of_failed(n_failed: int, n: int) -> None:
    """The last line about a batch; each failed request has had one of its own."""
    if n > 1 and n_failed:
        logger.warning(
            "%d of %d requests failed: finish_reason is 'error', and error_message says why",
            n_failed,
            n,
        )


def whole(deltas: Iterator[Response]) -> Generator[Response, None, None]:
    """Each answer as one piece, when it is complete."""
    parts: dict[tuple[int, int], Response] = {}
    for delta in deltas:
        place = delta.index, delta.choice
        part = parts[place].extend(delta) if place in parts else delta
        parts[place] = part
        if part.finish_reason is not None:
            yield parts.pop(place)
