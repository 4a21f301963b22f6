"""`quantize` through the configuration and the commands: what is forecast is what is loaded."""

from __future__ import annotations

from pathlib import Path

import packed_models as pm
import pytest
from conftest import GOLDEN
from scripted_models import write_directory

import lmdeploy_c
from lmdeploy_c import TurbomindEngineConfig
from lmdeploy_c.cli import main
from lmdeploy_c.units import format_size

SMALL = {"cache_max_entry_count": "8MB", "session_len": 256, "num_threads": 2}


def config_of(quantize: str | None) -> TurbomindEngineConfig:
    return TurbomindEngineConfig(quantize=quantize, **SMALL)


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = ["Paris"]
    path, _ = write_directory(tmp_path_factory.mktemp("scripted"), words, [*words, "<|im_end|>"])
    return path


@pytest.mark.parametrize("quantize", [None, "w4", "w8"])
def test_the_forecast_is_what_a_pipeline_holds(scripted: Path, quantize: str | None) -> None:
    forecast = lmdeploy_c.plan(scripted, config_of(quantize), measure=False)
    with lmdeploy_c.pipeline(scripted, config_of(quantize)) as pipe:
        assert pipe.plan == forecast
        assert pipe("Where?").text == "Paris"


def test_a_forecast_times_the_codes(tmp_path: Path) -> None:
    path = pm.write_float_model(tmp_path)
    plain, codes = (lmdeploy_c.plan(path, config_of(quantize)) for quantize in (None, "w4"))
    assert codes.weight_bytes < 0.6 * plain.weight_bytes
    assert codes.tokens_per_second and codes.tokens_per_second_limit


def test_sessions_of_other_weights_are_computed_again(
    scripted: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with lmdeploy_c.pipeline(scripted, config_of(None)) as pipe:
        session = pipe.session()
        session("Where is it? " * 8, stream_response=False)
        session.save(tmp_path / "session")
    with lmdeploy_c.pipeline(scripted, config_of("w4"), log_level="WARNING") as pipe:
        session = pipe.load_session(tmp_path / "session")
        assert "computed again: other quantize" in caplog.text
        answer = session("And?", stream_response=False)
        assert answer.text == "Paris" and answer.cached_tokens == 0


def test_commands(scripted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--cache-max-entry-count", "8MB", "--session-len", "256", "--quantize", "w4"]
    assert main(["plan", str(scripted), "--no-measure", *small]) == 0
    forecast = lmdeploy_c.plan(scripted, config_of("w4"), measure=False)
    assert f"weights {format_size(forecast.weight_bytes):>12}" in capsys.readouterr().out
    assert main(["chat", str(scripted), *small, "--prompt", "Where?"]) == 0
    assert "Paris" in capsys.readouterr().out


def test_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"quantize.*'w5'.*'w4'"):
        TurbomindEngineConfig(quantize="w5")
    awq = GOLDEN / "models" / "qwen2-awq-hd128-gqa4"
    with pytest.raises(ValueError, match="is quantised already; leave quantize out"):
        lmdeploy_c.plan(awq, config_of("w4"), measure=False)
    assert main(["plan", str(awq), "--quantize", "w4"]) != 0
    assert "leave quantize out" in capsys.readouterr().err
