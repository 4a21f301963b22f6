"""The border between Python and C: arguments by tables, constants, counters, facts of a device."""

from __future__ import annotations

import ast
import gc
import math
import re
import sys
import time
import weakref
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from conftest import GOLDEN, make_engine, read_all
from lmdeploy_c.checkpoint import open_checkpoint

from lmdeploy_c import _C
from lmdeploy_c.messages import GenerationConfig, SpeculativeConfig, limits

#: Sampling parameters that are whole numbers.
INTEGERS = ("top_k", "no_repeat_ngram_size", "logprobs")
STUB = Path(_C.__file__).with_name("_C.pyi").read_text()
MODEL = GOLDEN / "models" / "llama-gqa-tied"


def stub_of(name: str) -> ast.FunctionDef:
    """A function of the stub: "kv_block_bytes", "Engine.submit", or a class for its __init__."""
    body: list[ast.stmt] = ast.parse(STUB).body
    found: Any = None
    for part in name.split("."):
        found = next(n for n in body if getattr(n, "name", None) == part)
        body = found.body
    if isinstance(found, ast.ClassDef):
        found = next(n for n in found.body if getattr(n, "name", None) == "__init__")
    assert isinstance(found, ast.FunctionDef)
    return found


class Odd:
    """Is no number, no sequence, no mapping, and neither true nor false."""

    def __bool__(self) -> bool:
        raise TypeError("neither true nor false")


def call(engine: _C.Engine, name: str, **kwargs: Any) -> object:
    scheduler = _C.Scheduler(n_blocks=4)
    functions: dict[str, Callable[..., object]] = {
        "Engine": _C.Engine,
        "Engine.submit": engine.submit,
        "Scheduler": _C.Scheduler,
        "Scheduler.add": scheduler.add,
        "Model": _C.Model,
        "model_sizes": _C.model_sizes,
        "kv_block_bytes": _C.kv_block_bytes,
        "read_bandwidth": _C.read_bandwidth,
        "device_info": _C.device_info,
    }
    return functions[name](**kwargs)


#: What each function needs to be called at all.
NEEDED: dict[str, dict[str, Any]] = {
    "Engine": {"model": None, "session_len": 8, "n_blocks": 1},
    "Engine.submit": {"token_ids": [1]},
    "Scheduler": {"n_blocks": 4},
    "Scheduler.add": {"token_ids": [1]},
    "Model": {"config": {}, "source": ()},
    "model_sizes": {"config": {}, "source": ()},
    "kv_block_bytes": {"n_layer": 1, "n_kv_head": 1, "head_dim": 8},
    "read_bandwidth": {"n_bytes": 64},
    "device_info": {},
}


@pytest.mark.parametrize("name", NEEDED)
def test_every_keyword_of_the_stub_is_read(tiny_engine: _C.Engine, name: str) -> None:
    arguments = stub_of(name).args
    keywords = [a.arg for a in (*arguments.args, *arguments.kwonlyargs) if a.arg != "self"]
    assert set(NEEDED[name]) <= set(keywords)
    for keyword in keywords:
        kwargs = {**NEEDED[name], keyword: Odd()}
        with pytest.raises((TypeError, ValueError, KeyError)) as caught:
            call(tiny_engine, name, **kwargs)
        assert "has no argument" not in str(caught.value)
    with pytest.raises(TypeError, match=r"\w+\(\) has no argument 'unheard_of'"):
        call(tiny_engine, name, **NEEDED[name], unheard_of=1)


@pytest.mark.parametrize("name", [name for name in NEEDED if NEEDED[name]])
def test_a_missing_argument_is_named(tiny_engine: _C.Engine, name: str) -> None:
    required = stub_of(name).args
    n_optional = len(required.defaults)
    positional = [a.arg for a in required.args if a.arg != "self"]
    names = positional[: len(positional) - n_optional] + [
        a.arg for a, default in zip(required.kwonlyargs, required.kw_defaults, strict=True)
        if default is None
    ]  # fmt: skip
    assert sorted(names) == sorted(NEEDED[name])
    for missing in names:
        kwargs = {k: v for k, v in NEEDED[name].items() if k != missing}
        with pytest.raises(TypeError, match=rf"needs its argument '{missing}'"):
            call(tiny_engine, name, **kwargs)


