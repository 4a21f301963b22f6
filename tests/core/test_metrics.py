"""Metrics and traces: the numbers against what really happened."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import make_engine, read_all
from test_engine import only_output, wait_until

import lmdeploy_c
from lmdeploy_c import _C, GenerationConfig, TurbomindEngineConfig
from lmdeploy_c import metrics as prometheus
from lmdeploy_c.engine import trace
from lmdeploy_c.messages import ErrorCode

Metrics = dict[str, Any]
#: An engine whose requests of 190 000 tokens are met before they end.
ENDLESS = {"session_len": 200_000, "n_blocks": 6400}


def at_rest(engine: _C.Engine) -> Metrics:
    """The metrics once nothing runs and every block is given back."""
    wait_until(lambda: engine.stats()["n_running"] + engine.stats()["n_waiting"] == 0)
    wait_until(lambda: engine.stats()["n_active_blocks"] == 0)
    return engine.metrics()


def check(metrics: Metrics, n_blocks: int = 64) -> None:
    """What holds at every moment."""
    histograms = metrics["histograms"]
    counts = {name: h["count"] for name, h in histograms.items()}
    ended = sum(metrics["n_ended"].values())
    assert metrics["n_submitted"] == metrics["n_running"] + metrics["n_waiting"] + ended
    assert metrics["n_running"] >= 0 and metrics["n_waiting"] >= 0
    blocks = [metrics[f"n_{state}_blocks"] for state in ("free", "active", "cached")]
    assert sum(blocks) == n_blocks and min(blocks) >= 0
    assert counts["step_seconds"] == counts["step_tokens"] == metrics["n_steps"]
    n_first = counts["time_to_first_token_seconds"]
    assert n_first == counts["prefill_seconds"]
    assert n_first + counts["inter_token_seconds"] == metrics["n_tokens_generated"]
    assert counts["request_seconds"] == counts["prompt_tokens"] == counts["generated_tokens"]
    assert counts["queue_seconds"] == counts["cached_tokens"] == counts["cache_hit_ratio"]
    for h in histograms.values():
        assert len(h["counts"]) == len(h["bounds"]) + 1
        assert sum(h["counts"]) == h["count"] and min(h["counts"]) >= 0
        assert h["bounds"] == sorted(set(h["bounds"]))
        lowest = sum(n * b for n, b in zip(h["counts"], [0.0, *h["bounds"]], strict=True))
        assert h["sum"] >= lowest - 1e-9


# ---- counting ----


def test_known_requests_are_counted(tiny_engine: _C.Engine) -> None:
    start = time.monotonic()
    shapes = [(7, 12), (3, 1), (20, 30), (150, 5)]
    for n_prompt, n_new in shapes:  # no prompt begins like another: none is found in KV
        prompt = [n_new] + [(i * 7 + n_new) % 90 for i in range(n_prompt - 1)]
        assert len(read_all(tiny_engine.submit(prompt, max_new_tokens=n_new)).token_ids) == n_new
    seconds = time.monotonic() - start
    metrics = at_rest(tiny_engine)
    check(metrics)
    n_prompt, n_new = (sum(s[i] for s in shapes) for i in (0, 1))
    assert metrics["n_ended"] == {"stop": 0, "length": 4, "error": 0, "abort": 0}
    assert metrics["n_prompt_tokens"] == metrics["n_tokens_prefilled"] == n_prompt
    assert metrics["n_tokens_generated"] == n_new
    assert metrics["n_cached_tokens"] == metrics["n_preempted"] == 0
    assert metrics["n_steps"] == n_new  # alone, and every prompt fits in one step
    histograms = metrics["histograms"]
    assert histograms["time_to_first_token_seconds"]["count"] == 4
    assert histograms["inter_token_seconds"]["count"] == n_new - 4
    assert histograms["decode_seconds"]["count"] == histograms["inference_seconds"]["count"] == 4
    assert histograms["prompt_tokens"]["sum"] == n_prompt
    assert histograms["generated_tokens"]["sum"] == n_new
    # The last token of an answer is never computed.
    assert histograms["step_tokens"]["sum"] == n_prompt + n_new - 4
    assert histograms["prompt_tokens"]["counts"][2:8] == [1, 1, 1, 0, 0, 1]  # 3, 7, 20, 150
    assert histograms["generated_tokens"]["counts"][:6] == [1, 0, 1, 0, 1, 1]  # 1, 5, 12, 30
    # Durations: the parts make the whole, and the whole is no longer than it took.
    total = {name: h["sum"] for name, h in histograms.items()}
    assert 0 < total["request_seconds"] < seconds
    assert total["queue_seconds"] + total["prefill_seconds"] == pytest.approx(
        total["time_to_first_token_seconds"]
    )
    assert total["inter_token_seconds"] == pytest.approx(total["decode_seconds"])
    assert total["prefill_seconds"] + total["decode_seconds"] <= total["inference_seconds"]
    assert total["step_seconds"] <= total["inference_seconds"]


def test_time_to_the_first_token_is_what_the_client_sees(tiny_engine: _C.Engine) -> None:
    start = time.monotonic()
    request = tiny_engine.submit([5] * 400, max_new_tokens=40)
    first = request.read(30)
    seen = time.monotonic() - start
    assert first is not None
    if first.finish_reason is None:
        read_all(request)
    metrics = at_rest(tiny_engine)
    ttft = metrics["histograms"]["time_to_first_token_seconds"]["sum"]
    assert 0 < ttft < seen


def test_a_repeated_prompt_is_a_hit(tiny_engine: _C.Engine) -> None:
    prompt = [(i * 5) % 90 for i in range(200)]  # three full blocks of 64
    for _ in range(3):
        read_all(tiny_engine.submit(prompt, max_new_tokens=2))
    metrics = at_rest(tiny_engine)
    check(metrics)
    assert (metrics["n_prompt_tokens"], metrics["n_cached_tokens"]) == (600, 384)
    assert metrics["prefix_hit_rate"] == pytest.approx(384 / 600)
    assert metrics["n_cached_blocks"] == 3
    assert metrics["histograms"]["cached_tokens"]["sum"] == 384
    ratios = metrics["histograms"]["cache_hit_ratio"]
    assert ratios["sum"] == pytest.approx(2 * 192 / 200)
    assert (ratios["counts"][0], ratios["counts"][10]) == (1, 2)  # none; 0.9 to 1.0


def test_every_reason_is_counted(tiny_model: _C.Model) -> None:
    engine = make_engine(tiny_model, **ENDLESS)
    stop = read_all(engine.submit([5, 6, 7], max_new_tokens=5)).token_ids[2]
    assert read_all(engine.submit([5, 6, 7], stop_token_ids=[stop])).finish_reason == "stop"
    assert only_output(engine.submit([])).finish_reason == "error"
    assert only_output(engine.submit([1, 10**6])).finish_reason == "error"
    request = engine.submit([5, 6], max_new_tokens=190_000)
    assert request.read(30) is not None
    assert engine.metrics()["n_running"] == 1
    request.cancel()
    assert read_all(request).finish_reason == "abort"
    metrics = at_rest(engine)
    assert metrics["n_ended"] == {"stop": 1, "length": 1, "error": 2, "abort": 1}
    assert metrics["n_submitted"] == 5
    assert metrics["histograms"]["request_seconds"]["count"] == 3  # that the engine has seen
    engine.close()
    with pytest.raises(RuntimeError):
        engine.submit([1])
    assert engine.metrics()["n_ended"] == metrics["n_ended"]  # the end can still be looked at


def test_a_score_has_no_first_token(tiny_engine: _C.Engine) -> None:
    read_all(tiny_engine.submit([5] * 30, max_new_tokens=0, return_ppl=True))
    metrics = at_rest(tiny_engine)
    check(metrics)
    counts = {name: h["count"] for name, h in metrics["histograms"].items()}
    assert counts["request_seconds"] == counts["queue_seconds"] == 1
    assert counts["time_to_first_token_seconds"] == counts["decode_seconds"] == 0


def test_preemptions_are_counted(tiny_model: _C.Model) -> None:
    engine = make_engine(tiny_model, n_blocks=6, block_len=16, enable_prefix_caching=False)
    requests = [engine.submit([5, 6, n], max_new_tokens=60) for n in range(4)]
    for request in requests:
        assert len(read_all(request).token_ids) == 60
    metrics = at_rest(engine)
    check(metrics, n_blocks=6)
    assert metrics["n_preempted"] > 0
    assert metrics["n_tokens_generated"] == 240
    # Who starts again is not a new request: no second first token, no second queue time.
    assert metrics["histograms"]["time_to_first_token_seconds"]["count"] == 4
    assert metrics["histograms"]["queue_seconds"]["count"] == 4
    engine.close()


def test_metrics_that_are_off(tiny_model: _C.Model) -> None:
    engine = make_engine(tiny_model, enable_metrics=False)
    read_all(engine.submit([5, 6], max_new_tokens=3))
    with pytest.raises(RuntimeError, match="enable_metrics"):
        engine.metrics()
    assert engine.stats()["n_tokens_generated"] == 3
    engine.close()


def test_every_look_is_of_one_moment(tiny_engine: _C.Engine) -> None:
    seen: list[Metrics] = []
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            seen.append(tiny_engine.metrics())

    readers = [threading.Thread(target=look) for _ in range(2)]
    for reader in readers:
        reader.start()
    for n in range(30):
        requests = [tiny_engine.submit([7, i, n], max_new_tokens=1 + i) for i in range(6)]
        requests[3].cancel()
        for request in requests:
            read_all(request)
    done.set()
    for reader in readers:
        reader.join()
    assert len(seen) > 30
    for metrics in seen:
        check(metrics)
    last = at_rest(tiny_engine)
    assert last["n_submitted"] == sum(last["n_ended"].values()) == 180


# ---- the trace ----


def traced(engine: _C.Engine, max_steps: int = 1000) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A trace of some traffic, as the engine gives it and as Chrome's events."""
    engine.trace_start(max_steps)
    requests = [engine.submit([5, 6, n], max_new_tokens=20 + n) for n in range(4)]
    requests.append(engine.submit([9] * 300, max_new_tokens=4))
    for request in requests:
        read_all(request)
    wait_until(lambda: engine.stats()["n_running"] == 0)
    raw = engine.trace_stop()
    return raw, trace.chrome_trace(raw)["traceEvents"]


