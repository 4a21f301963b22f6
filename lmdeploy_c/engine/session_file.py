"""Sessions in files: the conversation, its tokens, and as an option their KV.

A file holds, in little-endian: 8 bytes MAGIC, the header's length (uint64), the header (JSON), the
tokens (int32), the KV blocks as the backend has them, and a BLAKE2b checksum of all that (32
bytes). The checksum finds accidents; it does not prove who wrote the file. So nothing in it is
believed: every length is checked against the file's, tokens against the model's vocabulary, KV is
taken only where its tags are those of the running engine, and no other session reads it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import struct
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from ..text.prompts import Prompt

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .._C import Snapshot

logger = logging.getLogger("lmdeploy_c")

MAGIC = b"LMDSESS1"
_LENGTH = struct.Struct("<Q")
_MAX_HEADER = 1 << 28
_CHUNK = 1 << 24  # bytes hashed at once


@dataclass(frozen=True)
class Kv:
    """The KV of a text, as `Snapshot.export_kv` gives it."""

    layout: str
    token_ids: NDArray[np.int32]  # [n] of the text
    blocks: NDArray[np.uint8]  # [n_blocks, block_bytes]


@dataclass(frozen=True)
class Conversation:
    """What a file holds of a session."""

    history: list[tuple[Prompt, str]]  # (prompt, answer) of the turns
    #: (end of the prompt, end of the answer, text up to there) of the turns, the ends in token_ids.
    turns: list[tuple[int, int, str | None]]
    token_ids: list[int]
    kv: Kv | None


def export_kv(snapshot: Snapshot) -> Kv:
    """The KV that the engine still has of a snapshot."""
    layout, n_computed, blocks = snapshot.export_kv()
    return Kv(layout, snapshot.token_ids[:n_computed], blocks)


# ---- writing ----


class _Hashed:
    """Writes to a file and to a checksum."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.hash = file, hashlib.blake2b(digest_size=32)

    def write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self.hash.update(data)


def write(conversation: Conversation, path: Path, tags: Mapping[str, Any]) -> None:
    """Writes a file, or replaces it whole. tags: what its tokens and KV depend on. OSError,
    TypeError."""
    kv = conversation.kv
    header: dict[str, Any] = {
        "tags": tags,
        "history": conversation.history,
        "turns": conversation.turns,
        "n_tokens": len(conversation.token_ids),
        "kv": None,
    }
    if kv is not None:
        tokens = kv.token_ids.tolist()
        header["kv"] = {"layout": kv.layout, "tokens": tokens, "shape": list(kv.blocks.shape)}
    text = json.dumps(header, ensure_ascii=False).encode("utf-8", "surrogatepass")
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.name + ".")
    try:
        with os.fdopen(descriptor, "wb") as file:
            out = _Hashed(file)
            out.write(MAGIC + _LENGTH.pack(len(text)) + text)
            out.write(np.asarray(conversation.token_ids, "<i4").tobytes())
            if kv is not None and kv.blocks.size:
                out.write(kv.blocks.data.cast("B"))
            file.write(out.hash.digest())
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


# ---- reading ----


class _FileError(ValueError):
    """What is wrong with a file, in words for its user."""


def read(path: Path, tags: Mapping[str, Any], vocab_size: int) -> Conversation:
    """A conversation from a file; without its KV where that has other tags than these.

    Raises OSError, and ValueError for a file that is damaged, holds no session, or holds the tokens
    of another tokenizer.
    """
    with path.open("rb") as file:
        try:
            return _read(file, tags, vocab_size)
        except _FileError as error:
            raise ValueError(f"{path}: {error}") from error
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError,
                ValueError) as error:  # fmt: skip
            raise ValueError(
                f"{path}: its header is not that of a session file "
                f"({type(error).__name__}: {error})"
            ) from error


