"""Tokenizers built from GGUF metadata and tokenizer.json against llama.cpp's ids."""

import json
import random
import time
from pathlib import Path

import pytest
from conftest import GOLDEN, SLOWER

from lmdeploy_c import _C
from lmdeploy_c.text.detokenizer import spelling_of
from lmdeploy_c.text.tokenizers_library import LibraryTokenizer
from lmdeploy_c.tokenizer import Tokenizer

TOKEN_FILES = sorted((GOLDEN / "gguf").glob("*.tokens.json"))
SMOLLM2 = json.loads((GOLDEN / "smollm2" / "tokenizer.json").read_text())


@pytest.fixture(scope="module")
def smollm2_tokenizer(smollm2_path: Path) -> Tokenizer:
    return Tokenizer(smollm2_path)


def check_strings(tokenizer: Tokenizer, strings: list[dict]) -> None:  # type: ignore[type-arg]
    for item in strings:
        assert tokenizer.encode(item["text"], add_bos=False) == item["ids"], item["text"]
        plain = tokenizer.encode(item["text"], add_bos=False, split_special_tokens=True)
        assert plain == item.get("plain_ids", item["ids"]), item["text"]


@pytest.mark.parametrize("path", TOKEN_FILES, ids=lambda p: p.name.split(".")[0])
def test_gguf_vocabularies(path: Path) -> None:
    golden = json.loads(path.read_text())
    tokenizer = Tokenizer(path.with_name(path.name.replace(".tokens.json", ".gguf")))
    check_strings(tokenizer, golden["strings"])
    assert tokenizer.encode(golden["with_bos"]["text"]) == golden["with_bos"]["ids"]


def test_smollm2(smollm2_tokenizer: Tokenizer) -> None:
    check_strings(smollm2_tokenizer, SMOLLM2["strings"])
    for item in SMOLLM2["strings"]:
        assert smollm2_tokenizer.decode(item["ids"], skip_special_tokens=False) == item["decoded"]


def test_hugging_face_directory(smollm2_tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(smollm2_tokenizer._tokenizer.rules())
    config = {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"},
              "chat_template": [{"name": "default", "template": "x"}]}  # fmt: skip
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer(tmp_path)
    check_strings(tokenizer, SMOLLM2["strings"])
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    assert tokenizer.chat_templates == {"default": "x"}


def test_never_half_a_character(smollm2_tokenizer: Tokenizer) -> None:
    text = "naïve 北京 🙂👩‍👩‍👧 क्षि done"
    detokenizer = smollm2_tokenizer.detokenizer()
    pieces = [detokenizer.add([i]) for i in smollm2_tokenizer.encode(text)]
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) + detokenizer.finish() == text


@pytest.mark.parametrize("name", ["llama-spm", "llama-q4_1"])
def test_incremental_equals_whole(name: str) -> None:
    """Random ids too: broken characters become U+FFFD, at the same places."""
    tokenizer = Tokenizer(GOLDEN / "gguf" / f"{name}.gguf")
    golden = json.loads((GOLDEN / "gguf" / f"{name}.tokens.json").read_text())
    random.seed(5)
    cases = [item["ids"] for item in golden["strings"]]
    if name == "llama-q4_1":
        cases += [random.choices(range(tokenizer.vocab_size), k=200) for _ in range(50)]
    for ids in cases:
        detokenizer = tokenizer.detokenizer(skip_special_tokens=False)
        text = "".join(detokenizer.add([i]) for i in ids) + detokenizer.finish()
        assert text == tokenizer.decode(ids, skip_special_tokens=False)


def test_detokenising_is_linear(smollm2_tokenizer: Tokenizer) -> None:
    ids = smollm2_tokenizer.encode("one two three " * 4000)

    def seconds(n: int) -> float:
        detokenizer = smollm2_tokenizer.detokenizer()
        start = time.process_time()
        for i in ids[:n]:
            detokenizer.add([i])
        return time.process_time() - start

    short, long = (min(seconds(n) for _ in range(5)) for n in (len(ids) // 8, len(ids)))
    assert long < 8 * 3 * short, (long, short)


def test_token_ids_of_a_word_inside_a_text() -> None:
    tokenizer = Tokenizer(GOLDEN / "gguf" / "llama-spm.gguf")
    ids = tokenizer.token_ids_of("x")
    assert tokenizer.encode("\nx", add_bos=False)[-len(ids) :] == ids


def test_what_is_not_served_is_named(smollm2_path: Path) -> None:
    metadata = _C.Gguf(smollm2_path).metadata
    with pytest.raises(_C.UnsupportedError, match="'strange'.*smollm"):
        Tokenizer.from_gguf({**metadata, "tokenizer.ggml.pre": "strange"})
    with pytest.raises(_C.UnsupportedError, match="'bert'"):
        Tokenizer.from_gguf({**metadata, "tokenizer.ggml.model": "bert"})
    with pytest.raises(ValueError, match="merges"):
        Tokenizer.from_gguf({**metadata, "tokenizer.ggml.merges": ["qqqq zzzz"]})
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        Tokenizer(GOLDEN)


def test_building_is_quick(smollm2_path: Path) -> None:
    metadata = _C.Gguf(smollm2_path).metadata
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        Tokenizer.from_gguf(metadata)
        best = min(best, time.process_time() - start)
    assert best < 0.5 * SLOWER


def test_malformed_metadata_is_a_value_error() -> None:
    metadata = _C.Gguf(GOLDEN / "gguf" / "llama-spm.gguf").metadata
    byte_level = _C.Gguf(GOLDEN / "gguf" / "llama-q4_1.gguf").metadata
    for good in (metadata, byte_level):
        for key in [k for k in good if k.startswith("tokenizer")]:
            for value in (None, 5, 1.5, "x", [], [1], ["x"], [[]], {"a": 1}):
                try:
                    Tokenizer.from_gguf({**good, key: value})
                except ValueError as error:
                    assert str(error)


def test_other_decoders_lose_no_space() -> None:
    """Metaspace strips a text's first space: tokens decoded in a window must not lose theirs."""
    random.seed(6)
    tokenizer = Tokenizer(GOLDEN / "gguf" / "llama-spm.gguf")
    parts = json.loads(tokenizer._tokenizer.rules())
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    for decoder in (
        metaspace,
        {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, metaspace]},
    ):
        tokenizer._tokenizer = LibraryTokenizer(
            {**parts, "decoder": decoder}, parts["added_tokens"]
        )
        tokenizer._spelling = spelling_of(tokenizer._tokenizer)
        for _ in range(60):
            ids = random.choices(range(tokenizer.vocab_size), k=200)
            for skip in (True, False):
                detokenizer = tokenizer.detokenizer(skip)
                text = "".join(detokenizer.add([i]) for i in ids) + detokenizer.finish()
                assert text == tokenizer.decode(ids, None, skip)