def check_events(events: list[dict[str, Any]]) -> None:
    """Chrome's rules: sorted, slices of a row apart, begin and end of each id paired."""
    timed = [e for e in events if e["ph"] != "M"]
    assert [e["ts"] for e in timed] == sorted(e["ts"] for e in timed)
    slices = [e for e in timed if e["ph"] == "X"]
    for e, following in itertools.pairwise(slices):
        assert e["dur"] > 0 and e["ts"] + e["dur"] <= following["ts"] + 1e-6
    open_names: dict[str, list[str]] = {}
    for e in timed:
        assert e["ph"] in "XCbe" and isinstance(e["pid"], int) and e["ts"] >= 0
        if e["ph"] == "b":
            open_names.setdefault(e["id"], []).append(e["name"])
        elif e["ph"] == "e":
            assert open_names[e["id"]].pop() == e["name"]
    assert not any(open_names.values())


def test_a_trace_says_what_the_metrics_say(tiny_model: _C.Model) -> None:
    engine = make_engine(tiny_model, max_prefill_token_num=128)
    raw, events = traced(engine)
    metrics = at_rest(engine)
    check_events(events)
    steps = raw["steps"]
    assert len(steps["start_ns"]) == metrics["n_steps"] and raw["n_lost_steps"] == 0
    n_computed = metrics["histograms"]["step_tokens"]["sum"]
    assert int((steps["n_prefilled"] + steps["n_decoded"]).sum()) == n_computed
    assert int(steps["n_prefilled"].sum()) == 12 + 300
    assert (steps["n_prefilled"] + steps["n_decoded"] <= steps["budget"]).all()
    assert steps["budget"].max() == 128, "less where someone decodes"
    blocks = steps["n_free_blocks"] + steps["n_active_blocks"] + steps["n_cached_blocks"]
    assert set(blocks.tolist()) == {64}
    spent = (steps["end_ns"] - steps["start_ns"]).sum() / 1e9
    assert spent == pytest.approx(metrics["histograms"]["step_seconds"]["sum"])
    # Each request passes each turn once, in order.
    at: dict[int, list[tuple[int, int]]] = {}
    for i, kind, when in zip(*(raw["events"][k].tolist() for k in ("request_id", "kind", "at_ns")),
                             strict=True):  # fmt: skip
        at.setdefault(i, []).append((kind, when))
    assert len(at) == 5
    for turns in at.values():
        assert [kind for kind, _ in turns] == [0, 1, 2, 3]
        assert [when for _, when in turns] == sorted(when for _, when in turns)
    names = Counter(e["name"] for e in events if e["ph"] == "b")
    assert names["queue"] == names["prefill"] == names["decode"] == 5
    ends = [e["args"] for e in events if e["ph"] == "e" and e["name"].startswith("request")]
    assert sorted(e["generated_tokens"] for e in ends) == [4, 20, 21, 22, 23]
    assert {e["finish_reason"] for e in ends} == {"length"}
    kinds = {e["name"] for e in events if e["ph"] == "X"}
    assert kinds >= {"prefill step", "decode step"}
    engine.close()


