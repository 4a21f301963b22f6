"""llama.cpp's own vocabularies and names; LMDEPLOY_C_LLAMA_CPP is the folder of its source."""

import os
import re
from pathlib import Path

import pytest

from lmdeploy_c import _C
from lmdeploy_c.text.gguf_vocab import OTHER_MODELS
from lmdeploy_c.text.pre_tokenizers import PRE_TOKENIZERS, REFUSED
from lmdeploy_c.tokenizer import Tokenizer

SOURCE = Path(os.environ.get("LMDEPLOY_C_LLAMA_CPP", "none"))
CASES = sorted(SOURCE.glob("models/ggml-vocab-*.gguf.inp"))
SEPARATOR = "\n__ggml_vocab_test__\n"


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.name.split(".")[0])
def test_cases(path: Path) -> None:
    """NAME.gguf.inp holds texts, NAME.gguf.out a line of ids for each."""
    texts = path.read_bytes().decode().removesuffix(SEPARATOR).split(SEPARATOR)
    lines = path.with_suffix(".out").read_text().splitlines()
    metadata = _C.Gguf(path.with_suffix("")).metadata
    if metadata["tokenizer.ggml.model"] in OTHER_MODELS:
        with pytest.raises(_C.UnsupportedError, match="is not served"):
            Tokenizer.from_gguf(metadata)
        return
    tokenizer = Tokenizer.from_gguf(metadata)
    wrong = []
    for text, line in zip(texts, lines, strict=True):
        want = [int(i) for i in line.split()]
        if tokenizer.encode(text, add_bos=False) != want:
            wrong.append(text)
    assert not wrong, f"{len(wrong)} of {len(texts)}"


@pytest.mark.skipif(not SOURCE.is_dir(), reason="LMDEPLOY_C_LLAMA_CPP names no folder")
def test_names() -> None:
    source = (SOURCE / "src" / "llama-vocab.cpp").read_text()
    names = set(re.findall(r'tokenizer_pre == "([^"]+)"', source))
    assert names == {*PRE_TOKENIZERS, *REFUSED}
    models = set(re.findall(r'tokenizer_model == "([^"]+)"', source))
    assert models == {*OTHER_MODELS, "gpt2", "llama", "gemma4", "test"}