def test_positions_and_names(tiny_engine: _C.Engine) -> None:
    submit: Any = tiny_engine.submit
    with pytest.raises(TypeError, match=r"submit\(\) takes 1 positional arguments at most, not 2"):
        submit([1], 5)
    with pytest.raises(TypeError, match=r"submit\(\) got its argument 'token_ids' twice"):
        submit([1], token_ids=[1])
    with pytest.raises(TypeError, match=r"submit\(\) has no argument 5"):
        submit([1], **{5: 1})  # type: ignore[arg-type]
    assert len(read_all(submit(token_ids=[5, 6], max_new_tokens=3)).token_ids) == 3


@pytest.mark.parametrize(
    ("kwargs", "wanted"),
    [
        ({"max_new_tokens": 2.0}, "max_new_tokens must be a 64-bit integer, not float"),
        ({"top_k": "50"}, "top_k must be a 64-bit integer, not str"),
        ({"priority": None}, "priority must be a 32-bit integer, not NoneType"),
        ({"temperature": "hot"}, "temperature must be a number, not str"),
        ({"timeout": None}, "timeout must be a number, not NoneType"),
        ({"random_seed": 1.5}, "random_seed must be an integer or None, not float"),
        ({"output_logits": 1}, "output_logits must be a str or None, not int"),
        ({"logit_bias": [1, 2]}, "logit_bias must be a mapping .*, not list"),
        ({"logit_bias": {"1": 2.0}}, "a token id of logit_bias must be .*, not str"),
        ({"logit_bias": {1: "2"}}, "a value of logit_bias must be a number, not str"),
        ({"stop_words": 5}, "stop_words must be a sequence of token sequences, not int"),
        ({"bad_words": [["a"]]}, "bad_words must hold integers"),
        ({"stop_token_ids": [1.5]}, "stop_token_ids must hold integers"),
        ({"snapshot": 5}, "snapshot must be None or a Snapshot, not int"),
    ],
    ids=lambda v: str(v)[:40],
)
def test_a_wrong_type_is_named(tiny_engine: _C.Engine, kwargs: dict[str, Any], wanted: str) -> None:
    with pytest.raises(TypeError, match=wanted):
        tiny_engine.submit([1], **kwargs)


@pytest.mark.parametrize(
    ("kwargs", "wanted"),
    [
        ({"max_new_tokens": 2**63}, "max_new_tokens does not fit 64 bits"),
        ({"priority": -(2**31) - 1}, "priority does not fit 32 bits"),
        ({"priority": _C.MAX_PRIORITY + 1}, "priority must be"),
        ({"random_seed": 2**64}, r"random_seed must be 0 to 2\*\*64 - 1, not 18446744073709551616"),
        ({"random_seed": -1}, "random_seed must be"),
        ({"logit_bias": {2**63: 1.0}}, "a token id of logit_bias does not fit"),
        ({"logit_bias": {2**40: 1.0}}, "logit_bias: token id -1"),
        ({"timeout": _C.MAX_TIMEOUT * 1.01}, "timeout must be 0"),
        ({"do_sample": np.zeros(2)}, "ambiguous"),
    ],
    ids=lambda v: str(v)[:40],
)
def test_a_wrong_value_is_an_answer(
    tiny_engine: _C.Engine, kwargs: dict[str, Any], wanted: str
) -> None:
    output = tiny_engine.submit([1], **kwargs).read(30)
    assert output is not None and output.finish_reason == "error"
    with pytest.raises(ValueError, match=wanted):
        raise ValueError(output.error_message)


