"""Ctrl-C, by real signals: a call ends with Interrupted, what there is is kept, and the pipeline
goes on."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from scripted_models import write_directory
from test_pipeline import wait_idle

from lmdeploy_c import (
    GenerationConfig,
    Interrupted,
    Pipeline,
    Response,
    TurbomindEngineConfig,
    pipeline,
)

FEW = GenerationConfig(max_new_tokens=8)
ENDLESS = GenerationConfig(max_new_tokens=None)
ENGINE = TurbomindEngineConfig(session_len=1 << 17, max_batch_size=8, cache_max_entry_count=4100)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Says "tick tock" for ever."""
    says, longer = ["tick", " tock", "tick"], {"max_position_embeddings": 1 << 17}
    return write_directory(tmp_path_factory.mktemp("model"), says[:2], says, config=longer)[0]


@pytest.fixture(scope="module")
def pipe(model: Path) -> Iterator[Pipeline]:
    with pipeline(model, ENGINE) as made:
        yield made


def when(condition: Callable[[], bool]) -> None:
    """Sends this process SIGINT once the condition holds."""

    def send() -> None:
        deadline = time.monotonic() + 60
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=send, daemon=True).start()


def once_it_writes(pipe: Pipeline, n_more: int = 400) -> None:
    """Sends this process SIGINT when the pipeline has written n_more tokens more."""
    before = pipe.stats()["n_tokens_generated"]
    when(lambda: pipe.stats()["n_tokens_generated"] > before + n_more)


def usable(pipe: Pipeline) -> bool:
    wait_idle(pipe)
    return pipe("Hi", FEW).text == "tick tock" * 4


def begun(response: Response) -> bool:
    """Whether it is an answer that was cut off, all of whose parts agree."""
    n_words = response.text.count("t") - response.text.count("tock")
    assert response.generate_token_len == len(response.token_ids) > 0
    return response.finish_reason == "abort" and n_words > 0


def test_a_call(pipe: Pipeline) -> None:
    once_it_writes(pipe)
    with pytest.raises(Interrupted, match="responses") as stop:
        pipe("Hi", ENDLESS)
    assert isinstance(stop.value, KeyboardInterrupt)
    (response,) = stop.value.responses
    assert begun(response) and response.text.startswith("tick tock")
    assert usable(pipe)


def test_a_loop_is_left(pipe: Pipeline) -> None:
    asked = []
    once_it_writes(pipe)
    with pytest.raises(KeyboardInterrupt):
        for prompt in ("a", "b", "c"):
            asked.append(prompt)
            pipe(prompt, ENDLESS)
    assert asked == ["a"]
    assert usable(pipe)


def test_a_batch_keeps_what_is_complete(pipe: Pipeline) -> None:
    once_it_writes(pipe)
    with pytest.raises(Interrupted) as stop:
        pipe(["a", "b", "c"], [FEW, ENDLESS, GenerationConfig(n=2, max_new_tokens=None)])
    first, second, third = stop.value.responses
    assert [r.index for r in stop.value.responses] == [0, 1, 2]
    assert (first.finish_reason, first.text) == ("length", "tick tock" * 4)
    assert begun(second)
    assert [begun(choice) for choice in third.choices] == [True, True]
    assert usable(pipe)


def test_prompts_that_were_not_begun_are_empty(pipe: Pipeline) -> None:
    prompts = ["word " * 2000] * 3000
    when(lambda: pipe.stats()["n_running"] + pipe.stats()["n_waiting"] > 10)
    with pytest.raises(Interrupted) as stop:
        pipe(prompts, FEW)
    ends = stop.value.responses
    assert [r.index for r in ends] == list(range(3000))
    assert ends[-1] == Response("", 0, 0, "abort", index=2999)
    assert usable(pipe)


@pytest.mark.parametrize("in_pieces", [True, False])
def test_a_stream(pipe: Pipeline, in_pieces: bool) -> None:
    seen = []
    once_it_writes(pipe)
    with pytest.raises(Interrupted) as stop:
        for piece in pipe.stream_infer(
            ["a", "b", "c"], gen_config=[ENDLESS, FEW, ENDLESS], stream_response=in_pieces
        ):
            seen.append(piece)
    assert [r.index for r in stop.value.responses] == [0, 2]
    assert all(map(begun, stop.value.responses))
    if in_pieces:
        whole = "".join(piece.text for piece in seen if piece.index == 0)
        assert stop.value.responses[0].text.startswith(whole)
    else:
        assert [piece.index for piece in seen] == [1]
    assert usable(pipe)


