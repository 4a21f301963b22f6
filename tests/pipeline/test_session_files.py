"""Sessions in files: they go on in another process, and what is wrong with a file is found."""

from __future__ import annotations

import hashlib
import json
import resource
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_sessions import ENGINE, SHORT, STORY, say

from lmdeploy_c import Pipeline, Session, TurbomindEngineConfig, pipeline


@pytest.fixture(scope="module")
def pipe() -> Iterator[Pipeline]:
    with pipeline(backend_config=ENGINE) as made:
        yield made


LOADER = """
import sys, lmdeploy_c
from lmdeploy_c import GenerationConfig, TurbomindEngineConfig
engine = TurbomindEngineConfig(session_len=1024, max_batch_size=8, cache_max_entry_count="64MB")
with lmdeploy_c.pipeline(backend_config=engine) as pipe:
    session = pipe.load_session(sys.argv[1])
    answer = session("Go on.", GenerationConfig(max_new_tokens=12), stream_response=False)
    print(answer.cached_tokens, len(session.history), answer.token_ids)
"""


@pytest.fixture
def saved(pipe: Pipeline, tmp_path: Path) -> tuple[Session, Path]:
    session = pipe.session()
    say(session, STORY)
    say(session, "Cats?")
    session.save(tmp_path / "talk.session")
    return session, tmp_path / "talk.session"


def test_a_session_outlives_its_process(saved: tuple[Session, Path]) -> None:
    session, path = saved
    done = subprocess.run(
        [sys.executable, "-c", LOADER, str(path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    n = len(session.token_ids) - 1
    assert done.stdout.strip() == f"{n} 3 {say(session, 'Go on.').token_ids}"


def test_load_and_save(pipe: Pipeline, saved: tuple[Session, Path], tmp_path: Path) -> None:
    session, path = saved
    session.save(tmp_path / "text", kv=False)
    assert (tmp_path / "text").stat().st_size < path.stat().st_size // 20
    loaded, bare = pipe.load_session(path), pipe.load_session(str(tmp_path / "text"))
    for one in (loaded, bare):
        assert one.history == session.history
        assert one.token_ids == session.token_ids
        assert one.session_id != session.session_id
    assert sorted(p.name for p in tmp_path.iterdir()) == ["talk.session", "text"]
    answers = [say(s, "Go on.") for s in (session, loaded, bare)]
    assert answers[0].token_ids == answers[1].token_ids == answers[2].token_ids
    assert answers[1].cached_tokens == answers[0].cached_tokens
    loaded.rewind(2)
    assert len(loaded.history) == 1
    loaded.save(path)
    assert pipe.load_session(path).history == loaded.history
    pipe.session().save(path)
    assert pipe.load_session(path).history == []


def test_kv_of_another_engine_is_computed_again(
    saved: tuple[Session, Path], caplog: pytest.LogCaptureFixture
) -> None:
    session, path = saved
    config = TurbomindEngineConfig(
        session_len=1024, cache_block_seq_len=32, cache_max_entry_count="64MB"
    )
    with pipeline(backend_config=config) as other:
        loaded = other.load_session(path)
        assert "other block_len" in caplog.text
        answer = say(loaded, "Go on.")
        assert answer.cached_tokens == 0
    assert answer.token_ids == say(session, "Go on.").token_ids


def with_header(data: bytes, **changes: object) -> bytes:
    """A session file with another header, and the right checksum."""
    n = struct.unpack_from("<Q", data, 8)[0]
    header = {**json.loads(data[16 : 16 + n]), **changes}
    text = json.dumps(header).encode()
    body = data[:8] + struct.pack("<Q", len(text)) + text + data[16 + n : -32]
    return body + hashlib.blake2b(body, digest_size=32).digest()


def test_damaged_files(pipe: Pipeline, saved: tuple[Session, Path], tmp_path: Path) -> None:
    session, path = saved
    data, bad = path.read_bytes(), tmp_path / "bad"
    header = json.loads(data[16 : 16 + struct.unpack_from("<Q", data, 8)[0]])
    hostile = {
        "empty": b"",
        "foreign": b"GGUF" + data[4:],
        "magic alone": data[:8],
        "header beyond the file": data[:8] + struct.pack("<Q", 1 << 60) + data[16:],
        "header too short": data[:8] + struct.pack("<Q", 10) + data[16:],
        "bytes too many": data + b"x",
        "no dict": data[:8] + struct.pack("<Q", 2) + b"[]",
        "not JSON": data[:8] + struct.pack("<Q", 2) + b"{{",
        "deep": data[:8] + struct.pack("<Q", 200000) + b"[" * 200000,
        "lengths": with_header(data, n_tokens=1 << 40),
        "a length that is none": with_header(data, n_tokens=-4),
        "a length that is a bool": with_header(data, n_tokens=True),
        "tokens": with_header(data, n_tokens=header["n_tokens"] + 1),
        "shape": with_header(data, kv={**header["kv"], "shape": [1, 2, 3]}),
        "turns": with_header(data, turns=[[5, 3, None]] * 2),
        "turns behind the end": with_header(data, turns=[[5, 10**7, None]] * 2),
        "text": with_header(data, turns=[[5, 9, 3]] * 2),
        "history": with_header(data, history=[[3, 4]]),
        "no tags": with_header(data, tags=None),
        "tokenizer": with_header(data, tags={**header["tags"], "tokenizer": "x"}),
        "kv tokens": with_header(data, kv={**header["kv"], "tokens": ["a"]}),
        "kv tokens of 80 bits": with_header(data, kv={**header["kv"], "tokens": [1 << 80]}),
    }
    for at in range(0, len(data), len(data) // 37):
        hostile[f"cut at {at}"] = data[:at]
        hostile[f"flipped at {at}"] = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    hostile["a token of no model"] = data[:-32]
    for name, content in hostile.items():
        bad.write_bytes(content)
        why = "another model's tokenizer" if name == "tokenizer" else "bad: "
        with pytest.raises(ValueError, match=why):
            pipe.load_session(bad)
            pytest.fail(f"{name} was read")
    with pytest.raises(FileNotFoundError):
        pipe.load_session(tmp_path / "none")
    assert say(session, "Go on.").finish_reason in ("stop", "length")


def test_a_header_of_wrong_kinds(
    pipe: Pipeline, saved: tuple[Session, Path], tmp_path: Path
) -> None:
    """Any value in the place of any other is read, or a ValueError."""
    data, bad = saved[1].read_bytes(), tmp_path / "bad"
    header = json.loads(data[16 : 16 + struct.unpack_from("<Q", data, 8)[0]])
    values = (None, 5, -1, 1e300, "abc", [], [[]], [[1]], [[1, 2]], [None], [{}], {}, {"a": 1})
    n_refused = 0
    for key in header:
        for value in values:
            bad.write_bytes(with_header(data, **{key: value}))
            try:
                pipe.load_session(bad)
            except ValueError as error:
                assert "bad: " in str(error)
                n_refused += 1
    assert n_refused > len(values) * len(header) // 2


def test_a_full_disk(saved: tuple[Session, Path]) -> None:
    """A write that fails leaves the file that was there, and nothing else."""
    session, path = saved
    before = path.read_bytes()
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            session.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert say(session, "Go on.").text


def test_a_prompt_that_json_does_not_know(pipe: Pipeline, tmp_path: Path) -> None:
    session = pipe.session()
    pipe.chat([{"role": "user", "content": "Hi", "at": {1, 2}}], session, SHORT)
    assert len(session.history) == 1
    with pytest.raises(TypeError, match="set"):
        session.save(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
