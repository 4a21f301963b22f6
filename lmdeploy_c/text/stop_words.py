"""What ends an answer: stop words in its text, found wherever tokens begin and end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ..messages import GenerationConfig


class Piece(NamedTuple):
    """Text and tokens that may be shown. `stopped`: a stop word ended the answer."""

    text: str
    token_ids: list[int]
    logprobs: list[dict[int, float]]
    stopped: bool


class StopMatcher:
    """Finds stop words in text that comes in pieces. Text that could be the beginning of a stop
    word is held back until it is clear whether it is one.

    words: strings. ids: special tokens -> their text, which ends the answer as a word does.
    include: keep the stop word in the text. min_tokens: stop words among the first min_tokens
    tokens do not end the answer.
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
        #: Tokens held back: (id, logprobs, where its text begins in _text).
        self._tokens: list[tuple[int, dict[int, float] | None, int]] = []
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
        """The leftmost stop word that ends after `searched_to`, and the longest of several."""
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
        """Gives out the first n_chars and the tokens that begin in them. A token without text (yet)
        waits for the next text, which may begin a stop word; without stop words none waits."""
        n = len(self._tokens)
        if not ended and (stopped or self.words):
            n = sum(1 for _, _, start in self._tokens if start < n_chars)
        out, kept = self._tokens[:n], self._tokens[n:]
        text, self._text = self._text[:n_chars], self._text[n_chars:]
        self._tokens = [(t, p, start - n_chars) for t, p, start in kept]
        return Piece(text, [t for t, _, _ in out], [p for _, p, _ in out if p], stopped)


def stop_rules(
    config: GenerationConfig,
    template_words: Sequence[str],
    special_ids: dict[str, int],
    end_ids: Sequence[int],
) -> tuple[StopMatcher, list[int]]:
    """The matcher of stop words in the text, and the token ids at which the engine stops.

    template_words: the chat template's stop words. end_ids: the model's end tokens. Both hold
    unless config ignores them. special_ids: text -> id of special tokens, which are matched as
    tokens, since their text may be left out of the answer.
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
