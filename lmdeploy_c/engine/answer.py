"""One running request, seen as text: tokens of the engine become pieces of a Response.

Text that could be the beginning of a stop word is held back until it is clear that it is none.
Nothing here is shared between threads: an Answer belongs to the call that made it.
"""

from __future__ import annotations

import select
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from ..messages import GenerationConfig, Response, ResponseType

if TYPE_CHECKING:
    from .._C import Output, Request

#: Requests of one stream that are in the engine at once; each takes a file descriptor.
STREAM_WINDOW = 256


class Detokenizer(Protocol):
    """Turns tokens into text as they come; never half a character."""

    def add(self, token_ids: Sequence[int]) -> str: ...
    def finish(self) -> str: ...


class Piece(NamedTuple):
    """Text and tokens that may be shown. `stopped`: a stop word ended the answer."""

    text: str
    token_ids: list[int]
    logprobs: list[dict[int, float]]
    stopped: bool


class StopMatcher:
    """Finds stop words in text that comes in pieces, wherever tokens begin and end.

    words: strings. ids: special tokens -> their text, which ends the answer as a word does.
    include: keep the stop word in the text. min_tokens: words before that many tokens do not count.
    """

    def __init__(
        self,
        words: Iterable[str] = (),
        ids: dict[int, str] | None = None,
        *,
        include: bool = False,
        min_tokens: int = 0,
    ) -> None:
        self.words = [w for w in words if w]
        self.ids = ids or {}
        self.include = include
        self.min_tokens = min_tokens
        self._text = ""  # held back
        self._tokens: list[tuple[int, dict[int, float] | None, int]] = []  # with start in _text
        self._n_seen = 0

    def add(self, token_id: int, logprobs: dict[int, float] | None, text: str) -> Piece:
        """Takes the next token and the text that became complete with it."""
        self._n_seen += 1
        searched_to = len(self._text)
        counts = self._n_seen > self.min_tokens
        if counts and token_id in self.ids:
            self._text += text  # text that earlier tokens had left unfinished, and no more
            if self.include:
                self._tokens.append((token_id, logprobs, searched_to))
                if not text:
                    self._text += self.ids[token_id]
            return self._release(len(self._text), stopped=True, ended=True)
        self._tokens.append((token_id, logprobs, searched_to))
        self._text += text
        if counts and text:
            found = self._find(searched_to)
            if found is not None:
                start, word = found
                return self._release(start + (len(word) if self.include else 0), stopped=True)
        return self._release(len(self._text) - self._n_held())

    def finish(self, text: str) -> Piece:
        """Takes the text that was left at the end, and releases everything."""
        searched_to = len(self._text)
        self._text += text
        found = self._find(searched_to) if text and self._n_seen > self.min_tokens else None
        if found is None:
            return self._release(len(self._text), ended=True)
        return self._release(found[0] + (len(found[1]) if self.include else 0), stopped=True)

    def _find(self, searched_to: int) -> tuple[int, str] | None:
        """The leftmost stop word that ends behind `searched_to`, the longest of those there."""
        hits = []
        for word in self.words:
            at = self._text.find(word, max(0, searched_to - len(word) + 1))
            if at >= 0:
                hits.append((at, -len(word), word))
        return (min(hits)[0], min(hits)[2]) if hits else None

    def _n_held(self) -> int:
        """Length of the longest end of the text that begins a stop word."""
        longest = max((len(w) for w in self.words), default=0) - 1
        for n in range(min(longest, len(self._text)), 0, -1):
            end = self._text[-n:]
            if any(w.startswith(end) for w in self.words):
                return n
        return 0

    def _release(self, n_chars: int, *, stopped: bool = False, ended: bool = False) -> Piece:
        """Gives out the first n_chars and the tokens that began in them. A token without text (yet)
        waits for the next text, which may begin a stop word; without stop words none waits."""
        n = len(self._tokens)
        if not ended and (stopped or self.words):
            n = sum(1 for _, _, start in self._tokens if start < n_chars)
        out, kept = self._tokens[:n], self._tokens[n:]
        text, self._text = self._text[:n_chars], self._text[n_chars:]
        self._tokens = [(t, p, start - n_chars) for t, p, start in kept]
        return Piece(text, [t for t, _, _ in out], [p for _, p, _ in out if p], stopped)


class Answer:
    """A request in the engine and what of it was read: `read` gives Response deltas.

    index: position of the prompt. input_ids: the prompt's tokens. `response` is what came so far.
    """

    def __init__(
        self,
        request: Request,
        detokenizer: Detokenizer,
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


def stop_rules(
    config: GenerationConfig,
    template_words: Sequence[str],
    special_ids: dict[str, int],
    end_ids: Sequence[int],
) -> tuple[StopMatcher, list[int]]:
    """What the matcher looks for in the text, and the token ids that the engine stops at.

    template_words: the chat template's stop words; like end_ids, the model's end tokens, they hold
    unless config ignores them. special_ids: text -> id of special tokens, which are matched as
    tokens, since their text may be left out.
    """
    words: list[str] = list(config.stop_words or ())
    engine_ids = set(config.stop_token_ids or ())
    if not config.ignore_eos:
        engine_ids.update(end_ids)
        engine_ids.update(special_ids[w] for w in template_words if w in special_ids)
        words += [w for w in template_words if w not in special_ids]
    asked = {special_ids[w]: w for w in words if w in special_ids}
    if not config.include_stop_str_in_output:
        engine_ids.update(asked)
        asked = {}
    matcher = StopMatcher(
        [w for w in words if w not in special_ids],
        asked,
        include=config.include_stop_str_in_output,
        min_tokens=config.min_new_tokens or 0,
    )
    return matcher, sorted(engine_ids - set(asked))


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
