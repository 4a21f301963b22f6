"""Session files whose checksum is right and whose content is anything.

A checksum finds accidents, not authors: mutants are signed anew. Each is read as a conversation
whose numbers fit together, or refused as a ValueError; what KV it has goes into an engine, which
then answers. MUTANT_SECONDS makes more of them (`make fuzz`).
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import load_model, make_engine

from lmdeploy_c import _C
from lmdeploy_c.engine import session_file

GOLDEN = Path(__file__).parents[1] / "golden"
TAGS = {"tokenizer": "t", "model": "m"}
N_MUTANTS = 1500
SECONDS = float(os.environ.get("MUTANT_SECONDS", "0"))
TOKENS = [1, 2, 3, 4, 5, 6, 7, 8]
VALUES: list[Any] = [
    None, True, False, -1, 0, 1, 7, 2**31, 2**32, 2**48, 2**63, 2**64, 10**40, 1.5, float("nan"),
    float("inf"), "", "a\0b", "\ud800", "x" * 300, [], [[]], [1], [[1, 2], [3, 4]], {}, {"a": 1},
    [None], ["1"], [2**40], [-1], [10**6], [1.5], [True],
]  # fmt: skip


def signed(start: bytes, header: bytes, rest: bytes) -> bytes:
    data = start + struct.pack("<Q", len(header)) + header + rest
    return data + hashlib.blake2b(data, digest_size=32).digest()


def split(data: bytes) -> tuple[bytes, bytes, bytes]:
    """Magic, header and what follows it, without the checksum."""
    n = struct.unpack("<Q", data[8:16])[0]
    return data[:8], data[16 : 16 + n], data[16 + n : -32]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to every value inside of a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in inside:
        yield (*path, key)
        if isinstance(item, dict | list):
            yield from places(item, (*path, key))


def edited(rng: np.random.Generator, header: Any) -> Any:
    """A header in which one place has another value, or is gone, or is there again."""
    header = json.loads(json.dumps(header))
    found = list(places(header))
    *path, last = found[rng.integers(len(found))]
    holder = header
    for key in path:
        holder = holder[key]
    if rng.random() < 0.7:
        holder[last] = VALUES[rng.integers(len(VALUES))]
    elif isinstance(holder, list) and rng.random() < 0.5:
        holder.append(holder[last])
    else:
        del holder[last]
    return header


def mutant(rng: np.random.Generator, right: bytes) -> bytes:
    start, text, rest = split(right)
    header, kind = json.loads(text), rng.random()
    if kind < 0.6:
        for _ in range(int(rng.integers(1, 3))):
            header = edited(rng, header)
        text = json.dumps(header).encode("utf-8", "surrogatepass")
    elif kind < 0.8:  # other bytes anywhere, the header's included
        raw = bytearray(text + rest)
        for at in rng.integers(len(raw), size=int(rng.integers(1, 6))):
            raw[at] = rng.integers(256)
        text, rest = bytes(raw[: len(text)]), bytes(raw[len(text) :])
    else:  # other lengths, to which the rest is cut or filled
        header["n_tokens"] = int(rng.integers(0, 12))
        header["kv"]["shape"] = [int(n) for n in rng.integers(0, 5000, 2)]
        n = header["n_tokens"] * 4 + header["kv"]["shape"][0] * header["kv"]["shape"][1]
        if n < 1 << 20:
            rest = rest[:n].ljust(n, b"\1")
        text = json.dumps(header).encode()
    return signed(start, text, rest)


@pytest.fixture(scope="module")
def engine() -> Iterator[_C.Engine]:
    model = load_model(GOLDEN / "models" / "llama-gqa-tied", num_threads=1)
    made = make_engine(model, session_len=64, n_blocks=8, block_len=16)
    yield made
    made.close()


@pytest.fixture
def right(engine: _C.Engine, tmp_path: Path) -> bytes:
    request = engine.submit(TOKENS, max_new_tokens=2, keep_snapshot=True)
    while not request.done:
        request.read(30)
    assert request.snapshot is not None
    conversation = session_file.Conversation(
        history=[("ask", "answer"), ([{"role": "user", "content": "again"}], "more")],
        turns=[(3, 5, "text"), (6, 8, None)],
        token_ids=TOKENS,
        kv=session_file.export_kv(request.snapshot),
    )
    session_file.write(conversation, tmp_path / "right", TAGS)
    return (tmp_path / "right").read_bytes()


def check(engine: _C.Engine, conversation: session_file.Conversation, vocab_size: int) -> None:
    """Its numbers fit together, and its KV does no harm."""
    tokens = conversation.token_ids
    assert all(0 <= token < vocab_size for token in tokens)
    ends = [end for turn in conversation.turns for end in turn[:2]]
    assert ends == sorted(ends) and all(end <= len(tokens) for end in ends)
    assert len(conversation.turns) <= len(conversation.history)
    kv = conversation.kv
    if kv is None:
        return
    snapshot = engine.import_snapshot(kv.token_ids, kv.layout, len(kv.token_ids), kv.blocks)
    snapshot.export_kv()
    request = engine.submit(TOKENS, max_new_tokens=1, snapshot=snapshot)
    output = request.read(30)
    assert output is not None


def test_mutants_with_a_right_checksum(engine: _C.Engine, right: bytes, tmp_path: Path) -> None:
    rng = np.random.default_rng(time.time_ns() if SECONDS else 0)
    path = tmp_path / "mutant"
    n_read = n_refused = 0
    end = time.monotonic() + SECONDS
    while n_read + n_refused < N_MUTANTS or time.monotonic() < end:
        data = mutant(rng, right)
        path.write_bytes(data)
        try:
            check(engine, session_file.read(path, TAGS, vocab_size=64), 64)
            n_read += 1
        except ValueError:
            n_refused += 1
        except Exception as error:
            raise AssertionError(f"{error!r}, which is not documented, for {data!r}") from error
    assert n_read > N_MUTANTS // 20 and n_refused > N_MUTANTS // 20


def test_the_right_file_is_read(engine: _C.Engine, right: bytes, tmp_path: Path) -> None:
    path = tmp_path / "same"
    path.write_bytes(signed(*split(right)))
    conversation = session_file.read(path, TAGS, vocab_size=64)
    assert conversation.token_ids == TOKENS and conversation.kv is not None
    check(engine, conversation, 64)
