"""The KV cache in 8 and 4 bits: its encoding against NumPy, a model's logits against a NumPy model
whose keys and values went through that encoding, the exactness contract, and the configuration."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import GOLDEN, Answer, load_model, make_engine, read_all
from numpy.typing import NDArray

from lmdeploy_c import (
    _C,
    PytorchEngineConfig,
    TurbomindEngineConfig,
    UnsupportedError,
    pipeline,
)
from lmdeploy_c.cli import main, make_parser
from lmdeploy_c.engine.sizes import warn_of_few_bits
from lmdeploy_c.files.checkpoint import open_checkpoint
from lmdeploy_c.files.safetensors import read_directory
from lmdeploy_c.messages import QuantPolicy

KV_BITS = [8, 4, (8, 4)]
F32 = NDArray[np.float32]


# ---- the encoding ----


def encode(x: F32, bits: int) -> tuple[NDArray[np.uint8], NDArray[Any], NDArray[Any]]:
    """NumPy's word for word: the rounded scale and min quantise, in fp32."""
    most = np.float32(2**bits - 1)
    low, high = x.min(-1), x.max(-1)
    scales, mins = ((high - low) / most).astype(np.float16), low.astype(np.float16)
    wide = scales.astype(np.float32)
    inverse = np.divide(np.float32(1), wide, out=np.zeros_like(wide), where=wide > 0)
    at = (x - mins.astype(np.float32)[:, None]) * inverse[:, None]
    return np.rint(np.clip(at, 0, most)).astype(np.uint8), scales, mins


def decode(codes: NDArray[np.uint8], scales: NDArray[Any], mins: NDArray[Any]) -> F32:
    """The product is exact in double, so that one rounding is left, as in an FMA."""
    exact = scales.astype(np.float64)[:, None] * codes + mins.astype(np.float64)[:, None]
    return exact.astype(np.float32)


def vectors(head_dim: int, kind: str) -> F32:
    random = np.random.default_rng(head_dim)
    x = random.standard_normal((200, head_dim)).astype(np.float32)
    if kind == "outlier":
        x[:, 3] *= 100
    if kind == "sizes":  # from subnormal scales to the largest halves
        x *= np.exp2(random.integers(-24, 13, (200, 1))).astype(np.float32)
    if kind == "constant":
        x[:] = x[:, :1]
    return x


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("kind", ["plain", "outlier", "sizes", "constant"])
@pytest.mark.parametrize("head_dim", [8, 40, 64, 72, 80, 88, 128, 256])
def test_encoding_is_numpys(bits: int, kind: str, head_dim: int) -> None:
    x = vectors(head_dim, kind)
    got, wanted = _C.kv_encode(x, bits), encode(x, bits)
    for a, b in zip(got, wanted, strict=True):
        assert a.dtype == b.dtype
        assert np.array_equal(a, b)
    assert np.array_equal(_C.kv_decode(*got), decode(*wanted))


@pytest.mark.parametrize("bits", [8, 4])
def test_error_of_the_encoding(bits: int) -> None:
    """Half a step, and what rounding the pair to fp16 adds; a constant keeps its value."""
    for kind in ("plain", "outlier"):
        x = vectors(64, kind)
        step = (x.max(-1) - x.min(-1)) / (2**bits - 1)
        bound = 0.5 * step + 2.0**-11 * (np.abs(x.min(-1)) + step * 2**bits)
        assert (np.abs(_C.kv_decode(*_C.kv_encode(x, bits)) - x) <= bound[:, None]).all()
    x = vectors(64, "constant")
    assert np.array_equal(_C.kv_decode(*_C.kv_encode(x, bits)), x.astype(np.float16))


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 1e6, -1e6, 3e38])
def test_what_no_half_holds_reads_as_nan(wrong: float) -> None:
    x = vectors(40, "plain")
    x[7, 11] = wrong
    codes, scales, mins = _C.kv_encode(x, 8)
    is_lost = wrong < 0 or not abs(wrong) < 65504 * 255  # 1e6 is a scale of 3922
    assert np.isnan(_C.kv_decode(codes, scales, mins)[7]).all() == is_lost
    assert np.isfinite(_C.kv_decode(codes, scales, mins)[8]).all()


def test_encoding_refuses() -> None:
    with pytest.raises(ValueError, match="bits must be 8 or 4, not 16"):
        _C.kv_encode(np.zeros((1, 8)), 16)
    with pytest.raises(ValueError):
        _C.kv_encode(np.zeros(8), 8)
    with pytest.raises(ValueError, match="2 rows of codes need as many"):
        _C.kv_decode(np.zeros((2, 8)), np.zeros(1), np.zeros(2))


