"""Sessions in files: the conversation, its tokens, and as an option their KV.

A file holds, in little-endian: 8 bytes MAGIC, the header's length (uint64), the header (JSON), the
tokens (int32), the KV blocks as the backend has them, and a BLAKE2b checksum of all that (32
bytes). The checksum finds accidents; it is no proof of who wrote the file. So nothing in it is
believed: every length is checked against the file's, tokens against the model's vocabulary, KV is
taken only where its tags are those of the running engine, and is then read by this session alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from .session import Session, Turn

if TYPE_CHECKING:
    from ..pipeline import Pipeline

logger = logging.getLogger("lmdeploy_c")

MAGIC = b"LMDSESS1"
_LENGTH = struct.Struct("<Q")
_MAX_HEADER = 1 << 28
_CHUNK = 1 << 24  # bytes hashed at once


class _Hashed:
    """Writes to a file and to a checksum."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.hash = file, hashlib.blake2b(digest_size=32)

    def write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self.hash.update(data)


def write(session: Session, path: Path, *, kv: bool) -> None:
    """Writes a session that is not answering; the file is replaced whole. OSError, TypeError."""
    turns, kept = session.known_turns(), session.kept()
    header: dict[str, Any] = {
        "tags": session.pipeline.session_tags(),
        "history": session.history,
        "turns": [(t.prompt_end, t.end, t.rendered) for t in turns],
        "n_tokens": len(session.token_ids),
        "kv": None,
    }
    blocks = np.empty((0, 0), np.uint8)
    if kv and kept is not None:
        layout, n_computed, blocks = kept.export_kv()
        tokens = kept.token_ids[:n_computed].tolist()
        header["kv"] = {"layout": layout, "tokens": tokens, "shape": list(blocks.shape)}
    text = json.dumps(header, ensure_ascii=False).encode("utf-8", "surrogatepass")
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.name + ".")
    try:
        with os.fdopen(descriptor, "wb") as file:
            out = _Hashed(file)
            out.write(MAGIC + _LENGTH.pack(len(text)) + text)
            out.write(np.asarray(session.token_ids, "<i4").tobytes())
            if blocks.size:
                out.write(blocks.data.cast("B"))
            file.write(out.hash.digest())
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def read(pipeline: Pipeline, path: Path) -> Session:
    """A session from a file. Raises OSError, and ValueError for a file that is damaged, is no
    session's, or holds the tokens of another tokenizer."""
    with path.open("rb") as file:
        try:
            return _read(pipeline, file)
        except _FileError as error:
            raise ValueError(f"{path}: {error}") from error
        except (KeyError, TypeError, ValueError, RecursionError, OverflowError) as error:
            raise ValueError(
                f"{path}: its header is not that of a session file "
                f"({type(error).__name__}: {error})"
            ) from error


class _FileError(ValueError):
    """What is wrong with a file, in words for its user."""


def _read(pipeline: Pipeline, file: BinaryIO) -> Session:
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
            f"the file is truncated or damaged: {size} bytes, but {n_bytes} are wanted"
        )
    _check_sum(file, size - 32)
    file.seek(len(start) + n_header)
    token_ids = np.fromfile(file, "<i4", n_tokens).tolist()
    blocks = np.fromfile(file, np.uint8, shape[0] * shape[1]).reshape(shape)
    return _restore(pipeline, header, token_ids, blocks)


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


def _restore(
    pipeline: Pipeline, header: dict[str, Any], token_ids: list[int], blocks: Any
) -> Session:
    here, there = pipeline.session_tags(), header["tags"]
    if there["tokenizer"] != here["tokenizer"]:
        raise _FileError(
            "the session was saved with another model's tokenizer; load it with the model it was "
            "saved with"
        )
    if not all(0 <= t < pipeline.tokenizer.vocab_size for t in token_ids):
        raise _FileError("the file is damaged: a token is none of the model's")
    history = [(_prompt(p), str(text)) for p, text in header["history"]]
    turns, end = [], 0
    for (prompt, text), place in zip(history, header["turns"], strict=False):
        prompt_end, next_end, rendered = _size(place[0]), _size(place[1]), place[2]
        if not end <= prompt_end <= next_end <= len(token_ids):
            raise _FileError("the file is damaged: its turns do not lie in its tokens")
        if rendered is not None and not isinstance(rendered, str):
            raise _FileError("the file is damaged: a turn's text is none")
        turns.append(Turn(prompt, text, prompt_end, next_end, rendered))
        end = next_end
    session = pipeline.session()
    different = sorted(k for k in here if there.get(k) != here[k])
    kv = header["kv"]
    if kv is not None and different:
        logger.warning("the session's KV is computed again: other %s", ", ".join(different))
    if kv is None or different:
        kv = {"layout": "none", "tokens": []}
    tokens = np.asarray(kv["tokens"], np.int32)
    kept = pipeline.import_snapshot(tokens, str(kv["layout"]), len(tokens), blocks)
    session.restore(history, turns, token_ids, kept)
    return session


def _prompt(value: object) -> Any:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(m, dict) for m in value):
        return value
    raise _FileError("the file is damaged: a prompt is neither a text nor messages")
