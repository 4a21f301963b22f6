"""AWQ and GPTQ checkpoints: the logits of the decoded weights, and refusals by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import packed_models as pm
import pytest
from conftest import (
    GOLDEN,
    exact_kv_bits,
    load_model,
    logits_tolerance,
    make_engine,
    read_all,
)
from safetensors.numpy import load_file

from lmdeploy_c import _C, TurbomindEngineConfig
from lmdeploy_c.engine.loading import check_model_format
from lmdeploy_c.files.checkpoint import open_checkpoint
from lmdeploy_c.files.model_config import from_hf

UP = "model.layers.1.mlp.up_proj"


def logits_of(
    path: Path, num_threads: int | None = None, ids: np.ndarray | None = None
) -> np.ndarray:
    if ids is None:
        ids = np.random.default_rng(7).integers(0, 64, 40)
    engine = make_engine(load_model(path, num_threads), kv_bits=exact_kv_bits())
    logits = read_all(engine.submit(ids, max_new_tokens=0, output_logits="all")).logits
    engine.close()
    assert logits is not None
    return logits


def assert_as_dense(tmp_path: Path, form: str, config: dict[str, Any], tensors: pm.Tensors) -> None:
    """The packed model's logits are those of the oracle's dense fp32 model."""
    got = logits_of(pm.write_model(tmp_path / "packed", config, tensors))
    plain = {key: value for key, value in config.items() if key != "quantization_config"}
    dense = pm.dense_tensors(form, tensors)
    expected = logits_of(pm.write_model(tmp_path / "dense", plain, dense))
    assert expected.std() > 0.1
    assert np.abs(got - expected).max() <= logits_tolerance() * np.abs(expected).max()


@pytest.mark.parametrize(
    ("name", "form"), [("qwen2-awq-hd128-gqa4", "awq"), ("llama-gptq-hd256-gqa4", "gptq")]
)
def test_the_oracle_decodes_what_the_golden_models_hold(
    tmp_path: Path, name: str, form: str
) -> None:
    """Their logits are of values that were never packed."""
    golden_path = GOLDEN / "models" / name
    config = json.loads((golden_path / "config.json").read_text())
    del config["quantization_config"]
    dense = pm.dense_tensors(form, load_file(golden_path / "model.safetensors"))
    golden = np.load(golden_path / "golden.npz")
    logits = logits_of(pm.write_model(tmp_path, config, dense), ids=golden["input_ids"])
    got, expected = logits[golden["logit_positions"]], golden["logits"]
    assert np.abs(got - expected).max() <= logits_tolerance() * np.abs(expected).max()


@pytest.mark.parametrize("group_size", pm.SIZES)
@pytest.mark.parametrize("form", pm.FORMS)
def test_logits_are_those_of_the_decoded_weights(
    tmp_path: Path, form: str, group_size: int
) -> None:
    config = pm.config_of("llama", form, group_size)
    tensors = pm.packed_tensors(np.random.default_rng(group_size + 2), form, config)
    assert_as_dense(tmp_path, form, config, tensors)


@pytest.mark.parametrize(
    ("arch", "form", "keys"),
    [
        ("llama", "awq", {"attention_bias": True, "mlp_bias": True}),
        ("llama", "gptq", {"tie_word_embeddings": True}),
        ("mistral", "gptq", {}),
        ("qwen2", "awq", {}),
        ("qwen2", "gptq", {}),
        ("qwen3", "gptq_v2", {"head_dim": 40}),
        ("internlm2", "awq", {"bias": True}),
        ("internlm2", "gptq", {}),
    ],
)
def test_architectures(tmp_path: Path, arch: str, form: str, keys: dict[str, Any]) -> None:
    group_size = 64 if "head_dim" not in keys else 32
    config = pm.config_of(arch, form, group_size, **keys)
    tensors = pm.packed_tensors(np.random.default_rng(3), form, config)
    assert_as_dense(tmp_path, form, config, tensors)


def test_packing_is_the_same_on_any_number_of_threads(tmp_path: Path) -> None:
    config = pm.config_of("llama", "awq", 32, intermediate_size=1120)  # several strips
    tensors = pm.packed_tensors(np.random.default_rng(3), "awq", config)
    path = pm.write_model(tmp_path, config, tensors)
    assert (logits_of(path, 1) == logits_of(path, 3)).all()


@pytest.mark.parametrize("form", ["awq", "gptq"])
def test_the_head_may_be_packed_and_parts_may_stay_float(tmp_path: Path, form: str) -> None:
    config = pm.config_of("llama", form, 64)
    tensors = pm.packed_tensors(np.random.default_rng(4), form, config, also=("lm_head",))
    for name in ("model.layers.0.self_attn.k_proj", "model.layers.1.mlp.gate_proj"):
        dense = pm.dense_tensors(form, tensors)[f"{name}.weight"]
        tensors = {key: v for key, v in tensors.items() if not key.startswith(name)}
        tensors[f"{name}.weight"] = dense
    assert_as_dense(tmp_path, form, config, tensors)


def test_modules_to_not_convert_stay_float(tmp_path: Path) -> None:
    """Where a listed module has both, its float weight is the one that counts."""
    config = pm.config_of("llama", "awq", 64)
    tensors = pm.packed_tensors(np.random.default_rng(5), "awq", config)
    n_out, n_in = pm.linears_of(config)[UP]
    tensors[f"{UP}.weight"] = np.random.default_rng(6).normal(size=(n_out, n_in)).astype(np.float16)
    listed = {**config, "quantization_config": dict(config["quantization_config"])}
    listed["quantization_config"]["modules_to_not_convert"] = ["layers.1.mlp"]
    for suffix in ("gate_proj", "down_proj"):
        name = f"model.layers.1.mlp.{suffix}"
        tensors[f"{name}.weight"] = pm.dense_tensors("awq", tensors)[f"{name}.weight"]
    packed = logits_of(pm.write_model(tmp_path / "packed", config, tensors))
    kept = logits_of(pm.write_model(tmp_path / "kept", listed, tensors))
    plain = {key: value for key, value in config.items() if key != "quantization_config"}
    floats = {k: v for k, v in tensors.items() if "layers.1.mlp" not in k or k.endswith("weight")}
    floats = {k: v for k, v in floats.items() if "layers.1.mlp" not in k or "qweight" not in k}
    dense = pm.dense_tensors("awq", floats)
    expected = logits_of(pm.write_model(tmp_path / "dense", plain, dense))
    assert np.abs(kept - expected).max() <= logits_tolerance() * np.abs(expected).max()
    assert np.abs(packed - expected).max() > 0.1
    without = {k: v for k, v in tensors.items() if k != f"{UP}.weight"}
    with pytest.raises(_C.CheckpointError, match=f'no tensor "{UP}.weight"'):
        load_model(pm.write_model(tmp_path / "without", listed, without))


def test_one_zero_scale_and_one_extreme(tmp_path: Path) -> None:
    """A layer of zero scales gives its bias alone; the largest codes against zero 0 add up."""
    config = pm.config_of("llama", "gptq_v2", 128)
    tensors = pm.packed_tensors(np.random.default_rng(8), "gptq_v2", config)
    tensors["model.layers.0.mlp.down_proj.scales"][:] = 0
    tensors["model.layers.1.mlp.down_proj.qweight"][:] = -1
    tensors["model.layers.1.mlp.down_proj.qzeros"][:] = 0
    assert_as_dense(tmp_path, "gptq_v2", config, tensors)


def test_three_bits_are_kept_as_four(tmp_path: Path) -> None:
    """Exactly, and no larger; bytes as 8 bits."""

    def n_bytes(form: str) -> int:
        config = pm.config_of("llama", form, 64)
        tensors = pm.packed_tensors(np.random.default_rng(8), form, config)
        return load_model(pm.write_model(tmp_path / form, config, tensors)).weight_bytes

    four = n_bytes("compressed")
    assert n_bytes("compressed-3") == n_bytes("compressed_sym-3") == n_bytes("gptq-3") == four
    assert n_bytes("int-quantized") == n_bytes("compressed-8") < 2 * four


def test_bytes_that_nothing_explains(tmp_path: Path) -> None:
    config = pm.config_of("llama", "int-quantized", 64)
    tensors = pm.packed_tensors(np.random.default_rng(9), "int-quantized", config)
    for method, error, message in (
        (None, BAD, "packed, but nothing says how"),
        ({"quant_method": "gptq", "bits": 8}, NOT_SERVED, "weights of type I8"),
    ):
        config["quantization_config"] = method
        with pytest.raises(error, match=message):
            load_model(pm.write_model(tmp_path, config, tensors))


# ---- as today's tools write them ----


def assert_equal_logits(tmp_path: Path, config: dict[str, Any], tensors: pm.Tensors,
                        dense: pm.Tensors) -> None:  # fmt: skip
    """A packed model's logits are those of dense weights that the test made."""
    got = logits_of(pm.write_model(tmp_path / "packed", config, tensors))
    plain = {key: value for key, value in config.items() if key != "quantization_config"}
    expected = logits_of(pm.write_model(tmp_path / "dense", plain, dense))
    assert expected.std() > 0.1
    assert np.abs(got - expected).max() <= logits_tolerance() * np.abs(expected).max()


