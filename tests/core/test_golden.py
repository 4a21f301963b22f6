"""Tiny models of every architecture, RoPE variant, form of weights and shape of heads against
transformers, with the most exact KV cache."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import (
    GOLDEN,
    NEAR_TIE,
    exact_kv_bits,
    greedy,
    load_model,
    logits_tolerance,
    make_engine,
    read_all,
)

from lmdeploy_c import _C

MODELS = sorted(p for p in (GOLDEN / "models").iterdir() if p.name != "llama-rope-longrope")
# Q2_K, Q4_K, Q5_K and Q6_K are re-expressed in groups of 32 (the errors stand in weight_codec.h): a
# test of their own. The others keep their exact values, but for IQ4_XS's rounded scales.
RE_EXPRESSED = [GOLDEN / "gguf" / f"{name}.gguf" for name in ("llama-kmix", "llama-q2_k")]
GGUFS = sorted(
    p for p in (GOLDEN / "gguf").glob("*.gguf") if p.stem != "types" and p not in RE_EXPRESSED
)


def golden_of(path: Path) -> dict[str, np.ndarray]:
    file = path / "golden.npz" if path.is_dir() else path.with_suffix(".npz")
    return dict(np.load(file))


def engine_for(path: Path, golden: dict[str, np.ndarray]) -> _C.Engine:
    session_len = max(int(golden["session_len"]), len(golden["input_ids"]) + 32)
    if path.stem == "llama-rope-dynamic":  # its frequencies depend on it
        session_len = int(golden["session_len"])
    return make_engine(load_model(path), session_len=session_len, kv_bits=exact_kv_bits())


def prompt_logits(path: Path, golden: dict[str, np.ndarray]) -> np.ndarray:
    engine = engine_for(path, golden)
    request = engine.submit(golden["input_ids"], max_new_tokens=0, output_logits="all")
    logits = read_all(request).logits
    engine.close()
    assert logits is not None
    return logits


@pytest.mark.parametrize("path", [*MODELS, *GGUFS], ids=lambda p: p.stem)
def test_logits(path: Path) -> None:
    golden = golden_of(path)
    logits = prompt_logits(path, golden)
    assert logits.shape == (len(golden["input_ids"]), golden["logits"].shape[1])
    got, expected = logits[golden["logit_positions"]], golden["logits"]
    assert np.abs(got - expected).max() <= logits_tolerance() * np.abs(expected).max()


@pytest.mark.parametrize("path", [*MODELS, *GGUFS], ids=lambda p: p.stem)
def test_greedy(path: Path) -> None:
    golden = golden_of(path)
    assert golden["prompt_greedy_gaps"].min() > NEAR_TIE
    engine = engine_for(path, golden)
    for n, expected in zip(golden["prompt_lens"], golden["prompt_greedy_ids"], strict=True):
        assert greedy(engine, golden["input_ids"][:n], len(expected)) == expected.tolist()
    engine.close()


@pytest.mark.parametrize("saved_by", ["its authors", "transformers 5"])
def test_internlm3_is_a_llama_by_other_names(saved_by: str, tmp_path: Path) -> None:
    """transformers gives InternLM3 no model of its own: its config leads to Llama's."""
    source = GOLDEN / "models" / "llama-bias"
    config = json.loads((source / "config.json").read_text())
    config |= {"architectures": ["InternLM3ForCausalLM"], "model_type": "internlm3"}
    config.setdefault("head_dim", None)  # without the key it is 128
    if saved_by == "its authors":
        config["qkv_bias"], config["bias"] = config.pop("attention_bias"), config.pop("mlp_bias")
    for path in source.glob("*.safetensors*"):
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    golden = golden_of(source)
    got = prompt_logits(tmp_path, golden)[golden["logit_positions"]]
    assert (
        np.abs(got - golden["logits"]).max() <= logits_tolerance() * np.abs(golden["logits"]).max()
    )


@pytest.mark.parametrize("path", RE_EXPRESSED, ids=lambda p: p.stem)
def test_k_quants_stay_close(path: Path) -> None:
    """The stated errors of the re-expressed K-quants, as they reach the logits."""
    golden = golden_of(path)
    logits = prompt_logits(path, golden)
    delta = logits[golden["logit_positions"]] - golden["logits"]
    assert np.sqrt((delta**2).mean()) <= 1e-2 * golden["logits"].std()


def test_longrope_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="longrope"):
        load_model(GOLDEN / "models" / "llama-rope-longrope")