def test_a_full_trace_keeps_the_newest_steps(tiny_engine: _C.Engine) -> None:
    raw, events = traced(tiny_engine, max_steps=3)
    assert len(raw["steps"]["start_ns"]) == 3
    assert raw["n_lost_steps"] == tiny_engine.stats()["n_steps"] - 3
    assert raw["n_lost_events"] == 20 - 12
    check_events(events)
    newest = max(raw["steps"]["end_ns"].tolist())
    assert newest >= max(raw["events"]["at_ns"].tolist()) - 10**9
    assert raw["steps"]["start_ns"].tolist() == sorted(raw["steps"]["start_ns"].tolist())


def test_a_request_may_outlive_a_trace_on_both_sides(tiny_model: _C.Model) -> None:
    engine = make_engine(tiny_model, **ENDLESS)
    early = engine.submit([5, 6], max_new_tokens=190_000)
    assert early.read(30) is not None
    engine.trace_start()
    late = engine.submit([5, 7], max_new_tokens=190_000)
    assert late.read(30) is not None
    early.cancel()
    read_all(early)
    raw = engine.trace_stop()
    events = trace.chrome_trace(raw)["traceEvents"]
    check_events(events)
    ends = {e["id"]: e["args"] for e in events if e["ph"] == "e" and "args" in e}
    assert ends[str(early.request_id)]["finish_reason"] == "abort"
    assert ends[str(late.request_id)]["finish_reason"] == "none yet"
    engine.close()


