"""Directories whose tokenizer is a SentencePiece model alone, against the library's own ids."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import GOLDEN

from lmdeploy_c import _C
from lmdeploy_c.files import sentencepiece_model
from lmdeploy_c.tokenizer import Tokenizer

MODELS = ("prefix", "plain")  # with a space before each text, and without


def write(path: Path, name: str = "plain", **config: Any) -> Path:
    shutil.copy(GOLDEN / "sentencepiece" / f"{name}.model", path / "tokenizer.model")
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def number(value: int) -> bytes:
    return bytes([value & 127 | 128, *number(value >> 7)]) if value > 127 else bytes([value])


def field(n: int, value: int | bytes) -> bytes:
    """A field of a message, as protocol buffers write it."""
    if isinstance(value, int):
        return number(n << 3) + number(value)
    return number(n << 3 | 2) + number(len(value)) + value


@pytest.mark.parametrize("name", MODELS)
def test_ids_are_the_librarys(name: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer(write(tmp_path, name, bos_token="<s>", eos_token="</s>"))
    for text, ids, shown in json.loads((GOLDEN / "sentencepiece" / f"{name}.json").read_text()):
        assert tokenizer.encode(text, add_special_tokens=False) == ids
        assert tokenizer.encode(text) == [1, *ids]
        assert tokenizer.decode(ids) == shown


@pytest.mark.parametrize(
    ("adds", "around"),
    [({}, ([1], [])), ({"add_bos_token": False}, ([], [])),
     ({"add_bos_token": None}, ([1], [])), ({"add_eos_token": True}, ([1], [2]))],
)  # fmt: skip
def test_what_is_put_around_a_text(
    adds: dict[str, Any], around: tuple[list[int], list[int]], tmp_path: Path
) -> None:
    tokenizer = Tokenizer(write(tmp_path, **adds))
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    before, after = around
    inside = tokenizer.encode("the sea", add_special_tokens=False)
    assert tokenizer.encode("the sea") == [*before, *inside, *after]


def test_tokens_that_other_files_name_have_their_ids(tmp_path: Path) -> None:
    """They take the place of pieces that the model leaves unused, as in InternLM2's files."""
    named = {"338": {"content": "<|im_start|>", "special": True},
             "339": {"content": "<|im_end|>", "special": True},
             "343": {"content": "<tool>", "special": False}}  # fmt: skip
    path = write(tmp_path, added_tokens_decoder=named, eos_token="<|im_end|>")
    tokenizer = Tokenizer(path)
    ids = tokenizer.encode("<|im_start|>the<|im_end|><tool>")
    assert (ids[1], ids[-2:]) == (338, [339, 343])
    assert tokenizer.decode(ids) == "the<tool>"
    assert (tokenizer.eos_token_id, tokenizer.vocab_size_with_added) == (339, 344)
    (path / "tokenizer_config.json").unlink()
    (path / "added_tokens.json").write_text('{"<|im_start|>": 338}')
    assert Tokenizer(path).encode("<|im_start|>") == [1, 338]


def test_tokenizer_json_comes_first(tmp_path: Path) -> None:
    (write(tmp_path) / "tokenizer.json").write_text("{}")
    with pytest.raises(_C.CheckpointError, match=r"tokenizer\.json"):
        Tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (field(2, field(3, 1)), "a model of unigram is not served; save it as tokenizer.json"),
        (b"", "a model of unigram"),
        (field(2, field(3, 2)), "remove_extra_whitespaces is not served"),
        (field(2, field(3, 2)) + field(3, field(1, b"nmt_nfkc") + field(2, b"x")), "nmt_nfkc"),
    ],
)
def test_what_is_not_served_is_named(parts: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(field(1, field(1, b"a")) + parts)
    with pytest.raises(_C.UnsupportedError, match=message):
        Tokenizer(tmp_path)


@pytest.mark.parametrize(
    "data",
    [b"{}", b"\x80", number(1 << 3 | 2) + number(1 << 40), field(1, field(1, 5)),
     field(1, field(1, b"\xff")), field(1, field(2, b"x")), field(1, 7)],
)  # fmt: skip
def test_what_is_no_model_is_named(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(data)
    with pytest.raises(_C.CheckpointError, match=r"tokenizer\.model.*it is no SentencePiece model"):
        Tokenizer(tmp_path)


def test_large_files_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentencepiece_model, "MAX_BYTES", 100)
    with pytest.raises(_C.CheckpointError, match="larger than 100 bytes"):
        Tokenizer(write(tmp_path))


def test_mutants_end_in_an_error_that_names_the_file(tmp_path: Path) -> None:
    draw = random.Random(1)
    data = (GOLDEN / "sentencepiece" / "plain.model").read_bytes()
    for _ in range(60):
        mutant = bytearray(data)
        for _ in range(draw.randint(1, 4)):
            mutant[draw.randrange(len(mutant))] = draw.randrange(256)
        (tmp_path / "tokenizer.model").write_bytes(mutant[: draw.randrange(1, 2 * len(data))])
        try:
            Tokenizer(tmp_path).encode("the sea")
        except (_C.CheckpointError, _C.UnsupportedError) as error:
            assert "tokenizer.model" in str(error)
