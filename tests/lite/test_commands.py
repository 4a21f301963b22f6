"""LMDeploy's functions and commands that compress: what each writes, and what it says."""

from __future__ import annotations

import inspect
import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import packed_models as pm
import pytest
from conftest import GOLDEN, logits_tolerance
from lite_models import logits_of
from numpy.typing import NDArray
from safetensors.numpy import load_file

from lmdeploy_c import _C, TurbomindEngineConfig, lite, pipeline
from lmdeploy_c.cli import lite_commands, main, make_parser
from lmdeploy_c.lite import statistics
from lmdeploy_c.lite.calibration_data import windows as windows_of
from lmdeploy_c.lite.layers import Layers, input_of, layer_of
from lmdeploy_c.lite.source import Source

GGUF = GOLDEN / "gguf" / "llama-float.gguf"
TEXT = "the quick brown fox jumps over the lazy dog, and so on; " * 20


@pytest.fixture
def calibration(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "text").write_text(TEXT)
    return {"calib_dataset": tmp_path / "text", "calib_seqlen": 64}


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def error_of(path: Path, exact: NDArray[np.float32]) -> float:
    return float(np.abs(logits_of(path) - exact).mean() / np.abs(exact).mean())


# ---- AWQ ----


def test_auto_awq(tmp_path: Path, calibration: dict[str, Any]) -> None:
    options = {"w_group_size": 32, **calibration}
    done = lite.auto_awq(GGUF, tmp_path / "plain", **options)
    assert len(done) == len(Source(GGUF).linears())
    settings = config_of(tmp_path / "plain")["quantization_config"]
    assert settings["quant_method"] == "awq" and settings["zero_point"] is True
    assert (settings["bits"], settings["group_size"]) == (4, 32)
    norms = load_file(tmp_path / "plain" / "model.safetensors")
    name = "model.layers.0.input_layernorm.weight"
    assert np.abs(norms[name].astype(np.float32) / Source(GGUF).read(name) - 1).max() > 0.05
    lite.auto_awq(GGUF, tmp_path / "searched", search_scale=True, w_sym=True, **options)
    assert config_of(tmp_path / "searched")["quantization_config"]["zero_point"] is False
    lite.auto_awq(GGUF, tmp_path / "best", method="best", **options)
    lite.auto_awq(GGUF, tmp_path / "free", w_group_size=32, calib_samples=0)
    exact = logits_of(GGUF)
    errors = {n: error_of(tmp_path / n, exact) for n in ("plain", "searched", "best", "free")}
    assert all(0 < error < 0.5 for error in errors.values()), errors


def test_what_changes_nothing_is_said(
    tmp_path: Path, calibration: dict[str, Any], caplog: Any
) -> None:
    """The device, remote code, and groups that are not LMDeploy's; the result is the same."""
    caplog.set_level(logging.WARNING, "lmdeploy_c")
    lite.auto_awq(GGUF, tmp_path / "one", w_group_size=32, **calibration)
    assert caplog.messages == []
    lite.auto_awq(
        GGUF, tmp_path / "two", device="cuda", trust_remote_code=True, batch_size=8, **calibration
    )
    said = "\n".join(caplog.messages)
    assert "device cuda is not used" in said and "code is never run" in said
    assert "groups have 32 columns: LMDeploy's 128 do not divide the" in said
    one, two = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("one", "two"))
    assert one == two


def test_dtype_auto(tmp_path: Path) -> None:
    for given, wanted in (("bfloat16", "BF16"), ("float32", "F16")):
        lite.export(GGUF, tmp_path / given, dtype=given)
        lite.auto_awq(tmp_path / given, tmp_path / "out", calib_samples=0, w_group_size=32)
        header = (tmp_path / "out" / "model.safetensors").read_bytes()
        entries = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])
        assert entries["model.norm.weight"]["dtype"] == wanted


# ---- GPTQ ----


