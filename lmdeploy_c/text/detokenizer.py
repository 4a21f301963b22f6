"""Text of tokens as they come: never half a character, and in the end what decoding all gives."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import Protocol

from .token_bounds import byte_characters
from .tokenizer_json import steps_of
from .tokenizers_library import LibraryTokenizer


class IncrementalDetokenizer(Protocol):
    """Text of tokens as they come; never half a character. One thread at a time."""

    def add(self, ids: Sequence[int]) -> str:
        """Takes the next tokens and returns the text that has become certain with them."""
        ...

    def finish(self) -> str:
        """The rest of the text, once there are no more tokens."""
        ...


class ByteDetokenizer:
    """For vocabularies whose tokens are spelled in bytes: exact, and linear in the answer.

    skipped: ids of tokens that are left out of the text. before: the tokens that the text goes on
    from; where they have a text, the first space of this one is no text's first.
    """

    def __init__(
        self, spelling: Spelling, skipped: Container[int], before: Sequence[int] = ()
    ) -> None:
        self._spelling, self._skipped = spelling, skipped
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_start = spelling.strips_space and not any(
            spelling.bytes_of(i) for i in reversed(before) if i not in skipped
        )

    def add(self, ids: Sequence[int]) -> str:
        spelled = b"".join(self._spelling.bytes_of(i) for i in ids if i not in self._skipped)
        return self._shown(self._decoder.decode(spelled))

    def finish(self) -> str:
        return self._shown(self._decoder.decode(b"", final=True))

    def _shown(self, text: str) -> str:
        if self._at_start and text:
            self._at_start = False
            return text.removeprefix(" ")
        return text


class WindowDetokenizer:
    """For other vocabularies, where the text of a token may depend on the tokens before it: decodes
    the new tokens together with a few earlier ones, so that the cost of a token stays bounded.

    decode: the text of a list of ids. skipped, before: as for `ByteDetokenizer`.
    """

    #: Most U+FFFD at the end of a text that later bytes may still make a character.
    MAX_UNFINISHED = 3
    MAX_WINDOW = 64  # tokens; only bytes that never become text reach it

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        skipped: Container[int],
        before: Sequence[int] = (),
    ) -> None:
        self._decode, self._skipped = decode, skipped
        self._window = self._context(before)
        self._n_context = len(self._window)  # tokens at the start whose text was shown earlier
        self._n_shown = len(decode(self._window))  # characters of the window's text so far shown

    def _context(self, before: Sequence[int]) -> list[int]:
        """The fewest tokens at the end of `before` whose text begins with a whole character."""
        found: list[int] = []
        for token_id in reversed(before):
            if token_id in self._skipped:
                continue
            found.insert(0, token_id)
            text = self._decode(found)
            if len(found) == self.MAX_WINDOW or (text and text[0] != "\ufffd"):
                break
        return found

    def add(self, ids: Sequence[int]) -> str:
        out = []
        for token_id in ids:
            if token_id in self._skipped:
                continue
            self._window.append(token_id)
            text = self._decode(self._window)
            certain = text
            for _ in range(self.MAX_UNFINISHED):
                certain = certain.removesuffix("\ufffd")
            if len(certain) > self._n_shown:
                out.append(certain[self._n_shown :])
                self._n_shown = len(certain)
            if certain == text or len(self._window) > self.MAX_WINDOW:
                self._move_on()
        return "".join(out)

    def finish(self) -> str:
        rest = self._decode(self._window)[self._n_shown :]
        self._n_shown += len(rest)
        return rest

    def _move_on(self) -> None:
        """Keeps the newest tokens that have a text as context of the tokens to come."""
        newest = self._window[self._n_context :]
        n_shown = len(self._decode(newest))
        if n_shown or len(self._window) > self.MAX_WINDOW:
            self._window, self._n_context, self._n_shown = newest, len(newest), n_shown


@dataclass
class DetokenizeState:
    """How far `Tokenizer.detokenize_incrementally` has come (LMDeploy 0.18).

    ids_offset: ids that were seen. prev_tokens: their tokens; None before the first call.
    prefix_offset, read_offset: the ids between them were shown, and are decoded once more with the
    new ones.
    """

    ids_offset: int = 0
    prev_tokens: list[str] | None = None
    prefix_offset: int = 0
    read_offset: int = 0

    def as_tuple(self) -> tuple[int, list[str] | None, int, int]:
        return (self.ids_offset, self.prev_tokens, self.prefix_offset, self.read_offset)


# ---- how tokens are spelled ----

#: Of the byte tokens of SentencePiece's kind of vocabulary; what only resembles one is text.
_HEX_DIGITS = set("0123456789ABCDEFabcdef")


class Spelling:
    """The bytes of each token, found when first used.

    byte_level: each character of a token stands for a byte, but for added tokens, which are spelled
    as they are; otherwise "▁" is a space and "<0xNN>" a byte. strips_space: the space that a text
    begins with is not shown.
    """

    def __init__(
        self, tokenizer: LibraryTokenizer, *, byte_level: bool, strips_space: bool
    ) -> None:
        self._tokenizer = tokenizer
        self._characters = byte_characters() if byte_level else None
        self._added = set(tokenizer.added_tokens())
        self._known: dict[int, bytes] = {}
        self.strips_space = strips_space

    def bytes_of(self, token_id: int) -> bytes:
        """b"" for an id that the vocabulary does not have."""
        known = self._known.get(token_id)
        if known is None:
            known = self._known[token_id] = self._spell(token_id)
        return known

    def _spell(self, token_id: int) -> bytes:
        token = self._tokenizer.token_of(token_id)
        if token is None:
            return b""
        if self._characters is None:
            if token[:3] == "<0x" and token[5:] == ">" and set(token[3:5]) <= _HEX_DIGITS:
                return bytes.fromhex(token[3:5])
            return token.replace("▁", " ").encode("utf-8", "replace")
        if token_id in self._added:
            return token.encode("utf-8", "replace")
        spelled = bytearray()
        for c in token:
            byte = self._characters.get(c)
            spelled += c.encode("utf-8", "replace") if byte is None else bytes([byte])
        return bytes(spelled)


#: Steps of SentencePiece's decoder, as tokenizer.json has them.
_SPACES = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
_FIRST_SPACE = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


def spelling_of(tokenizer: LibraryTokenizer) -> Spelling | None:
    """None where the tokenizer's decoder is neither byte-level nor SentencePiece's."""
    steps = list(steps_of("decoder", tokenizer.steps["decoder"]))
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        return Spelling(tokenizer, byte_level=True, strips_space=False)
    if kinds == ["ByteFallback", "Metaspace"] and steps[1].get("replacement") == "▁":
        strips_space = steps[1].get("prepend_scheme") != "never"
        return Spelling(tokenizer, byte_level=False, strips_space=strips_space)
    sentencepiece = steps[:1] == [_SPACES] and kinds[1:3] == ["ByteFallback", "Fuse"]
    if sentencepiece and steps[3:] in ([], [_FIRST_SPACE]):
        return Spelling(tokenizer, byte_level=False, strips_space=len(steps) == 4)
    return None
