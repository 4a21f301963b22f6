"""An answer's first token is not a text's first: it keeps the space of SentencePiece. And ids that
only the model has, since its vocabulary is padded, are tokens like any other."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import GOLDEN
from tokenizer_dirs import BYTES, KINDS, write

from lmdeploy_c import GenerationConfig, Pipeline, TurbomindEngineConfig, pipeline

ENGINE = TurbomindEngineConfig(session_len=128, max_batch_size=4, cache_max_entry_count="4MB")
MODEL = GOLDEN / "models" / "llama-f16-hd64-gqa1"  # 260 ids
PROMPT = "The capital is"


def directory(path: Path, **files: Any) -> Path:
    for file in ("config.json", "model.safetensors"):
        shutil.copy(MODEL / file, path)
    return write(path, **files)


def fewer_bytes() -> dict[str, Any]:
    """The SentencePiece tokenizer, with ids that the model has: without the bytes from 0xC0."""
    kind = KINDS["SentencePiece, bytes"]
    words = [word for word in kind["model"]["vocab"] if word not in BYTES[0xC0:]]
    vocab = {word: i for i, word in enumerate(words)}
    added = [{**t, "id": len(words) + i} for i, t in enumerate(kind["added_tokens"])]
    return {**kind, "model": {**kind["model"], "vocab": vocab}, "added_tokens": added}


@pytest.fixture(scope="module", params=["GGUF", "directory"])
def pipe(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Pipeline]:
    path = GOLDEN / "gguf" / "llama-spm.gguf"
    if request.param == "directory":
        names = {"bos_token": "<s>", "eos_token": "</s>"}
        files = {"tokenizer": fewer_bytes(), "tokenizer_config": names}
        path = directory(tmp_path_factory.mktemp("model"), **files)
    with pipeline(path, backend_config=ENGINE) as made:
        yield made


def saying(pipe: Pipeline, word: str, **options: Any) -> GenerationConfig:
    """Answers of two tokens, which are this one."""
    token_id = pipe.tokenizer.get_vocab()[word]
    return GenerationConfig(
        max_new_tokens=2, ignore_eos=True, logit_bias={token_id: 100.0}, **options
    )


@pytest.fixture
def word(pipe: Pipeline) -> str:
    """A token that begins with a space, as the vocabulary has it."""
    return next(w for w in ("▁Paris", "▁the") if w in pipe.tokenizer.get_vocab())


def test_the_space_stays(pipe: Pipeline, word: str) -> None:
    shown, config = word.replace("▁", " "), saying(pipe, word)
    answer = pipe(PROMPT, gen_config=config, do_preprocess=False)
    assert answer.text == shown * 2
    deltas = list(pipe.stream_infer(PROMPT, gen_config=config, do_preprocess=False))
    assert "".join(delta.text for delta in deltas) == shown * 2
    library, ids = pipe.tokenizer._tokenizer._real, pipe.tokenizer.encode(PROMPT)
    whole = library.decode(ids + answer.token_ids, skip_special_tokens=True)
    assert whole == library.decode(ids, skip_special_tokens=True) + answer.text


def test_a_stop_word_has_the_space(pipe: Pipeline, word: str) -> None:
    shown = word.replace("▁", " ")
    config = saying(pipe, word, stop_words=[shown])
    answer = pipe(PROMPT, gen_config=config, do_preprocess=False)
    assert (answer.text, answer.finish_reason) == ("", "stop")
    config.include_stop_str_in_output = True
    assert pipe(PROMPT, gen_config=config, do_preprocess=False).text == shown


def test_a_session_has_the_space(pipe: Pipeline, word: str) -> None:
    shown, config = word.replace("▁", " "), saying(pipe, word)
    session = pipe.session()
    session(PROMPT, config, False, False)
    assert session.text_so_far() == PROMPT + shown * 2
    assert session.history == [(PROMPT, shown * 2)]
    session.rewind(tokens=1)
    assert session.history == [(PROMPT, shown)]
    assert session.text_so_far() == PROMPT + shown


def test_padded_ids_are_ids(tmp_path: Path) -> None:
    """259 tokens, and a model of 260: the last id has no text, and its session is one."""
    with pipeline(directory(tmp_path), backend_config=ENGINE) as pipe:
        assert pipe.tokenizer.vocab_size_with_added == 259
        config = GenerationConfig(max_new_tokens=2, ignore_eos=True, logit_bias={259: 100.0})
        session = pipe.session()
        answer = session("a", config, False, False)
        assert (answer.text, answer.token_ids) == ("", [259, 259])
        session.save(tmp_path / "session")
        assert pipe.load_session(tmp_path / "session").token_ids == session.token_ids