def test_one_trace_at_a_time(tiny_engine: _C.Engine) -> None:
    with pytest.raises(ValueError, match="no trace runs"):
        tiny_engine.trace_stop()
    for wrong in (0, -1, 1 << 40):
        with pytest.raises(ValueError, match="max_steps"):
            tiny_engine.trace_start(wrong)
    tiny_engine.trace_start(10)
    with pytest.raises(ValueError, match="runs already"):
        tiny_engine.trace_start(10)
    assert tiny_engine.trace_stop()["n_lost_steps"] == 0


def test_a_trace_needs_its_memory(tiny_engine: _C.Engine) -> None:
    for n in (1, 2):
        _C.alloc_fail_after(n)
        with pytest.raises(MemoryError, match="trace"):
            tiny_engine.trace_start(10)
        _C.alloc_fail_after(0)
    tiny_engine.trace_start(10)
    tiny_engine.trace_stop()


def test_tracing_a_steady_decode_allocates_nothing(tiny_model: _C.Model) -> None:
    engine = make_engine(tiny_model, **ENDLESS)
    request = engine.submit([5, 6], max_new_tokens=190_000)
    assert request.read(30) is not None
    engine.trace_start(50)
    before = engine.stats()
    wait_until(lambda: engine.stats()["n_steps"] > before["n_steps"] + 100)
    assert engine.stats()["n_allocs"] == before["n_allocs"]
    engine.trace_stop()
    engine.close()


# ---- the pipeline, and Prometheus ----


@pytest.fixture(scope="module")
def pipe() -> Iterator[lmdeploy_c.Pipeline]:
    config = TurbomindEngineConfig(session_len=512, cache_max_entry_count="64MB")
    with lmdeploy_c.pipeline(backend_config=config, model_name='the "model"\\1') as pipe:
        pipe(["Hello!", "What is 2 + 2?"], GenerationConfig(max_new_tokens=6))
        yield pipe