def test_a_mapping_with_odd_items_is_refused(tiny_engine: _C.Engine) -> None:
    class Items(dict[int, float]):
        def items(self) -> Any:
            return [1, (2,), "ab"]

    with pytest.raises(TypeError, match="logit_bias must have items"):
        tiny_engine.submit([1], logit_bias=Items({1: 2.0}))


def test_what_stands_for_a_number_is_one(tiny_engine: _C.Engine) -> None:
    class Three:
        def __index__(self) -> int:
            return 3

    number: Any = Three()
    plain: dict[str, Any] = {"do_sample": True, "top_k": 3, "temperature": 0.5, "random_seed": 3}
    odd: dict[str, Any] = {
        "do_sample": [0],
        "top_k": np.int32(3),
        "temperature": Fraction(1, 2),
        "random_seed": number,
        "max_new_tokens": number,
    }
    expected = read_all(tiny_engine.submit([5, 6], max_new_tokens=3, **plain)).token_ids
    assert read_all(tiny_engine.submit(np.array([5, 6]), **odd)).token_ids == expected
    assert len(expected) == 3


def test_a_failed_call_leaves_nothing_behind(tiny_engine: _C.Engine) -> None:
    ids = np.array([5, 6], np.int32)
    words = [[1, 2], [3]]
    counts = sys.getrefcount(ids), sys.getrefcount(words), sys.getrefcount(None)
    for _ in range(1000):
        with pytest.raises(TypeError):
            tiny_engine.submit(ids, bad_words=words, stop_words=words, timeout="soon")  # type: ignore[arg-type]
    after = sys.getrefcount(ids), sys.getrefcount(words), sys.getrefcount(None)
    assert after[:2] == counts[:2]
    assert abs(after[2] - counts[2]) < 500


# ---- the config of a model ----


def test_the_config_is_read_strictly() -> None:
    checkpoint = open_checkpoint(MODEL)
    config = {**checkpoint.config, "a key of the future": object()}
    sizes = _C.model_sizes(config, checkpoint.source)
    assert _C.model_sizes(MappingProxyType(config), checkpoint.source) == sizes
    assert _C.Model(config, checkpoint.source).config == config
    wrong: list[tuple[str, Any, type[Exception], str]] = [
        ("n_layer", 2.0, TypeError, "a 32-bit integer, not float"),
        ("n_layer", 2**31, ValueError, "n_layer does not fit 32 bits"),
        ("norm_eps", "small", TypeError, "a number, not str"),
        ("qkv_bias", 1, TypeError, "a bool, not int"),
        ("arch", 5, TypeError, "a str, not int"),
        ("arch", "a" * 99, ValueError, "is not an architecture"),
        ("arch", "llama\0", ValueError, "NUL"),
        ("rope_type", "spiral", _C.UnsupportedError, "spiral"),
        ("quant_method", "magic", _C.UnsupportedError, "magic"),
    ]
    for key, value, error, message in wrong:
        with pytest.raises(error, match=message) as caught:
            _C.Model({**config, key: value}, checkpoint.source)
        if error is TypeError:
            assert str(caught.value).startswith(f"model config: {key} ")
    needed = []
    for key in checkpoint.config:
        try:
            _C.model_sizes({k: v for k, v in config.items() if k != key}, checkpoint.source)
        except KeyError as e:
            assert f'model config has no key "{key}"' in str(e)
            needed.append(key)
    assert len(needed) == 30
    with pytest.raises(TypeError, match="source must be a Gguf or a sequence of tensors"):
        _C.Model(config, 5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="progress must be callable"):
        _C.Model(config, checkpoint.source, progress=5)  # type: ignore[arg-type]


# ---- constants ----


