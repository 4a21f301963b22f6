"""Ends of processes, pipelines and threads while requests run: each is clean."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

START = """
import gc, os, sys, threading, time, weakref
import lmdeploy_c
from lmdeploy_c import GenerationConfig, SpeculativeConfig, TurbomindEngineConfig, pipeline

def start(**options):
    config = TurbomindEngineConfig(
        session_len=2048, max_batch_size=4, cache_max_entry_count="64MB", **options
    )
    return pipeline(backend_config=config, speculative_config=SpeculativeConfig("ngram"))

LONG = GenerationConfig(max_new_tokens=1500, ignore_eos=True)
SHORT = GenerationConfig(max_new_tokens=4)
pipe = start()
"""

PROGRAMS = {
    "the interpreter ends while requests run": """
        sessions = [pipe.session(LONG) for _ in range(3)]
        streams = [iter(s("Tell me everything.")) for s in sessions]
        for stream in streams:
            next(stream)
        print("done")
    """,
    "daemon threads still read": """
        def read():
            for _ in pipe.stream_infer(["Tell me everything."] * 2, gen_config=LONG):
                pass
        for _ in range(3):
            threading.Thread(target=read, daemon=True).start()
        while pipe.stats()["n_running"] + pipe.stats()["n_waiting"] < 6:
            time.sleep(0.01)
        print("done")
    """,
    "sys.exit in the middle of a stream": """
        for piece in pipe.stream_infer("Tell me everything.", gen_config=LONG):
            print("done")
            sys.exit(0)
    """,
    "a running pipeline is collected": """
        seen = weakref.ref(pipe)
        stream = pipe.stream_infer("Tell me everything.", gen_config=LONG)
        next(stream)
        threads = len(os.listdir("/proc/self/task"))
        del pipe, stream
        gc.collect()
        assert seen() is None, "something holds it"
        assert len(os.listdir("/proc/self/task")) < threads, "its threads have not ended"
        assert start()("Hi", SHORT).generate_token_len > 0
        print("done")
    """,
    "a session outlives its pipeline's end": """
        session = pipe.chat("Hi", gen_config=SHORT)
        pipe.close()
        for call in (lambda: pipe("Hi"), lambda: session("Hi", stream_response=False)):
            try:
                call()
            except RuntimeError as error:
                assert "closed" in str(error)
            else:
                raise AssertionError("a closed pipeline answers")
        assert session.fork().history == session.history
        print("done")
    """,
    "a fork while requests run": """
        stream = pipe.stream_infer("Tell me everything.", gen_config=LONG)
        next(stream)
        session = pipe.chat("Hi", gen_config=SHORT)
        child = os.fork()
        if child == 0:
            code = 0
            calls = (
                lambda: pipe("Hi"),
                lambda: pipe.stats(),
                lambda: pipe.metrics(),
                lambda: session("Hi", stream_response=False),
                lambda: session.save("/nowhere/at/all"),
            )
            for call in calls:
                try:
                    call()
                    code = 1
                except RuntimeError as error:
                    code = code or 2 * ("fork" not in str(error))
                except OSError:
                    pass
            sys.stdout.flush()
            os._exit(code)
        assert os.waitpid(child, 0)[1] == 0, "the child could use it"
        assert sum(1 for _ in stream) > 100, "the parent goes on"
        assert session("And?", SHORT, stream_response=False).cached_tokens > 0
        print("done")
    """,
    "forks that never use it": """
        def end_with_streams_open():
            streams = [pipe.stream_infer("Tell me everything.", gen_config=LONG),
                       pipe.session()("Tell me everything.", LONG)]
            for stream in streams:
                next(stream)
            yield

        def collect_it():
            global pipe
            stream = pipe.stream_infer("Tell me everything.", gen_config=LONG)
            next(stream)
            yield
            if child == 0:
                del stream, pipe
                gc.collect()

        def leave_with_blocks():
            with pipe, pipe.trace("/dev/null"), pipe.session() as session:
                stream = session("Tell me everything.", LONG)
                next(stream)
                yield

        for case in (end_with_streams_open, collect_it, leave_with_blocks):
            running = case()
            next(running)
            child = os.fork()
            if child == 0:
                next(running, None)
                sys.exit(0)
            assert os.waitpid(child, 0)[1] == 0, case
            if case is leave_with_blocks:
                assert pipe("Hi", SHORT).generate_token_len > 0, "the parent goes on"
            next(running, None)
        print("done")
    """,
    "a fork inside an event loop": """
        import asyncio

        async def read():
            n, child = 0, None
            stream = pipe.generate("Count.", GenerationConfig(max_new_tokens=20, ignore_eos=True))
            async for piece in stream:
                n += len(piece.token_ids)
                if child is None:
                    child = os.fork()
                    if child == 0:
                        await stream.aclose()
                        os._exit(0)
                    assert os.waitpid(child, 0)[1] == 0
            return n

        assert asyncio.run(asyncio.wait_for(read(), 60), debug=False) == 20, "the parent reads on"
        print("done")
    """,
    "a thread dies while it reads": """
        def die():
            for piece in pipe.stream_infer("Tell me everything.", gen_config=LONG):
                raise KeyError("on purpose")
        threading.excepthook = lambda args: None
        threads = [threading.Thread(target=die) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        gc.collect()
        deadline = time.monotonic() + 10
        while pipe.stats()["n_active_blocks"] and time.monotonic() < deadline:
            time.sleep(0.01)
        assert pipe.stats()["n_active_blocks"] == 0
        assert pipe("Hi", SHORT).generate_token_len > 0
        print("done")
    """,
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_it_ends_cleanly(program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "ignore", "-c", START + textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"
    assert done.stderr == ""