@pytest.mark.parametrize("desc_act", [False, True])
def test_auto_gptq(tmp_path: Path, calibration: dict[str, Any], desc_act: bool) -> None:
    """Decoded by the format's definition it is near the model, and the engine computes with just
    these values; in the order of desc_act the columns of the first group carry most."""
    out = tmp_path / "out"
    done = lite.auto_gptq(GGUF, out, w_group_size=32, desc_act=desc_act, **calibration)
    settings = config_of(out)["quantization_config"]
    assert settings["sym"] is True and settings["desc_act"] is desc_act
    tensors, source = load_file(out / "model.safetensors"), Source(GGUF)
    dense = pm.dense_tensors("gptq", tensors)
    windows = windows_of(source, calibration["calib_dataset"], seqlen=64)
    layers = Layers(source, windows, _C.Quantizer(2))
    for layer in range(source.checkpoint.config["n_layer"]):
        sums = layers.run(layer)
        assert sums is not None
        for linear in (r for r in done if layer_of(r.name) == layer):
            read = input_of(linear.name)
            exact, values = source.read(linear.name), dense[linear.name]
            held_out = sums.held_out[read]
            lost = _C.Quantizer(1).output_errors(held_out, values - exact).sum()
            all_of_it = _C.Quantizer(1).output_errors(held_out, exact).sum()
            assert lost / all_of_it == pytest.approx(linear.error, rel=0.02)
            groups = tensors[linear.name.replace("weight", "g_idx")]
            squares = sums.calibration[read].squares()
            assert (np.bincount(groups) == 32).all()
            if len(groups) == 32:
                continue
            in_order = (groups == np.arange(len(groups)) // 32).all()
            least = [squares[groups == g].min() for g in range(groups.max() + 1)]
            most = [squares[groups == g].max() for g in range(groups.max() + 1)]
            descends = all(a >= b for a, b in zip(least, most[1:], strict=False))
            assert (in_order, descends) == ((False, True) if desc_act else (True, False))
    config = {k: v for k, v in config_of(out).items() if k != "quantization_config"}
    plain = pm.write_model(tmp_path / "dense", config, dense)
    wanted = logits_of(plain)
    assert np.abs(logits_of(out) - wanted).max() <= logits_tolerance() * np.abs(wanted).max()


def test_desc_act_is_refused_where_no_format_has_it(
    tmp_path: Path, calibration: dict[str, Any]
) -> None:
    with pytest.raises(_C.UnsupportedError, match="desc_act is for gptq"):
        lite.quantize(GGUF, tmp_path, w_group_size=32, desc_act=True, **calibration)
    with pytest.raises(ValueError, match='for methods "gptq" and "best"'):
        lite.auto_gptq(GGUF, tmp_path, method="rtn", w_group_size=32, desc_act=True, **calibration)


# ---- calibrate ----


def test_calibrate(tmp_path: Path, calibration: dict[str, Any]) -> None:
    """The files have what each linear read and what the cache got; the result says the same."""
    measured = lite.calibrate(GGUF, work_dir=tmp_path / "out", **calibration)
    reports = measured.inputs
    source = Source(GGUF)
    found = dict(np.load(tmp_path / "out" / statistics.FILE, allow_pickle=False))
    names = [name.removesuffix(".weight") for name in source.linears()]
    assert found.keys() == {f"{kind}.{name}" for kind in ("absmax", "absmean") for name in names}
    windows = windows_of(source, calibration["calib_dataset"], seqlen=64)
    embedded = np.concatenate([source.read("model.embed_tokens.weight")[w] for w in windows])
    rms = np.sqrt((embedded**2).mean(-1, keepdims=True) + source.checkpoint.config["norm_eps"])
    inputs = np.abs(embedded / rms * source.read("model.layers.0.input_layernorm.weight"))
    for name in ("q_proj", "v_proj"):
        got = found[f"absmax.model.layers.0.self_attn.{name}"]
        assert got == pytest.approx(inputs.max(0), rel=1e-4)
        mean = found[f"absmean.model.layers.0.self_attn.{name}"]
        assert mean == pytest.approx(inputs.mean(0), rel=1e-4)
    first = reports[0]
    assert (first.layer, first.outlier) == (0, int(inputs.max(0).argmax()))
    assert f"column {first.outlier} reaches" in str(first)
    config = source.checkpoint.config
    assert len(reports) == 4 * config["n_layer"]
    kv = dict(np.load(tmp_path / "out" / statistics.KV_FILE, allow_pickle=False))
    assert kv.keys() == vars(measured.kv).keys()
    assert all((kv[name] == value).all() for name, value in vars(measured.kv).items())
    layers = Layers(source, windows, _C.Quantizer(), held_out=0)
    for i in range(config["n_layer"]):
        sums = layers.run(i, gram=False)
        assert sums is not None
        heads = (2, config["n_kv_head"], config["head_dim"])
        least, most = sums.kv.least().reshape(heads), sums.kv.most().reshape(heads)
        assert (kv["key_min"][i] == least[0]).all() and (kv["key_max"][i] == most[0]).all()
        assert (kv["value_min"][i] == least[1]).all() and (kv["value_max"][i] == most[1]).all()
    assert re.search(r"keys reach [\d.]+ in layer \d, head \d, channel \d+, ", str(measured.kv))


# ---- the command line ----

#: LMDeploy 0.18: command -> its flags.
FLAGS = {
    "auto_awq": "revision download-dir work-dir calib-dataset calib-samples calib-seqlen "
    "batch-size search-scale dtype trust-remote-code device w-bits w-sym w-group-size",
    "auto_gptq": "revision work-dir calib-dataset calib-samples calib-seqlen batch-size dtype "
    "trust-remote-code w-bits w-group-size",
    "calibrate": "work-dir calib-dataset calib-samples calib-seqlen batch-size search-scale dtype "
    "trust-remote-code",
    "smooth_quant": "work-dir device calib-dataset calib-samples calib-seqlen batch-size "
    "search-scale dtype quant-dtype revision download-dir trust-remote-code",
}
VALUES = {
    "calib-samples": "128", "calib-seqlen": "2048", "batch-size": "1", "w-bits": "4",
    "w-group-size": "128",
}  # fmt: skip
SWITCHES = ("search-scale", "trust-remote-code", "w-sym")


@pytest.mark.parametrize("name", FLAGS)
def test_every_flag_of_lmdeploy_is_there(name: str) -> None:
    given = [
        part for flag in FLAGS[name].split()
        for part in ([f"--{flag}"] if flag in SWITCHES else [f"--{flag}", VALUES.get(flag, "x")])
    ]  # fmt: skip
    args = vars(make_parser().parse_args(["lite", name, "MODEL", *given]))
    assert args["model_path"] == "MODEL" and args["calib_samples"] == 128
    assert all(args[flag.replace("-", "_")] is True for flag in SWITCHES if flag in FLAGS[name])


@pytest.mark.parametrize("name", FLAGS)
def test_defaults_are_those_of_the_functions(name: str) -> None:
    args = vars(make_parser().parse_args(["lite", name]))
    parameters = inspect.signature(getattr(lite, name)).parameters
    passed = {flag[2:].replace("-", "_") for flag in args["run"].args[1]}
    assert passed | {"work_dir"} <= parameters.keys()
    assert all(args[field] == parameters[field].default for field in (*passed, "work_dir"))
    assert name in lite_commands.COMMANDS and args["model_path"] is None


def test_commands(tmp_path: Path, calibration: dict[str, Any], capsys: Any, caplog: Any) -> None:
    data = ["--calib-dataset", str(calibration["calib_dataset"]), "--calib-seqlen", "64"]
    for name in ("auto_awq", "auto_gptq"):
        out = tmp_path / name
        assert main(["lite", name, str(GGUF), "--work-dir", str(out), *data]) == 0
        said = capsys.readouterr().out
        assert "linears in 4 bits, " in said and f"chat {out}" in said
        with pipeline(out, TurbomindEngineConfig(session_len=64)) as pipe:
            assert pipe("a", do_preprocess=False).generate_token_len > 0
    assert main(["lite", "calibrate", str(GGUF), "--work-dir", str(tmp_path), *data]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert statistics.FILE in lines[0] and len(lines) == 3 + lite_commands.SHOWN
    shown = lines[1 : 1 + lite_commands.SHOWN]
    assert all("times the median column" in line for line in shown)
    assert statistics.KV_FILE in lines[-2] and "values reach" in lines[-1]
    free = ["--calib-dataset", "none", "--w_group_size=32"]
    assert main(["lite", "auto_awq", str(GGUF), "--work-dir", str(tmp_path / "n"), *free]) == 0
    free = ["--calib-samples", "0", "--search-scale", "--w-group-size", "32"]
    assert main(["lite", "auto_awq", str(GGUF), "--work-dir", str(tmp_path / "n"), *free]) == 0
    assert "search_scale changes nothing without calibration" in caplog.text


def test_mistakes(tmp_path: Path, capsys: Any) -> None:
    model, work = str(GGUF), ["--work-dir", str(tmp_path / "out")]
    for arguments, text in (
        (["auto_awq", model, "--w-group-size", "128"], "groups of 128 do not divide the"),
        (["auto_awq", model, "--w-bits", "8"], "w_bits of awq must be 4, not 8"),
        (["auto_awq", model, "--method", "best", "--search-scale"], "search_scale is for AWQ's"),
        (["auto_awq", model, "--method", "gptq", "--calib-samples", "0"], "needs calib_dataset"),
        (["auto_awq", model, "--method", "exl3"], "method must be"),
        (["auto_awq", model, "--batch-size", "0"], "batch_size must be at least 1, not 0"),
        (["auto_awq", model, "--dtype", "int8"], "dtype must be"),
        (["auto_gptq", model, "--calib-samples", "0"], "'gptq' needs calib_dataset"),
        (["smooth_quant", model, "--quant-dtype", "fp8"], "int8 is served"),
        (["smooth_quant", model, "--calib-samples", "0"], "calib_samples must not be 0"),
        (["smooth_quant", model, "--alpha", "1.5"], "alpha must be from 0 to 1, not 1.5"),
        (["calibrate", model, "--calib-samples", "0"], "at least 1"),
        (["calibrate", model, "--calib-dataset", "no-such-file"], "is no file"),
    ):
        assert main(["lite", *arguments, *work]) == 1, arguments
        assert text in capsys.readouterr().err
    assert not (tmp_path / "out" / "config.json").exists()
