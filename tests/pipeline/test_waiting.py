"""Waiting for answers: in event loops and open streams, however many they are."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Iterator

import pytest
from scripted_models import write_directory

from lmdeploy_c import GenerationConfig, TurbomindEngineConfig
from lmdeploy_c.engine.answer import interleave
from lmdeploy_c.engine.text_engine import TextEngine

FEW, MANY = GenerationConfig(max_new_tokens=8), GenerationConfig(max_new_tokens=400)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TextEngine]:
    """Says "tick tock" for ever."""
    says = ["tick", " tock", "tick"]
    longer = {"max_position_embeddings": 4096}
    path, _ = write_directory(tmp_path_factory.mktemp("model"), says[:2], says, config=longer)
    config = TurbomindEngineConfig(session_len=4096, max_batch_size=32, cache_max_entry_count=200)
    made = TextEngine(path, config)
    yield made
    made.close()


def count_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_answers_that_wait_cost_no_descriptor(engine: TextEngine) -> None:
    n, most = 100, 0

    async def read(i: int) -> str:
        nonlocal most
        answer = engine.ask("Hi", FEW, index=i)
        text = ""
        async for delta in answer.deltas():
            most = max(most, count_descriptors())
            text += delta.text
        return text

    async def read_all() -> tuple[int, list[str]]:
        before = count_descriptors()
        texts = await asyncio.gather(*map(read, range(n)))
        assert count_descriptors() == before
        return before, texts

    before, texts = asyncio.run(read_all())
    assert most == before + 1  # of the event loop
    assert texts == [engine.ask("Hi", FEW).read_all().text] * n
    before = count_descriptors()
    streams = [interleave(lambda i: engine.ask("Hi", MANY), 1) for _ in range(20)]
    for stream in streams:
        next(stream)
    assert count_descriptors() == before
    for stream in streams:
        stream.close()


def test_event_loops_of_several_threads(engine: TextEngine) -> None:
    expected = engine.ask("Hi", FEW).read_all().text

    def loop(found: list[str]) -> None:
        async def read() -> str:
            return "".join([delta.text async for delta in engine.ask("Hi", FEW).deltas()])

        async def read_all() -> list[str]:
            return await asyncio.gather(*(read() for _ in range(5)))

        found += asyncio.run(read_all())

    found: list[list[str]] = [[] for _ in range(5)]
    threads = [threading.Thread(target=loop, args=(texts,)) for texts in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[expected] * 5] * 5


def test_an_answer_that_was_left_is_read_on(engine: TextEngine) -> None:
    """In another loop, and by a reader who takes a while; output that waits keeps no loop busy."""
    answer = engine.ask("Hi", GenerationConfig(max_new_tokens=2000))

    async def first() -> None:
        async with contextlib.aclosing(answer.deltas()) as deltas:
            async for _ in deltas:
                return

    async def rest() -> float:
        deltas = answer.deltas()
        await anext(deltas, None)
        before = time.thread_time()
        await asyncio.sleep(0.3)  # output waits
        spent = time.thread_time() - before
        async for _ in deltas:
            pass
        return spent

    asyncio.run(first())
    assert asyncio.run(rest()) < 0.1
    assert (answer.response.generate_token_len, answer.response.finish_reason) == (2000, "length")
