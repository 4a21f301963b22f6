"""End tokens: what a chat template says of the end of a turn, and texts that GGUF files have."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lmdeploy_c.text.chat_template import ChatTemplateConfig, JinjaChatTemplate
from lmdeploy_c.text.end_tokens import end_token_ids, known_end_ids, template_end_id

SPECIALS = ["<s>", "</s>", "<|open|>", "<|end|>", "<|user|>", "<|assistant|>", "<|end|>x", "<|e|>"]


def tokenizer(**fields: Any) -> SimpleNamespace:
    ids = {text: i for i, text in enumerate([*SPECIALS, *fields.pop("more", ())])}
    values = {"bos_token": "<s>", "eos_token": "</s>", "eos_token_id": 1, "chat_templates": {}}
    return SimpleNamespace(**values, special_ids=ids, **fields)


def end_of(turn: str, *, last: str = "", **fields: Any) -> str | None:
    """The end of a turn that is found. turn: the jinja of one message, with `m` and `other` (the
    role that `m` has not). last: stands behind the conversation."""
    other = "{% set other = {'user': 'assistant', 'assistant': 'user'}[m.role] %}"
    source = "{% for m in messages %}" + other + turn + "{% endfor %}" + last
    tokens = tokenizer(**fields)
    token_id = template_end_id(JinjaChatTemplate(source, tokens), tokens)
    texts = {i: text for text, i in tokens.special_ids.items()}
    return None if token_id is None else texts[token_id]


@pytest.mark.parametrize(
    "turn",
    [
        "<|open|>{{ m.role }}\n{{ m.content }}<|end|>\n",  # ChatML, Llama 3
        "<s><|open|>{{ m.role }}\n{{ m.content }}<|end|>",
        "<|{{ m.role }}|>\n{{ m.content }}<|end|>\n",  # Phi-3
        # Phi-3.5: the end of the text behind it
        "<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% if loop.last %}</s>{% endif %}",
        "{{ m.role }}: {{ m.content }} \n<|end|>\n",  # with white space in front
        # Qwen1.5: only between turns
        "<|open|>{{ m.role }}\n{{ m.content }}{% if not loop.last %}<|end|>\n{% endif %}",
        # Apriel: only the assistant's turns have one
        "<|{{ m.role }}|>{{ m.content }}{% if m.role == 'assistant' %}<|end|>{% endif %}\n",
    ],
)
def test_the_end_of_a_turn_in_a_template(turn: str) -> None:
    assert end_of(turn) == "<|end|>"


@pytest.mark.parametrize(
    "turn",
    [
        "{{ m.content }}",
        "{{ m.content }}\n\n{{ other }}: ",
        "<|{{ m.role }}|>{{ m.content }}",  # GLM-4: the next role's mark
        "<|open|>{{ m.role }}\n{{ m.content }}\n",  # a mark that every turn begins with
        "{{ m.content }}<s>",  # bos
        "{% if m.role == 'user' %}<s>[INST] {{ m.content }}[/INST]{% else %}{{ m.content }}"
        "{% endif %}",
        # command-r7b, Kimi-K3: it ends a part of an answer
        "<|open|>{{ m.content }}<|e|><|end|>",
        "<|open|>{{ m.content }}<|e|>text<|end|>",
        # gpt-oss: another one at the end
        "<|open|>{{ m.content }}{{ '<|e|>' if loop.last else '<|end|>' }}",
        # no special token
        "{{ m.content }}<end>",
        "{{ m.content }}x<|end|>",
        # not seen at all
        "{{ m.role }}<|end|>",
        "{{ raise_exception('no') }}",
        "{{ nothing.at.all }}",
        "{% if m.role == 'assistant' %}{{ raise_exception('alone') }}{% endif %}",
    ],
)
def test_what_is_no_end_of_a_turn(turn: str) -> None:
    assert end_of(turn) is None


def test_a_mark_behind_every_conversation_is_no_end() -> None:
    assert end_of("<|{{ m.role }}|>{{ m.content }}", last="<|assistant|>") is None
    assert end_of("<|open|>{{ m.role }}:{{ m.content }}", last="<|open|>assistant:") is None


def test_the_longest_token_is_the_one() -> None:
    assert end_of("{{ m.content }}<|end|>x") == "<|end|>x"
    between = "<|open|>{{ m.content }}{% if not loop.last %}<|end|>x{% endif %}"
    assert end_of(between) == "<|end|>x"


def test_where_it_ends_parts_of_answers() -> None:
    """As in gpt-oss and Solar, whose `<|end|>` closes the thinking."""
    assert end_of("<|open|>{{ m.content }}<|end|>", more=["<|return|>", "<|call|>"]) is None
    assert end_of("<|open|>{{ m.content }}<|end|>", more=["<|return|>"]) == "<|end|>"


def test_a_template_of_any_class() -> None:
    tokens = tokenizer()
    config = ChatTemplateConfig("base", user="<|user|>", eoa="<|end|>", capability="chat")
    assert template_end_id(config.template(), tokens) == SPECIALS.index("<|end|>")

    class Broken:
        adds_bos = False

        def __init__(self) -> None:
            self.stop_words: list[str] = []

        def messages2prompt(self, *args: object, **kwargs: object) -> str:
            raise KeyError

    assert template_end_id(Broken(), tokens) is None


def test_the_union() -> None:
    tokens = tokenizer()
    template = JinjaChatTemplate(
        "{% for m in messages %}{{ m.content }}<|end|>{% endfor %}", tokens
    )
    assert end_token_ids([2, 5, 7], tokens, template, 6) == [1, 2, 3, 5]
    assert end_token_ids([], tokens, template, 3) == [1]
    tokens.eos_token_id = None
    assert end_token_ids([1 << 40], tokens, template, 4) == [3]


def test_known_texts() -> None:
    """As llama.cpp's load_vocab."""

    def known(*tokens: str) -> set[int]:
        return known_end_ids(tokens)

    assert known("a", "<|im_end|>", "</s>", "<s>", "<｜end▁of▁sentence｜>") == {1, 2, 4}
    assert known("<|end|>", "<|return|>") == {0, 1}
    assert known("<|end|>", "<|return|>", "<|call|>") == {1, 2}
    assert known("<|end|>", "<|calls|>", "<|flush|>") == {1, 2}
    assert known("</s>", "<|tool_response>", "<eos>") == {1, 2}
    assert known() == set()
