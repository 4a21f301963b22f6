"""Models as GGUF files: what other readers see in them, and that they are the same models.

The oracles are transformers' logits of the golden models, and the gguf package.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import packed_models as pm
import pytest
import tokenizer_dirs
from conftest import GOLDEN, exact_kv_bits, load_model, logits_tolerance, make_engine, read_all
from gguf.quants import dequantize
from gguf.quants import quantize as gguf_quantize
from safetensors.numpy import load_file, save_file

from lmdeploy_c import _C, Tokenizer, TurbomindEngineConfig, pipeline
from lmdeploy_c.files.checkpoint import open_checkpoint, resolve_model
from lmdeploy_c.lite import LinearReport, export
from lmdeploy_c.lite import quantize as by_method
from lmdeploy_c.lite.gguf_model import GgufModel, types_of
from lmdeploy_c.lite.source import Source

GGUFS = sorted(p for p in (GOLDEN / "gguf").glob("*.gguf") if p.stem != "types")
#: Golden models -> what no GGUF file says of them; None: files of theirs are right.
DIRECTORIES: dict[str, str | None] = {
    "llama-mha": None, "llama-f16": None, "llama-bf16": None, "llama-gqa-tied": None,
    "llama-headdim40": None, "llama-headdim8": None, "mistral": None, "internlm2": None,
    "qwen2": None, "qwen2-tied": None, "qwen3": None, "llama-rope-linear": None,
    "llama-rope-linear-v5": None, "llama-rope-llama3": None, "llama-rope-yarn": None,
    "llama-rope-dynamic-short": None,
    "llama-bias": "biases of the feed-forward layers",
    "llama-rope-yarn-mscale": "truncate: false",
    "llama-rope-yarn-factor": "other betas than 32 and 1",
}  # fmt: skip
Q = gguf.GGMLQuantizationType


def quantize(*args: Any, **options: Any) -> list[LinearReport]:
    """To the nearest code."""
    return by_method(*args, method="rtn", **options)


def small_tokenizer() -> dict[str, Any]:
    """tokenizer.json of a byte-level vocabulary of 88 tokens."""
    characters = [*map(chr, range(37, 117)), "Ċ", "Ġ", "Ġt", "he", "Ġthe"]
    tokens = ["<unk>", "<s>", "</s>", *characters]
    model = {
        "type": "BPE",
        "vocab": {token: i for i, token in enumerate(tokens)},
        "merges": [["Ġ", "t"], ["h", "e"], ["Ġt", "he"]],
        "ignore_merges": True,
    }
    parts = json.loads(json.dumps(tokenizer_dirs.BASE["tokenizer"]))
    added = [tokenizer_dirs.added(i, tokens[i], True) for i in range(3)]
    return {**parts, "model": model, "added_tokens": added}


def directory(path: Path, name: str, **keys: Any) -> Path:
    """A golden model, with a tokenizer. keys: of config.json."""
    shutil.copytree(GOLDEN / "models" / name, path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **keys}))
    (path / "tokenizer.json").write_text(json.dumps(small_tokenizer()))
    named = {"bos_token": "<s>", "eos_token": "</s>"}
    (path / "tokenizer_config.json").write_text(json.dumps(named))
    return path


def logits_of(path: Path, ids: Any) -> np.ndarray:
    engine = make_engine(load_model(resolve_model(path)), kv_bits=exact_kv_bits())
    logits = read_all(engine.submit(ids, max_new_tokens=0, output_logits="all")).logits
    engine.close()
    assert logits is not None
    return logits


def hf_names(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file as the gguf package dequantises them, under a directory's names, rows
    in the order of heads."""
    reader = gguf.GGUFReader(path)
    arch = reader.fields["general.architecture"].contents()

    def number(key: str) -> int:
        return int(reader.fields[f"{arch}.{key}"].contents())

    names = {
        "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
        "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
        "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }  # fmt: skip
    found = {}
    for t in reader.tensors:
        values = dequantize(t.data, t.tensor_type).astype(np.float32)
        *prefix, stem, kind = t.name.split(".")
        if arch == "llama" and stem in ("attn_q", "attn_k"):
            n_head = number("attention.head_count" + ("" if stem == "attn_q" else "_kv"))
            shape = values.shape
            values = values.reshape(n_head, shape[0] // n_head // 2, 2, -1).swapaxes(1, 2)
            values = values.reshape(shape)
        layer = f"model.layers.{prefix[1]}." if prefix else ""
        found[f"{layer}{names[stem]}.{kind}"] = values
    return found


# ---- the same model ----


@pytest.mark.parametrize("name", [n for n, problem in DIRECTORIES.items() if problem is None])
def test_a_directory_becomes_a_file_of_the_same_model(tmp_path: Path, name: str) -> None:
    """transformers' logits, the same configuration, the same tokens, the same ends."""
    model = directory(tmp_path / "model", name)
    made = export(model, tmp_path / "out", format="gguf")
    golden = np.load(model / "golden.npz")
    n_ids = open_checkpoint(model).config["max_position"]  # beyond, dynamic NTK is no plain RoPE
    at = golden["logit_positions"]
    at = at[at < n_ids]
    got = logits_of(made, golden["input_ids"][:n_ids])[at]
    expected = golden["logits"][: len(at)]
    assert np.abs(got - expected).max() <= logits_tolerance() * np.abs(expected).max()
    a, b = open_checkpoint(model), open_checkpoint(made)
    ours = {"arch", "naming", "interleaved_rope", "packed_qkv"}
    rope = {key for key in a.config if key.startswith("rope_") and key != "rope_theta"}
    for key in a.config.keys() - ours - rope:
        value = a.config[key]
        same = pytest.approx(value, rel=1e-7) if isinstance(value, float) else value
        assert b.config[key] == same, key
    assert (b.eos_token_ids, b.bos_token_id) == (a.eos_token_ids, a.bos_token_id)
    text = "THE the CAT\nhad 12 cats"
    assert Tokenizer(made).encode(text) == Tokenizer(model).encode(text)


@pytest.mark.parametrize("name", [n for n, problem in DIRECTORIES.items() if problem])
def test_what_no_file_says(tmp_path: Path, name: str) -> None:
    model = directory(tmp_path / "model", name)
    with pytest.raises(_C.UnsupportedError, match=DIRECTORIES[name]):
        export(model, tmp_path / "out", format="gguf")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", GGUFS, ids=lambda p: p.stem)
def test_a_file_is_written_again(tmp_path: Path, path: Path) -> None:
    """In floats: the same values, metadata and answers; rope_freqs.weight comes along."""
    made = export(path, tmp_path / "out", format="gguf")
    old, new = _C.Gguf(path), _C.Gguf(made)
    of_storage = {"general.file_type", "general.quantization_version"}
    assert new.metadata.keys() - of_storage == old.metadata.keys() - of_storage
    for key in old.metadata.keys() - of_storage:
        assert np.array_equal(np.asarray(new.metadata[key]), np.asarray(old.metadata[key])), key
    assert new.tensors.keys() == old.tensors.keys()
    for name in old.tensors:
        assert np.array_equal(new.dequantize(name), old.dequantize(name)), name
    types = {a.name: [t.name for t in a.types] for a in gguf.GGUFReader(path).fields.values()}
    again = {a.name: [t.name for t in a.types] for a in gguf.GGUFReader(made).fields.values()}
    assert {k: v for k, v in types.items() if k not in of_storage} == {
        k: v for k, v in again.items() if k not in of_storage
    }


# ---- types ----


@pytest.fixture(scope="module")
def wide(tmp_path_factory: Any) -> Path:
    """A directory whose columns are multiples of 32, in fp32."""
    config = pm.config_of("llama", "awq", 64, vocab_size=90)
    del config["quantization_config"]
    rng = np.random.default_rng(3)
    tensors = {k: v.astype(np.float32) for k, v in pm.other_tensors(rng, config).items()}
    for name, shape in pm.linears_of(config).items():
        tensors[f"{name}.weight"] = (rng.normal(size=shape) / np.sqrt(shape[1])).astype(np.float32)
    path: Path = tmp_path_factory.mktemp("wide")
    pm.write_model(path, config, tensors)
    (path / "tokenizer.json").write_text(json.dumps(small_tokenizer()))
    return path


@pytest.mark.parametrize(
    ("w_type", "options", "file_type"),
    [
        ("Q4_1", {}, 3), ("Q4_0", {"w_sym": True}, 2), ("Q8_0", {"w_bits": 8}, 7),
        ("Q4_1", {"w_type": "q4_1"}, 3), ("Q4_0", {"w_type": "q4_0"}, 2),
        ("Q8_0", {"w_type": "Q8_0", "w_group_size": 32}, 7),
    ],
)  # fmt: skip
def test_a_type(
    tmp_path: Path, wide: Path, w_type: str, options: dict[str, Any], file_type: int
) -> None:
    """Every linear has it, with the bytes that the gguf package makes of its rows; the engine
    computes with just these values."""
    reports = quantize(wide, tmp_path / "out", format="gguf", **options)
    file = tmp_path / "out" / "model.gguf"
    original, reader = load_file(wide / "model.safetensors"), gguf.GGUFReader(file)
    fields = reader.fields
    assert fields["general.file_type"].contents() == file_type
    assert fields["general.quantization_version"].contents() == gguf.GGML_QUANT_VERSION
    types = {t.name: t.tensor_type.name for t in reader.tensors}
    linears = {name for name in types if name.startswith("blk.") and "norm" not in name}
    assert {types[name] for name in linears} == {w_type}
    assert types["token_embd.weight"] == types["output.weight"] == "Q8_0"
    assert {types[n] for n in types.keys() - linears if "norm" in n} == {"F32"}
    dense = hf_names(file)
    assert dense.keys() == original.keys()
    for name, values in original.items():
        if values.ndim == 2:
            made = w_type if ".layers." in name else "Q8_0"
            values = dequantize(gguf_quantize(values, Q[made]), Q[made])
        assert np.array_equal(dense[name], values), name
    assert {r.name for r in reports} == {n for n in original if ".layers." in n and "proj" in n}
    for report in reports:
        exact = original[report.name].astype(np.float64)
        error = np.square(dense[report.name] - exact).sum() / np.square(exact).sum()
        assert report.error == report.min_max_error == pytest.approx(error, rel=1e-4)
    config = json.loads((wide / "config.json").read_text())
    ids = np.arange(40) % 64
    plain = logits_of(pm.write_model(tmp_path / "dense", config, dense), ids)
    assert np.abs(logits_of(file, ids) - plain).max() <= logits_tolerance() * np.abs(plain).max()


def test_each_tensor_in_a_type_of_its_own(tmp_path: Path, wide: Path) -> None:
    """The first pattern counts; what none matches is a float; the file is what most weights are."""
    wanted = {"*layers.0.*down_proj*": "q8_0", "*down_proj*": "q4_0", "*q_proj*": "q4_1",
              "lm_head*": "bf16", "*embed*": "f32"}  # fmt: skip
    quantize(wide, tmp_path / "out", format="gguf", w_type=wanted)
    reader = gguf.GGUFReader(tmp_path / "out" / "model.gguf")
    types = {t.name: t.tensor_type.name for t in reader.tensors}
    assert types["blk.0.ffn_down.weight"] == "Q8_0"
    assert types["blk.1.ffn_down.weight"] == "Q4_0"
    assert types["blk.1.attn_q.weight"] == "Q4_1"
    assert types["blk.0.ffn_up.weight"] == types["blk.1.attn_k.weight"] == "F16"
    assert (types["output.weight"], types["token_embd.weight"]) == ("BF16", "F32")
    assert reader.fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_F16
    ids = np.arange(20)
    a, b = logits_of(tmp_path / "out", ids), logits_of(wide, ids)
    assert 0 < np.abs(a - b).max() < 0.3 * np.abs(b).max()


def test_columns_that_no_block_holds(tmp_path: Path, caplog: Any) -> None:
    model = directory(tmp_path / "model", "llama-mha")  # 32 and 48 columns
    with caplog.at_level(logging.WARNING, "lmdeploy_c"):
        quantize(model, tmp_path / "out", format="gguf")
    types = {
        t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "out/model.gguf").tensors
    }
    assert types["blk.0.ffn_down.weight"] == "F16"
    assert types["blk.0.ffn_up.weight"] == "Q4_1"
    n_layer = open_checkpoint(model).config["n_layer"]
    lines = [r.getMessage() for r in caplog.records if "no multiple of 32" in r.getMessage()]
    assert len(lines) == n_layer
    assert lines[0] == (
        "model.layers.0.mlp.down_proj.weight has 48 columns, no multiple of 32: it is kept as F16 "
        "instead of Q4_1"
    )


@pytest.mark.parametrize("arch", ["internlm2", "qwen2", "qwen3", "mistral"])
def test_architectures(tmp_path: Path, arch: str) -> None:
    """The codes of rows move with them: a file of Q8_0 is near its model."""
    model = directory(tmp_path / "model", arch)
    quantize(model, tmp_path / "out", format="gguf", w_bits=8)
    ids = np.load(model / "golden.npz")["input_ids"][:40]
    a, b = logits_of(tmp_path / "out", ids), logits_of(model, ids)
    assert 0 < np.abs(a - b).max() < 0.1 * np.abs(b).max()


def test_floats(tmp_path: Path, wide: Path) -> None:
    for dtype, file_type in (("float16", 1), ("bfloat16", 32), ("float32", 0), ("auto", 0)):
        file = export(wide, tmp_path / dtype, format="gguf", dtype=dtype)
        reader = gguf.GGUFReader(file)
        assert reader.fields["general.file_type"].contents() == file_type
        assert {t.tensor_type.name for t in reader.tensors if len(t.shape) == 1} == {"F32"}
        dense = hf_names(file)
        for name, values in load_file(wide / "model.safetensors").items():
            exact = values
            if values.ndim == 2 and dtype == "float16":
                exact = values.astype(np.float16)
            if values.ndim == 2 and dtype == "bfloat16":
                exact = dequantize(gguf_quantize(values, Q.BF16), Q.BF16)
            assert np.array_equal(dense[name], exact), name


# ---- what goes along ----


def test_sampling_and_templates(tmp_path: Path, wide: Path) -> None:
    model = shutil.copytree(wide, tmp_path / "model")
    says = {
        "do_sample": True,
        "temperature": 0.6,
        "top_k": 20,
        "top_p": 0.95,
        "eos_token_id": [2, 7],
    }
    (model / "generation_config.json").write_text(json.dumps(says))
    templates = [{"name": n, "template": f"{n} {{{{ messages }}}}"} for n in ("default", "tools")]
    config = {"chat_template": templates, "bos_token": "<s>", "eos_token": "</s>"}
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    file = export(model, tmp_path / "out", format="gguf")
    fields = {k: f.contents() for k, f in gguf.GGUFReader(file).fields.items()}
    assert fields["general.sampling.top_k"] == 20
    assert fields["general.sampling.temp"] == pytest.approx(0.6)
    assert fields["tokenizer.chat_template"] == "default {{ messages }}"
    assert fields["tokenizer.chat_template.tools"] == "tools {{ messages }}"
    assert fields["tokenizer.chat_templates"] == ["tools"]
    assert fields["tokenizer.ggml.eos_token_id"] == 2
    assert open_checkpoint(file).eos_token_ids == [2, 7]
    with pipeline(file, TurbomindEngineConfig(session_len=64)) as pipe:
        assert pipe.tokenizer.chat_templates.keys() == {"default", "tools"}


# ---- what goes wrong ----


def test_nothing_half_written_can_be_loaded(tmp_path: Path, wide: Path, monkeypatch: Any) -> None:
    """A NaN, or a full disk, ends the writing; an older model in the directory is gone by then."""
    model = shutil.copytree(wide, tmp_path / "model")
    quantize(model, tmp_path / "out", calib_dataset=None, w_group_size=32)
    quantize(model, tmp_path / "out", format="gguf")
    assert [p.name for p in (tmp_path / "out").iterdir() if p.name.startswith(("m", "c"))] == [
        "model.gguf"
    ]
    tensors = load_file(model / "model.safetensors")
    bad = "model.layers.1.mlp.up_proj.weight"
    tensors[bad][3, 5] = np.nan
    save_file(tensors, model / "model.safetensors")
    with pytest.raises(ValueError, match=rf'"{bad}": a NaN or an infinity in row 3'):
        quantize(model, tmp_path / "out", format="gguf")
    assert not list((tmp_path / "out").glob("*gguf*"))
    tensors[bad][3, 5] = 1e38  # a scale beyond fp16
    save_file(tensors, model / "model.safetensors")
    with pytest.raises(ValueError, match="Q8_0 cannot hold"):
        quantize(model, tmp_path / "out", format="gguf", w_bits=8)

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        export(wide, tmp_path / "full", format="gguf")
    assert list((tmp_path / "full").iterdir()) == []


def test_refusals(tmp_path: Path, wide: Path) -> None:
    out = tmp_path / "out"
    for options, message in (
        ({"w_group_size": 64}, "w_group_size of gguf must be 32, not 64"),
        ({"w_type": "q4_k"}, "must be one of bf16, f16, f32, q4_0, q4_1, q8_0, not 'q4_k'"),
        ({"w_type": {"*nothing*": "q8_0"}}, r"no tensor matches '\*nothing\*'"),
        ({"w_bits": 3}, "w_bits of gguf must be 4 or 8, not 3"),
        ({"dtype": "fp16"}, "dtype must be auto, float32"),
    ):
        with pytest.raises(ValueError, match=message):
            quantize(wide, out, format="gguf", **options)
    with pytest.raises(ValueError, match="w_type is of format gguf, not awq"):
        quantize(wide, out, w_type="q8_0", calib_dataset=None)
    with pytest.raises(ValueError, match="format must be hf or gguf"):
        export(wide, out, format="ggml")
    with pytest.raises(_C.CheckpointError, match=r"no tokenizer\.json"):
        export(GOLDEN / "models" / "llama-mha", out, format="gguf")
    assert not out.exists()
    file = export(wide, out, format="gguf")
    with pytest.raises(ValueError, match="is the model itself"):
        quantize(file, out, format="gguf")
    assert file.is_file()


def test_tensors_that_do_not_fit(tmp_path: Path, wide: Path) -> None:
    model = shutil.copytree(wide, tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    save_file({**tensors, name: tensors[name][:-2].copy()}, model / "model.safetensors")
    with pytest.raises(_C.CheckpointError, match=r"its heads have 128 rows"):
        export(model, tmp_path / "out", format="gguf")
    flat = {**tensors, "model.embed_tokens.weight": tensors["model.embed_tokens.weight"].ravel()}
    save_file(flat, model / "model.safetensors")
    with pytest.raises(_C.CheckpointError, match=r"not 2 dimensions"):
        export(model, tmp_path / "out", format="gguf")
    del tensors[name]
    save_file(tensors, model / "model.safetensors")
    with pytest.raises(_C.CheckpointError, match=r"no tensor for 'blk\.0\.attn_q\.weight'"):
        export(model, tmp_path / "out", format="gguf")
    assert not (tmp_path / "out").exists()


def test_codes_of_another_quantiser(tmp_path: Path, wide: Path) -> None:
    """What is written is what `quantise` gives, for the rows of the directory's tensors."""
    from lmdeploy_c.lite.gguf_packing import BlockCodes, dequantized

    source, rng, given = Source(wide), np.random.default_rng(0), {}

    def random_codes(name: str, dtype: str, values: np.ndarray) -> BlockCodes:
        groups = (len(values), values.shape[1] // 32)
        scales = rng.uniform(-1, 1, groups).astype(np.float16)
        if dtype == "Q8_0":
            made = BlockCodes(rng.integers(-128, 128, values.shape, np.int8), scales)
        else:
            codes = rng.integers(0, 16, values.shape, np.uint8)
            mins = rng.uniform(-1, 1, groups).astype(np.float16) if dtype == "Q4_1" else None
            made = BlockCodes(codes, scales, mins)
        given[name] = dequantized(made)
        return made

    wanted = {"*q_proj*": "q4_0", "*k_proj*": "q4_1", "*": "q8_0"}
    model = GgufModel(source, types_of(source, wanted, "F16"), random_codes)
    dense = hf_names(model.write(tmp_path, "writing"))
    assert len(given) > 10
    for name, values in given.items():
        assert np.array_equal(dense[name], values), name


# ---- by a method that solves ----


@pytest.mark.parametrize("w_type", ["q4_1", "q4_0", "q8_0"])
def test_solved_codes(tmp_path: Path, wide: Path, w_type: str) -> None:
    """On what the model reads they are nearer than rounded ones."""
    text = tmp_path / "text"
    text.write_text("THE the CAT had 12 cats; TO BE OR NOT TO BE, " * 60)
    options: dict[str, Any] = {"format": "gguf", "calib_dataset": text, "calib_seqlen": 48}
    wanted: dict[str, str] = {"*v_proj*": "q8_0", "*.layers.*_proj*": w_type}
    reports = by_method(wide, tmp_path / "best", w_type=wanted, **options)
    file = tmp_path / "best" / "model.gguf"
    assert {path.name for path in (tmp_path / "best").iterdir()} == {"model.gguf", "report.json"}
    original, dense = load_file(wide / "model.safetensors"), hf_names(file)
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(file).tensors}
    assert types["blk.0.attn_v.weight"] == "Q8_0"
    assert types["blk.0.ffn_down.weight"] == w_type.upper()
    assert {r.name for r in reports} == {n for n in original if "proj" in n}
    for report in reports:
        assert report.error <= report.min_max_error * 1.01
    for name, values in original.items():
        error = np.square(dense[name] - values).sum() / np.square(values).sum()
        assert error < (0.03 if "proj" in name else 1e-4), name
    quantize(wide, tmp_path / "plain", w_type=wanted, **options)
    ids = Tokenizer(wide).encode(text.read_text())[:60]
    exact = logits_of(wide, ids)
    best, plain = (
        np.square(logits_of(tmp_path / n, ids) - exact).mean() for n in ("best", "plain")
    )
    assert best < plain


def test_a_file_without_solved_linears(tmp_path: Path, wide: Path) -> None:
    """No text is read for it."""
    for wanted in ("f16", {"*embed*": "q4_0"}):
        reports = by_method(wide, tmp_path / "out", format="gguf", w_type=wanted)
        assert list(reports) == []
        tensors = gguf.GGUFReader(tmp_path / "out" / "model.gguf").tensors
        types = {t.name: t.tensor_type.name for t in tensors}
        assert types["blk.0.attn_q.weight"] == "F16"
        assert types["token_embd.weight"] == ("F16" if wanted == "f16" else "Q4_0")


def test_one_type_of_four_bits_is_solved(tmp_path: Path, wide: Path) -> None:
    wanted = {"*q_proj*": "q4_0", "*_proj*": "q4_1"}
    with pytest.raises(ValueError, match="of q4_0 or of q4_1, not both; or method rtn"):
        by_method(wide, tmp_path / "out", format="gguf", w_type=wanted)
    quantize(wide, tmp_path / "out", format="gguf", w_type=wanted)
    with pytest.raises(ValueError, match="needs calib_dataset"):
        by_method(wide, tmp_path / "out", format="gguf", calib_dataset=None)
