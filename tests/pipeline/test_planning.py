"""plan(): what it says before a load, against what is there after one."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import GOLDEN, SLOWER, load_model
from packed_models import FORMS, config_of, dense_tensors, packed_tensors, write_model

import lmdeploy_c
from lmdeploy_c import _C, PytorchEngineConfig, TurbomindEngineConfig, planning
from lmdeploy_c.engine import decode_time, device, sizes
from lmdeploy_c.engine.sizes import kv_block_bytes
from lmdeploy_c.files.checkpoint import open_checkpoint
from lmdeploy_c.units import GIB, parse_size

TINY = GOLDEN / "models" / "llama-gqa-tied"
MODELS = [
    *(p for p in sorted((GOLDEN / "models").iterdir()) if p.stem != "llama-rope-longrope"),
    *(p for p in sorted((GOLDEN / "gguf").glob("*.gguf")) if p.stem != "types"),
]


def planned(path: Path | None, **config: Any) -> lmdeploy_c.Plan:
    return lmdeploy_c.plan(path, TurbomindEngineConfig(**config), measure=False)


# ---- what is predicted is what is there ----


@pytest.mark.parametrize("path", MODELS, ids=lambda p: p.name)
def test_weights_are_those_of_the_model(path: Path) -> None:
    model, plan = load_model(path), planned(path, cache_max_entry_count=8)
    assert plan.weight_bytes == model.weight_bytes
    assert plan.kv_bytes == 8 * kv_block_bytes(model.config, 64, (16, 16))
    assert plan.kv_bytes_per_token_at[16] == kv_block_bytes(model.config, 64, (16, 16)) // 64


@pytest.mark.parametrize("arch", ["llama", "internlm2", "qwen2"])
@pytest.mark.parametrize("form", FORMS)
def test_packed_weights_are_those_of_the_model(tmp_path: Path, form: str, arch: str) -> None:
    for group_size in (32, -1):
        config = config_of(arch, form, group_size)
        tensors = packed_tensors(np.random.default_rng(3), form, config)
        path = write_model(tmp_path / f"packed{group_size}", config, tensors)
        packed = planned(path).weight_bytes
        assert packed == load_model(path).weight_bytes
        dense_config = {k: v for k, v in config.items() if k != "quantization_config"}
        dense = write_model(tmp_path / f"d{group_size}", dense_config, dense_tensors(form, tensors))
        share = 1.0 if form == "int-quantized_asym" else 0.6  # the former becomes floats
        assert packed <= share * planned(dense).weight_bytes


def test_the_plan_and_the_pipeline_tell_one_story(smollm2_path: Path) -> None:
    config = TurbomindEngineConfig(session_len=1024, cache_max_entry_count="128MB", num_threads=1)
    plan = lmdeploy_c.plan(None, config, measure=False)
    with lmdeploy_c.pipeline(backend_config=config) as pipe:
        loaded = pipe.plan
        assert {key: getattr(plan, key) for key in loaded} == loaded
        stats = pipe.stats()
        assert plan.kv_blocks == stats["n_free_blocks"]
    assert plan.model == str(smollm2_path)
    assert plan.total_bytes == plan.weight_bytes + plan.kv_bytes + plan.scratch_bytes
    assert plan.kv_tokens == plan.kv_blocks * 64
    assert plan.full_sequences == plan.kv_tokens // 1024
    assert 0 < plan.available_memory_bytes <= plan.total_memory_bytes


def test_a_plan_is_a_mapping_too(smollm2_path: Path) -> None:
    config = TurbomindEngineConfig(session_len=1024, cache_max_entry_count="128MB", num_threads=1)
    plan = planned(smollm2_path, **dataclasses.asdict(config))
    assert plan["kv_blocks"] == plan.kv_blocks == plan.get("kv_blocks")
    assert dict(plan) == {name: plan[name] for name in plan} == {**plan}
    assert list(plan.keys())[:3] == ["model", "arch", "device"]
    assert "session_len" in plan and len(plan) == len(plan.values()) == len(plan.items())
    for measured in ("available_memory_bytes", "tokens_per_second", "kv_tokens", "nothing"):
        assert measured not in plan
        with pytest.raises(KeyError, match=measured):
            plan[measured]
    assert plan == dataclasses.replace(plan, available_memory_bytes=1) == dict(plan)
    assert plan != dataclasses.replace(plan, kv_blocks=1)


def leave_memory(monkeypatch: pytest.MonkeyPatch, n_bytes: int) -> None:
    """Makes the device say that it has so many bytes left."""

    def find(config: TurbomindEngineConfig) -> device.Device:
        return dataclasses.replace(device.find_device(config), free_bytes=n_bytes)

    monkeypatch.setattr(sizes, "find_device", find)


@pytest.mark.parametrize("name", ["qwen3", "llama-headdim40", "internlm2", "smollm2"])
@pytest.mark.parametrize(
    "config",
    [{}, {"max_prefill_token_num": 4096, "max_batch_size": 4}, {"session_len": 128}],
    ids=str,
)
@pytest.mark.parametrize("n_blocks", [200, 3000])
def test_scratch_is_what_an_engine_takes(name: str, config: dict[str, Any], n_blocks: int) -> None:
    path = None if name == "smollm2" else GOLDEN / "models" / name
    plan = planned(path, cache_max_entry_count=n_blocks, num_threads=2, **config)
    model = load_model(Path(plan.model), num_threads=2)
    before = _C.alloc_bytes()
    engine = _C.Engine(
        model,
        session_len=plan.session_len,
        n_blocks=plan.kv_blocks,
        max_batch_size=plan.max_batch_size,
        max_prefill_token_num=plan.max_prefill_token_num,
    )
    taken = _C.alloc_bytes() - before - plan.kv_bytes
    engine.close()
    assert plan.scratch_bytes == taken


@pytest.mark.parametrize("size", ["20MB", "33.3MB", "100000000"])
@pytest.mark.parametrize("block_len", [16, 64])
def test_an_absolute_cap_is_honoured(size: str, block_len: int) -> None:
    config = TurbomindEngineConfig(cache_max_entry_count=size, cache_block_seq_len=block_len)
    with lmdeploy_c.pipeline(None, config) as pipe:
        block_bytes = pipe.plan["kv_bytes"] // pipe.plan["kv_blocks"]
        assert parse_size(size) - block_bytes < pipe.plan["kv_bytes"] <= parse_size(size)
        assert pipe.stats()["n_free_blocks"] == pipe.plan["kv_blocks"]


def test_kv_of_fewer_bits() -> None:
    shape = {"n_layer": 3, "n_kv_head": 2, "head_dim": 64}
    assert kv_block_bytes(shape, 64, (16, 16)) == 64 * 3 * 2 * 2 * 128
    assert kv_block_bytes(shape, 64, (8, 8)) == 64 * 3 * 2 * 2 * (64 + 4)
    assert kv_block_bytes(shape, 64, (4, 4)) == 64 * 3 * 2 * 2 * (32 + 4)


# ---- nothing is loaded ----


def test_nothing_is_loaded(smollm2_path: Path) -> None:
    code = """
