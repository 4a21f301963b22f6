"""GGUF files as the converter may write a model: in several files, and with q, k and v in one
tensor. The gguf package writes them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import gguf_bytes as gb
import numpy as np
import pytest
from conftest import GOLDEN

from lmdeploy_c import _C, Tokenizer, plan
from lmdeploy_c.files.checkpoint import Checkpoint, fingerprint, open_checkpoint, resolve_model

WHOLE = GOLDEN / "gguf" / "llama-q5_0.gguf"


Tensors = dict[str, tuple[np.ndarray, gguf.GGMLQuantizationType]]


def as_they_are(tensors: Tensors) -> Tensors:
    return tensors


def fused(tensors: Tensors) -> Tensors:
    """The tensors as the converter's --fuse-qkv joins them."""
    left = dict(tensors)
    for name in [name for name in tensors if ".attn_q." in name]:
        qkv = [left.pop(name.replace("attn_q", f"attn_{letter}")) for letter in "qkv"]
        assert len({kind for _, kind in qkv}) == 1
        rows = np.concatenate([data for data, _ in qkv])
        left[name.replace("attn_q", "attn_qkv")] = (rows, qkv[0][1])
    return left


def split(
    folder: Path,
    n_tensors: int = 9,
    *,
    small_first: bool = False,
    whole: Path = WHOLE,
    change: Callable[[Tensors], Tensors] = as_they_are,
) -> list[Path]:
    """A tiny model in files of n_tensors each. small_first: the first has metadata alone."""
    reader = gguf.GGUFReader(whole)
    arch = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(
        folder / "tiny.gguf", arch, split_max_tensors=n_tensors, small_first_shard=small_first
    )
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            kind = field.types[0]
            sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kind, sub)
    tensors = change({t.name: (t.data, t.tensor_type) for t in reader.tensors})
    for name, (data, tensor_type) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.glob("*.gguf"))


def logits(checkpoint: Checkpoint) -> np.ndarray:
    model = _C.Model(checkpoint.config, checkpoint.source, num_threads=2)
    engine = _C.Engine(model, session_len=64, n_blocks=8, max_batch_size=1)
    output = engine.submit([1, 5, 9], max_new_tokens=0, output_logits="all").read(60)
    engine.close()
    assert output is not None and output.logits is not None
    return output.logits


def test_any_part_may_be_named(tmp_path: Path) -> None:
    parts = split(tmp_path)
    assert [p.name for p in parts] == [f"tiny-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    whole = open_checkpoint(WHOLE)
    expected = logits(whole)
    seen = set()
    for path in parts:
        checkpoint = open_checkpoint(path)
        assert checkpoint.config == whole.config
        assert checkpoint.eos_token_ids == whole.eos_token_ids
        assert checkpoint.file_bytes == sum(p.stat().st_size for p in parts)
        assert np.array_equal(logits(checkpoint), expected)
        assert Tokenizer(path).encode("the sea") == Tokenizer(WHOLE).encode("the sea")
        seen.add(fingerprint(checkpoint))
    assert len(seen) == 1
    assert plan(parts[1], measure=False).weight_bytes == plan(WHOLE, measure=False).weight_bytes


@pytest.mark.parametrize("n_tensors", [5, 99])
@pytest.mark.parametrize("name", ["llama-q5_0", "qwen2", "qwen3-q8_0-hd64-gqa7"])
def test_q_k_and_v_in_one_tensor(tmp_path: Path, name: str, n_tensors: int) -> None:
    whole = GOLDEN / "gguf" / f"{name}.gguf"
    path, *_ = split(tmp_path, n_tensors, whole=whole, change=fused)
    checkpoint = open_checkpoint(path)
    assert not any(name.endswith("attn_q.weight") for name in _C.Gguf(path).tensors)
    assert checkpoint.config == open_checkpoint(whole).config
    assert np.array_equal(logits(checkpoint), logits(open_checkpoint(whole)))


def test_a_fused_tensor_of_other_rows_is_named(tmp_path: Path) -> None:
    def shorter(tensors: Tensors) -> Tensors:
        return {
            name: (data[:-1] if name == "blk.0.attn_qkv.weight" else data, kind)
            for name, (data, kind) in fused(tensors).items()
        }

    path, *_ = split(tmp_path, 99, change=shorter)
    with pytest.raises(_C.CheckpointError, match=r"blk\.0\.attn_qkv\.weight.*q, k and v have"):
        open_checkpoint(path)


def test_a_directory_of_parts_is_a_model(tmp_path: Path) -> None:
    parts = split(tmp_path)
    assert resolve_model(tmp_path) == parts[0]
    shutil.copy(WHOLE, tmp_path / "another.gguf")
    assert resolve_model(tmp_path) == tmp_path


def test_a_first_part_without_tensors(tmp_path: Path) -> None:
    parts = split(tmp_path, small_first=True)
    assert len(parts) == 4 and not _C.Gguf(parts[0]).tensors
    assert np.array_equal(logits(open_checkpoint(parts[2])), logits(open_checkpoint(WHOLE)))


def test_missing_parts_are_named(tmp_path: Path) -> None:
    parts = split(tmp_path)
    parts[2].unlink()
    with pytest.raises(_C.CheckpointError, match=r"of 3 parts; missing: tiny-00003-of-00003"):
        open_checkpoint(parts[0])
    parts[0].unlink()
    with pytest.raises(_C.CheckpointError, match=r"missing: tiny-00001.*tiny-00003"):
        Tokenizer(parts[1])


def test_a_part_that_is_a_git_lfs_pointer_is_called_one(tmp_path: Path) -> None:
    parts = split(tmp_path)
    parts[1].write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n")
    for path in parts:
        with pytest.raises(_C.CheckpointError, match="00002-of-00003.*git-lfs pointer"):
            open_checkpoint(path)


def test_parts_are_found_by_name(tmp_path: Path) -> None:
    parts = split(tmp_path)
    renamed = parts[1].rename(tmp_path / "weights.gguf")
    with pytest.raises(_C.CheckpointError, match=r"weights.gguf.*NAME-00001-of-00003.gguf"):
        open_checkpoint(renamed)


def test_parts_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    parts = split(tmp_path)
    shutil.copy(parts[0], parts[2])
    with pytest.raises(_C.CheckpointError, match="00003-of-00003.*split.no and split.count"):
        open_checkpoint(parts[0])
    (tmp_path / "other").mkdir()
    shutil.copy(split(tmp_path / "other", 8)[2], parts[2])
    with pytest.raises(_C.CheckpointError, match=r"split.tensors.count"):
        open_checkpoint(parts[0])


def test_a_count_is_a_count(tmp_path: Path) -> None:
    path = tmp_path / "tiny-00001-of-00002.gguf"
    for value, message in ((-1, "split.count must be a count, not -1"), (2**40, "NAME-00001-of-")):
        path.write_bytes(gb.gguf_file([gb.number("split.count", gb.I64, value)]))
        with pytest.raises(_C.CheckpointError, match=message):
            open_checkpoint(path)


def test_a_name_alone_makes_no_part(tmp_path: Path) -> None:
    path = tmp_path / "tiny-00001-of-00002.gguf"
    shutil.copy(WHOLE, path)
    assert open_checkpoint(path).config == open_checkpoint(WHOLE).config