# ---- bytes ----


@pytest.mark.parametrize(("bits", "per_value"), [(16, 2.0), (8, 1.0), (4, 0.5), ((8, 4), 0.75)])
def test_bytes_of_a_block(bits: Any, per_value: float) -> None:
    values = 30 * 3 * 64 * 64 * 2
    pairs = 0 if bits == 16 else 30 * 3 * 64 * 2 * 4
    assert _C.kv_block_bytes(30, 3, 64, block_len=64, kv_bits=bits) == values * per_value + pairs


def test_bytes_of_a_block_refuse() -> None:
    for bits in (0, 3, (8,), (16, 8), (8, 32), (8, 4, 4), "8", 10**30, None, 8.0):
        with pytest.raises(ValueError, match="kv_bits must be 16, 8, 4 or 32"):
            _C.kv_block_bytes(1, 1, 64, kv_bits=bits)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="cannot be used"):
        _C.kv_block_bytes(1, 1, 64, device="cuda:999")
    with pytest.raises(ValueError, match="head_dim must be 1 to"):
        _C.kv_block_bytes(1, 1, 0)


# ---- a whole model ----


def weights_of(path: Path) -> dict[str, F32]:
    kinds = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
    result = {}
    for name, dtype, shape, file, offset, n_bytes in read_directory(path):
        raw = np.frombuffer(Path(file).read_bytes()[offset : offset + n_bytes], kinds[dtype])
        if dtype == "BF16":
            raw = (raw.astype(np.uint32) << 16).view(np.float32)
        result[name] = raw.astype(np.float32).reshape(shape)
    return result


def norm(x: F32, weight: F32, eps: float) -> F32:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(eps)) * weight


def rope(x: F32, theta: float) -> F32:
    """x [n_tokens, n_head, head_dim], positions from 0 on."""
    half = x.shape[-1] // 2
    angles = np.arange(len(x))[:, None] * theta ** (-np.arange(half) / half)
    c, s = (f(angles)[:, None, :].astype(np.float32) for f in (np.cos, np.sin))
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * c - b * s, b * c + a * s], -1)


def through(x: F32, bits: int) -> F32:
    """[n_tokens, n_head, head_dim] as the cache gives it back."""
    return decode(*encode(x.reshape(-1, x.shape[-1]), bits)).reshape(x.shape)