@pytest.mark.parametrize(
    ("form", "stored", "zeros"),
    [  # gptqmodel 7.7 wrote 0x6784747f for the zeros of 0x78958590
        ("gptq_borrow", 0x6784747F, [0, 9, 5, 8, 5, 9, 8, 7]),
        ("gptq_v2", 0x78958590, [0, 9, 5, 8, 5, 9, 8, 7]),
        ("gptq", 0x6784747F, [0, 8, 5, 8, 5, 9, 8, 7]),
        ("awq", 0x78958590, [0, 5, 9, 9, 5, 8, 8, 7]),
        ("gptq_borrow", 0xEEEEEEEF, [0] * 8),
        ("gptq", 0xFFFFFFFF, [0] * 8),
    ],
)
def test_zeros_by_the_tool_that_wrote_them(
    tmp_path: Path, form: str, stored: int, zeros: list[int]
) -> None:
    config = pm.config_of("llama", form, 32)
    tensors = pm.packed_tensors(np.random.default_rng(2), form, config)
    tensors[f"{UP}.qzeros"][:] = np.uint32(stored).view(np.int32)
    order = pm.AWQ_ORDER if form == "awq" else list(range(8))
    codes = pm.unpack(tensors[f"{UP}.qweight"], 4, int(form == "awq"), order)
    scales = tensors[f"{UP}.scales"].astype(np.float32).repeat(32, 0)
    dense = pm.dense_tensors(form, tensors)
    values = scales * (codes - np.tile(zeros, codes.shape[1] // 8))
    dense[f"{UP}.weight"] = np.ascontiguousarray(values.T, np.float32)
    assert_equal_logits(tmp_path, config, tensors, dense)


@pytest.mark.parametrize("form", ["awq", "gptq", "compressed", "compressed-3", "int-quantized"])
@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_scales_of_other_types(tmp_path: Path, form: str, dtype: str) -> None:
    config = pm.config_of("llama", form, 32)
    tensors = pm.packed_tensors(np.random.default_rng(3), form, config)
    scales_name = pm.names_of(form)[2]
    for name, array in tensors.items():
        if name.endswith(f".{scales_name}"):
            bits = pm.to_bf16(array)
            tensors[name] = bits if dtype == "BF16" else pm.from_bf16(bits)
    rounded = {
        name: pm.from_bf16(array) if array.dtype == np.uint16 else array  # type: ignore[arg-type]
        for name, array in tensors.items()
    }
    path = pm.call_bf16(pm.write_model(tmp_path / "packed", config, tensors))
    got = logits_of(path)
    plain = {key: value for key, value in config.items() if key != "quantization_config"}
    expected = logits_of(pm.write_model(tmp_path / "d", plain, pm.dense_tensors(form, rounded)))
    assert np.abs(got - expected).max() <= logits_tolerance() * np.abs(expected).max()


# ---- desc_act: g_idx says the group of each column ----


FORMS_WITH_ORDER = [
    "gptq", "gptq_borrow", "gptq-8", "gptq-3", "compressed", "compressed_sym", "compressed-8",
    "compressed-3", "compressed_sym-3", "int-quantized",
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS_WITH_ORDER)
def test_columns_in_any_order(tmp_path: Path, form: str) -> None:
    """They stay packed: beside the codes lies one number for each column of an input."""
    config = pm.config_of("llama", form, 64)
    rng = np.random.default_rng(6)
    head = ("lm_head",) if form == "gptq" else ()
    tensors = pm.packed_tensors(rng, form, config, head)
    plain = load_model(pm.write_model(tmp_path / "plain", config, tensors)).weight_bytes
    assert_as_dense(tmp_path, form, config, pm.with_orders(rng, form, config, tensors))
    model = load_model(tmp_path / "packed")
    hidden, ffn = config["hidden_size"], config["intermediate_size"]
    n_cols = 2 * (3 * hidden + ffn) + len(head) * hidden  # of four matrices in each of two layers
    assert plain <= model.weight_bytes - 4 * n_cols <= plain + 64 * 9
    ids = np.random.default_rng(7).integers(0, 64, 40)
    engine = make_engine(model, kv_bits=exact_kv_bits(), max_prefill_token_num=1)
    one_by_one = read_all(engine.submit(ids, max_new_tokens=0, output_logits="all")).logits
    engine.close()
    assert (one_by_one == logits_of(tmp_path / "packed")).all()


def test_columns_in_any_order_of_one_tensor_for_q_k_and_v(tmp_path: Path) -> None:
    config = pm.config_of("internlm2", "gptq", 64)
    rng = np.random.default_rng(6)
    tensors = pm.packed_tensors(rng, "gptq", config)
    assert_as_dense(tmp_path, "gptq", config, pm.with_orders(rng, "gptq", config, tensors))


@pytest.mark.parametrize("form", ["gptq", "gptq-8"])
@pytest.mark.parametrize("case", ["orders of their own", "larger groups", "one in order", "zero"])
def test_orders_that_parts_do_not_share(tmp_path: Path, form: str, case: str) -> None:
    """Such matrices become fp32. A g_idx of zeros says nothing, as old writers left it."""
    config = pm.config_of("llama", form, 64)
    rng = np.random.default_rng(6)
    tensors = pm.with_orders(rng, form, config, pm.packed_tensors(rng, form, config))
    oracle = dict(tensors)
    if case == "orders of their own":
        for name, (_, n_in) in pm.linears_of(config).items():
            tensors[f"{name}.g_idx"] = (rng.permutation(n_in) // 64).astype(np.int32)
        oracle = tensors
    elif case == "larger groups":
        tensors[f"{UP}.g_idx"][np.argmax(tensors[f"{UP}.g_idx"])] = 0  # gate's is the same array
        oracle = tensors
    else:
        del oracle[f"{UP}.g_idx"]
        in_order = np.arange(len(tensors[f"{UP}.g_idx"]), dtype=np.int32) // 64
        tensors[f"{UP}.g_idx"] = in_order * (case == "one in order")
    assert_equal_logits(tmp_path, config, tensors, pm.dense_tensors(form, oracle))


def test_settings_by_module(tmp_path: Path) -> None:
    """Bits and groups of a module are those of its tensors, whatever the rest has."""
    rng = np.random.default_rng(7)
    config = pm.config_of("llama", "gptq_v2", 32)
    tensors = pm.packed_tensors(rng, "gptq_v2", config)
    dense = pm.dense_tensors("gptq_v2", tensors)
    for module, bits, group in (
        ("mlp.down_proj", 8, 32), ("self_attn.o_proj", 4, -1), ("self_attn.q_proj", 8, -1),
        ("self_attn.v_proj", 4, 96), ("mlp.gate_proj", 8, 96),
    ):  # fmt: skip
        name = f"model.layers.0.{module}"
        shape = pm.linears_of(config)[name]
        packed = pm.random_packed(rng, "gptq_v2", group, *shape, bits)
        tensors |= {f"{name}.{suffix}": array for suffix, array in packed.items()}
        dense[f"{name}.weight"] = pm.decode("gptq_v2", packed, bits)
    rules: dict[str, Any] = {"+:.*0.mlp.down.*": {"bits": 8}, r"-:.*lm_head": {},
                             r".*0\.self_attn\.o_proj": {"group_size": -1}}  # fmt: skip
    config["quantization_config"] = {**config["quantization_config"], "dynamic": rules}
    assert_equal_logits(tmp_path, config, tensors, dense)


@pytest.mark.parametrize("group_size", [16, 256])
def test_groups_that_no_kernel_has(tmp_path: Path, group_size: int) -> None:
    """Small ones become fp32, large ones several of 128 columns."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
    config = {**pm.config_of("llama", "awq", 64), **sizes}
    config["quantization_config"] = {**config["quantization_config"], "group_size": group_size}
    tensors = pm.packed_tensors(np.random.default_rng(group_size), "awq", config)
    assert_as_dense(tmp_path, "awq", config, tensors)


def as_read(config: dict[str, Any], **quantization: Any) -> str:
    return str(from_hf({**config, "quantization_config": quantization})["quant_method"])


def test_auto_rounds_own_format(tmp_path: Path) -> None:
    """The packings of auto-round 0.16, and the names of older ones."""
    config = pm.config_of("llama", "awq", 64)
    for packing, method in (
        ("auto_round:auto_gptq", "gptq"),
        ("auto_round:auto_awq", "awq"),
        ("auto_round", "gptq_v2"),
        ("auto_round:gptqmodel", "gptq_v2"),
        ("auto_round:gptq:exllamav2", "gptq"),
    ):
        found = as_read(config, quant_method="auto-round", bits=4, packing_format=packing)
        assert found == method, packing
    assert (
        as_read(config, quant_method="intel/auto-round", bits=4, backend="auto_round") == "gptq_v2"
    )
    rules: dict[str, Any] = {"lm_head": {"bits": 16, "data_type": "float"},  # left as it was
                             "model.layers.0.mlp.down_proj": {"bits": 8}}  # fmt: skip
    assert as_read(config, quant_method="auto-round", bits=4, extra_config=rules) == "gptq"
    tensors = pm.packed_tensors(np.random.default_rng(9), "gptq", config)
    config["quantization_config"] = {"quant_method": "auto-round", "bits": 4,
                                     "packing_format": "auto_round:auto_gptq"}  # fmt: skip
    tensors = {name: array for name, array in tensors.items() if not name.endswith("g_idx")}
    assert_as_dense(tmp_path, "gptq", config, tensors)


SETTINGS = {"bits": 4, "group_size": 64, "zero_point": True, "version": "GEMM"}
OLDER = {"w_bit": 4, "q_group_size": 64, "zero_point": True, "version": "GEMM"}


@pytest.mark.parametrize(
    ("in_config", "beside"),
    [
        ({"quantization_config": {**OLDER, "quant_method": "awq"}}, {}),
        ({"compression_config": {**SETTINGS, "quant_method": "awq"}}, {}),
        ({"text_config": {"quantization_config": {**SETTINGS, "quant_method": "awq"}}}, {}),
        ({}, {"quant_config.json": OLDER}),
        ({}, {"quantize_config.json": {**SETTINGS, "method": "awq"}}),
        ({"quantization_config": {"bits": 4}}, {"quant_config.json": OLDER}),
        ({"quantization_config": {**SETTINGS, "quant_method": "awq"}},
         {"quantize_config.json": {"quant_method": "gptq"}}),
    ],
)  # fmt: skip
def test_where_settings_stand(
    tmp_path: Path, in_config: dict[str, Any], beside: dict[str, Any]
) -> None:
    config = pm.config_of("llama", "awq", 64)
    del config["quantization_config"]
    tensors = pm.packed_tensors(
        np.random.default_rng(9), "awq", config | {"quantization_config": SETTINGS}
    )
    path = pm.write_model(tmp_path, {**config, **in_config}, tensors)
    for name, settings in beside.items():
        (path / name).write_text(json.dumps(settings))
    assert open_checkpoint(path).config["quant_method"] == "awq"
    load_model(path)


def test_settings_of_weights_that_are_not_packed_say_nothing(tmp_path: Path) -> None:
    config = pm.config_of("llama", "awq", 64)
    dense = pm.dense_tensors("awq", pm.packed_tensors(np.random.default_rng(9), "awq", config))
    del config["quantization_config"]
    path = pm.write_model(tmp_path, config, dense)
    (path / "quantize_config.json").write_text(json.dumps({"quant_method": "marlin"}))
    assert open_checkpoint(path).config["quant_method"] == "none"


# ---- what is refused ----

BAD = _C.CheckpointError
NOT_SERVED = _C.UnsupportedError


def without(suffix: str) -> Any:
    def change(tensors: pm.Tensors) -> None:
        del tensors[f"{UP}.{suffix}"]

    return change


def replaced(suffix: str, make: Any) -> Any:
    def change(tensors: pm.Tensors) -> None:
        tensors[f"{UP}.{suffix}"] = np.ascontiguousarray(make(tensors.get(f"{UP}.{suffix}")))

    return change


TENSORS: list[tuple[str, str, Any, type[Exception], str]] = [
    ("awq", "no qweight", without("qweight"), BAD, f'no tensor "{UP}.weight"'),
    ("awq", "no qzeros", without("qzeros"), BAD, f'no tensor "{UP}.qzeros"'),
    ("gptq", "no scales", without("scales"), BAD, f'no tensor "{UP}.scales"'),
    ("awq", "float qweight", replaced("qweight", lambda a: a.astype(np.float32)), BAD,
     rf'"{UP}.qweight" is F32 with shape 128 x 24, .* I32 with shape 128 x 24'),
    ("gptq", "half qzeros", replaced("qzeros", lambda a: np.zeros(a.shape, np.float16)), BAD,
     f'"{UP}.qzeros" is F16'),
    ("awq", "scales of words", replaced("scales", lambda a: a.astype(np.int32)), BAD,
     f'"{UP}.scales" is I32'),
    ("awq", "scales of doubles", replaced("scales", lambda a: a.astype(np.float64)), BAD,
     f'"{UP}.scales" is F64'),
    ("awq", "bytes for words", replaced("qweight", lambda a: a.astype(np.int8)), BAD,
     f'"{UP}.qweight" is I8'),
    ("awq", "transposed", replaced("qweight", lambda a: a.T), BAD,
     rf'"{UP}.qweight" is I32 with shape 24 x 128'),
    ("gptq", "a row less", replaced("qweight", lambda a: a[1:]), BAD, f'"{UP}.qweight"'),
    ("awq", "flat", replaced("qweight", lambda a: a.reshape(-1)), BAD, f'"{UP}.qweight"'),
    ("awq", "a third dimension", replaced("qzeros", lambda a: a[..., None]), BAD, "qzeros"),
    ("gptq", "more groups", replaced("qzeros", lambda a: a.repeat(2, 0)), BAD, "qzeros"),
    ("gptq", "fewer groups", replaced("scales", lambda a: a[:1]), BAD,
     rf'"{UP}.qzeros" is I32 with shape 2 x 24, .* 1 x 24'),
    ("gptq", "uneven groups", replaced("scales", lambda a: a[[0, 1, 1]]), NOT_SERVED,
     f'"{UP}.scales": rows of 128 values in 3 groups'),
    ("gptq", "a group too many", replaced("g_idx", lambda a: a + 1), BAD,
     rf'"{UP}.g_idx" puts column 64 into group 2 of 2'),
    ("gptq", "short g_idx", replaced("g_idx", lambda a: a[:-1]), BAD, f'"{UP}.g_idx"'),
    ("gptq", "float g_idx", replaced("g_idx", lambda a: a.astype(np.float32)), BAD,
     f'"{UP}.g_idx" is F32'),
    ("compressed-3", "10 codes a word", replaced("weight_packed", lambda a: np.zeros(
        (len(a), 13), np.int32)), BAD, f'"{UP}.weight_packed" is I32 with shape 192 x 13'),
    ("compressed-3", "a word less", replaced("weight_packed", lambda a: a[:, 1:]), BAD,
     f'"{UP}.weight_packed" is I32 with shape 192 x 11'),
    ("compressed-3", "words of zeros for 4 bits", replaced("weight_zero_point", lambda a: np.zeros(
        (24, 2), np.int32)), BAD,
     f'"{UP}.weight_zero_point" is I32 with shape 24 x 2, .* I32 with shape 18 x 2'),
    ("compressed", "2 bits", replaced("weight_packed", lambda a: a[:, ::2]), NOT_SERVED,
     f'"{UP}.weight_packed" has codes of 2 bits'),
    ("gptq-3", "a row less", replaced("qweight", lambda a: a[1:]), BAD, f'"{UP}.qweight"'),
    ("int-quantized", "no scale", without("weight_scale"), BAD, f'no tensor "{UP}.weight_scale"'),
    ("int-quantized", "no weight", without("weight"), BAD, f'no tensor "{UP}.weight"'),
    ("int-quantized", "transposed", replaced("weight", lambda a: a.T), BAD,
     f'"{UP}.weight" is I8 with shape 128 x 192, .* I8 with shape 192 x 128'),
    ("int-quantized", "unsigned", replaced("weight", lambda a: a.view(np.uint8)), NOT_SERVED,
     f'"{UP}.weight": weights of type U8'),
    ("int-quantized", "one scale", replaced("weight_scale", lambda a: a[:1, 0]), BAD,
     f'"{UP}.weight_scale" is F16 with shape 1 x 1'),
    ("int-quantized", "scale of a token", replaced("weight_scale", lambda a: a[:1]), BAD,
     f'"{UP}.weight_scale" is F16'),
    ("int-quantized", "packed zeros", replaced("weight_zero_point", lambda a: np.zeros(
        (48, 2), np.int32)), BAD,
     f'"{UP}.weight_zero_point" is I32 with shape 48 x 2, .* I8 with shape 192 x 2'),
    ("int-quantized", "a norm of bytes",
     lambda t: t.update({"model.norm.weight": np.zeros(128, np.int8)}), NOT_SERVED,
     '"model.norm.weight": weights of type I8'),
    ("gptq", "a norm of words",
     lambda t: t.update({"model.norm.weight": np.zeros(128, np.int32)}), NOT_SERVED,
     '"model.norm.weight": weights of type I32'),
    ("gptq", "a head of words",
     lambda t: t.update({"lm_head.weight": np.zeros((64, 128), np.int32)}), NOT_SERVED,
     '"lm_head.weight": weights of type I32'),
]  # fmt: skip


@pytest.mark.parametrize(
    ("form", "change", "error", "message"), [(f, *rest) for f, _, *rest in TENSORS],
    ids=[name for _, name, *_ in TENSORS],
)  # fmt: skip
def test_a_wrong_tensor_is_named(
    tmp_path: Path, form: str, change: Any, error: type[Exception], message: str
) -> None:
    config = pm.config_of("llama", form, 64)
    tensors = pm.packed_tensors(np.random.default_rng(9), form, config)
    change(tensors)
    with pytest.raises(error, match=message):
        load_model(pm.write_model(tmp_path, config, tensors))


def test_rows_that_are_no_whole_groups_or_words(tmp_path: Path) -> None:
    for keys, message in (
        ({"intermediate_size": 200}, r"down_proj.qweight.*128 output rows of 200 values"),
        ({"intermediate_size": 196}, r"196 output rows"),
    ):
        config = {**pm.config_of("llama", "gptq", 64), **keys}
        tensors = pm.packed_tensors(np.random.default_rng(9), "gptq", config)
        with pytest.raises(NOT_SERVED, match=message):
            load_model(pm.write_model(tmp_path, config, tensors))


def test_packed_tensors_without_a_quantization_config(tmp_path: Path) -> None:
    config = pm.config_of("llama", "awq", 64)
    tensors = pm.packed_tensors(np.random.default_rng(9), "awq", config)
    del config["quantization_config"]
    wanted = "packed, but nothing says how.*quantization_config.*quantize_config.json"
    with pytest.raises(BAD, match=wanted):
        load_model(pm.write_model(tmp_path, config, tensors))


def w8a8(activations: dict[str, Any], form: str = "int-quantized", **weights: Any) -> Any:
    """config_groups with changes."""
    served = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}
    group = {
        "weights": {"num_bits": 8, "type": "int", "strategy": "channel", **weights},
        "input_activations": {**served, **activations},
        "format": form,
    }
    return {"config_groups": {"g": group}}


CONFIGS: list[tuple[str, dict[str, Any], str]] = [
    ("awq", {"bits": 3}, "awq with 3 bits .*served: 4"),
    ("awq", {"bits": 8}, "awq with 8 bits"),
    ("gptq", {"bits": 5}, "gptq with 5 bits .*served: 3, 4, 8"),
    ("gptq", {"bits": 2}, "gptq with 2 bits"),
    ("awq", {"version": "gemv"}, "version 'gemv'"),
    ("awq", {"checkpoint_format": "gemv_fast", "version": None}, "gemv_fast"),
    ("awq", {"pack_dtype": "int16"}, "int16"),
    ("gptq", {"checkpoint_format": "marlin"}, "'marlin'"),
    ("gptq", {"is_marlin_format": True}, "is_marlin_format"),
    ("gptq", {"pack_dtype": "int16"}, "int16"),
    ("gptq", {"checkpoint_format": "gptq_p", "bits": 3}, "'gptq_p'"),
    ("gptq", {"dynamic": {"+:.*down.*": {"bits": 2}}}, "dynamic.*down.* 2 bits"),
    ("gptq", {"dynamic": {".*": {"rotation": "hadamard"}}}, "dynamic.*rotation"),
    ("gptq", {"dynamic": {".*": {"checkpoint_format": "marlin"}}}, "one checkpoint_format"),
    ("gptq", {"rotation": "hadamard"}, "rotation 'hadamard'"),
    ("gptq", {"activation": {"mode": "w4afp8"}}, "activation .*w4afp8"),
    ("gptq", {"adapter": {"name": "lora"}}, "adapter"),
    ("gptq", {"quant_method": "auto-round", "act_bits": 8}, "act_bits 8"),
    ("gptq", {"quant_method": "auto-round", "data_type": "mx_fp"}, "mx_fp"),
    ("gptq", {"quant_method": "auto-round", "rotation_config": {"a": 1}}, "rotation_config"),
    ("gptq", {"quant_method": "auto-round", "packing_format": "auto_round:llm_compressor"},
     "llm_compressor"),
    ("gptq", {"quant_method": "auto-round", "extra_config": {"lm_head": {"act_bits": 8}}},
     "lm_head.*act_bits 8"),
    ("compressed", {"format": "nvfp4-pack-quantized"}, "nvfp4"),
    ("compressed", {"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme"),
    ("compressed", {"transform_config": {"config_groups": {"R1": {}}}}, "transform_config"),
    ("compressed", {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse-24"),
    ("compressed", {"config_groups": {"W8A8": ["Linear"]}}, "W8A8"),
    ("compressed", {"config_groups": {"g": {"weights": {"num_bits": 5, "type": "int"}}}},
     "num_bits 5"),
    ("compressed", {"config_groups": {"g": {"weights": {"num_bits": 4, "type": "float"}}}},
     "type 'float'"),
    ("compressed", {"config_groups": {"g": {"weights": {"num_bits": 4, "type": "int"},
                                            "input_activations": {"num_bits": 8}}}},
     "input_activations"),
    ("int-quantized", {"format": "float-quantized"}, "float-quantized"),
    ("int-quantized", {"config_groups": {"W4A16": ["Linear"]}}, "W4A16.*served: W8A8, INT8"),
    ("int-quantized", w8a8({"num_bits": 4}), "input_activations: num_bits 4"),
    ("int-quantized", w8a8({"type": "float"}), "input_activations: type 'float'"),
    ("int-quantized", w8a8({"dynamic": False}), "input_activations: dynamic False .*served: True"),
    ("int-quantized", w8a8({"strategy": "tensor"}), "input_activations: strategy 'tensor'"),
    ("int-quantized", w8a8({}, strategy="tensor"), "'g': strategy 'tensor'"),
    ("int-quantized", w8a8({}, num_bits=6), "num_bits 6"),
    ("compressed", w8a8({}, form="pack-quantized"), "input_activations"),
    ("int-quantized", w8a8({}, form="naive-quantized"), "naive-quantized"),
    ("gptq", {"quant_method": "bitsandbytes"}, "bitsandbytes.*served: awq, gptq"),
    ("gptq", {"quant_method": None, "desc_act": None}, "quant_method None"),
]  # fmt: skip


@pytest.mark.parametrize(("form", "change", "message"), CONFIGS, ids=lambda v: str(v)[:40])
def test_what_is_not_served_is_named(form: str, change: dict[str, Any], message: str) -> None:
    config = pm.config_of("llama", form, 64)
    quantization = {**config["quantization_config"], **change}
    with pytest.raises(NOT_SERVED, match=message):
        from_hf({**config, "quantization_config": quantization})


def test_an_order_of_columns_that_the_file_does_not_tell(tmp_path: Path) -> None:
    config = pm.config_of("llama", "compressed_sym", 64)
    tensors = pm.packed_tensors(np.random.default_rng(9), "compressed_sym", config)
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "actorder": "group"}
    groups = {"config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}
    config["quantization_config"] = {**config["quantization_config"], **groups}
    with pytest.raises(NOT_SERVED, match="group_0.*actorder 'group' without g_idx"):
        open_checkpoint(pm.write_model(tmp_path, config, tensors))
    for order in ("static", "weight", None, False):
        weights["actorder"] = order  # type: ignore[assignment]
        load_model(pm.write_model(tmp_path, config, tensors))


def test_defaults_and_wrong_types_of_the_config() -> None:
    config = pm.config_of("llama", "awq", 64)

    assert as_read(config, quant_method="awq") == "awq"
    assert as_read(config, quant_method="auto_round", sym=True) == "gptq"
    assert as_read(config, quant_method="AWQ", version="GEMM", group_size=-1) == "awq"
    assert as_read(config, quant_method="gptq", bits=4, dynamic={"-:lm_head": {}}) == "gptq"
    assert as_read(config, quant_method="gptq", format="gptq_v2") == "gptq_v2"
    assert as_read(config, bits=4, desc_act=False) == "gptq"
    for writers, form in (
        ("gptqmodel:4.0.0", "gptq_borrow"),
        (["optimum:1.24.0", "gptqmodel:2.0.0"], "gptq_borrow"),
        (["auto_gptq:0.7.1"], "gptq"),
        (7, "gptq"),
    ):
        meta = {"quantizer": writers}
        assert as_read(config, quant_method="gptq", meta=meta) == form
        assert as_read(config, quant_method="gptq", format="gptq_v2", meta=meta) == "gptq_v2"
    for wrong in ({"bits": "4"}, {"bits": True}, {"group_size": 64.0}, {"version": 1},
                  {"zero_point": 1}):  # fmt: skip
        with pytest.raises(ValueError, match=next(iter(wrong))):
            as_read(config, quant_method="awq", **wrong)
    for wrong in ({"desc_act": "no"}, {"dynamic": []}, {"dynamic": {".*": 8}}, {"meta": 1}):
        with pytest.raises(ValueError, match="quantization_config"):
            as_read(config, quant_method="gptq", **wrong)
    for value in ([1], "awq", 0):
        with pytest.raises(ValueError, match="quantization_config must be an object"):
            from_hf({**config, "quantization_config": value})


def test_wrong_quant_keys_of_the_normalised_config(tmp_path: Path) -> None:
    config = pm.config_of("llama", "awq", 64)
    tensors = pm.packed_tensors(np.random.default_rng(9), "awq", config)
    checkpoint = open_checkpoint(pm.write_model(tmp_path, config, tensors))
    with pytest.raises(NOT_SERVED, match="quant_method"):
        _C.Model({**checkpoint.config, "quant_method": "x"}, checkpoint.source)
    with pytest.raises(NOT_SERVED, match=r"q_proj.qweight.*runs of 8"):
        _C.Model({**checkpoint.config, "interleaved_rope": True}, checkpoint.source)
    for names in ("mlp", [1], ["x"] * 10_001):
        changed = {**config["quantization_config"], "modules_to_not_convert": names}
        with pytest.raises(ValueError, match="modules_to_not_convert must be"):
            open_checkpoint(tmp_path, {"quantization_config": changed})


def test_model_format_must_agree(tmp_path: Path) -> None:
    found: dict[str, Any] = {"hf": open_checkpoint(GOLDEN / "models" / "llama-mha")}
    for form in ("awq", "gptq_v2", "gptq_borrow"):
        config = pm.config_of("llama", form, 64)
        tensors = pm.packed_tensors(np.random.default_rng(9), form, config)
        found[form] = open_checkpoint(pm.write_model(tmp_path / form, config, tensors))
    for form, checkpoint in found.items():
        name = form.split("_")[0]
        for wanted in (None, "hf", "awq", "gptq", "gguf"):
            engine_config = TurbomindEngineConfig(model_format=wanted)
            if wanted in (None, name):
                check_model_format(engine_config, checkpoint)
                continue
            with pytest.raises(ValueError, match=f"model_format='{wanted}'.*'{name}'"):
                check_model_format(engine_config, checkpoint)


@pytest.mark.parametrize("form", ["awq", "gptq", "compressed", "compressed-3", "int-quantized"])
def test_mutants_never_kill_the_process(tmp_path: Path, form: str) -> None:
    """Wrong types, shapes, places or names: each model loads, or is refused as documented."""
    rng = np.random.default_rng(12)
    config = pm.config_of("llama", form, 32)
    tensors = pm.packed_tensors(rng, form, config)
    checkpoint = open_checkpoint(pm.write_model(tmp_path, config, tensors))
    original = list(checkpoint.source)  # type: ignore[arg-type]
    per_value = {"F32": 4, "F16": 2, "BF16": 2, "I32": 4, "I64": 8, "I8": 1}
    outcomes = {"loads": 0, "refused": 0}
    for _ in range(1500):
        specs, model_config = list(original), dict(checkpoint.config)
        at = rng.integers(len(specs))
        name, dtype, shape, path, offset, n_bytes = specs[at]
        kind = rng.integers(6)
        if kind == 0:
            dtype = str(rng.choice(list(per_value)))
        elif kind == 1:
            shape = tuple(int(d * rng.choice([1, 1, 2, 0.5])) for d in shape)
        elif kind == 2:
            shape = shape[::-1] if rng.random() < 0.5 else (*shape, 1)
        elif kind == 3:
            name = specs[rng.integers(len(specs))][0]
        elif kind == 4:
            offset = int(rng.integers(offset + 8))
        else:
            methods = ["none", "awq", "gptq", "gptq_borrow", "compressed-tensors"]
            model_config["quant_method"] = str(rng.choice(methods))
        if rng.random() < 0.8:
            n_bytes = int(np.prod(shape)) * per_value[dtype]
        specs[at] = (name, dtype, shape, path, offset, n_bytes)
        try:
            _C.Model(model_config, specs, num_threads=1)
            outcomes["loads"] += 1
        except ValueError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 100, outcomes