def _read(file: BinaryIO, tags: Mapping[str, Any], vocab_size: int) -> Conversation:
    size = os.fstat(file.fileno()).st_size
    start = file.read(len(MAGIC) + _LENGTH.size)
    if not start.startswith(MAGIC) or len(start) != len(MAGIC) + _LENGTH.size:
        raise _FileError("this is not a session file of this release")
    n_header = _LENGTH.unpack(start[len(MAGIC) :])[0]
    if n_header > min(_MAX_HEADER, size):
        raise _FileError("the file is truncated or damaged: its header does not fit in it")
    text = file.read(n_header)
    header = json.loads(text.decode("utf-8", "surrogatepass"))
    n_tokens, shape = _size(header["n_tokens"]), [0, 0]
    if header["kv"] is not None:
        shape = [_size(n) for n in header["kv"]["shape"]]
    if len(shape) != 2:
        raise _FileError("the file is damaged: its KV has no shape")
    n_bytes = len(start) + n_header + n_tokens * 4 + shape[0] * shape[1] + 32
    if n_bytes != size:
        raise _FileError(
            f"the file is truncated or damaged: it has {size} bytes and needs {n_bytes}"
        )
    _check_sum(file, size - 32)
    file.seek(len(start) + n_header)
    token_ids = np.fromfile(file, "<i4", n_tokens)
    # Of bytes: the engine reads these in place, and other arrays from a copy.
    blocks = np.frombuffer(file.read(shape[0] * shape[1]), np.uint8).reshape(shape)
    return _check_header(header, token_ids, blocks, tags, vocab_size)


def _size(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 48:
        raise _FileError(f"the file is damaged: a length is {value!r}")
    return value


def _check_sum(file: BinaryIO, n_bytes: int) -> None:
    digest = hashlib.blake2b(digest_size=32)
    file.seek(0)
    while n_bytes:
        part = file.read(min(_CHUNK, n_bytes))
        if not part:
            raise _FileError("the file is truncated")
        digest.update(part)
        n_bytes -= len(part)
    if file.read(32) != digest.digest():
        raise _FileError("the file is damaged: its checksum is wrong")


def _check_header(
    header: dict[str, Any],
    token_ids: NDArray[np.int32],
    blocks: NDArray[np.uint8],
    tags: Mapping[str, Any],
    vocab_size: int,
) -> Conversation:
    saved_tags = header["tags"]
    if saved_tags["tokenizer"] != tags["tokenizer"]:
        raise _FileError(
            "the session was saved with another model's tokenizer; load it with the model it was "
            "saved with"
        )
    _check_tokens(token_ids, vocab_size)
    history = [(_prompt(p), str(text)) for p, text in header["history"]]
    turns, end = [], 0
    for place in header["turns"][: len(history)]:
        turn = _turn(place, end, len(token_ids))
        turns.append(turn)
        end = turn[1]
    different = sorted(k for k in tags if saved_tags.get(k) != tags[k])
    kv = header["kv"]
    if kv is not None and different:
        logger.warning("the session's KV is computed again: other %s", ", ".join(different))
    if kv is None or different:
        return Conversation(history, turns, token_ids.tolist(), None)
    tokens = _kv_tokens(kv["tokens"])
    _check_tokens(tokens, vocab_size)
    return Conversation(history, turns, token_ids.tolist(), Kv(str(kv["layout"]), tokens, blocks))


def _kv_tokens(value: object) -> NDArray[np.int32]:
    if not isinstance(value, list) or not all(type(token) is int for token in value):
        raise _FileError("the file is damaged: the text of its KV is no list of tokens")
    return np.array(value, np.int32)


def _check_tokens(token_ids: NDArray[np.int32], vocab_size: int) -> None:
    if token_ids.size and not 0 <= token_ids.min() <= token_ids.max() < vocab_size:
        raise _FileError("the file is damaged: the model's vocabulary lacks one of its tokens")


def _prompt(value: object) -> Any:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(m, dict) for m in value):
        return value
    raise _FileError("the file is damaged: a prompt is neither a text nor messages")


def _turn(place: Any, begin: int, n_tokens: int) -> tuple[int, int, str | None]:
    """A turn's ends, which must not lie before `begin` nor after the tokens, and its text."""
    prompt_end, end, rendered = _size(place[0]), _size(place[1]), place[2]
    if not begin <= prompt_end <= end <= n_tokens:
        raise _FileError("the file is damaged: its turns do not lie in its tokens")
    if rendered is not None and not isinstance(rendered, str):
        raise _FileError("the file is damaged: the text of a turn is not a string")
    return prompt_end, end, rendered
