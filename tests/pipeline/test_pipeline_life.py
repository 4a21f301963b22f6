"""How pipelines are made, what they say of themselves, and how they end."""

import gc
import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from test_pipeline import ENGINE, LONG, PROMPTS, SHORT, wait_idle

import lmdeploy_c
from lmdeploy_c import (
    ChatTemplateConfig,
    GenerationConfig,
    Pipeline,
    PytorchEngineConfig,
    TurbomindEngineConfig,
    pipeline,
)
from lmdeploy_c.engine.loading import make_chat_template, warn_of_slow_kernels


@pytest.fixture(scope="module")
def pipe() -> Iterator[Pipeline]:
    with pipeline(backend_config=ENGINE) as made:
        yield made


def test_plan_and_backend_config(pipe: Pipeline) -> None:
    wait_idle(pipe)
    assert pipe.plan["kv_bytes"] <= 128 << 20
    stats = pipe.stats()
    assert pipe.plan["kv_blocks"] == stats["n_free_blocks"] + stats["n_cached_blocks"]
    assert pipe.backend_config.session_len == pipe.plan["session_len"] == 1024
    assert pipe.backend_config.device == "cpu"
    assert pipe.backend_config.num_threads == pipe.plan["num_threads"] > 0
    assert pipe.async_engine is pipe
    assert "SmolLM2" in pipe.model_name


def test_kv_size_is_reported_before_loading(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "lmdeploy_c"):
        pipeline(backend_config=ENGINE, log_level="INFO").close()
    logging.getLogger("lmdeploy_c").setLevel(logging.WARNING)
    assert any("KV cache 12" in m and "session_len 1024" in m for m in caplog.messages)


def test_pytorch_config_warns_once_and_runs(caplog: pytest.LogCaptureFixture) -> None:
    config = PytorchEngineConfig(session_len=256, max_batch_size=2, cache_max_entry_count="16MB")
    with pipeline(backend_config=config) as pipe:
        assert pipe.backend_config.session_len == 256
        assert pipe(PROMPTS[0], SHORT).text
    assert sum("PytorchEngineConfig" in m for m in caplog.messages) == 1


def test_session_len_is_lowered_to_what_the_cache_holds() -> None:
    config = TurbomindEngineConfig(cache_max_entry_count=4, max_batch_size=2)
    with pipeline(backend_config=config) as pipe:
        assert pipe.plan["session_len"] == 256
        assert pipe(PROMPTS[0], SHORT).finish_reason != "error"
        assert pipe("word " * 300).finish_reason == "error"


def test_a_template_of_ones_own(pipe: Pipeline) -> None:
    template = ChatTemplateConfig("base", user="Q: ", eoh="\nA:", stop_words=["\n"])
    with pipeline(None, ENGINE, template) as own:
        response = own(PROMPTS[0], GenerationConfig(max_new_tokens=30))
        assert "\n" not in response.text


def test_a_model_without_a_template_completes(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pipe.tokenizer, "chat_templates", {})
    template = make_chat_template(None, pipe.tokenizer)
    assert template.messages2prompt("as it is") == "as it is"
    assert any("no chat template" in m for m in caplog.messages)


@pytest.mark.parametrize(
    ("arguments", "error", "why"),
    [
        ({"model_path": "/no/such/model"}, FileNotFoundError, "/no/such/model"),
        ({"model_path": __file__}, ValueError, "test_pipeline_life.py"),
        ({"backend_config": 5}, TypeError, "backend_config"),
        ({"log_level": "LOUD"}, ValueError, "LOUD"),
        ({"speculative_config": object()}, TypeError, "speculative_config"),
        ({"vision_config": lmdeploy_c.VisionConfig()}, None, ""),
        ({"backend_config": TurbomindEngineConfig(model_format="hf")}, ValueError, "model_format"),
        ({"chat_template_config": ChatTemplateConfig("nobody's")}, ValueError, "nobody's"),
        (
            {"backend_config": TurbomindEngineConfig(session_len=9000, cache_max_entry_count=8)},
            ValueError,
            "session_len=9000 needs",
        ),
    ],
)
def test_what_pipeline_refuses(
    arguments: dict[str, Any], error: type[Exception] | None, why: str
) -> None:
    if error is None:
        pipeline(**{"backend_config": ENGINE, **arguments}).close()
        return
    with pytest.raises(error, match=why):
        pipeline(**arguments)


def test_close_frees_and_refuses() -> None:
    pipe = pipeline(backend_config=ENGINE)
    engine = pipe.engine.core
    stream = pipe.stream_infer(PROMPTS[0], gen_config=LONG)
    next(stream)
    pipe.close()
    pipe.close()
    *_, last = stream
    assert last.finish_reason in ("abort", "error")
    del stream
    gc.collect()
    assert sys.getrefcount(engine) == 2, "nothing else keeps the model's memory"
    with pytest.raises(RuntimeError, match="closed"):
        pipe(PROMPTS[0])
    with pytest.raises(RuntimeError, match="closed"):
        pipe.stats()


def test_a_dropped_pipeline_ends_its_engine() -> None:
    pipe = pipeline(backend_config=ENGINE)
    engine = pipe.engine.core
    del pipe
    gc.collect()
    with pytest.raises(RuntimeError):
        engine.submit([1, 2, 3])


def test_the_interpreter_ends_while_an_answer_runs() -> None:
    code = (
        "from lmdeploy_c import pipeline, GenerationConfig as G, TurbomindEngineConfig as T\n"
        "pipe = pipeline(backend_config=T(session_len=1024, cache_max_entry_count='64MB'))\n"
        "stream = pipe.stream_infer('Hello', gen_config=G(max_new_tokens=900, ignore_eos=True))\n"
        "next(stream); print('left')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "left\n"), done.stderr


def test_slow_kernels_are_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("LMDEPLOY_C_ISA", raising=False)
    warn_of_slow_kernels("avx2")
    assert not caplog.records
    warn_of_slow_kernels("ref")
    assert "reference kernels" in caplog.text
    caplog.clear()
    monkeypatch.setenv("LMDEPLOY_C_ISA", "ref")  # asked for
    warn_of_slow_kernels("ref")
    assert not caplog.records
