"""Tokenizers of directories as GGUF metadata.

The oracles are llama.cpp's ids of golden GGUF files, whose tokenizers come back from a directory,
and SentencePiece's own ids.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizer_dirs
from conftest import GOLDEN

from lmdeploy_c import _C, Tokenizer
from lmdeploy_c.lite import export
from lmdeploy_c.lite.gguf_tokenizer import of_tokenizer
from lmdeploy_c.text.pre_tokenizers import PRE_TOKENIZERS

VOCABULARIES = sorted(p.name.removesuffix(".tokens.json")
                      for p in (GOLDEN / "gguf").glob("*.tokens.json"))  # fmt: skip


def vocabulary_of(tokenizer: Tokenizer, n_vocab: int | None = None, **options: Any) -> Any:
    n_vocab = n_vocab or tokenizer.vocab_size_with_added
    return of_tokenizer(tokenizer, n_vocab, options.get("bos"), options.get("ends", []))


@pytest.mark.parametrize("name", VOCABULARIES)
def test_a_vocabulary_comes_back(tmp_path: Path, name: str) -> None:
    """From a GGUF file to a directory and back: llama.cpp's ids, and its own lists."""
    path = GOLDEN / "gguf" / f"{name}.gguf"
    original = _C.Gguf(path).metadata
    if name == "llama-ropefreqs":  # no directory says that
        Tokenizer(path).save(tmp_path / "tokenizer.json")
        of_file = Tokenizer(path)
        config = {"bos_token": of_file.bos_token, "eos_token": of_file.eos_token,
                  "chat_template": of_file.chat_templates["default"]}  # fmt: skip
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        tokenizer = Tokenizer(tmp_path)
    else:
        tokenizer = Tokenizer(export(path, tmp_path))
    made = vocabulary_of(tokenizer, len(original["tokenizer.ggml.tokens"]))
    ids = json.loads((GOLDEN / "gguf" / f"{name}.tokens.json").read_text())
    again = Tokenizer.from_gguf(made)
    for row in ids["strings"]:
        assert again.encode(row["text"], add_special_tokens=False) == row["ids"], row["text"]
    assert again.encode(ids["with_bos"]["text"]) == Tokenizer(path).encode(ids["with_bos"]["text"])
    for key in ("model", "tokens", "merges", "bos_token_id", "eos_token_id", "add_bos_token"):
        key = f"tokenizer.ggml.{key}"
        assert made.get(key) == original.get(key), key
    if "tokenizer.ggml.pre" in original:
        rows = [PRE_TOKENIZERS[m["tokenizer.ggml.pre"]] for m in (made, original)]
        assert rows[0] is rows[1]
    assert made.get("tokenizer.chat_template") == original.get("tokenizer.chat_template")
    types = [m["tokenizer.ggml.token_type"] for m in (made, original)]
    assert types[0].dtype == types[1].dtype == np.int32
    assert np.array_equal(*types)