def test_limits_are_those_that_hold(tiny_model: _C.Model) -> None:
    limits = {
        "session_len": _C.MAX_SESSION_LEN,
        "n_blocks": _C.MAX_BLOCKS,
        "block_len": _C.MAX_BLOCK_LEN,
        "max_batch_size": _C.MAX_BATCH_SIZE,
        "max_prefill_token_num": _C.MAX_PREFILL_TOKEN_NUM,
    }
    needed: dict[str, Any] = {"n_blocks": 1, "session_len": 8}
    with pytest.raises(ValueError, match="n_blocks does not fit 32 bits"):
        _C.Scheduler(n_blocks=2**40)
    for name, limit in limits.items():
        for value in (0, limit + 1):
            message = f"{name} must be 1 to {limit}, not {value}"
            with pytest.raises(ValueError, match=message):
                _C.Scheduler(**{**needed, name: value})
            with pytest.raises(ValueError, match=message):
                _C.Engine(tiny_model, **{**needed, name: value})
    for n in (-1, _C.MAX_DRAFT_TOKENS + 1):
        with pytest.raises(ValueError, match=f"num_speculative_tokens must be 0 to .*, not {n}"):
            make_engine(tiny_model, num_speculative_tokens=n)
    for n in (0, _C.MAX_THREADS + 1):
        with pytest.raises(ValueError, match=f"num_threads must be 1 to {_C.MAX_THREADS}, not {n}"):
            _C.device_info(num_threads=n)
    engine = make_engine(tiny_model)
    with pytest.raises(ValueError, match=f"max_steps must be 1 to {_C.MAX_TRACE_STEPS}"):
        engine.trace_start(_C.MAX_TRACE_STEPS + 1)
    engine.close()


def error_of(engine: _C.Engine, **kwargs: Any) -> str | None:
    output = engine.submit([5], **{"max_new_tokens": 1, **kwargs}).read(30)
    assert output is not None
    return output.error_message


@pytest.mark.parametrize("name", _C.SAMPLING_RANGES)
def test_ranges_are_those_that_hold(tiny_engine: _C.Engine, name: str) -> None:
    low, high = _C.SAMPLING_RANGES[name]
    kind = int if name in INTEGERS else float
    inside = [kind(low), kind(high)]
    outside = [low - 1, high + 1] if kind is int else [
        math.nextafter(low, -math.inf), math.nextafter(high, math.inf), math.nan
    ]  # fmt: skip
    for value in inside:
        assert error_of(tiny_engine, **{name: value}) is None
    for value in outside:
        message = error_of(tiny_engine, **{name: kind(value)}) or ""
        said = re.fullmatch(rf"{name} must be (\S+) to (\S+), not (\S+)", message)
        assert said and [float(s) for s in said.groups()[:2]] == [low, high]
        assert said[3] not in said.groups()[:2]


def accepts(config: type, **kwargs: Any) -> bool:
    try:
        config(**kwargs)
    except ValueError:
        return False
    return True


def test_the_configurations_have_the_same_limits() -> None:
    """messages.py checks what a user writes before there is an engine, so that it states limits of
    its own: they have to be the engine's."""
    edges: Mapping[str, tuple[float, float]] = {
        **_C.SAMPLING_RANGES,
        "priority": (-_C.MAX_PRIORITY, _C.MAX_PRIORITY),
    }
    for name, (low, high) in edges.items():
        if name in INTEGERS:
            assert accepts(GenerationConfig, **{name: int(low)})
            assert not accepts(GenerationConfig, **{name: int(low) - 1})
            if high < 2**31 - 1:  # int32 has no more
                assert accepts(GenerationConfig, **{name: int(high)})
                assert not accepts(GenerationConfig, **{name: int(high) + 1})
        elif name == "temperature":  # LMDeploy refuses those above 2, which the engine would take
            assert not accepts(GenerationConfig, temperature=math.nextafter(low, -1))
            assert accepts(GenerationConfig, temperature=2.0) and high >= 2.0
        else:
            step = 1 if name == "priority" else 1e-9
            assert accepts(GenerationConfig, **{name: low})
            assert accepts(GenerationConfig, **{name: high})
            assert not accepts(GenerationConfig, **{name: low - step})
            assert not accepts(GenerationConfig, **{name: high + step})
    assert accepts(GenerationConfig, timeout=_C.MAX_TIMEOUT)
    assert not accepts(GenerationConfig, timeout=_C.MAX_TIMEOUT + 1)
    most = _C.MAX_DRAFT_TOKENS
    assert accepts(SpeculativeConfig, num_speculative_tokens=most)
    assert not accepts(SpeculativeConfig, num_speculative_tokens=most + 1)
    assert most == limits.MAX_DRAFT_TOKENS


