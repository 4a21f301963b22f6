"""A failed request is seen: one warning for each, one more for a batch, and an exception for who
wants one."""

from __future__ import annotations

import asyncio
import copy
import pickle
from collections.abc import Iterator

import pytest
from scripted_models import write_directory

from lmdeploy_c import (
    ChatTemplateConfig,
    GenerationConfig,
    Interrupted,
    Pipeline,
    RequestError,
    TurbomindEngineConfig,
    pipeline,
)
from lmdeploy_c.messages import ErrorCode

FEW = GenerationConfig(max_new_tokens=4)
LONG = "word " * 400
TOO_LONG = "context length is 512"


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    path, _ = write_directory(tmp_path_factory.mktemp("model"), ["tick"], ["tick", "tick"])
    with pipeline(path, TurbomindEngineConfig(session_len=512, cache_max_entry_count=64)) as made:
        yield made


def test_a_single_request(pipe: Pipeline, caplog: pytest.LogCaptureFixture) -> None:
    response = pipe(LONG, FEW)
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("lmdeploy_c.requests", "WARNING")
    assert record.getMessage() == f"request 0 failed: {response.error_message}"
    assert TOO_LONG in record.getMessage()


def test_a_batch_has_a_line_for_each_and_one_for_all(
    pipe: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    prompts = ["a", LONG, [{"role": "user"}], "b"]
    for call in (pipe.infer, pipe.stream_infer):
        caplog.clear()
        list(call(prompts, gen_config=FEW))  # type: ignore[operator]
        *each, last = caplog.messages
        assert {message.split(":")[0] for message in each} == {
            "request 1 failed",
            "request 2 failed",
        }
        assert last.startswith("2 of 4 requests failed: ")


def test_requests_that_do_not_fail_are_silent(
    pipe: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    pipe(["a", "b"], FEW)
    list(pipe.stream_infer(["a", "b"], gen_config=FEW))
    pipe.chat("a", gen_config=FEW)
    assert caplog.messages == []


def test_other_calls(pipe: Pipeline, caplog: pytest.LogCaptureFixture) -> None:
    async def generate() -> None:
        async for _ in pipe.generate(LONG, FEW):
            pass

    session = pipe.session(FEW)
    for call in (
        lambda: asyncio.run(generate()),
        lambda: pipe.chat(LONG, session),
        lambda: list(session(LONG)),  # type: ignore[arg-type]
        lambda: session(LONG, stream_response=False),
    ):
        caplog.clear()
        call()
        assert len(caplog.messages) == 1 and TOO_LONG in caplog.text


def test_several_answers_to_a_prompt(pipe: Pipeline, caplog: pytest.LogCaptureFixture) -> None:
    """One that cannot be asked is one mistake, however many answers were wanted."""
    pipe([{"role": "user"}], GenerationConfig(n=3, max_new_tokens=4))
    assert [m for m in caplog.messages if m.startswith("request ")] == [caplog.messages[0]]
    assert caplog.messages[-1].startswith("3 of 3 requests failed")


def test_raise_for_error(pipe: Pipeline) -> None:
    good, bad = pipe(["a", LONG], FEW)
    assert good.raise_for_error() is good
    with pytest.raises(RequestError, match=f"request 1 failed .*{TOO_LONG}") as raised:
        bad.raise_for_error()
    assert raised.value.response is bad
    assert raised.value.code == ErrorCode.CONTEXT_LENGTH_EXCEEDED
    assert raised.value.message == bad.error_message
    good.choices = [good, bad]
    with pytest.raises(RequestError):
        good.raise_for_error()


def test_exceptions_come_whole_from_another_process(pipe: Pipeline) -> None:
    failed, stopped = RequestError(pipe(LONG, FEW)), Interrupted([pipe("a", FEW)])
    other = pickle.loads(pickle.dumps(failed))
    assert (other.response, other.code, str(other)) == (failed.response, failed.code, str(failed))
    assert pickle.loads(pickle.dumps(stopped)).responses == stopped.responses
    for config in (FEW, TurbomindEngineConfig(session_len=5), ChatTemplateConfig("base")):
        assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config