@pytest.mark.parametrize("name", ["prefix", "plain"])
def test_a_model_of_sentencepiece(tmp_path: Path, name: str) -> None:
    """Its own ids, by scores that stand for the order of merges; from tokenizer.model and from
    the tokenizer.json that is made of it."""
    shutil.copy(GOLDEN / "sentencepiece" / f"{name}.model", tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer_config.json").write_text("{}")
    tokenizer = Tokenizer(tmp_path)
    folder = tmp_path / "json"
    folder.mkdir()
    tokenizer.save(folder / "tokenizer.json")
    for each in (tokenizer, Tokenizer(folder)):
        made = vocabulary_of(each)
        assert made["tokenizer.ggml.model"] == "llama"
        assert made["tokenizer.ggml.add_space_prefix"] is (name == "prefix")
        assert made["tokenizer.ggml.add_bos_token"] is True
        again = Tokenizer.from_gguf(made)
        for text, ids, _ in json.loads((GOLDEN / "sentencepiece" / f"{name}.json").read_text()):
            assert again.encode(text, add_special_tokens=False) == ids
        types = dict(
            zip(made["tokenizer.ggml.tokens"], made["tokenizer.ggml.token_type"], strict=True)
        )
        assert (types["<unk>"], types["<s>"], types["<0x0A>"], types["▁"]) == (2, 3, 6, 1)


def base(path: Path, **tokenizer: Any) -> Tokenizer:
    path.mkdir(exist_ok=True)
    return Tokenizer(tokenizer_dirs.write(path, tokenizer=tokenizer))


def test_rows_that_no_token_uses(tmp_path: Path) -> None:
    """They get names; added tokens for which there is no row are left out."""
    tokenizer = base(tmp_path)
    n = tokenizer.vocab_size_with_added
    more = vocabulary_of(tokenizer, n + 3)
    assert more["tokenizer.ggml.tokens"][n:] == [f"[PAD{i}]" for i in range(n, n + 3)]
    assert list(more["tokenizer.ggml.token_type"][n:]) == [5, 5, 5]
    fewer = vocabulary_of(tokenizer, n - 1)
    assert len(fewer["tokenizer.ggml.tokens"]) == n - 1
    with pytest.raises(
        _C.UnsupportedError, match="has token 255, but the model's vocabulary has 9"
    ):
        vocabulary_of(tokenizer, 9)


def test_tokens_that_have_a_name(tmp_path: Path) -> None:
    names = {"bos_token": "<|im_start|>", "pad_token": "<|endoftext|>", "sep_token": "no token"}
    tokenizer = Tokenizer(tokenizer_dirs.write(tmp_path, tokenizer_config=names))
    ids = tokenizer.special_ids
    made = vocabulary_of(tokenizer, bos=5, ends=[7, 9, ids["<|im_end|>"], 1])
    found = {k.removeprefix("tokenizer.ggml."): v for k, v in made.items() if k.endswith("_id")}
    eos = tokenizer.eos_token_id
    others = [i for i in (7, 9, ids["<|im_end|>"], 1) if i != (7 if eos is None else eos)]
    assert found["bos_token_id"] == ids["<|im_start|>"]
    assert found["padding_token_id"] == ids["<|endoftext|>"]
    assert found["eos_token_id"] == (7 if eos is None else eos)
    assert [found["eot_token_id"], found["eom_token_id"]] == others[:2]


def test_what_no_file_says(tmp_path: Path) -> None:
    parts = tokenizer_dirs.BASE["tokenizer"]
    merges = [["Ġ", "a"], ["e", "r"], ["1", "2"]]
    tokens = [*parts["model"]["vocab"], *(left + right for left, right in merges)]
    assert len(tokens) == 259 and all(len(t) for t in tokens)
    model = {**parts["model"], "vocab": {t: i for i, t in enumerate(tokens)}, "merges": merges}
    added = [{**token, "id": 259 + i} for i, token in enumerate(parts["added_tokens"])]
    whole = {"model": model, "added_tokens": added}
    upper = {"type": "Split", "pattern": {"Regex": "[aeiou]"}, "behavior": "Isolated",
             "invert": False}  # fmt: skip
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                  "use_regex": False}  # fmt: skip
    cut = {"type": "Sequence", "pretokenizers": [upper, byte_level]}
    before = {"type": "TemplateProcessing", "single": [
        {"SpecialToken": {"id": "<|im_end|>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<|im_end|>": {"id": "<|im_end|>", "ids": [261],
                                          "tokens": ["<|im_end|>"]}}}  # fmt: skip
    for i, (keys, message) in enumerate([
        ({"pre_tokenizer": cut}, "no name for the way in which this tokenizer.json cuts a text"),
        ({"normalizer": {"type": "Lowercase"}}, "normaliser Lowercase"),
        ({"post_processor": before}, r"puts tokens \(261,\) before a text"),
    ]):  # fmt: skip
        with pytest.raises(_C.UnsupportedError, match=message):
            vocabulary_of(base(tmp_path / str(i), **whole, **keys))
    for i, kind in enumerate(["WordPiece", "words with a suffix", "no decoder"]):
        with pytest.raises(_C.UnsupportedError, match="a GGUF file cannot have this tokenizer"):
            vocabulary_of(base(tmp_path / f"kind{i}", **tokenizer_dirs.KINDS[kind]))


def test_merges_that_no_scores_say(tmp_path: Path) -> None:
    """A token that no merge makes: llama.cpp makes it."""
    parts = json.loads(json.dumps(tokenizer_dirs.KINDS["SentencePiece, bytes"]))
    words = [*tokenizer_dirs.BYTES, *"▁abcdefghijklmnopqrstuvwxyz", "re", "er", "th"]
    model = {**parts["model"], "vocab": {w: i for i, w in enumerate(words)},
             "merges": [["r", "e"], ["e", "r"]]}  # fmt: skip
    ids = {"<s>": len(words), "</s>": len(words) + 1}
    added = [tokenizer_dirs.added(i, token, True) for token, i in ids.items()]
    tokenizer = base(tmp_path, **{**parts, "model": model, "added_tokens": added})
    with pytest.raises(_C.UnsupportedError, match="would make other tokens of"):
        vocabulary_of(tokenizer)
