"""Linears in 8 bits by a size: the choice against every other choice, the files against NumPy."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import packed_models as pm
import pytest
from conftest import GOLDEN
from safetensors.numpy import load_file

from lmdeploy_c import _C, TurbomindEngineConfig, pipeline
from lmdeploy_c.lite import Report, quantize
from lmdeploy_c.lite.mixed import MAX_STEPS, Unit, budget, choose
from lmdeploy_c.lite.source import Source

GGUF = GOLDEN / "gguf" / "llama-float.gguf"
TEXT = "the quick brown fox jumps over the lazy dog, and so on; " * 20
OPTIONS: dict[str, Any] = {"format": "compressed-tensors", "w_group_size": 32, "calib_seqlen": 64,
                           "evaluate": False}  # fmt: skip


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text").write_text(TEXT)
    return tmp_path / "text"


# ---- the choice ----


@pytest.mark.parametrize("seed", range(30))
def test_no_choice_is_better(seed: int) -> None:
    rng = np.random.default_rng(seed)
    costs = rng.choice([96, 160, 320, 1024], 10) if seed % 2 else rng.integers(1, 999, 10)
    gains = rng.gamma(1, size=10) - 0.1
    units = [Unit(str(i), float(gains[i]), int(costs[i])) for i in range(10)]
    room = int(rng.integers(0, costs.sum() + 100))
    every = (s for n in range(11) for s in itertools.combinations(units, n))
    best = max(sum(u.gain for u in s) for s in every if sum(u.cost for u in s) <= room)
    chosen = [unit for unit in units if unit.name in choose(units, room)]
    assert sum(unit.cost for unit in chosen) <= room
    assert sum(unit.gain for unit in chosen) == pytest.approx(best)


def test_a_large_room_is_kept_to() -> None:
    """Costs without a common step are rounded up."""
    rng = np.random.default_rng(1)
    costs = rng.integers(1 << 20, 1 << 24, 200)
    units = [Unit(str(i), float(g), int(costs[i])) for i, g in enumerate(rng.gamma(1, size=200))]
    room = int(costs.sum() // 3)
    assert room > MAX_STEPS
    chosen = choose(units, room)
    assert 0.99 * room < sum(u.cost for u in units if u.name in chosen) <= room
    ordered, greedy, left = sorted(units, key=lambda u: -u.gain / u.cost), 0.0, room
    for unit in ordered:
        if unit.cost <= left:
            greedy, left = greedy + unit.gain, left - unit.cost
    assert sum(u.gain for u in units if u.name in chosen) >= greedy * 0.999


def test_sizes() -> None:
    known: dict[str, int] = {"n_weights": 8_000_000, "least": 5_000_000, "most": 9_000_000,
                             "others": 1_000_000}  # fmt: skip
    assert budget("6bpw", **known) == 6_000_000
    assert budget(" 5.5 BPW ", **known) == 5_500_000
    assert budget("8MB", **known) == 8 * 2**20 - 1_000_000
    for small in ("4.9bpw", "5MB"):
        with pytest.raises(
            ValueError, match=r"is less than all .*5\.7 MiB, or 5\.000bpw; .*9\.5 M"
        ):
            budget(small, **known)
    for wrong in ("much", "5 bits", "", "-1MB"):
        with pytest.raises(ValueError, match="a size such as '110MB' or '4.5bpw'"):
            budget(wrong, **known)


# ---- the files ----


def bits_by_unit(report: Report) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for linear in report:
        found.setdefault(linear.unit, set()).add(linear.bits)
    return found


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_mixed_model(tmp_path: Path, text: Path, symmetric: bool) -> None:
    """Each module's words have the bits that its group of config.json says, and mean what the
    report says of it."""
    report = quantize(GGUF, tmp_path / "out", mixed="6.5bpw", calib_dataset=text, w_sym=symmetric,
                      **OPTIONS)  # fmt: skip
    assert 6 < report.bits_per_weight <= 6.5
    assert all(len(bits) == 1 for bits in bits_by_unit(report).values())
    assert {linear.bits for linear in report} == {4, 8}
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    said = {
        module: group["weights"]["num_bits"]
        for group in config["config_groups"].values()
        for module in group["targets"]
    }
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    source = Source(GGUF)
    assert said.keys() == {name.removesuffix(".weight") for name in source.linears()}
    for linear in report:
        module = linear.name.removesuffix(".weight")
        packed = {k.removeprefix(module + "."): v for k, v in tensors.items() if module in k}
        assert packed["weight_packed"].shape[1] * 32 == linear.shape[1] * linear.bits
        assert said[module] == linear.bits
        assert sum(array.nbytes for array in packed.values()) == linear.after_bytes
        form = "compressed_sym" if symmetric else "compressed"
        dense, exact = pm.decode(form, packed, linear.bits), source.read(linear.name)
        error = float(np.square(dense - exact).sum() / np.square(exact).sum())
        assert error < (1e-4 if linear.bits == 8 else 0.02)
        assert linear.error == linear.tried[f"{linear.bits} bits"]
        assert linear.tried["8 bits"] < linear.tried["4 bits"] / 50
    assert {need.unit for need in report.needs()} == {x.unit for x in report if x.bits == 4}
    with pipeline(tmp_path / "out", TurbomindEngineConfig(session_len=64)) as pipe:
        assert pipe("a", do_preprocess=False).generate_token_len > 0


def test_the_size_is_met_and_the_ends_are_pure(tmp_path: Path, text: Path) -> None:
    """The file is not larger than asked for; the least and the most are one number of bits."""
    files = {}
    for bits in (4, 8):
        files[bits] = tmp_path / str(bits) / "model.safetensors"
        quantize(
            GGUF, tmp_path / str(bits), method="rtn", w_bits=bits, calib_dataset=text, **OPTIONS
        )
    small, large = (file.stat().st_size for file in files.values())
    wanted = (small + large) // 2
    for size in (large + 300, wanted, small + 300):
        out = tmp_path / "out"
        report = quantize(GGUF, out, method="rtn", mixed=str(size), calib_dataset=text, **OPTIONS)
        file = out / "model.safetensors"
        assert file.stat().st_size <= size
        if size == wanted:
            assert {linear.bits for linear in report} == {4, 8}
            assert size - file.stat().st_size < 2000
        else:
            pure = load_file(files[8 if size > large else 4])
            mixed = load_file(file)
            assert mixed.keys() == pure.keys()
            assert all((mixed[name] == pure[name]).all() for name in pure)


def test_scales_are_shared(tmp_path: Path, text: Path) -> None:
    """Scales are folded into norms once, whatever the bits: errors stay small."""
    report = quantize(GGUF, tmp_path / "out", method="awq", mixed="6.5bpw", calib_dataset=text,
                      **OPTIONS)  # fmt: skip
    assert all(linear.tried["8 bits"] < 1e-4 < linear.tried["4 bits"] for linear in report)
    assert {linear.bits for linear in report} == {4, 8}


def test_refusals(tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = {"method": "rtn", "calib_dataset": None, "w_group_size": 32}
    for form in ("awq", "gptq"):
        with pytest.raises(
            _C.UnsupportedError, match=f"{form}.*use format compressed-tensors or gguf"
        ):
            quantize(GGUF, out, format=form, mixed="5bpw", **options)
    with pytest.raises(ValueError, match="w_bits must be fewer"):
        quantize(GGUF, out, format="compressed-tensors", w_bits=8, mixed="9bpw", **options)
    with pytest.raises(ValueError, match=r"mixed '3bpw' is less than all linears"):
        quantize(GGUF, out, format="compressed-tensors", mixed="3bpw", **options)
    assert not out.exists()


def test_a_mixed_gguf_file(tmp_path: Path, text: Path) -> None:
    """Chosen linears are Q8_0, the others Q4_1; llama.cpp's own reader says so."""
    options = {**OPTIONS, "format": "gguf", "w_group_size": None, "calib_dataset": text}
    plain = quantize(GGUF, tmp_path / "plain", **options)
    size = plain.after_bytes + 8000
    report = quantize(GGUF, tmp_path / "out", mixed=str(size), **options)
    file = tmp_path / "out" / "model.gguf"
    assert report.after_bytes == file.stat().st_size <= size
    assert size - file.stat().st_size < 2000
    assert {linear.bits for linear in report} == {4, 8}
    assert all(len(bits) == 1 for bits in bits_by_unit(report).values())
    assert report.error < plain.error
    source = Source(file)
    for linear in report:
        stored = source.tensors[linear.name]
        assert stored.dtype == {4: "Q4_1", 8: "Q8_0"}[linear.bits]
        exact = Source(GGUF).read(linear.name)
        error = np.square(source.read(linear.name) - exact).sum() / np.square(exact).sum()
        assert error < (1e-4 if linear.bits == 8 else 0.02)
    with pytest.raises(_C.UnsupportedError, match="all rounded: use method best"):
        quantize(GGUF, tmp_path / "no", mixed=str(size), **{**options, "method": "rtn"})
