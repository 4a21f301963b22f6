"""Text of tokens as they come: never half a character, and in the end what decoding all gives."""

from __future__ import annotations

import codecs
import json
from collections.abc import Container, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import tokenizers


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

    skipped: ids of tokens that are left out of the text.
    """

    def __init__(self, spelling: Spelling, skipped: Container[int]) -> None:
        self._spelling, self._skipped = spelling, skipped
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_start = spelling.strips_space

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


class Decoder(Protocol):
    """The parts of a `Tokenizer` that turn ids into text."""

    @property
    def special_tokens(self) -> Container[int]: ...
    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...


class WindowDetokenizer:
    """For other vocabularies, where the text of a token may depend on the tokens before it: decodes
    the new tokens together with a few earlier ones, so that the cost of a token stays bounded."""

    #: Most U+FFFD at the end of a text that later bytes may still make a character.
    MAX_UNFINISHED = 3
    MAX_WINDOW = 64  # tokens; only bytes that never become text reach it

    def __init__(self, tokenizer: Decoder, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._window: list[int] = []
        self._n_context = 0  # tokens at the window's start whose text was shown earlier
        self._n_shown = 0  # characters of the window's text that were shown

    def add(self, ids: Sequence[int]) -> str:
        out = []
        for token_id in ids:
            if self._skip and token_id in self._tokenizer.special_tokens:
                continue
            self._window.append(token_id)
            text = self._tokenizer.decode(self._window, self._skip)
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
        text = self._tokenizer.decode(self._window, self._skip)
        rest = text[self._n_shown :]
        self._n_shown = len(text)
        return rest

    def _move_on(self) -> None:
        """Keeps the newest tokens that have a text as context of the tokens to come."""
        newest = self._window[self._n_context :]
        n_shown = len(self._tokenizer.decode(newest, self._skip))
        if n_shown or len(self._window) > self.MAX_WINDOW:
            self._window, self._n_context, self._n_shown = newest, len(newest), n_shown


# ---- how tokens are spelled ----


def _gpt2_bytes() -> dict[str, int]:
    """The characters that stand for bytes in byte-level vocabularies (GPT-2's encoder.py)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


class Spelling:
    """The bytes of each token, found when first used.

    byte_level: each character of a token stands for a byte; otherwise "▁" is a space and "<0xNN>"
    a byte. strips_space: the space that a text begins with is not shown.
    """

    def __init__(
        self, tokenizer: tokenizers.Tokenizer, *, byte_level: bool, strips_space: bool
    ) -> None:
        self._tokenizer = tokenizer
        self._literal = {i: t.content for i, t in tokenizer.get_added_tokens_decoder().items()}
        self._characters = _gpt2_bytes() if byte_level else None
        self._known: dict[int, bytes] = {}
        self.strips_space = strips_space

    def bytes_of(self, token_id: int) -> bytes:
        """b"" for an id that the vocabulary does not have."""
        known = self._known.get(token_id)
        if known is None:
            known = self._known[token_id] = self._spell(token_id)
        return known

    def _spell(self, token_id: int) -> bytes:
        token = self._literal.get(token_id)
        if token is not None:
            return token.encode("utf-8", "replace")
        token = self._tokenizer.id_to_token(token_id) if token_id >= 0 else None
        if token is None:
            return b""
        if self._characters is None:
            if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
                return bytes([int(token[3:5], 16)])
            return token.replace("▁", " ").encode("utf-8", "replace")
        spelled = bytearray()
        for c in token:
            byte = self._characters.get(c)
            spelled += c.encode("utf-8", "replace") if byte is None else bytes([byte])
        return bytes(spelled)


def spelling_of(tokenizer: tokenizers.Tokenizer) -> Spelling | None:
    """None where the tokenizer's decoder is neither byte-level nor SentencePiece's."""
    decoder = json.loads(tokenizer.decoder.__getstate__()) if tokenizer.decoder else {}
    steps = decoder.get("decoders", [decoder])
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        return Spelling(tokenizer, byte_level=True, strips_space=False)
    if kinds == ["ByteFallback", "Metaspace"] and steps[1].get("replacement") == "▁":
        strips_space = steps[1].get("prepend_scheme") != "never"
        return Spelling(tokenizer, byte_level=False, strips_space=strips_space)
    if kinds[:3] == ["Replace", "ByteFallback", "Fuse"] and kinds[3:] in ([], ["Strip"]):
        return Spelling(tokenizer, byte_level=False, strips_space=kinds[3:] == ["Strip"])
    return None
