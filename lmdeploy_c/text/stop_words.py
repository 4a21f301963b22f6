"""What ends an answer: stop words in its text, found wherever tokens begin and end."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

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

    words: strings. hidden: special tokens that the shown text leaves out -> their text. A word may
    be found in the text with them and in the text without them. include: keep the stop word in the
    text. min_tokens: stop words among the first min_tokens tokens do not end the answer.
    """

    def __init__(
        self,
        words: Iterable[str] = (),
        hidden: Mapping[int, str] | None = None,
        *,
        include: bool = False,
        min_tokens: int = 0,
    ) -> None:
        self.words = [w for w in words if w]
        self.hidden = (hidden or {}) if self.words else {}
        self.include = include
        self.min_tokens = min_tokens
        self.found: str | None = None
        self._firsts = {w[0] for w in self.words}
        self._longest = max((len(w) for w in self.words), default=0)
        self._text = ""  # held back, with the texts of hidden tokens
        self._spans: list[tuple[int, int]] = []  # these texts' places in _text
        #: Tokens held back: (id, logprobs, where its text begins in _text).
        self._tokens: list[tuple[int, dict[int, float] | None, int]] = []
        self._n_seen = 0

    def add(self, token_id: int, logprobs: dict[int, float] | None, text: str) -> Piece:
        """Takes the next token and the text that became complete with it."""
        self._n_seen += 1
        nothing_is_held = not self._tokens and not self._text
        if nothing_is_held and token_id not in self.hidden and self._begins_no_word(text):
            return Piece(text, [token_id], [logprobs] if logprobs else [], False)
        searched_to = len(self._text)
        self._tokens.append((token_id, logprobs, searched_to))
        self._text += text
        hidden = self.hidden.get(token_id)
        if hidden:
            self._spans.append((len(self._text), len(self._text) + len(hidden)))
            self._text += hidden
        return self._stop(searched_to) or self._release(self._n_free())

    def _begins_no_word(self, text: str) -> bool:
        """Whether no stop word may begin in a text, which nearly every token's text is. A token
        without text waits for the next one, if there are words."""
        return not self.words or (text != "" and self._firsts.isdisjoint(text))

    def finish(self, text: str) -> Piece:
        """Takes the text that was left at the end, and releases everything."""
        searched_to = len(self._text)
        self._text += text
        return self._stop(searched_to) or self._release(len(self._text), ended=True)

    def _stop(self, searched_to: int) -> Piece | None:
        """The last piece, if the text from there on completes a stop word that counts."""
        if self._n_seen <= self.min_tokens or len(self._text) == searched_to:
            return None
        found = self._find(searched_to)
        if found is None:
            return None
        start, word = found
        self.found = word
        text = self._shown(start)
        tokens = [t for t in self._tokens if self.include or t[2] < start]
        return _piece(text + word if self.include else text, tokens, stopped=True)

    def _views(self) -> Iterator[tuple[str, Sequence[int]]]:
        """The text with hidden tokens, then without them: (text, places of its characters in
        _text)."""
        yield self._text, range(len(self._text))
        if self._spans:
            places = [i for i in range(len(self._text)) if not self._is_hidden(i)]
            yield "".join(self._text[i] for i in places), places

    def _is_hidden(self, place: int) -> bool:
        return any(start <= place < end for start, end in self._spans)

    def _shown(self, end: int) -> str:
        """The text before `end` without hidden tokens."""
        if not self._spans:
            return self._text[:end]
        return "".join(c for i, c in enumerate(self._text[:end]) if not self._is_hidden(i))

    def _find(self, searched_to: int) -> tuple[int, str] | None:
        """The leftmost stop word that ends after `searched_to`, and the longest of several."""
        hits = []
        for text, places in self._views():
            n_searched = bisect_left(places, searched_to)
            for word in self.words:
                at = text.find(word, max(0, n_searched - len(word) + 1))
                if at >= 0:
                    hits.append((places[at], -len(word), word))
        return (min(hits)[0], min(hits)[2]) if hits else None

    def _n_free(self) -> int:
        """Length of the text in front of its longest end that begins a stop word."""
        free = len(self._text)
        for text, places in self._views():
            n = self._n_settled(text)
            if n < len(text):
                free = min(free, places[n])
        return free

    def _n_settled(self, text: str) -> int:
        """The place of the longest end of a text that begins a stop word, or the text's length."""
        for n in range(max(0, len(text) - self._longest + 1), len(text)):
            if any(w.startswith(text[n:]) for w in self.words):
                return n
        return len(text)

    def _release(self, n_chars: int, *, ended: bool = False) -> Piece:
        """Gives out the first n_chars and the tokens that begin in them. A token without text (yet)
        waits for the next text, which may begin a stop word; without stop words none waits."""
        n = len(self._tokens)
        if not ended and self.words:
            n = sum(1 for _, _, start in self._tokens if start < n_chars)
        text, tokens, kept = self._shown(n_chars), self._tokens[:n], self._tokens[n:]
        self._text = self._text[n_chars:]
        self._spans = [(max(0, s - n_chars), e - n_chars) for s, e in self._spans if e > n_chars]
        self._tokens = [(t, p, start - n_chars) for t, p, start in kept]
        return _piece(text, tokens, stopped=False)


def _piece(
    text: str, tokens: Sequence[tuple[int, dict[int, float] | None, int]], *, stopped: bool
) -> Piece:
    logprobs = [p for _, p, _ in tokens if p]
    return Piece(text, [token_id for token_id, _, _ in tokens], logprobs, stopped)


class SpecialTokens(Protocol):
    """The parts of a `Tokenizer` that stop words need."""

    @property
    def special_tokens(self) -> Mapping[int, str]: ...
    @property
    def special_ids(self) -> Mapping[str, int]: ...


def stop_rules(
    config: GenerationConfig,
    template_words: Sequence[str],
    tokenizer: SpecialTokens,
    end_ids: Sequence[int],
    vocab_size: int,
) -> tuple[StopMatcher, list[int]]:
    """The matcher of stop words in the text, and the token ids at which the engine stops.

    template_words: the chat template's stop words. end_ids: the model's end tokens. Both hold
    unless config ignores them. vocab_size: of the model. A word that is the text of a special token
    is looked for in the text too, which a model may spell in other tokens.
    """
    asked, include = list(config.stop_words or ()), config.include_stop_str_in_output
    words = [*asked, *(w for w in template_words if w and not config.ignore_eos)]
    ids = {w: tokenizer.special_ids[w] for w in words if w in tokenizer.special_ids}
    ids = {w: token_id for w, token_id in ids.items() if token_id < vocab_size}
    engine_ids = {*(config.stop_token_ids or ()), *(() if config.ignore_eos else end_ids)}
    # The engine does not show the token at which it stops: the text ends there, wherever another
    # word may have begun, and has no word to include.
    engine_ids.update(token_id for w, token_id in ids.items() if not _may_begin_earlier(w, words))
    if include:
        engine_ids -= {ids[w] for w in asked if w in ids}
    matcher = StopMatcher(
        words,
        tokenizer.special_tokens if config.skip_special_tokens else {},
        include=include,
        min_tokens=config.min_new_tokens or 0,
    )
    return matcher, sorted(engine_ids)


def _may_begin_earlier(word: str, words: Iterable[str]) -> bool:
    """Whether another word may begin before this one and reach into it."""
    return any(word[0] in other[1:] for other in words if other != word)
