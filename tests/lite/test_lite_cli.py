"""`lmdeploy_c lite`: what it writes, what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import GOLDEN

from lmdeploy_c import TurbomindEngineConfig, pipeline
from lmdeploy_c.cli import main

MODEL = GOLDEN / "gguf" / "llama-float.gguf"


def test_quantize_then_ask(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    assert main(["lite", "quantize", str(MODEL), "--work-dir", str(out), "--w_group_size=32"]) == 0
    said = capsys.readouterr().out
    assert "linears in 4 bits, " in said and "as written" in said and f"chat {out}" in said
    with pipeline(out, TurbomindEngineConfig(session_len=64)) as pipe:
        assert pipe("a", do_preprocess=False).generate_token_len > 0


def test_export(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    assert main(["lite", "export", str(MODEL), "--work-dir", str(out)]) == 0
    assert f"chat {out}" in capsys.readouterr().out
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in out.iterdir()}


def test_gguf(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    quantize = ["lite", "quantize", str(MODEL), "--format", "gguf", "--method", "rtn", "--work-dir"]
    assert main([*quantize, str(out), "--w-type", "q8_0"]) == 0
    assert "linears in 8 bits, 8.50 bits/weight; squared error 0.00" in capsys.readouterr().out
    assert main([*quantize, str(out), "--w-type", "*down_proj*=q8_0,*_proj*=q4_0"]) == 0
    said = capsys.readouterr().out
    assert "linears in 4 bits (" in said and f"chat {out}" in said
    assert {path.name for path in out.iterdir()} == {"model.gguf", "report.json"}
    with pipeline(out, TurbomindEngineConfig(session_len=64)) as pipe:
        assert pipe("a", do_preprocess=False).generate_token_len > 0
    assert main(["lite", "export", str(MODEL), "--format=gguf", f"--work-dir={tmp_path}"]) == 0
    assert f"chat {tmp_path}/model.gguf" in capsys.readouterr().out
    assert main([*quantize, str(out), "--w-type", "*embed*=q8_0"]) == 0
    assert "0 linears in floats" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*quantize, str(out), "--w-type", "*=,q8_0"])


def test_mistakes(tmp_path: Path, capsys: Any) -> None:
    work = ["--work-dir", str(tmp_path / "out")]
    assert main(["lite", "quantize", str(MODEL), *work, "--w-group-size", "48"]) == 1
    assert "groups of 48 do not divide" in capsys.readouterr().err
    assert main(["lite", "quantize", str(tmp_path / "none"), *work]) == 1
    assert "no file or directory" in capsys.readouterr().err
    assert main(["lite", "quantize", str(MODEL), *work, "--calib-samples", "0"]) == 1
    assert "'best' needs calib_dataset and calib_samples" in capsys.readouterr().err
    lost = str(tmp_path / "no" / "folder.json")
    assert main(["lite", "quantize", str(MODEL), *work, "--report", lost]) == 1
    assert 'no"' in capsys.readouterr().err and not (tmp_path / "out").exists()
    (tmp_path / "file").touch()
    assert main(["lite", "quantize", str(MODEL), f"--work-dir={tmp_path / 'file'}"]) == 1
    assert "must be a directory" in capsys.readouterr().err
    (tmp_path / "set.jsonl").write_text('{"text": "a"}\n{"txt": "b"}\n')
    for dataset, said in ((tmp_path / "set.jsonl", "line 2 is no document"),
                          ("wikitxt", "no file: --calib-dataset")):  # fmt: skip
        assert main(["lite", "quantize", str(MODEL), *work, f"--calib-dataset={dataset}"]) == 1
        assert said in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["lite"])
