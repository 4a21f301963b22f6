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
    tensors = pm.packed_tensors(np.random.default_rng(group_size + 1), form, config)
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


def swapped(g_idx: np.ndarray) -> np.ndarray:
    return g_idx[np.random.default_rng(0).permutation(len(g_idx))]


TENSORS: list[tuple[str, str, Any, type[Exception], str]] = [
    ("awq", "no qweight", without("qweight"), BAD, f'no tensor "{UP}.weight"'),
    ("awq", "no qzeros", without("qzeros"), BAD, f'no tensor "{UP}.qzeros"'),
    ("gptq", "no scales", without("scales"), BAD, f'no tensor "{UP}.scales"'),
    ("awq", "float qweight", replaced("qweight", lambda a: a.astype(np.float32)), BAD,
     rf'"{UP}.qweight" is F32 with shape 128 x 24, .* I32 with shape 128 x 24'),
    ("gptq", "half qzeros", replaced("qzeros", lambda a: np.zeros(a.shape, np.float16)), BAD,
     f'"{UP}.qzeros" is F16'),
    ("awq", "fp32 scales", replaced("scales", lambda a: a.astype(np.float32)), BAD,
     f'"{UP}.scales" is F32'),
    ("awq", "transposed", replaced("qweight", lambda a: a.T), BAD,
     rf'"{UP}.qweight" is I32 with shape 24 x 128'),
    ("gptq", "a row less", replaced("qweight", lambda a: a[1:]), BAD, f'"{UP}.qweight"'),
    ("awq", "flat", replaced("qweight", lambda a: a.reshape(-1)), BAD, f'"{UP}.qweight"'),
    ("awq", "a third dimension", replaced("qzeros", lambda a: a[..., None]), BAD, "qzeros"),
    ("gptq", "more groups", replaced("qzeros", lambda a: a.repeat(2, 0)), BAD, "qzeros"),
    ("gptq", "fewer groups", replaced("scales", lambda a: a[:1]), BAD,
     rf'"{UP}.scales" is F16 with shape 1 x 192, .* 2 x 192'),
    ("gptq", "act order", replaced("g_idx", swapped), NOT_SERVED, rf'"{UP}.g_idx" .*desc_act'),
    ("gptq", "short g_idx", replaced("g_idx", lambda a: a[:-1]), BAD, f'"{UP}.g_idx"'),
    ("gptq", "float g_idx", replaced("g_idx", lambda a: a.astype(np.float32)), BAD,
     f'"{UP}.g_idx" is F32'),
    ("gptq-8", "zeros", replaced("qzeros", lambda a: a + 1), NOT_SERVED, "symmetric zeros"),
    ("gptq", "a norm of words",
     lambda t: t.update({"model.norm.weight": np.zeros(128, np.int32)}), BAD,
     '"model.norm.weight" has dtype I32'),
    ("gptq", "a head of words",
     lambda t: t.update({"lm_head.weight": np.zeros((64, 128), np.int32)}), BAD,
     '"lm_head.weight" has dtype I32'),
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
        ({"intermediate_size": 200}, r"down_proj.qweight.*200 values in groups of 64"),
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
    with pytest.raises(BAD, match="no tensor"):
        load_model(pm.write_model(tmp_path, config, tensors))


CONFIGS: list[tuple[str, dict[str, Any], str]] = [
    ("awq", {"bits": 3}, "awq with 3 bits .*served: 4"),
    ("awq", {"bits": 8}, "awq with 8 bits"),
    ("gptq", {"bits": 3}, "gptq with 3 bits .*served: 4, 8"),
    ("gptq", {"bits": 2}, "gptq with 2 bits"),
    ("awq", {"group_size": 256}, "group_size 256 .*served: 32, 64, 128, -1"),
    ("gptq", {"group_size": 16}, "group_size 16"),
    ("awq", {"version": "gemv"}, "version 'gemv'"),
    ("awq", {"zero_point": False}, "zero_point false"),
    ("gptq", {"desc_act": True}, "desc_act true"),
    ("gptq", {"checkpoint_format": "marlin"}, "'marlin'"),
    ("gptq", {"is_marlin_format": True}, "is_marlin_format"),
    ("gptq-8", {"sym": False}, "sym false with 8 bits"),
    ("gptq", {"pack_dtype": "int16"}, "int16"),
    ("gptq", {"dynamic": {"+:.*down.*": {"bits": 8}}}, "dynamic"),
    ("gptq", {"quant_method": "bitsandbytes"}, "bitsandbytes.*served: awq, gptq"),
    ("gptq", {"quant_method": None}, "quant_method None"),
]


@pytest.mark.parametrize(("form", "change", "message"), CONFIGS, ids=lambda v: str(v)[:40])
def test_what_is_not_served_is_named(form: str, change: dict[str, Any], message: str) -> None:
    config = pm.config_of("llama", form, 64)
    quantization = {**config["quantization_config"], **change}
    with pytest.raises(NOT_SERVED, match=message):
        from_hf({**config, "quantization_config": quantization})


def test_defaults_and_wrong_types_of_the_config() -> None:
    config = pm.config_of("llama", "awq", 64)

    def keys(**quantization: Any) -> tuple[Any, ...]:
        found = from_hf({**config, "quantization_config": quantization})
        return tuple(found[f"quant_{key}"] for key in ("method", "bits", "group_size"))

    assert keys(quant_method="awq") == ("awq", 4, 128)
    assert keys(quant_method="awq", version="GEMM", group_size=-1) == ("awq", 4, -1)
    assert keys(quant_method="gptq", bits=4, dynamic={"-:lm_head": {}}) == ("gptq", 4, 128)
    assert keys(quant_method="gptq", bits=4, format="gptq_v2", group_size=32)[0] == "gptq_v2"
    for wrong in ({"bits": "4"}, {"bits": True}, {"group_size": 64.0}, {"version": 1},
                  {"zero_point": 1}):  # fmt: skip
        with pytest.raises(ValueError, match=next(iter(wrong))):
            keys(quant_method="awq", **wrong)
    for wrong in ({}, {"bits": 4, "desc_act": "no"}, {"bits": 4, "dynamic": []}):
        with pytest.raises(ValueError, match="quantization_config"):
            keys(quant_method="gptq", **wrong)
    for value in ([1], "awq", 0):
        with pytest.raises(ValueError, match="quantization_config must be an object"):
            from_hf({**config, "quantization_config": value})


def test_wrong_quant_keys_of_the_normalised_config(tmp_path: Path) -> None:
    config = pm.config_of("llama", "awq", 64)
    tensors = pm.packed_tensors(np.random.default_rng(9), "awq", config)
    checkpoint = open_checkpoint(pm.write_model(tmp_path, config, tensors))
    for key, value in (("quant_method", "x"), ("quant_bits", 5), ("quant_group_size", 96)):
        with pytest.raises(NOT_SERVED, match=key):
            _C.Model({**checkpoint.config, key: value}, checkpoint.source)
    with pytest.raises(NOT_SERVED, match=r"q_proj.qweight.*runs of 8"):
        _C.Model({**checkpoint.config, "interleaved_rope": True}, checkpoint.source)
    for names in ("mlp", [1], ["x"] * 10_001):
        changed = {**config["quantization_config"], "modules_to_not_convert": names}
        with pytest.raises(ValueError, match="modules_to_not_convert must be"):
            open_checkpoint(tmp_path, {"quantization_config": changed})


def test_model_format_must_agree(tmp_path: Path) -> None:
    found: dict[str, Any] = {"hf": open_checkpoint(GOLDEN / "models" / "llama-mha")}
    for form, name in (("awq", "awq"), ("gptq_v2", "gptq")):
        config = pm.config_of("llama", form, 64)
        tensors = pm.packed_tensors(np.random.default_rng(9), form, config)
        found[name] = open_checkpoint(pm.write_model(tmp_path / form, config, tensors))
    for name, checkpoint in found.items():
        for wanted in (None, "hf", "awq", "gptq", "gguf"):
            engine_config = TurbomindEngineConfig(model_format=wanted)
            if wanted in (None, name):
                check_model_format(engine_config, checkpoint)
                continue
            with pytest.raises(ValueError, match=f"model_format='{wanted}'.*'{name}'"):
                check_model_format(engine_config, checkpoint)


@pytest.mark.parametrize("form", ["awq", "gptq"])
def test_mutants_never_kill_the_process(tmp_path: Path, form: str) -> None:
    """Wrong types, shapes, places or names: each model loads, or is refused as documented."""
    rng = np.random.default_rng(12)
    config = pm.config_of("llama", form, 32)
    tensors = pm.packed_tensors(rng, form, config)
    checkpoint = open_checkpoint(pm.write_model(tmp_path, config, tensors))
    original = list(checkpoint.source)  # type: ignore[arg-type]
    per_value = {"F32": 4, "F16": 2, "BF16": 2, "I32": 4}
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
            model_config["quant_group_size"] = int(rng.choice([-1, 32, 64, 128]))
            model_config["quant_method"] = str(rng.choice(["none", *list(pm.FORMS)[:3]]))
            model_config["quant_bits"] = int(rng.choice([4, 4, 8]))
        if rng.random() < 0.8:
            n_bytes = int(np.prod(shape)) * per_value[dtype]
        specs[at] = (name, dtype, shape, path, offset, n_bytes)
        try:
            _C.Model(model_config, specs, num_threads=1)
            outcomes["loads"] += 1
        except ValueError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 100, outcomes
