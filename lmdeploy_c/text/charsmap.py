"""SentencePiece's tables of what a normaliser makes of characters, as a tokenizer.json holds them:
in base64, the size of a trie in bytes, the trie, and texts with NULs between them. Untrusted."""

from __future__ import annotations

import base64
from typing import Any


def checked_table(value: Any) -> Any:
    """The table, as it is written. ValueError for one in which the library would step outside."""
    try:
        trie, texts = _parts(value)
    except (TypeError, ValueError):
        trie = texts = b""
    if trie and _is_closed(trie, texts):
        return value
    raise ValueError("is no table of SentencePiece's")


def longest_text(value: str) -> int:
    """The most bytes that a checked table makes of a character."""
    return max(map(len, _parts(value)[1].split(b"\0")))


def _parts(value: str) -> tuple[bytes, bytes]:
    """The trie and the texts. ValueError."""
    table = base64.b64decode(value, validate=True)
    begin = 4 + int.from_bytes(table[:4], "little")
    if begin > len(table) or begin % 4:
        raise ValueError("the trie ends behind the table")
    return table[4:begin], table[begin:]


def _is_closed(trie: bytes, texts: bytes) -> bool:
    """Whether every step in a trie stays in it, and every end is the place of a text.

    Units of 32 bits, as in darts-clone: with bit 31 an end, which is a place; else a node, whose
    child for a byte is unit number (own ^ offset ^ byte), and for 0, with bit 8, an end.
    """
    import numpy as np

    units = np.frombuffer(trie, "<u4")
    own = np.arange(len(units), dtype=np.uint32)
    is_end = units >> 31 == 1
    children = own ^ ((units >> 10) << ((units & 512) >> 6))
    if ((children | 255)[~is_end] >= len(units)).any():
        return False
    has_end = ~is_end & (units & 256 != 0)
    places = units[is_end] & 0x7FFFFFFF
    if not is_end[children[has_end]].all() or (places >= max(len(texts), 1)).any():
        return False
    try:
        texts.decode()
    except UnicodeDecodeError:
        return False
    first = np.frombuffer(texts, np.uint8)[places] if len(texts) else places
    return bool((first & 0xC0 != 0x80).all())
