"""Whether the head is the embedding: what the file holds, against what config.json says.

The oracle is the same model with both matrices in its file and a config that does not tie them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import packed_models as pm
import pytest
from conftest import exact_kv_bits, load_model, make_engine, read_all

from lmdeploy_c import _C
from lmdeploy_c.files.checkpoint import open_checkpoint

NAMES = {"llama": ("model.embed_tokens.weight", "lm_head.weight"),
         "internlm2": ("model.tok_embeddings.weight", "output.weight")}  # fmt: skip


def write(path: Path, arch: str, kept: str, alike: bool, flag: bool | None) -> Path:
    config = pm.config_of(arch, "awq", 64, tie_word_embeddings=flag)
    packed = pm.packed_tensors(np.random.default_rng(1), "awq", config)
    tensors = pm.dense_tensors("awq", packed)
    embed, head = NAMES[arch]
    if alike:
        tensors[head] = tensors[embed]
    for name, part in ((embed, "embed"), (head, "head")):
        if part not in kept:
            del tensors[name]
    del config["quantization_config"]
    if flag is None:
        del config["tie_word_embeddings"]
    return pm.write_model(path, config, tensors)


def logits(path: Path) -> np.ndarray:
    engine = make_engine(load_model(path), kv_bits=exact_kv_bits())
    found = read_all(engine.submit(np.arange(20), max_new_tokens=0, output_logits="all")).logits
    engine.close()
    assert found is not None
    return found


@pytest.mark.parametrize("arch", NAMES)
@pytest.mark.parametrize(
    ("kept", "alike", "flag", "tied"),
    [
        ("embed head", False, True, False),
        ("embed head", True, True, True),
        ("embed head", True, False, False),
        ("embed head", False, None, False),
        ("head", True, True, True),
        ("head", True, None, True),
        ("embed", True, True, True),
        ("embed", True, None, True),
    ],
)
def test_what_the_file_holds_counts(
    tmp_path: Path, arch: str, kept: str, alike: bool, flag: bool | None, tied: bool
) -> None:
    path = write(tmp_path / "m", arch, kept, alike, flag)
    assert open_checkpoint(path).config["tie_embeddings"] is tied
    expected = logits(write(tmp_path / "both", arch, "embed head", alike, False))
    assert (logits(path) == expected).all()


def test_a_matrix_that_the_config_asks_for(tmp_path: Path) -> None:
    for kept, lost in (("embed", "lm_head.weight"), ("head", "model.embed_tokens.weight")):
        with pytest.raises(_C.CheckpointError, match=f'no tensor "{lost}"'):
            load_model(write(tmp_path / kept, "llama", kept, True, False))


def test_a_packed_head_is_its_own(tmp_path: Path) -> None:
    config = pm.config_of("llama", "awq", 64, tie_word_embeddings=True)
    tensors = pm.packed_tensors(np.random.default_rng(4), "awq", config, also=("lm_head",))
    path = pm.write_model(tmp_path / "packed", config, tensors)
    assert open_checkpoint(path).config["tie_embeddings"] is False
    untied = {**config, "tie_word_embeddings": False}
    assert (logits(path) == logits(pm.write_model(tmp_path / "untied", untied, tensors))).all()
