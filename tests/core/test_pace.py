"""Running answers stay smooth: a step's budget follows measured time, and who waits is bounded."""

import ctypes
import time

import numpy as np
import pytest
from conftest import make_engine, read_all
from test_speculation import compiled

from lmdeploy_c import _C, GenerationConfig, TurbomindEngineConfig, pipeline
from lmdeploy_c.messages import ErrorCode


class Pace(ctypes.Structure):
    _fields_ = (
        ("target", ctypes.c_double),
        ("n_max", ctypes.c_int32),
        ("decode", ctypes.c_double),
        ("per_token", ctypes.c_double),
    )


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = compiled(tmp_path_factory.mktemp("pace"), "pace", ["engine/pace.c"])
    library.lmd_pace_init.argtypes = (ctypes.POINTER(Pace), ctypes.c_double, ctypes.c_int32)
    library.lmd_pace_note.argtypes = (
        ctypes.POINTER(Pace),
        ctypes.c_int32,
        ctypes.c_int32,
        ctypes.c_double,
    )
    library.lmd_pace_budget.argtypes = (ctypes.POINTER(Pace), ctypes.c_int32)
    return library


#: Seconds of a step of decodes, and of a prompt's token beside them, at first and at 8k: a laptop
#: on a small model, on 1B and on 7B.
MACHINES = {"135M": (0.01, 0.0004, 0.001), "1B": (0.03, 0.0026, 0.004), "7B": (0.08, 0.017, 0.02)}


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_steps_come_near_their_target(
    parts: ctypes.CDLL, machine: tuple[float, float, float]
) -> None:
    """A simulated machine with noise: after a few steps they take what was asked for, or what 16
    tokens take where even those are too many."""
    decode, cheap, dear = machine
    random = np.random.default_rng(1)
    pace = Pace()
    parts.lmd_pace_init(ctypes.byref(pace), 0.1, 512)
    assert parts.lmd_pace_budget(ctypes.byref(pace), 0) == 512, "nobody decodes: no bound"
    for _ in range(5):
        parts.lmd_pace_note(ctypes.byref(pace), 4, 0, decode * random.uniform(0.9, 1.2))
    position, steps = 0, []
    while position < 8000:
        n = parts.lmd_pace_budget(ctypes.byref(pace), 4) - 4
        assert 16 <= n <= 508
        cost = cheap + (dear - cheap) * position / 8000
        seconds = (decode + n * cost) * random.uniform(0.9, 1.2)
        parts.lmd_pace_note(ctypes.byref(pace), 4, n, seconds)
        steps.append((seconds, decode + 16 * cost))
        position += n
    late = steps[3:]
    assert np.median([s for s, _ in late]) < max(0.11, *(least for _, least in late))
    assert max(s / max(0.1, least) for s, least in late) < 1.4
    if decode + 16 * dear < 0.1:
        assert np.median([s for s, _ in late]) > 0.07, "and not needlessly short"


def test_chunks_beside_decodes(tiny_model: _C.Model) -> None:
    """With a target that no step can meet, prompts go on by 16 tokens a step; alone they do not."""
    sizes = {}
    for target in (1e-6, 0.0):
        engine = make_engine(tiny_model, n_blocks=200, target_step_ms=target)
        running = [engine.submit([5, 6, 7], max_new_tokens=600) for _ in range(3)]
        for request in running:
            request.read(30)
        engine.trace_start()
        answer = read_all(engine.submit(list(range(3, 90)) * 5, max_new_tokens=2))
        steps = engine.trace_stop()["steps"]
        mixed = steps["n_prefilled"][(steps["n_decoded"] > 0) & (steps["n_prefilled"] > 0)]
        sizes[target] = (mixed, answer.token_ids)
        engine.close()
    assert sizes[1e-6][0].max() <= 64, "the first, before anything is measured"
    assert np.median(sizes[1e-6][0]) == 16
    assert sizes[0.0][0].max() > 200
    assert sizes[1e-6][1] == sizes[0.0][1]


def finish_reason(request: _C.Request) -> str:
    while (output := request.read(30)) is not None and output.finish_reason is None:
        pass
    assert output is not None
    return output.finish_reason or ""


def test_timeouts(tiny_model: _C.Model) -> None:
    engine = make_engine(tiny_model, n_blocks=600, session_len=20000, max_batch_size=1)
    running = engine.submit([5, 6], max_new_tokens=19000, timeout=0.2)
    waiting = engine.submit([5, 6], max_new_tokens=1, timeout=0.1)
    enough = engine.submit([5, 6], max_new_tokens=3, timeout=60)
    started = time.monotonic()
    assert finish_reason(waiting) == "abort"
    assert finish_reason(running) == "abort"
    assert time.monotonic() - started < 5
    assert finish_reason(enough) == "length"
    assert engine.stats()["n_active_blocks"] == 0
    for wrong in (-1.0, float("nan"), float("inf")):
        assert finish_reason(engine.submit([5], timeout=wrong)) == "error"
    assert finish_reason(engine.submit([5], priority=2000)) == "error"
    engine.close()


def test_a_full_queue(tiny_model: _C.Model) -> None:
    engine = make_engine(
        tiny_model, n_blocks=400, session_len=6000, max_batch_size=2, max_waiting_requests=3
    )
    running = [engine.submit([5, 6], max_new_tokens=5900) for _ in range(2)]
    for request in running:
        request.read(30)
    waiting = [engine.submit([5, 6], max_new_tokens=2) for _ in range(3)]
    refused = engine.submit([5, 6], max_new_tokens=2)
    output = refused.read(5)
    assert output is not None
    assert "queue is full: 3 requests wait" in (output.error_message or "")
    running[0].cancel()
    assert [finish_reason(r) for r in waiting] == ["length"] * 3
    assert finish_reason(engine.submit([5, 6], max_new_tokens=2)) == "length"
    engine.close()
    with pytest.raises(ValueError, match="negative"):
        make_engine(tiny_model, max_waiting_requests=-1)
    with pytest.raises(ValueError, match="negative"):
        make_engine(tiny_model, target_step_ms=-1.0)


def test_pipeline() -> None:
    config = TurbomindEngineConfig(
        session_len=512, max_batch_size=1, cache_max_entry_count="32MB", max_waiting_requests=1
    )
    with pipeline(backend_config=config) as pipe:
        answers = pipe(
            ["Tell me a long story."] * 4, GenerationConfig(max_new_tokens=40, timeout=60)
        )
        codes = [a.error_code for a in answers]
        assert ErrorCode.ENGINE_UNAVAILABLE in codes
        assert answers[0].finish_reason in ("stop", "length")
        late = pipe("Tell me everything.", GenerationConfig(max_new_tokens=500, timeout=0.05))
        assert late.finish_reason == "abort"
    for wrong in ({"timeout": -1}, {"timeout": 0}, {"priority": 1.5}, {"priority": 5000}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            GenerationConfig(**wrong)  # type: ignore[arg-type]
