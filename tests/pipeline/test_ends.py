"""Where an answer ends: the union of end tokens, stop words in any spelling, and the first token.

The models say a script. The right values are llama.cpp's for GGUF files (its `load_vocab`, and its
server's first token of a chat), LMDeploy's union for directories, transformers' for ids beyond the
vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scripted_models import CHATML, CONTROL, write_directory, write_gguf

from lmdeploy_c import ChatTemplateConfig, GenerationConfig, Response, TurbomindEngineConfig
from lmdeploy_c import pipeline as make_pipeline
from lmdeploy_c.tokenizer import Tokenizer

CONFIG = TurbomindEngineConfig(session_len=256, max_batch_size=4, cache_max_entry_count=16)
HELLO = ("Hello", " there")
AS_IT_IS = "{{ messages[-1].content + '\n' }}"  # says nothing of how a turn ends
NORMAL, USER_DEFINED = 1, 4


def answer(path: Path, config: GenerationConfig, **options: Any) -> Response:
    with make_pipeline(path, CONFIG, log_level="ERROR", **options) as pipe:
        response: Response = pipe("hi", gen_config=config)
        deltas = list(pipe.stream_infer("hi", gen_config=config))
    assert "".join(d.text for d in deltas) == response.text
    assert [t for d in deltas for t in d.token_ids] == response.token_ids
    assert deltas[-1].finish_reason == response.finish_reason
    return response


def ending(response: Response) -> tuple[str, str | None]:
    assert response.error_message is None
    return response.text, response.finish_reason


NINE = GenerationConfig(max_new_tokens=9)

Write = Callable[..., tuple[Path, dict[str, int]]]


@pytest.mark.parametrize(
    "files",
    [
        {"config": {"eos_token_id": 259}},
        {"generation_config": {"eos_token_id": 259}},
        {"generation_config": {"eos_token_id": [259]}, "config": {"eos_token_id": None}},
        {"generation_config": {"eos_token_id": None}},
        {"generation_config": {"temperature": 0.6}},
        {},
        # Each source by itself:
        {"tokenizer_config": {"eos_token": None}, "config": {"eos_token_id": 261}},
        {
            "tokenizer_config": {"eos_token": "<|endoftext|>"},
            "config": {"eos_token_id": 261},
            "generation_config": {"eos_token_id": 259},
            "template": AS_IT_IS,
        },
        {
            "tokenizer_config": {"eos_token": "<|endoftext|>"},
            "config": {"eos_token_id": 259},
            "generation_config": {"eos_token_id": [259, 261]},
            "template": AS_IT_IS,
        },
        {"tokenizer_config": {"eos_token": "<|endoftext|>"}},  # the template's end of a turn
        # Beside ids that the model does not have:
        {"config": {"eos_token_id": 262}, "generation_config": {"eos_token_id": [1 << 40, -1]}},
    ],
)
def test_every_source_of_end_tokens_counts(tmp_path: Path, files: dict[str, Any]) -> None:
    says = [*HELLO, "<|im_end|>", " again", "<|endoftext|>"]
    path, ids = write_directory(tmp_path, [*HELLO, " again"], says, **files)
    assert ids["<|im_end|>"] == 261 and len(ids) == 262
    assert ending(answer(path, NINE)) == ("Hello there", "stop")
    ignoring = GenerationConfig(max_new_tokens=5, ignore_eos=True, skip_special_tokens=False)
    said = "Hello there<|im_end|> again<|endoftext|>"
    assert ending(answer(path, ignoring)) == (said, "length")


@pytest.mark.parametrize("kind", [CONTROL, USER_DEFINED, NORMAL])
@pytest.mark.parametrize("end", ["<|im_end|>", "<end_of_turn>", "<|eom_id|>", "[EOT]"])
def test_a_gguf_file_ends_turns_by_known_texts(tmp_path: Path, end: str, kind: int) -> None:
    specials = {"<eos-of-texts>": CONTROL, "<|im_start|>": CONTROL, end: kind}
    path, _ = write_gguf(
        tmp_path / "m.gguf", HELLO, [*HELLO, end, "!"], specials=specials, eos_token_id=258
    )
    assert ending(answer(path, NINE)) == ("Hello there", "stop")
    assert Tokenizer(path).encode(f"a{end}") == [ord("a"), 260]


@pytest.mark.parametrize("name", ["eos", "eot", "eom"])
def test_a_gguf_file_names_end_tokens(tmp_path: Path, name: str) -> None:
    specials = {"<one>": CONTROL, "<two>": CONTROL}
    end = {f"{name}_token_id": 258, "eos_token_id": 9999} | {f"{name}_token_id": 258}
    path, _ = write_gguf(
        tmp_path / "m.gguf", HELLO, [*HELLO, "<one>", "!"], specials=specials, **end
    )
    assert ending(answer(path, NINE)) == ("Hello there", "stop")


@pytest.mark.parametrize(
    ("add_bos", "template", "n_bos"),
    [(1, CHATML, 1), (0, CHATML, 0), (1, "{{ bos_token }}" + CHATML, 1),
     (0, "{{ bos_token }}" + CHATML, 1)],
)  # fmt: skip
def test_the_first_token_of_a_chat_comes_once(
    tmp_path: Path, add_bos: int, template: str, n_bos: int
) -> None:
    path, ids = write_gguf(
        tmp_path / "m.gguf", ["Hello"], ["Hello"], template=template, add_bos_token=add_bos,
        bos_token_id=257, eos_token_id=259,
    )  # fmt: skip
    assert ids["<|endoftext|>"] == 257
    with make_pipeline(path, CONFIG) as pipe:
        asked = pipe.engine.ask("hi", GenerationConfig(max_new_tokens=1))
        asked.read_all()
        assert asked.input_ids[: n_bos + 1] == [*[257] * n_bos, 258]
        session = pipe.session(GenerationConfig(max_new_tokens=2))
        for _ in range(2):
            session("hi", stream_response=False)
        assert session.token_ids.count(257) == n_bos


WORDS = ["Hello", "<|", "im_end", "|>", " user"]


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("says", [WORDS, ["Hello", "<|im_end|>", " user"]], ids=["plain", "token"])
def test_a_stop_word_ends_however_it_is_spelled(
    tmp_path: Path, says: list[str], skip: bool
) -> None:
    path, _ = write_directory(
        tmp_path, WORDS, says, template=AS_IT_IS,
        tokenizer_config={"eos_token": None},
    )  # fmt: skip

    def ask(*words: str, template: list[str] | None = None, **fields: Any) -> tuple[str, Any]:
        own = ChatTemplateConfig(stop_words=template)
        config = GenerationConfig(
            max_new_tokens=len(says), skip_special_tokens=skip, stop_words=list(words), **fields
        )
        return ending(answer(path, config, chat_template_config=own))

    assert ask("<|im_end|>") == ("Hello", "stop")
    assert ask("<|im_end|>", include_stop_str_in_output=True) == ("Hello<|im_end|>", "stop")
    assert ask("o<|im_end|> ", "<|im_end|>") == ("Hello", "stop")
    assert ask("o<|im_end|>", "<|im_end|>") == ("Hell", "stop")
    assert ask("d|> us", include_stop_str_in_output=True)[0].endswith("d|> us")
    assert ask(template=["<|im_end|>"]) == ("Hello", "stop")
    assert ask(template=["<|im_end|>"], ignore_eos=True)[1] == "length"


def test_min_new_tokens_holds_for_words_and_end_tokens(tmp_path: Path) -> None:
    words = ["one", "two", "three"]
    path, _ = write_directory(tmp_path / "words", words, words)
    config = GenerationConfig(max_new_tokens=9, stop_words=["two", "three"], min_new_tokens=2)
    assert ending(answer(path, config)) == ("onetwo", "stop")
    path, _ = write_directory(tmp_path / "end", words, ["one", "<|im_end|>"])
    assert ending(answer(path, NINE)) == ("one", "stop")
    longer = answer(path, GenerationConfig(max_new_tokens=4, min_new_tokens=3))
    assert (longer.generate_token_len, longer.finish_reason) == (4, "length")