import time
from lmdeploy_c import TurbomindEngineConfig, _C
from lmdeploy_c.engine.sizes import compute_sizes
from lmdeploy_c.files import checkpoint
def resident():
    status = open("/proc/self/status").read()
    return int(status.split("RssAnon:")[1].split()[0]) << 10  # without pages of the file
model = checkpoint.open_checkpoint(checkpoint.resolve_model(None))  # its metadata stays
before, allocated, start = resident(), _C.alloc_bytes(), time.monotonic()
plan = compute_sizes(TurbomindEngineConfig(), model)
seconds = time.monotonic() - start
print(seconds, resident() - before, _C.alloc_bytes() - allocated, plan.weight_bytes)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    seconds, grown, allocated, weights = map(float, done.stdout.split())
    assert seconds < 1 * SLOWER
    assert weights > 90e6
    assert allocated < 2e6
    assert grown < 0.05 * weights


def test_a_broken_model_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    config = config_of("llama", "awq", 32)
    tensors = packed_tensors(np.random.default_rng(3), "awq", config)
    del tensors["model.layers.1.mlp.up_proj.scales"]
    path = write_model(tmp_path / "model", config, tensors)
    with pytest.raises(lmdeploy_c.CheckpointError, match=r"layers.1.mlp.up_proj.scales"):
        planned(path)
    with pytest.raises(FileNotFoundError):
        planned(tmp_path / "nothing")
    with pytest.raises(ValueError, match="model_format='gptq'"):
        planned(TINY, model_format="gptq")