def test_in_the_body_of_a_loop_over_a_stream(pipe: Pipeline) -> None:
    session = pipe.session(ENDLESS)
    with pytest.raises(KeyboardInterrupt):
        for _ in session("Hi"):
            os.kill(os.getpid(), signal.SIGINT)
    assert session.history[0][0] == "Hi"
    assert usable(pipe)


def test_get_ppl(pipe: Pipeline) -> None:
    lists = [[1, *range(i % 250), 2, 3] * 4 for i in range(800)]
    before = pipe.metrics()["n_submitted"]

    def half_read() -> bool:
        all_asked = pipe.metrics()["n_submitted"] == before + len(lists)
        time.sleep(0.1)  # some are read, and others are still computed
        return bool(all_asked)

    when(half_read)
    with pytest.raises(Interrupted) as stop:
        pipe.get_ppl(lists)
    found = stop.value.responses
    assert 0 < len(found) < len(lists)
    assert [r.ppl for r in found] == pipe.get_ppl(lists[: len(found)])
    assert usable(pipe)


@pytest.mark.parametrize("how", ["chat", "whole", "stream"])
def test_a_session_keeps_its_turn(pipe: Pipeline, how: str) -> None:
    session = pipe.session(ENDLESS)
    once_it_writes(pipe)
    with pytest.raises(Interrupted) as stop:
        if how == "chat":
            pipe.chat("Hi", session)
        elif how == "whole":
            session("Hi", stream_response=False)
        else:
            for _ in session("Hi"):  # type: ignore[union-attr]
                pass
    (response,) = stop.value.responses
    assert session.response is response and begun(response)
    assert session.history == [("Hi", response.text)]
    n_tokens = len(session.token_ids)
    assert n_tokens == response.input_token_len + response.generate_token_len
    pipe.chat("Go on", session, FEW)
    assert len(session.history) == 2 and session.response is not None
    assert session.response.cached_tokens >= n_tokens - 64
    assert usable(pipe)


def test_in_an_event_loop(pipe: Pipeline) -> None:
    session, pieces = pipe.session(), []

    async def read() -> None:
        async for piece in pipe.generate("Hi", ENDLESS, session=session):
            pieces.append(piece)

    once_it_writes(pipe)
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(read())
    assert session.history == [("Hi", "".join(piece.text for piece in pieces))]
    assert usable(pipe)


def test_at_any_moment(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it falls into: no session stays busy, and nothing goes on running. One that falls
    into a finalizer or a callback of a weak reference is lost by Python itself, which says so."""
    chance, session, n = random.Random(3), pipe.session(FEW), 0
    lost: list[type[BaseException]] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda said: lost.append(said.exc_type))
    calls: list[Callable[[], object]] = [
        lambda: pipe(["Hi"] * 50, FEW),
        lambda: list(pipe.stream_infer(["Hi"] * 50, gen_config=FEW)),
        lambda: pipe.chat("Hi", session),
        lambda: list(session("Hi")),  # type: ignore[arg-type]
        lambda: pipe.get_ppl([[1, 2, 3]] * 100),
    ]
    for i in range(150):
        timer = threading.Timer(chance.random() * 0.02, lambda: os.kill(os.getpid(), signal.SIGINT))
        try:
            timer.start()
            while timer.is_alive():
                calls[i % len(calls)]()
            timer.join()
        except KeyboardInterrupt:
            n += 1
        session.fork()  # which a busy session refuses
    assert n + sum(issubclass(kind, KeyboardInterrupt) for kind in lost) == 150
    assert n > 140 and usable(pipe)


def test_a_program_ends(model: Path) -> None:
    code = (
        "import sys\n"
        "from lmdeploy_c import GenerationConfig, TurbomindEngineConfig, pipeline\n"
        "pipe = pipeline(sys.argv[1], TurbomindEngineConfig(session_len=100000))\n"
        "for i in range(3):\n"
        "    print(i, flush=True)\n"
        "    pipe('Hi', GenerationConfig(max_new_tokens=None))\n"
    )
    program = subprocess.Popen(
        [sys.executable, "-c", code, str(model)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert program.stdout is not None and program.stdout.readline() == "0\n"
    time.sleep(0.3)
    program.send_signal(signal.SIGINT)
    said, errors = program.communicate(timeout=60)
    assert program.returncode != 0 and said == ""
    assert errors.splitlines()[-1].startswith("lmdeploy_c.messages.response.Interrupted: ")
