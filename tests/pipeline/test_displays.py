"""What objects say of themselves at a prompt: a few lines, with what one wants to know."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from scripted_models import write_directory

from lmdeploy_c import GenerationConfig, Pipeline, Plan, TurbomindEngineConfig, pipeline

FEW = GenerationConfig(max_new_tokens=8)
ENGINE = TurbomindEngineConfig(session_len=512, cache_max_entry_count=20, num_threads=1)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    says = ["tick", " tock", "tick"]
    path, _ = write_directory(tmp_path_factory.mktemp("model"), says[:2], says)
    with pipeline(path, ENGINE, model_name="clock") as made:
        yield made


def few_lines(value: object, most: int) -> str:
    shown = repr(value)
    assert shown == str(value)
    assert len(shown.splitlines()) <= most and max(map(len, shown.splitlines())) <= 110, shown
    return shown


def test_a_pipeline(pipe: Pipeline) -> None:
    shown = few_lines(pipe, 3)
    assert shown.startswith(f"<Pipeline clock: llama on {pipe.plan.device} ({pipe.engine.isa}), 1 ")
    assert "1280 tokens, 512 tokens of context" in shown
    assert shown.endswith("0 requests running, 0 waiting>")
    stream = pipe.stream_infer("Hi", gen_config=GenerationConfig(max_new_tokens=None))
    next(stream)
    assert "1 requests running" in repr(pipe)
    stream.close()
    with pipeline(pipe.engine.model_path, ENGINE, model_name="clock") as closed:
        pass
    assert repr(closed) == "<Pipeline clock, closed>"


def test_a_plan(pipe: Pipeline) -> None:
    assert isinstance(pipe.plan, Plan)
    shown = few_lines(pipe.plan, 12)
    assert "KV cache" in shown and "together" in shown and "Plan(" not in shown


def test_metrics(pipe: Pipeline) -> None:
    with pipeline(pipe.engine.model_path, ENGINE) as fresh:
        assert "first token after ?" in few_lines(fresh.metrics(), 4)
        fresh(["Hi", "Ho"], [FEW, GenerationConfig(max_new_tokens=4)])
        metrics = fresh.metrics()
    assert isinstance(metrics, dict)
    assert json.loads(json.dumps(metrics))["n_tokens_generated"] == 12
    requests, tokens, _, means = few_lines(metrics, 4).splitlines()
    assert requests == "requests  0 running, 0 waiting, 2 ended (2 length)"
    assert tokens.endswith("; 12 of answers")
    del metrics["histograms"]["step_seconds"]
    times = metrics["histograms"]["request_seconds"]
    part = type(metrics)(n_running=3)
    assert repr(part) == "{'n_running': 3}"
    assert f"whole request {1e3 * times['sum'] / 2:.4g} ms" in means


def test_a_session(pipe: Pipeline) -> None:
    session = pipe.session(FEW)
    assert few_lines(session, 1) == f"<Session {session.session_id}: 0 turns, 0 tokens>"
    pipe.chat("Hi\nthere", session)
    n = len(session.token_ids)
    assert few_lines(session, 3).splitlines() == [
        f"<Session {session.session_id}: 1 turns, {n} tokens",
        "  user: Hi there",
        "  assistant: tick tocktick tocktick tocktick tock>",
    ]
    for prompt in ("word " * 40, [{"role": "user", "content": "a"}], "b"):
        pipe.chat(prompt, session)
    shown = few_lines(session, 8).splitlines()
    assert shown[1:4:2] == ["  ...", "  assistant: tick tocktick tocktick tocktick tock"]
    session.history[-1] = ([], None)  # type: ignore[assignment]
    assert few_lines(session, 8).endswith("  user: []\n  assistant: None>")
    assert shown[2].endswith("word ...") and shown[4] == "  user: a"