def numpy_logits(path: Path, ids: Sequence[int], k_bits: int, v_bits: int) -> F32:
    """A Llama's logits [n_tokens, vocab_size], all positions attending to stored K and V."""
    c, w = open_checkpoint(path).config, weights_of(path)
    n_head, n_kv_head, dim, eps = c["n_head"], c["n_kv_head"], c["head_dim"], c["norm_eps"]
    n = len(ids)
    x = w["model.embed_tokens.weight"][list(ids)]
    for i in range(c["n_layer"]):
        at = f"model.layers.{i}."
        h = norm(x, w[at + "input_layernorm.weight"], eps)
        q, k, v = (
            (h @ w[f"{at}self_attn.{name}_proj.weight"].T).reshape(n, -1, dim) for name in "qkv"
        )
        k = through(rope(k, c["rope_theta"]), k_bits).repeat(n_head // n_kv_head, 1)
        v = through(v, v_bits).repeat(n_head // n_kv_head, 1)
        scores = np.einsum("qhd,khd->hqk", rope(q, c["rope_theta"]), k) / np.sqrt(dim)
        scores[:, np.triu(np.ones((n, n), bool), 1)] = -np.inf
        p = np.exp(scores - scores.max(-1, keepdims=True))
        out = np.einsum("hqk,khd->qhd", p / p.sum(-1, keepdims=True), v).reshape(n, -1)
        x = x + out @ w[at + "self_attn.o_proj.weight"].T
        h = norm(x, w[at + "post_attention_layernorm.weight"], eps)
        gate = h @ w[at + "mlp.gate_proj.weight"].T
        up = h @ w[at + "mlp.up_proj.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * up) @ w[at + "mlp.down_proj.weight"].T
    head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
    return norm(x, w["model.norm.weight"], eps) @ head.T


@pytest.mark.parametrize("bits", [8, 4, (8, 4), (4, 8)])
@pytest.mark.parametrize(
    "name", ["llama-gqa-tied", "llama-headdim40", "llama-headdim8", "llama-long"]
)
def test_logits_are_numpys(name: str, bits: Any) -> None:
    """In units of the largest logit: a few 1e-4 in the median row, where the encoding itself moves
    rows by 4e-3 at 8 bits and 7e-2 at 4. What is left are codes of the second layer that flip,
    because integers round queries to 2^-16; a code of 4 bits is a larger step.
    """
    path = GOLDEN / "models" / name
    model = load_model(path, num_threads=2)
    n = 300 if name == "llama-long" else 90
    ids = np.random.default_rng(3).integers(3, model.config["vocab_size"], n).tolist()
    pair = bits if isinstance(bits, tuple) else (bits, bits)
    wanted = numpy_logits(path, ids, *pair)
    engine = make_engine(model, kv_bits=bits, max_prefill_token_num=37)
    answer = read_all(engine.submit(ids, max_new_tokens=1, output_logits="all"))
    engine.close()
    assert answer.logits is not None
    off = np.abs(answer.logits - wanted).max(-1) / np.abs(wanted).max()
    assert off[0] < 1e-6
    assert np.median(off) < (1e-3 if pair == (8, 8) else 2e-3)
    assert off.max() < (0.01 if pair == (8, 8) else 0.04)


# ---- exactness: what may not change a request's bits ----

MODELS = [GOLDEN / "models" / "llama-long", GOLDEN / "models" / "llama-headdim40"]


@pytest.fixture(scope="module", params=MODELS, ids=lambda path: path.name)
def model(request: pytest.FixtureRequest) -> _C.Model:
    return load_model(request.param, num_threads=2)


def mixed_prompts(vocab_size: int) -> list[list[int]]:
    """24 prompts of 3 to 300 tokens; half of them leave a trunk that they share."""
    random = np.random.default_rng(23)
    trunk = random.integers(3, vocab_size, 290).tolist()
    result = []
    for i in range(24):
        tail = random.integers(3, vocab_size, random.integers(3, 300)).tolist()
        n = int(random.integers(1, 280))
        result.append(trunk[:n] + tail[:20] if i % 2 else tail)
    return result


def submit(engine: _C.Engine, ids: Sequence[int]) -> _C.Request:
    return engine.submit(ids, max_new_tokens=12, output_logits="generation")


def assert_same(got: Answer, expected: Answer) -> None:
    assert got.token_ids == expected.token_ids
    assert got.logits is not None and expected.logits is not None
    assert np.array_equal(got.logits, expected.logits), "logits differ in their bits"


@pytest.mark.parametrize("bits", KV_BITS)
def test_bits_depend_on_nothing_else(model: _C.Model, bits: Any) -> None:
    """Batches, chunks of a prompt, threads, prefix cache, preemption, cancelled neighbours."""
    longest = min(model.config["max_position"], 640)
    wanted = [p[: longest - 16] for p in mixed_prompts(model.config["vocab_size"])]
    options = {"block_len": 16, "kv_bits": bits, "session_len": longest}
    oracle = make_engine(model, n_blocks=64, enable_prefix_caching=False, **options)
    expected = [read_all(submit(oracle, ids)) for ids in wanted]
    oracle.close()
    for chunk, n_blocks in ((1, 400), (7, 400), (64, 45), (512, 400)):
        engine = make_engine(model, n_blocks=n_blocks, max_prefill_token_num=chunk, **options)
        order = np.random.default_rng(chunk).permutation(len(wanted))
        if chunk == 1:
            order = order[:6]
        for wave in np.array_split(order, 3):
            requests = [submit(engine, wanted[i]) for i in wave]
            submit(engine, wanted[wave[0]]).cancel()
            for i, request in zip(wave, requests, strict=True):
                assert_same(read_all(request), expected[i])
        stats = engine.stats()
        assert chunk == 1 or stats["n_cached_tokens"] > 0
        assert (stats["n_preempted"] > 0) == (n_blocks == 45) or longest < 300
        engine.close()


def test_bits_change_something(model: _C.Model) -> None:
    ids = mixed_prompts(model.config["vocab_size"])[0][:200]
    seen = []
    for bits in (16, 8, 4, (8, 4), (4, 8)):
        engine = make_engine(model, kv_bits=bits)
        logits = read_all(submit(engine, ids)).logits
        assert logits is not None
        seen.append(logits[0].tobytes())
        engine.close()
    assert len(set(seen)) == 5


# ---- SmolLM2 ----


@pytest.mark.parametrize(("bits", "within"), [(8, 5e-3), ((8, 4), 0.05), (4, 0.2)])
def test_cross_entropy_of_smollm2(smollm2: _C.Model, bits: Any, within: float) -> None:
    data = np.load(GOLDEN / "smollm2" / "golden.npz")
    engine = make_engine(smollm2, session_len=1024, n_blocks=64, kv_bits=bits)
    offsets = data["text_ids_offsets"]
    losses = []
    for i in range(len(offsets) - 1):
        ids = data["text_ids"][offsets[i] : offsets[i + 1]]
        losses.append(read_all(engine.submit(ids, max_new_tokens=0, return_ppl=True)).ppl)
    engine.close()
    assert np.mean(losses) == pytest.approx(data["cross_entropy"].mean(), rel=within)


# ---- configuration ----


@pytest.mark.parametrize(
    ("options", "pair"),
    [
        ({}, (16, 16)),
        ({"quant_policy": 8}, (8, 8)),
        ({"quant_policy": QuantPolicy.INT4}, (4, 4)),
        ({"kv_bits": 16}, (16, 16)),
        ({"kv_bits": 8}, (8, 8)),
        ({"kv_bits": (8, 4)}, (8, 4)),
        ({"kv_bits": (4, 8)}, (4, 8)),
        ({"kv_bits": 8, "quant_policy": 8}, (8, 8)),
        ({"kv_bits": (4, 4), "quant_policy": 4}, (4, 4)),
    ],
)
def test_bits_of_a_configuration(options: dict[str, Any], pair: tuple[int, int]) -> None:
    assert TurbomindEngineConfig(**options).stored_kv_bits() == pair


@pytest.mark.parametrize("bits", [0, 3, 32, "8", (8,), (16, 8), (8, 4, 2), 8.5, True, [None, 4]])
def test_wrong_kv_bits_are_refused(bits: Any) -> None:
    with pytest.raises(ValueError, match=r"TurbomindEngineConfig\.kv_bits must be None, 16, 8, 4"):
        TurbomindEngineConfig(kv_bits=bits)


@pytest.mark.parametrize("policy", [16, 17, 42, 2, True])
def test_other_policies_are_refused(policy: int) -> None:
    with pytest.raises(UnsupportedError, match=r"quant_policy=.* is not served.*served: 0, 4, 8"):
        TurbomindEngineConfig(quant_policy=policy)


def test_contradictions_are_refused() -> None:
    for bits in (16, 4, (8, 4)):
        with pytest.raises(ValueError, match="kv_bits=.* and quant_policy=8 .* contradict"):
            TurbomindEngineConfig(kv_bits=bits, quant_policy=8)


def test_pytorch_config_passes_it_on() -> None:
    config = PytorchEngineConfig(quant_policy=8)
    assert config.to_turbomind().stored_kv_bits() == (8, 8)


def test_pipeline_with_few_bits(caplog: pytest.LogCaptureFixture) -> None:
    config = TurbomindEngineConfig(kv_bits=(8, 4), cache_max_entry_count="8MB", session_len=512)
    with caplog.at_level(logging.INFO, "lmdeploy_c"), pipeline(None, config, log_level="INFO") as p:
        per_token = 30 * 3 * (64 + 32 + 8)
        assert p.plan["kv_bits"] == (8, 4)
        assert p.plan["kv_bytes_per_token"] == per_token
        assert p.plan["kv_blocks"] == (8 << 20) // (64 * per_token)
        assert p.plan["kv_bytes"] == p.plan["kv_blocks"] * 64 * per_token
        assert p("1, 2, 3, 4, 5,").generate_token_len > 0
    assert "int8 keys and int4 values" in caplog.text


def test_families_that_break_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    for arch, bits in (("llama", (4, 4)), ("qwen2", (8, 4)), ("qwen2", (16, 16))):
        warn_of_few_bits(bits, arch)
    assert not caplog.records
    warn_of_few_bits((4, 4), "qwen2")
    assert "kv_bits=(8, 4)" in caplog.text


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    def parsed(*arguments: str) -> tuple[Any, Any]:
        args = make_parser().parse_args(["chat", *arguments])
        return args.quant_policy, args.kv_bits

    assert parsed() == (0, None)
    assert parsed("--quant-policy", "8") == parsed("--quant-policy", "int8") == (8, None)
    assert parsed("--quant-policy", "int4", "--kv-bits", "4") == (4, 4)
    assert parsed("--kv-bits", "8,4") == (0, (8, 4))
    for wrong in (("--quant-policy", "fp8"), ("--kv-bits", "few")):
        with pytest.raises(SystemExit):
            parsed(*wrong)
    assert "int8" in capsys.readouterr().err
    assert main(["chat", "--prompt", "x", "--kv-bits", "8", "--quant-policy", "4"]) == 1
    assert "contradict" in capsys.readouterr().err