def test_block_lens_are_those_that_a_device_serves(tiny_model: _C.Model) -> None:
    for n in (1, 8, 15, *limits.BLOCK_LENS, 48, 192, 512, _C.MAX_BLOCK_LEN):
        try:
            make_engine(tiny_model, block_len=n, n_blocks=1).close()
        except ValueError:
            assert n not in limits.BLOCK_LENS
        else:
            assert n in limits.BLOCK_LENS


def test_constants_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        _C.SAMPLING_RANGES["top_p"] = (0.0, 2.0)  # type: ignore[index]
    assert isinstance(_C.TRACE_KINDS, tuple) and isinstance(_C.FINISH_REASONS, tuple)


def test_numbers_of_a_trace_have_names(tiny_engine: _C.Engine) -> None:
    tiny_engine.trace_start()
    reasons = []
    for kwargs in ({"max_new_tokens": 4}, {"stop_token_ids": list(range(90))}):
        reasons.append(read_all(tiny_engine.submit([5, 6, 7], **kwargs)).finish_reason)
    events = tiny_engine.trace_stop()["events"]
    kinds = [_C.TRACE_KINDS[i] for i in events["kind"]]
    assert kinds[:4] == ["submitted", "started", "first_token", "ended"]
    named = [_C.FINISH_REASONS[i] for i in events["finish_reason"]]
    assert [r for r, kind in zip(named, kinds, strict=True) if kind == "ended"] == reasons
    assert {r for r, kind in zip(named, kinds, strict=True) if kind != "ended"} == {None}


# ---- counters ----


def test_a_counter_has_one_name_and_one_meaning(tiny_model: _C.Model) -> None:
    engine = make_engine(tiny_model, max_batch_size=2, session_len=8000, n_blocks=400)
    requests = [engine.submit([5, i], max_new_tokens=7900) for i in range(6)]
    for request in requests[:2]:
        request.read(30)
    stats, metrics = engine.stats(), engine.metrics()
    assert set(stats) < set(metrics)
    described = ast.get_docstring(stub_of("Engine.stats")) or ""
    for name in stats:
        assert name in described, f"{name} is not described in the stub"
    for of in (stats, metrics):
        assert (of["n_running"], of["n_waiting"]) == (2, 4)
    ended = metrics["n_ended"]
    assert list(ended) == list(_C.FINISH_REASONS[1:])
    total = metrics["n_running"] + metrics["n_waiting"] + sum(ended.values())
    assert metrics["n_submitted"] == total == 6
    engine.close()
    scheduler = _C.Scheduler(n_blocks=4).stats()
    assert set(scheduler) < set(stats)


# ---- errors by code ----


def test_an_unknown_sequence_is_a_key_error() -> None:
    scheduler = _C.Scheduler(n_blocks=4)
    known = scheduler.add([1, 2], max_new_tokens=2)
    scheduler.finish(np.int64(known))  # type: ignore[arg-type]
    for of in (scheduler.finish, scheduler.cancel, scheduler.snapshot):
        for seq_id in (known, 99, -1):
            with pytest.raises(KeyError, match=f"no sequence has seq_id {seq_id}"):
                of(seq_id)
        with pytest.raises(TypeError, match="seq_id must be a 64-bit integer"):
            of("0")  # type: ignore[arg-type]