def test_a_pipeline_writes_a_trace(pipe: lmdeploy_c.Pipeline, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    with pipe.trace(path):
        pipe(["Hello!", "Bonjour!"], GenerationConfig(max_new_tokens=6))
    file = json.loads(path.read_text())
    check_events(file["traceEvents"])
    assert sum(e["ph"] == "X" for e in file["traceEvents"]) >= 6
    with pytest.raises(OSError), pipe.trace(tmp_path / "nowhere" / "trace.json"):
        raise AssertionError("the path is refused before anything runs")
    with pytest.raises(KeyError), pipe.trace(path):
        raise KeyError
    assert json.loads(path.read_text())["traceEvents"]


def test_requests_that_could_not_be_asked_are_counted(pipe: lmdeploy_c.Pipeline) -> None:
    before = pipe.metrics()
    bad = [[{"role": "user"}], [{"role": "user", "content": [{"type": "image_url"}]}]]
    assert [r.finish_reason for r in pipe(bad)] == ["error"] * 2
    assert [r.finish_reason for r in pipe.stream_infer(bad)] == ["error"] * 2
    unknown = pipe("Hi", session_id=77, sequence_start=False)
    assert unknown.error_code == ErrorCode.REQUEST_CONFLICT
    after = pipe.metrics()
    check(after, pipe.plan.kv_blocks)
    assert after["n_submitted"] == before["n_submitted"] + 5
    assert after["n_ended"] == {**before["n_ended"], "error": before["n_ended"]["error"] + 5}


def test_a_pipeline_without_metrics() -> None:
    config = TurbomindEngineConfig(cache_max_entry_count="64MB", enable_metrics=False)
    with lmdeploy_c.pipeline(backend_config=config) as pipe:
        with pytest.raises(RuntimeError, match="enable_metrics"):
            pipe.metrics()
        with pytest.raises(RuntimeError, match="enable_metrics"):
            prometheus.prometheus_text(pipe)


def test_the_text_is_what_prometheus_client_makes(pipe: lmdeploy_c.Pipeline) -> None:
    """Both ways to Prometheus, through the parser of its own client."""
    client = pytest.importorskip("prometheus_client")
    from prometheus_client.parser import text_string_to_metric_families

    registry = client.CollectorRegistry()
    registry.register(prometheus.Collector(pipe))

    def parsed(text: str) -> dict[str, Any]:
        found = {}
        for family in text_string_to_metric_families(text):
            samples = {(s.name, *sorted(s.labels.items())): s.value for s in family.samples}
            found[family.name] = family.type, samples
        return found

    ours = parsed(prometheus.prometheus_text(pipe))
    assert ours == parsed(client.generate_latest(registry).decode())
    metrics = pipe.metrics()
    labels = (("engine", "0"), ("model_name", 'the "model"\\1'))
    kind, samples = ours["lmdeploy:time_to_first_token_seconds"]
    ttft = metrics["histograms"]["time_to_first_token_seconds"]
    assert kind == "histogram"
    assert samples[("lmdeploy:time_to_first_token_seconds_count", *labels)] == ttft["count"]
    bucket = ("lmdeploy:time_to_first_token_seconds_bucket", labels[0], ("le", "+Inf"), labels[1])
    assert samples[bucket] == ttft["count"]
    assert ours["lmdeploy:prompt_tokens"][0] == "counter"
    assert set(ours["lmdeploy:request_success"][1].values()) == set(metrics["n_ended"].values())


#: LMDeploy's names, but for those of speculation and of other media.
LMDEPLOY_NAMES = [
    "num_requests_running", "num_requests_waiting", "num_requests_succeeded",
    "num_requests_failed", "num_api_requests_routed", "num_api_requests_waiting",
    "gpu_cache_usage_perc", "prefix_cache_hit_rate", "prompt_tokens_total",
    "generation_tokens_total", "cached_tokens_total", "request_success_total",
    "request_prompt_tokens", "request_generation_tokens", "request_cached_tokens",
    "request_cache_hit_ratio", "iteration_tokens_total", "time_to_first_token_seconds",
    "time_per_output_token_seconds", "iter_token_latency", "e2e_request_latency_seconds",
    "request_queue_time_seconds", "request_inference_time_seconds",
    "request_prefill_time_seconds", "request_decode_time_seconds",
]  # fmt: skip


def test_the_names_are_lmdeploys(pipe: lmdeploy_c.Pipeline) -> None:
    text = prometheus.prometheus_text(pipe)
    names = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    assert names >= {f"lmdeploy:{name}" for name in LMDEPLOY_NAMES}


def test_the_text_needs_no_package() -> None:
    code = "import sys; sys.modules['prometheus_client'] = None; import lmdeploy_c.metrics"
    subprocess.run([sys.executable, "-c", code], check=True)