# ---- admission ----


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be loaded."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(_C, "Model", refuse)


@pytest.mark.usefixtures("no_model", "smollm2_path")
@pytest.mark.parametrize(
    ("available", "config", "error", "why"),
    [
        (100 << 20, {}, MemoryError, r"does not fit.*weights take 92.0 MiB.*of 100.0 MiB"),
        (0, {}, MemoryError, "does not fit"),
        (1 * GIB, {"cache_max_entry_count": "1GB"}, MemoryError,
         r"'1GB' asks for 1023.8 MiB of KV cache.*weights take 92.0 MiB"),
        (150 << 20, {"session_len": 8192}, ValueError, r"session_len=8192 needs 180.0 MiB"),
        (1 * GIB, {"max_prefill_token_num": 60000}, MemoryError, "does not fit.*scratch up to"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_it_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
    available: int,
    config: dict[str, Any],
    error: type[Exception],
    why: str,
) -> None:
    leave_memory(monkeypatch, available)
    for make in (lmdeploy_c.pipeline, lmdeploy_c.plan):
        with pytest.raises(error, match=why):
            make(None, TurbomindEngineConfig(**config))


def test_weights_and_scratch_leave_the_rest_to_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_memory(monkeypatch, 400 << 20)
    plan = planned(None, cache_max_entry_count=0.999)
    assert plan.total_bytes <= 400 << 20
    assert plan.total_bytes > 390 << 20
    assert plan.available_memory_bytes == 400 << 20


#: Plans as a process whose own limit leaves a little, and as one whose limit leaves almost nothing.
LIMITED = """
import resource, sys
import lmdeploy_c
from lmdeploy_c import _C, TurbomindEngineConfig
kind, field = getattr(resource, sys.argv[1]), sys.argv[2]
config = TurbomindEngineConfig(session_len=256, num_threads=1)
lmdeploy_c.plan(sys.argv[3], config, measure=False)  # what is imported counts from here on
used = {line.split()[0]: int(line.split()[1]) << 10 for line in open("/proc/self/status")
        if line.startswith("Vm")}[field]
resource.setrlimit(kind, (used + (900 << 20), resource.RLIM_INFINITY))
plan = lmdeploy_c.plan(sys.argv[3], config, measure=False)
print(plan.memory_bound, plan.available_memory_bytes >> 20, plan.total_bytes >> 20, plan)
resource.setrlimit(kind, (used + (100 << 20), resource.RLIM_INFINITY))
try:
    lmdeploy_c.plan(sys.argv[3], config, measure=False)
except MemoryError as e:
    print(e)
"""


@pytest.mark.parametrize(
    ("limit", "usage", "bound", "name"),
    [
        ("RLIMIT_AS", "VmSize:", "address space", "address space, ulimit -v"),
        ("RLIMIT_DATA", "VmData:", "data size", "writable memory, ulimit -d"),
    ],
)
def test_a_process_s_own_limits_bound_the_plan(
    limit: str, usage: str, bound: str, name: str, smollm2_path: Path
) -> None:
    command = [sys.executable, "-c", LIMITED, limit, usage, str(smollm2_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    shown = done.stdout
    assert shown.startswith(bound)
    available, total = map(int, shown.removeprefix(bound).split()[:2])
    assert 600 < available <= 900 and total <= available
    assert shown.count(f"by the limit on {name}") == 2, "the plan and the refusal say it"
    assert "the model does not fit" in shown


# ---- speed ----


def test_the_limit_is_the_time_to_read_everything_once(smollm2_path: Path) -> None:
    plan = lmdeploy_c.plan(smollm2_path)
    rate = plan.read_bytes_per_second
    assert plan.tokens_per_second_limit == {
        0: pytest.approx(rate / plan.weight_bytes),
        4096: pytest.approx(rate / (plan.weight_bytes + 4096 * plan.kv_bytes_per_token_at[16])),
    }
    assert list(plan.tokens_per_second) == [0, 4096]
    assert plan.tokens_per_second[0] >= plan.tokens_per_second[4096] > 0
    plan = planned(smollm2_path)
    assert not plan.read_bytes_per_second and not plan.tokens_per_second
    assert "tok/s" not in str(plan)


def median_token_s(engine: _C.Engine, context: int) -> float:
    request = engine.submit([7] * (context + 1), max_new_tokens=28, do_sample=False)
    times = []
    while (output := request.read()) is None or output.finish_reason is None:
        times.append(time.perf_counter())
    return float(np.median(np.diff(times[4:])))


def test_the_speed_is_that_of_the_engine(
    smollm2_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the whole model, and where half of its layers are timed. Others may use the machine: one
    of six tries counts."""
    config, checkpoint = TurbomindEngineConfig(), open_checkpoint(smollm2_path)
    engine = _C.Engine(load_model(smollm2_path), session_len=1200, n_blocks=40)
    for most in (1 << 30, 30 << 20):
        monkeypatch.setattr(decode_time, "_MOST_BYTES", most)
        tries = []
        while len(tries) < 6:
            timed = decode_time.decode_time(config, checkpoint, 1024)
            tries.append(
                [timed.tokens_per_second(n) * median_token_s(engine, n) for n in (0, 1024)]
            )
            if all(0.6 < ratio < 1.7 for ratio in tries[-1]):
                break
        else:
            pytest.fail(f"predicted over measured, without and with a context: {tries}")
    engine.close()


@pytest.mark.parametrize("path", MODELS, ids=lambda p: p.name)
def test_every_model_can_be_timed(path: Path) -> None:
    for bits in (16, 8):
        config = TurbomindEngineConfig(cache_block_seq_len=16, quant_policy=0 if bits == 16 else 8)
        timed = decode_time.decode_time(config, open_checkpoint(path), 32)
        assert timed.alone > 0 and timed.of_context >= 0


@pytest.mark.parametrize("form", FORMS)
def test_a_packed_model_can_be_timed(tmp_path: Path, form: str) -> None:
    config = config_of("llama", form, 32)
    tensors = packed_tensors(np.random.default_rng(3), form, config)
    plan = lmdeploy_c.plan(write_model(tmp_path / "packed", config, tensors))
    assert plan.tokens_per_second[0] > 0


def test_where_no_speed_can_be_timed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: Any) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(planning, "decode_time", fail)
    plan = lmdeploy_c.plan(TINY)
    assert not plan.tokens_per_second and plan.weight_bytes > 0
    assert "no speed is predicted: no room" in caplog.text


def test_contexts_longer_than_the_model_was_trained_on() -> None:
    plan = lmdeploy_c.plan(
        TINY, TurbomindEngineConfig(session_len=8192, cache_max_entry_count="1GB")
    )
    assert list(plan.tokens_per_second) == [0, 4096]
    assert list(lmdeploy_c.plan(TINY, TurbomindEngineConfig(session_len=16)).tokens_per_second) == [
        0
    ]


def test_a_blank_model_without_memory() -> None:
    checkpoint = open_checkpoint(TINY)
    failures = 0
    for n in range(1, 200):
        _C.alloc_fail_after(n)
        try:
            _C.Model(checkpoint.config, checkpoint.source, num_threads=1, blank=True)
        except MemoryError:
            failures += 1
        finally:
            _C.alloc_fail_after(0)
    assert failures > 20


def test_an_embedding_apart_is_not_read(tmp_path: Path) -> None:
    tied, apart = (open_checkpoint(GOLDEN / "models" / n) for n in ("qwen2-tied", "qwen2"))
    sizes = _C.model_sizes(tied.config, tied.source)
    assert sizes["read_bytes"] == sizes["weight_bytes"]
    sizes = _C.model_sizes(apart.config, apart.source)
    vocab, hidden = apart.config["vocab_size"], apart.config["hidden_dim"]
    element_bytes = {"F32": 4, "F16": 2, "BF16": 2}[apart.source[0][1]]
    rows = -(-vocab // 16) * 16
    assert sizes["weight_bytes"] - sizes["read_bytes"] == rows * hidden * element_bytes


def test_bandwidth() -> None:
    start = time.monotonic()
    rate = _C.read_bandwidth(32 << 20, seconds=0.05)
    assert time.monotonic() - start < 5 * SLOWER
    assert 1e8 < rate < 1e13
    assert _C.read_bandwidth(1, 1, 0.0) > 0
    for wrong in ((0,), (-5,), (1 << 20, -1), (1 << 20, 10_000), (1 << 20, 1, float("nan"))):
        with pytest.raises(ValueError, match="n_bytes must be"):
            _C.read_bandwidth(*wrong)
    for n in (1, 2, 3):
        _C.alloc_fail_after(n)
        with pytest.raises(MemoryError):
            _C.read_bandwidth(1 << 20, 2)
        _C.alloc_fail_after(0)


def test_sizes_without_memory() -> None:
    checkpoint = open_checkpoint(TINY)
    sizes = _C.model_sizes(checkpoint.config, checkpoint.source)
    failures = 0
    for n in range(1, 200):
        _C.alloc_fail_after(n)
        try:
            assert _C.model_sizes(checkpoint.config, checkpoint.source) == sizes
        except MemoryError:
            failures += 1
        finally:
            _C.alloc_fail_after(0)
    assert failures > 20
    assert _C.model_sizes(checkpoint.config, checkpoint.source) == sizes


# ---- as text ----


def test_the_table_has_the_numbers() -> None:
    plan = lmdeploy_c.plan(TINY, PytorchEngineConfig(cache_max_entry_count="2MB", session_len=64))
    text = str(plan)
    assert "llama-gqa-tied: llama on cpu" in text
    for number in (
        plan.kv_tokens,
        plan.kv_blocks,
        plan.full_sequences,
        int(plan.kv_bytes_per_token_at[4]),
    ):
        assert f"{number} " in text
    assert "2.0 MiB" in text and "tok/s" in text
    assert max(map(len, text.splitlines())) < 100


def test_on_the_command_line() -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "lmdeploy_c", "plan", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    done = run(str(TINY), "--cache_max_entry_count", "2MB", "--session-len", "64")
    assert done.returncode == 0 and not done.stderr
    assert "2.0 MiB" in done.stdout and "sequences of 64" in done.stdout
    assert "tok/s" in done.stdout
    assert "tok/s" not in run(str(TINY), "--no-measure").stdout
    done = run(str(TINY), "--cache-max-entry-count", "9000TB")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "asks for" in done.stderr


def test_a_cache_of_one_block() -> None:
    """An engine that needs no more has one block, and its own configuration is valid."""
    config = TurbomindEngineConfig(session_len=32, max_batch_size=1, num_threads=1)
    path = GOLDEN / "gguf" / "llama-float.gguf"
    with lmdeploy_c.pipeline(path, config) as pipe:
        assert pipe.backend_config.cache_max_entry_count == 1
        with lmdeploy_c.pipeline(path, pipe.backend_config) as again:
            gen_config = lmdeploy_c.GenerationConfig(max_new_tokens=4, ignore_eos=True)
            answer = again("a", gen_config, do_preprocess=False)
            assert answer.generate_token_len == 4