def test_a_snapshot_of_a_scheduler_has_no_kv() -> None:
    scheduler = _C.Scheduler(n_blocks=4)
    snapshot = scheduler.snapshot(scheduler.add([1, 2], max_new_tokens=2))
    assert snapshot.token_ids.tolist() == [1, 2]
    with pytest.raises(RuntimeError, match="a Scheduler's: it has no KV"):
        snapshot.export_kv()


def test_a_snapshot_outlives_what_made_it(tiny_model: _C.Model) -> None:
    engine = make_engine(tiny_model)
    request = engine.submit([5, 6, 7], max_new_tokens=20, keep_snapshot=True)
    tokens = read_all(request).token_ids
    snapshot = request.snapshot
    assert snapshot is not None
    del engine, request
    layout, n_computed, kv = snapshot.export_kv()  # its engine lives on with it
    assert (n_computed, len(kv)) == (22, 1) and layout
    assert snapshot.token_ids.tolist() == [5, 6, 7, *tokens]


# ---- devices ----


def test_facts_of_a_device(tiny_model: _C.Model) -> None:
    info = _C.device_info("cpu", num_threads=2)
    assert (info["name"], info["num_threads"]) == ("cpu", 2)
    assert isinstance(info["runs_ahead"], bool)
    assert info["isa"] == tiny_model.isa == _C.cpu_info()["isa"]
    assert _C.device_info()["num_threads"] == _C.cpu_info()["usable_threads"]
    if "free_bytes" in info:
        assert 0 < info["free_bytes"] <= info["total_bytes"]
    with pytest.raises(_C.UnsupportedError, match="cannot be used"):
        _C.device_info("cuda:999")
    with pytest.raises(ValueError, match=r'"auto", "cpu", "cuda" or "cuda:N", not "abacus"'):
        _C.device_info("abacus")


class Holder:
    """Something that a config may hold, and that holds what was made with it."""


@pytest.mark.parametrize("kind", ["model", "engine", "request", "snapshot"])
def test_a_circle_through_an_object_is_collected(kind: str) -> None:
    checkpoint = open_checkpoint(GOLDEN / "models" / "llama-gqa-tied")
    holder = Holder()
    model = _C.Model({**checkpoint.config, "note": holder}, checkpoint.source)  # type: ignore[typeddict-unknown-key]
    made: Any = model
    if kind != "model":
        made = engine = make_engine(model)
    if kind in ("request", "snapshot"):
        made = request = engine.submit([1, 2, 3], max_new_tokens=1, keep_snapshot=True)
        read_all(request)
    if kind == "snapshot":
        made = request.snapshot
    holder.made = made  # type: ignore[attr-defined]
    gone = weakref.ref(holder)
    model = engine = request = made = holder = None  # type: ignore[assignment]
    gc.collect()
    assert gone() is None


def test_an_allocation_that_fails_loses_no_output(tiny_model: _C.Model) -> None:
    """Each of Python's allocations in a read fails in its turn; the next read gives the answer."""
    testcapi = pytest.importorskip("_testcapi")
    engine, n_failed = make_engine(tiny_model), 0

    def ask() -> _C.Request:
        request = engine.submit([1, 2, 3], max_new_tokens=4, logprobs=2, output_logits="generation")
        while (stats := engine.stats())["n_running"] + stats["n_waiting"]:
            time.sleep(0.001)
        return request

    want = ask().read(9)
    assert want is not None and want.finish_reason == "length"
    for at in range(40):
        request, output = ask(), None
        testcapi.set_nomemory(at, at + 1)
        try:
            output = request.read(9)
        except MemoryError:
            n_failed += 1
        finally:
            testcapi.remove_mem_hooks()
        output = output or request.read(9)
        assert output is not None and request.done
        assert (output.token_ids, output.logprobs) == (want.token_ids, want.logprobs)
        assert np.array_equal(output.logits, want.logits)  # type: ignore[arg-type]
    assert n_failed > 5
    engine.close()
