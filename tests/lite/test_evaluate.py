"""Perplexity and KL against sums written down in NumPy."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import GOLDEN, load_model, make_engine, read_all

from lmdeploy_c import Tokenizer, TurbomindEngineConfig
from lmdeploy_c.cli import main
from lmdeploy_c.files.checkpoint import open_checkpoint
from lmdeploy_c.lite import Mean, divergence, perplexity, quantize

MODEL = GOLDEN / "gguf" / "llama-float.gguf"
TEXT = "the quick brown fox jumps over the lazy dog, and so on; " * 6


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return x - np.logaddexp.reduce(x, -1, keepdims=True)


def log_probs(path: Path, window: int) -> list[tuple[list[int], np.ndarray]]:
    """The tokens of each window, and the log-probabilities behind each."""
    ids = Tokenizer(path).encode(TEXT)
    engine = make_engine(load_model(path))
    parts = []
    for at in range(0, len(ids), window):
        part = ids[at : at + window]
        logits = read_all(engine.submit(part, max_new_tokens=0, output_logits="all")).logits
        assert logits is not None
        parts.append((part, log_softmax(logits)[:-1]))
    engine.close()
    return [(part, rows) for part, rows in parts if len(part) > 1]


@pytest.fixture(scope="module")
def other(tmp_path_factory: Any) -> Path:
    path: Path = tmp_path_factory.mktemp("other")
    quantize(MODEL, path, w_group_size=32)
    return path


@pytest.mark.parametrize("window", [32, 64])
def test_kl_and_perplexity(other: Path, window: int) -> None:
    got = divergence(MODEL, other, TEXT, window=window)
    of_a, of_b = log_probs(MODEL, window), log_probs(other, window)
    kl = [(np.exp(p) * (p - q)).sum(-1) for (_, p), (_, q) in zip(of_a, of_b, strict=True)]
    same = [(p.argmax(-1) == q.argmax(-1)) for (_, p), (_, q) in zip(of_a, of_b, strict=True)]
    surprise = [-p[np.arange(len(p)), ids[1:]] for ids, p in of_a]
    assert got.kl.value == pytest.approx(np.concatenate(kl).mean(), rel=1e-6)
    assert got.same_top.value == pytest.approx(np.concatenate(same).mean())
    assert got.reference.cross_entropy.value == pytest.approx(np.concatenate(surprise).mean())
    assert got.reference.n_tokens == sum(map(len, surprise))
    assert 0 < got.kl.value < 1 and got.kl.half_width > 0
    rises = [
        -q[np.arange(len(q)), ids[1:]] - own for (ids, q), own in zip(of_b, surprise, strict=True)
    ]
    _check_mean(got.rise, rises)
    assert got.rise.half_width < got.model.cross_entropy.half_width
    alone = perplexity(MODEL, TEXT, window=window)
    assert alone.perplexity == pytest.approx(got.reference.perplexity, rel=1e-5)
    assert str(alone).startswith(f"perplexity {alone.perplexity:.3f} (")
    _check_mean(got.kl, kl)


def _check_mean(got: Mean, windows: list[np.ndarray]) -> None:
    """Against a ratio of sums and its standard error."""
    n, n_tokens, mean = len(windows), sum(map(len, windows)), np.concatenate(windows).mean()
    spread = sum(float((w - mean).sum()) ** 2 for w in windows) * n / (n - 1)
    assert got.value == pytest.approx(mean, rel=1e-5)
    assert got.half_width == pytest.approx(1.96 * math.sqrt(spread) / n_tokens, rel=1e-4)


def test_the_trained_model_as_torch_has_it() -> None:
    """What benchmarks quantise has learnt something, and reads here as where it was made."""
    training = json.loads((GOLDEN / "trained" / "training.json").read_text())
    sample, found = training["sample"], training["cross_entropy"]
    got = perplexity(GOLDEN / "trained", sample["text"])
    assert got.cross_entropy.value == pytest.approx(sample["cross_entropy"], abs=1e-3)
    assert found["held_out"] < found["held_out_by_frequency"] - 1.5


def test_a_model_beside_itself() -> None:
    same = divergence(MODEL, MODEL, TEXT, window=64)
    assert same.kl.value == 0 and same.same_top.value == 1
    once = divergence(MODEL, MODEL, "a few words", window=512)
    assert math.isnan(once.kl.half_width) and "nan" not in str(once)
    assert str(once).startswith("KL 0.0000 nats, same likeliest token 100.00 %\nreference: perpl")


def test_a_window_is_the_models_context_at_most(other: Path, caplog: Any) -> None:
    context = open_checkpoint(MODEL).config["max_position"]
    most = perplexity(MODEL, TEXT, window=context)
    assert perplexity(MODEL, TEXT, window=context + 100) == most
    kl = divergence(MODEL, other, TEXT, window=context)
    assert divergence(MODEL, other, TEXT, window=context + 100) == kl
    assert "session_len" not in caplog.text  # which nobody asked for
    config = TurbomindEngineConfig(session_len=context + 100)
    assert perplexity(MODEL, TEXT, window=context + 100, config=config) != most


def test_refusals(other: Path) -> None:
    with pytest.raises(ValueError, match="at least 2 are needed"):
        perplexity(MODEL, "")
    with pytest.raises(ValueError, match="window must be at least 2"):
        perplexity(MODEL, TEXT, window=1)
    with pytest.raises(ValueError, match="the same tokens"):
        divergence(MODEL, GOLDEN / "gguf" / "llama-q4_0.gguf", TEXT, window=64)


def test_commands(tmp_path: Path, other: Path, capsys: Any) -> None:
    text = tmp_path / "text"
    text.write_text(TEXT)
    common = ["--text", str(text), "--window", "64"]
    assert main(["lite", "ppl", str(MODEL), *common]) == 0
    assert "perplexity" in capsys.readouterr().out
    assert main(["lite", "kl", str(MODEL), str(other), *common]) == 0
    said = capsys.readouterr().out
    assert said.startswith("KL 0.") and "reference: perplexity" in said
    assert main(["lite", "ppl", str(MODEL), "--text", str(tmp_path / "none")]) == 1
    (tmp_path / "bytes").write_bytes(b"ab\xff")
    assert main(["lite", "ppl", str(MODEL), "--text", str(tmp_path / "bytes")]) == 1
    assert "bytes is no text in UTF-8: invalid start byte at 2" in capsys.readouterr().err
