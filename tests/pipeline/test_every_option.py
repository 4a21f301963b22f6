"""Every field of GenerationConfig does something to an answer: none is lost on its way to the
sampler. A new field needs a line in `effects`."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lmdeploy_c import GenerationConfig, Pipeline, Response, TurbomindEngineConfig, pipeline

ROOT = Path(__file__).parents[2]
PROMPT = "Tell me a story about a fox and a dog."
#: An answer that each option could change: sampled from all tokens.
BASE = {"do_sample": True, "temperature": 1.0, "top_k": 0, "random_seed": 1, "max_new_tokens": 12}
EOS, SPECIAL = 2, 3  # of SmolLM2: <|im_end|>, <repo_name>
ENDS_AT_ONCE = {"logit_bias": {EOS: 100.0}}
#: Fields that are served: the others are refused at any value but their defaults.
FIELDS = [f.name for f in dataclasses.fields(GenerationConfig) if "served" not in f.metadata]


def effects(answer: Response) -> dict[str, tuple[dict[str, Any], Any]]:
    """Field -> what stands beside it in both configurations, and a value that changes the answer.
    answer: to BASE."""
    word, first = answer.text.split()[1], answer.token_ids[0]
    return {
        "n": ({}, 2),
        "max_new_tokens": ({}, 5),
        "do_sample": ({}, False),
        "top_p": ({}, 0.1),
        "top_k": ({}, 1),
        "min_p": ({}, 0.9),
        "temperature": ({}, 0.0),
        "repetition_penalty": ({}, 2.0),
        "ignore_eos": (ENDS_AT_ONCE, True),
        "random_seed": ({}, 2),
        "stop_words": ({}, [word]),
        "bad_words": ({}, [f" {word}"]),
        "stop_token_ids": ({}, [first]),
        "bad_token_ids": ({}, [first]),
        "min_new_tokens": (ENDS_AT_ONCE, 5),
        "skip_special_tokens": ({"logit_bias": {SPECIAL: 100.0}}, False),
        "logprobs": ({}, 3),
        "output_logits": ({}, "generation"),
        "include_stop_str_in_output": ({"stop_words": [word]}, True),
        "return_ppl": ({}, True),
        "presence_penalty": ({}, 2.0),
        "frequency_penalty": ({}, 2.0),
        "no_repeat_ngram_size": ({}, 1),
        "logit_bias": ({}, {first: -100.0}),
        "priority": ({}, 1000),
        "timeout": ({}, 1e-6),
    }


@pytest.fixture(scope="module")
def pipe() -> Iterator[Pipeline]:
    config = TurbomindEngineConfig(session_len=256, max_batch_size=1, cache_max_entry_count="64MB")
    with pipeline(backend_config=config) as made:
        yield made


@pytest.fixture(scope="module")
def answer(pipe: Pipeline) -> Response:
    """To BASE; chance has no part in it."""
    first, second = (pipe(PROMPT, GenerationConfig(**BASE)) for _ in range(2))
    assert shown(first) == shown(second)
    return first


def shown(response: Response) -> str:
    """All of a response but what depends on what ran before it."""
    return repr(dataclasses.replace(response, cached_tokens=0))


def last_to_end(pipe: Pipeline, config: GenerationConfig) -> int:
    """Which of three requests ends last, where one runs at a time and the third has `config`."""
    configs = [GenerationConfig(**BASE)] * 2 + [config]
    pieces = pipe.stream_infer([PROMPT] * 3, gen_config=configs)
    return [piece.index for piece in pieces if piece.finish_reason][-1]


@pytest.mark.parametrize("name", FIELDS)
def test_the_field_changes_an_answer(pipe: Pipeline, answer: Response, name: str) -> None:
    beside, value = effects(answer)[name]
    without = GenerationConfig(**{**BASE, **beside})
    changed = dataclasses.replace(without, **{name: value})
    assert getattr(without, name) != value
    if name == "priority":
        assert (last_to_end(pipe, without), last_to_end(pipe, changed)) == (2, 1)
        return
    before = pipe(PROMPT, without) if beside else answer
    assert shown(pipe(PROMPT, changed)) != shown(before)


def submit_keywords() -> set[str]:
    """Those of `Engine.submit`, by its stub."""
    stub = ast.parse((ROOT / "lmdeploy_c" / "_C.pyi").read_text())
    [engine] = [c for c in stub.body if isinstance(c, ast.ClassDef) and c.name == "Engine"]
    [submit] = [f for f in engine.body if isinstance(f, ast.FunctionDef) and f.name == "submit"]
    return {argument.arg for argument in submit.args.kwonlyargs}


def test_the_stub_has_every_keyword_of_the_core() -> None:
    source = (ROOT / "csrc" / "python" / "py_request_params.c").read_text()
    [table] = re.findall(r"lmd_py_field fields\[\] = \{(.*?)\{NULL", source, re.S)
    names = re.findall(r'\{"(\w+)",', table)
    assert names[0] == "token_ids" and set(names[1:]) == submit_keywords()


def test_every_keyword_of_the_core_is_an_option() -> None:
    """But for what sessions, several answers to a prompt and a completion's echo are made of."""
    own = {"snapshot", "keep_snapshot", "leader", "session", "keep_session", "prompt_logprobs"}
    assert submit_keywords() - own <= set(FIELDS)
