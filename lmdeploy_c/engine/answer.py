"""One running request, seen as text: tokens of the engine become pieces of a Response.

Text that could be the beginning of a stop word is held back until it is clear that it is none.
Nothing here is shared between threads: an Answer belongs to the call that made it.
"""

from __future__ import annotations

import select
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from ..messages import Response, ResponseType
from ..text.detokenizer import IncrementalDetokenizer
from ..text.stop_words import Piece, StopMatcher

if TYPE_CHECKING:
    from .._C import Output, Request

#: Requests of one stream that are in the engine at once; each takes a file descriptor.
STREAM_WINDOW = 256


class Answer:
    """A request in the engine and what of it was read: `read` gives Response deltas.

    index: position of the prompt. input_ids: the prompt's tokens. `response` is what came so far.
    """

    def __init__(
        self,
        request: Request,
        detokenizer: IncrementalDetokenizer,
        matcher: StopMatcher,
        *,
        index: int = 0,
        input_ids: Sequence[int] = (),
        too_long: bool = False,
        skip_special_tokens: bool = True,
    ) -> None:
        self.request = request
        self.input_ids = list(input_ids)
        self.response = Response(
            "", 0, len(self.input_ids), index=index, random_seed=request.random_seed
        )
        self._detokenizer = detokenizer
        self._matcher = matcher
        self._too_long = too_long
        self.skip_special_tokens = skip_special_tokens

    @property
    def done(self) -> bool:
        return self.response.finish_reason is not None

    def read(self, timeout: float | None = None) -> Response | None:
        """Waits for more, at most timeout seconds. None on a timeout, or when nothing may be
        shown yet. The last delta has a finish_reason; do not read after it."""
        if self.request.done:  # an interrupt fell between the engine's last output and its use
            return self._show(self._matcher.finish(""), "abort")
        output = self.request.read(timeout)
        return None if output is None else self._take(output)

    def read_all(self) -> Response:
        """Waits for the end and gives the whole answer."""
        while not self.done:
            self.read()
        return self.response

    def cancel(self) -> None:
        """Ends the request; the last delta has finish_reason "abort"."""
        self.request.cancel()

    def _take(self, output: Output) -> Response | None:
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
        )
        if output is not None:
            delta.logits, delta.ppl = output.logits, output.ppl
            delta.error_message = output.error_message
        if reason == "error":
            delta.error_code = self._error_code(output)
        so_far.extend(delta)
        return delta

    def _error_code(self, output: Output | None) -> ResponseType:
        code = output.error_code if output else None
        if code == "LMD_BUSY":
            return ResponseType.QUEUE_FULL
        if self._too_long:
            return ResponseType.INPUT_LENGTH_ERROR
        if code == "LMD_INVALID":
            return ResponseType.BAD_REQUEST
        return ResponseType.INTERNAL_ENGINE_ERROR


class Failed:
    """Stands for an Answer where a prompt could not be asked: its only delta is an error."""

    done = True

    def __init__(
        self, message: str, index: int = 0, code: ResponseType = ResponseType.BAD_REQUEST
    ) -> None:
        self.input_ids: list[int] = []
        self.response = Response(
            "",
            0,
            0,
            finish_reason="error",
            index=index,
            error_code=code,
            error_message=message,
        )

    def read_all(self) -> Response:
        return self.response

    def cancel(self) -> None:
        pass


def interleave(start: Callable[[int], Answer | Failed], n: int) -> Iterator[Response]:
    """Pieces of n answers as they come. Ending the iteration cancels what is still running."""
    poll, waiting = select.poll(), deque(range(n))
    running: dict[int, Answer] = {}  # by file descriptor
    try:
        while waiting or running:
            while waiting and len(running) < STREAM_WINDOW:
                answer = start(waiting.popleft())
                if isinstance(answer, Failed):
                    yield answer.response
                    continue
                fd = answer.request.fileno()
                running[fd] = answer
                poll.register(fd, select.POLLIN)
            for fd, _ in poll.poll() if running else ():
                delta = running[fd].read(timeout=0)
                if running[fd].done:
                    poll.unregister(fd)
                    del running[fd]
                if delta is not None:
                    yield delta
    finally:
        for answer in running.values():
            answer.cancel()


def whole(deltas: Iterator[Response]) -> Iterator[Response]:
    """Each answer as one piece, when it is complete."""
    parts: dict[int, Response] = {}
    for delta in deltas:
        part = parts[delta.index].extend(delta) if delta.index in parts else delta
        parts[delta.index] = part
        if part.finish_reason is not None:
            yield parts.pop(delta.index)


def read_ppl(request: Request) -> float:
    """Waits for a request's perplexity. ValueError says why there is none."""
    while True:
        output = request.read()
        if output is None or output.finish_reason is None:
            continue
        if output.ppl is None:
            raise ValueError(output.error_message or "the request was aborted")
        return output.ppl
