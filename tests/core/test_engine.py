"""The engine: joining and leaving, cancelling, errors, closing, memory."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import select
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import GOLDEN, greedy, load_model, make_engine, read_all
from packed_models import config_of, linears_of, other_tensors, write_model

from lmdeploy_c import _C


def only_output(request: _C.Request) -> _C.Output:
    output = request.read(30)
    assert output is not None
    assert output.finish_reason is not None
    return output


def wait_until(condition: Any, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.002)


# ---- running together ----


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_many_heads_without_groups(tmp_path: Path, num_threads: int) -> None:
    """With as many KV heads as this no sequence needs to be split for the threads to be busy: one
    decoded token attends as a row of a prompt does."""
    config = config_of(
        "llama", "awq", 64, num_attention_heads=32, num_key_value_heads=32, head_dim=8
    )
    del config["quantization_config"]
    config["max_position_embeddings"] = 1024
    rng = np.random.default_rng(5)
    matrices = {
        f"{name}.weight": rng.normal(0, 0.1, shape).astype(np.float16)
        for name, shape in linears_of(config).items()
    }
    path = write_model(tmp_path / "model", config, {**other_tensors(rng, config), **matrices})
    model = load_model(path, num_threads=num_threads)
    engine = make_engine(model, session_len=1024, enable_prefix_caching=False)
    text = [i % 60 for i in range(600)]
    text += greedy(engine, text, 20)
    ppl = read_all(engine.submit(text, max_new_tokens=0, return_ppl=True)).ppl
    assert greedy(engine, text[:610], 10) == text[610:]
    engine.close()
    assert ppl is not None and np.isfinite(ppl)


def test_requests_join_and_leave_between_steps(tiny_engine: _C.Engine) -> None:
    expected = {n: greedy(tiny_engine, [5, 6, n], n) for n in range(3, 40)}
    requests: dict[int, _C.Request] = {}
    for n in range(3, 40):
        requests[n] = tiny_engine.submit([5, 6, n], max_new_tokens=n)
        if n % 5 == 0:
            time.sleep(0.003)
    for n, request in requests.items():
        assert read_all(request).token_ids == expected[n]
    wait_until(lambda: tiny_engine.stats()["n_active_blocks"] == 0)


def test_submitted_from_many_threads(tiny_engine: _C.Engine) -> None:
    expected = [greedy(tiny_engine, [7, i], 12) for i in range(8)]
    wrong: list[int] = []

    def client(i: int) -> None:
        for _ in range(20):
            if greedy(tiny_engine, [7, i], 12) != expected[i]:
                wrong.append(i)

    threads = [threading.Thread(target=client, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_cancel_ends_within_a_step_and_frees_blocks(tiny_model: _C.Model) -> None:
    engine = make_engine(tiny_model, session_len=20_000, n_blocks=400)
    request = engine.submit([5, 6], max_new_tokens=19_000)  # long enough to be met
    first = request.read(10)
    assert first is not None
    request.cancel()
    assert read_all(request).finish_reason == "abort"
    wait_until(lambda: engine.stats()["n_active_blocks"] == 0)
    engine.close()


def test_dropping_a_request_cancels_it(tiny_engine: _C.Engine) -> None:
    request = tiny_engine.submit([5, 6], max_new_tokens=600)
    assert request.read(10) is not None
    del request
    gc.collect()
    wait_until(lambda: tiny_engine.stats()["n_running"] == 0)


# ---- bad requests ----

BAD: list[tuple[Any, dict[str, Any], str]] = [
    ([], {}, "prompt is empty"),
    ([1, 999_999], {}, r"token_ids\[1\] is token id 999999"),
    ([1, -1], {}, r"token_ids\[1\] is token id -1"),
    ([1, 2**40], {}, "does not fit 32 bits"),
    ([[1, 2]], {}, "one-dimensional"),
    ([1] * 640, {}, "context length is 640"),
    ([1], {"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
    ([1], {"max_new_tokens": -5}, "max_new_tokens"),
    ([1], {"temperature": float("nan")}, "temperature"),
    ([1], {"temperature": -1.0}, "temperature"),
    ([1], {"top_p": 1.5}, "top_p"),
    ([1], {"min_p": -0.1}, "min_p"),
    ([1], {"top_k": -3}, "top_k"),
    ([1], {"repetition_penalty": 0.0}, "repetition_penalty"),
    ([1], {"frequency_penalty": float("inf")}, "frequency_penalty"),
    ([1], {"logprobs": 1000}, "logprobs"),
    ([1], {"logit_bias": {999_999: 1.0}}, "logit_bias: token id 999999"),
    ([1], {"logit_bias": {1: float("nan")}}, "logit_bias of token 1"),
    ([1], {"bad_words": [[]]}, "is empty"),
    ([1], {"bad_words": [[1, 999_999]]}, "bad_words: token id 999999"),
    ([1], {"stop_words": [[]]}, "is empty"),
    ([1], {"stop_token_ids": [-2]}, "stop_words"),
    ([1], {"output_logits": "some"}, "output_logits"),
    ([1], {"return_ppl": True}, "at least two tokens"),
    ([1], {"prompt_logprobs": True}, "prompt_logprobs needs logprobs"),
    ([1], {"min_new_tokens": -1}, "min_new_tokens"),
]


@pytest.mark.parametrize(("ids", "params", "message"), BAD, ids=lambda v: str(v)[:40])
def test_a_bad_request_is_an_answer(
    tiny_engine: _C.Engine, ids: Any, params: dict[str, Any], message: str
) -> None:
    good = tiny_engine.submit([5, 6, 7], max_new_tokens=30)
    output = only_output(tiny_engine.submit(ids, **params))
    assert output.finish_reason == "error"
    assert output.error_message is not None
    with pytest.raises(ValueError, match=message):
        raise ValueError(output.error_message)
    assert len(read_all(good).token_ids) == 30


def test_a_wrong_type_is_an_exception(tiny_engine: _C.Engine, tiny_model: _C.Model) -> None:
    for ids in ("text", [0.5], [None]):
        with pytest.raises(TypeError):
            tiny_engine.submit(ids)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        tiny_engine.submit([1], unknown=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="must be a Model"):
        _C.Engine(3, session_len=8, n_blocks=1)  # type: ignore[arg-type]
    for wrong in (
        {"kv_bits": 2},
        {"kv_bits": (16, 8)},
        {"block_len": 48},
        {"n_blocks": 0},
        {"session_len": -1},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong)).replace("block_len", "block")):
            make_engine(tiny_model, **wrong)


def test_out_of_kv_memory_ends_one_request(tiny_model: _C.Model) -> None:
    engine = make_engine(tiny_model, n_blocks=2, block_len=16)
    output = only_output(engine.submit([5] * 33))
    assert "KV cache holds 32" in (output.error_message or "")
    request = engine.submit([5] * 20, max_new_tokens=100)
    tokens = 0
    while True:
        got = request.read(30)
        assert got is not None
        tokens += len(got.token_ids)
        if got.finish_reason:
            break
    assert got.finish_reason == "error"
    assert "out of KV memory" in (got.error_message or "")
    assert tokens == 13  # 20 + 12 fill two blocks; one more was made and not computed
    assert len(greedy(engine, [5, 6], 4)) == 4
    engine.close()


def test_answers_stop_at_session_len(tiny_model: _C.Model) -> None:
    engine = make_engine(tiny_model, session_len=50)
    answer = read_all(engine.submit([5] * 20, max_new_tokens=1000))
    assert (len(answer.token_ids), answer.finish_reason) == (30, "length")
    engine.close()


# ---- scores ----


def test_ppl_is_the_cross_entropy_of_the_logits(tiny_engine: _C.Engine) -> None:
    ids = [(i * 31) % 90 + 3 for i in range(90)]
    answer = read_all(
        tiny_engine.submit(ids, max_new_tokens=3, return_ppl=True, output_logits="all")
    )
    assert answer.logits is not None
    assert answer.logits.shape[0] == len(ids) + 2  # the last prompt row gives the first token
    z = answer.logits[: len(ids) - 1].astype(np.float64)
    z -= z.max(1, keepdims=True)
    logp = z - np.log(np.exp(z).sum(1, keepdims=True))
    expected = -logp[np.arange(len(ids) - 1), ids[1:]].mean()
    assert answer.ppl == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("n_new", [0, 3])
def test_prompt_logprobs_are_the_softmax_of_the_logits(tiny_model: _C.Model, n_new: int) -> None:
    """Also of a prompt in chunks, beside others, whose KV is known, and after a preemption."""
    options = {"max_prefill_token_num": 24, "block_len": 16, "n_blocks": 20}
    engine = make_engine(tiny_model, **options)
    ids = [(i * 31) % 90 + 3 for i in range(90)]
    wanted = engine.submit(ids, max_new_tokens=1, output_logits="all")
    z = read_all(wanted).logits
    assert z is not None
    z = z[: len(ids) - 1].astype(np.float64)
    z -= z.max(1, keepdims=True)
    logp = z - np.log(np.exp(z).sum(1, keepdims=True))
    others = [engine.submit([i + 3] * 60, max_new_tokens=90) for i in range(3)]
    request = engine.submit(ids, max_new_tokens=n_new, prompt_logprobs=True, logprobs=4)
    found: list[dict[int, float]] = []
    n_given = 0
    while not request.done:
        output = request.read(30)
        assert output is not None and output.finish_reason != "error"
        if output.prompt_logprobs is not None:
            n_given, found = n_given + 1, output.prompt_logprobs
    assert n_given == 1 and len(found) == len(ids) - 1
    for entry, row, token_id in zip(found, logp, ids[1:], strict=True):
        assert token_id in entry and len(entry) in (4, 5)
        best = sorted(row, reverse=True)[:4]
        assert sorted(entry.values(), reverse=True)[:4] == pytest.approx(best, abs=1e-4)
        for i, value in entry.items():
            assert value == pytest.approx(row[i], abs=1e-4)
    for other in others:
        read_all(other)
    engine.close()


@pytest.mark.parametrize("which", ["all", "generation"])
def test_logits_rows_belong_to_the_tokens_shown(tiny_engine: _C.Engine, which: str) -> None:
    free = greedy(tiny_engine, [5, 6, 7], 30)
    for word in ([free[4]], free[6:9]):
        answer = read_all(
            tiny_engine.submit([5, 6, 7], max_new_tokens=30, stop_words=[word], output_logits=which)
        )
        assert answer.finish_reason == "stop"
        n_rows = 0 if answer.logits is None else len(answer.logits)
        n_tokens = len(answer.token_ids)
        assert n_rows == (3 + max(n_tokens - 1, 0) if which == "all" else n_tokens)


def test_min_new_tokens_counts_what_is_shown(tiny_engine: _C.Engine) -> None:
    free = greedy(tiny_engine, [5, 6, 7], 30)
    word = free[6:9]
    for least in range(5, 12):
        answer = read_all(
            tiny_engine.submit(
                [5, 6, 7], max_new_tokens=30, stop_words=[word], min_new_tokens=least
            )
        )
        assert len(answer.token_ids) >= least


def test_no_memory_for_logits_ends_one_request(tiny_engine: _C.Engine) -> None:
    for n in range(1, 40):
        _C.alloc_fail_after(n)
        try:
            request = tiny_engine.submit(
                [5, 6, 7], max_new_tokens=3, output_logits="all", logit_bias={1: 2.0}
            )
            output = request.read(30)
            while output is not None and output.finish_reason is None:
                output = request.read(30)
            assert output is not None
            assert output.finish_reason in ("length", "error")
        except MemoryError:
            pass
        finally:
            _C.alloc_fail_after(0)
    assert greedy(tiny_engine, [5, 6, 7], 3)


# ---- closing ----


def test_close_aborts_and_is_idempotent(tiny_model: _C.Model) -> None:
    engine = make_engine(tiny_model, session_len=20_000, n_blocks=400)
    running = engine.submit([5, 6], max_new_tokens=19_000)  # long enough to be met
    assert running.read(10) is not None
    engine.close()
    engine.close()
    assert read_all(running).finish_reason == "abort"
    with pytest.raises(RuntimeError, match="closed"):
        engine.submit([1])
    with pytest.raises(RuntimeError, match="was read before"):
        running.read()


def test_collected_while_running(tiny_model: _C.Model) -> None:
    for _ in range(5):
        engine = make_engine(tiny_model)
        request = engine.submit([5, 6], max_new_tokens=600)
        del engine
        gc.collect()
        assert request.read(10) is not None
        del request
        gc.collect()


# ---- waiting ----


def test_read_times_out(tiny_model: _C.Model) -> None:
    engine = make_engine(tiny_model, max_batch_size=1)
    first = engine.submit([5], max_new_tokens=639)
    waiting = engine.submit([5], max_new_tokens=1)
    start = time.monotonic()
    assert waiting.read(0.0) is None
    assert time.monotonic() - start < 1.0
    read_all(first)
    assert len(read_all(waiting).token_ids) == 1
    engine.close()


def test_fileno_wakes_an_event_loop(tiny_engine: _C.Engine) -> None:
    async def answer(i: int) -> list[int]:
        request = tiny_engine.submit([5, i], max_new_tokens=20)
        ready = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(request.fileno(), ready.set)
        tokens: list[int] = []
        while not request.done:
            await asyncio.wait_for(ready.wait(), 20)
            ready.clear()
            output = request.read(0)
            tokens += output.token_ids if output else []
        loop.remove_reader(request.fileno())
        return tokens

    async def all_answers() -> list[list[int]]:
        return await asyncio.gather(*(answer(i) for i in range(10)))

    assert asyncio.run(all_answers()) == [greedy(tiny_engine, [5, i], 20) for i in range(10)]


def test_a_poller_waits_for_many_requests(tiny_engine: _C.Engine) -> None:
    poller, n = _C.Poller(), 100
    requests = [tiny_engine.submit([5, i % 90], max_new_tokens=1 + i % 7) for i in range(n)]
    for i, request in enumerate(requests):
        poller.add(request, i - 50)
    tokens: list[list[int]] = [[] for _ in range(n)]
    n_open = n
    while n_open:
        keys = poller.wait(20)
        assert keys and len(set(keys)) == len(keys) <= 64
        for key in keys:
            output = requests[key + 50].read(0)
            assert output is not None, "a key without output"
            tokens[key + 50] += output.token_ids
            n_open -= output.finish_reason is not None
    assert poller.wait(0) == []
    assert tokens == [greedy(tiny_engine, [5, i % 90], 1 + i % 7) for i in range(n)]


def test_a_poller_gives_a_key_once_until_its_request_is_read(tiny_engine: _C.Engine) -> None:
    poller, request = _C.Poller(), tiny_engine.submit([5, 6], max_new_tokens=30)
    descriptor = poller.fileno()
    poller.add(request, 1 << 40)
    assert select.select([descriptor], [], [], 20)[0]
    assert poller.wait(0) == [1 << 40]
    time.sleep(0.05)  # more tokens come
    assert poller.wait(0) == [] and not select.select([descriptor], [], [], 0)[0]
    n = 0
    while not request.done:
        output = request.read(20)
        assert output is not None
        n += len(output.token_ids)
    assert n == 30 and poller.wait(0) == []


def test_a_poller_knows_what_came_before_and_what_left(tiny_engine: _C.Engine) -> None:
    poller = _C.Poller()
    early, gone = (tiny_engine.submit([5, i], max_new_tokens=1) for i in range(2))
    while tiny_engine.metrics()["n_ended"]["length"] != 2:
        time.sleep(0.001)
    poller.add(early, 7)
    poller.add(gone, 8)
    assert poller.wait(0) == [7, 8]
    poller.remove(early)
    poller.add(early, 9)
    poller.remove(gone)
    poller.remove(gone)  # nothing to do
    assert poller.wait(0) == [9]
    poller.remove(early)
    poller.add(early, 10)
    poller.add(gone, 11)
    del gone
    gc.collect()
    assert poller.wait(0) == [10]
    with pytest.raises(ValueError, match="in a poller"):
        _C.Poller().add(early, 0)
    with pytest.raises(ValueError, match="in a poller"):
        early.fileno()
    with pytest.raises(TypeError, match="request must be a Request, not int"):
        poller.add(1, 1)  # type: ignore[arg-type]


def test_a_pollers_wait_ends(tiny_engine: _C.Engine) -> None:
    start = time.monotonic()
    assert _C.Poller().wait(0.12) == []
    assert 0.12 <= time.monotonic() - start < 5.0


# ---- memory ----


def test_steady_decode_makes_no_allocation(tiny_model: _C.Model) -> None:
    engine = make_engine(tiny_model, session_len=20_000, n_blocks=1280)  # long enough to be met
    requests = [
        engine.submit([5, i], max_new_tokens=19_000, do_sample=True, repetition_penalty=1.1,
                      stop_words=[[1, 2, 1, 1, 1, 1]], logprobs=3)
        for i in range(4)
    ]  # fmt: skip
    wait_until(lambda: engine.stats()["n_running"] == 4)  # admission allocates, and may come late
    admitted = engine.stats()
    wait_until(lambda: engine.stats()["n_steps"] > admitted["n_steps"] + 25)
    before = engine.stats()
    wait_until(lambda: engine.stats()["n_steps"] > before["n_steps"] + 100)
    after = engine.stats()
    assert after["n_running"] == 4
    assert after["n_allocs"] == before["n_allocs"]
    for request in requests:
        request.cancel()
    engine.close()


def test_memory_is_flat_over_1000_requests(tiny_engine: _C.Engine) -> None:
    def run(n: int) -> int:
        for start in range(0, n, 25):
            batch = [
                tiny_engine.submit([5, i % 90], max_new_tokens=8, output_logits="generation",
                                   logprobs=2, stop_words=[[1, 2]])
                for i in range(start, start + 25)
            ]  # fmt: skip
            for request in batch:
                read_all(request)
        gc.collect()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    run(500)
    before = run(250)
    assert run(1000) - before < 1024  # KiB


def test_allocation_failures_are_errors(tiny_model: _C.Model) -> None:
    """Every allocation of making an engine fails in turn: MemoryError, and the next try works."""
    failed = 0
    for n in range(1, 200):
        _C.alloc_fail_after(n)
        try:
            engine = make_engine(tiny_model, n_blocks=4)
        except MemoryError:
            failed += 1
            continue
        finally:
            _C.alloc_fail_after(0)
        engine.close()
        break
    assert failed > 20
    engine = make_engine(tiny_model, n_blocks=4)
    for n in range(1, 12):
        _C.alloc_fail_after(n)
        try:
            output = only_output(engine.submit([5, 6], max_new_tokens=1, stop_words=[[1, 2]]))
            assert output.finish_reason in ("length", "error")
        except MemoryError:
            pass
        finally:
            _C.alloc_fail_after(0)
    assert len(greedy(engine, [5, 6], 4)) == 4
    engine.close()


# ---- processes ----

SCRIPT = """
import os, signal, sys, threading, time
sys.path.insert(0, {tests!r})
from conftest import GOLDEN, load_model, make_engine
engine = make_engine(load_model(GOLDEN / "models" / "llama-gqa-tied", num_threads=2))
request = engine.submit([5, 6], max_new_tokens=600)
"""


def run_script(body: str) -> subprocess.CompletedProcess[str]:
    code = SCRIPT.format(tests=str(GOLDEN.parent)) + body
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


def test_interpreter_ends_with_requests_in_flight() -> None:
    done = run_script("assert request.read(10) is not None\nprint('ok')\n")
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


def test_ctrl_c_interrupts_a_wait() -> None:
    body = """
engine2 = make_engine(load_model(GOLDEN / "models" / "llama-gqa-tied"), max_batch_size=1)
threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
try:
    while True:
        request = engine2.submit([5], max_new_tokens=600)
        while request.read(5).finish_reason is None:
            pass
except KeyboardInterrupt:
    print("interrupted")
print(len(engine2.submit([5], max_new_tokens=1).read(10).token_ids))
"""
    done = run_script(body)
    assert (done.returncode, done.stdout) == (0, "interrupted\n1\n"), done.stderr


def test_a_forked_child_is_refused(tiny_engine: _C.Engine) -> None:
    request, poller = tiny_engine.submit([5, 6], max_new_tokens=2), _C.Poller()
    pid = os.fork()
    if pid == 0:
        refused = 0
        for use in (tiny_engine.stats, request.read, request.cancel, poller.wait,
                    lambda: tiny_engine.submit([1])):  # fmt: skip
            try:
                use()
            except RuntimeError:
                refused += 1
        tiny_engine.close()  # the child owns nothing: there is nothing to do
        os._exit(0 if refused == 5 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert len(read_all(request).token_ids) == 2
