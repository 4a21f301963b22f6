"""LMDeploy's built-in templates against LMDeploy 0.18, its registry, and templates of one's own."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from conftest import GOLDEN
from golden import conversations

from lmdeploy_c.model import (
    MODELS,
    BaseChatTemplate,
    ChatTemplateConfig,
    HFChatTemplate,
    get_chat_template,
)

WANTED = json.loads((GOLDEN / "lmdeploy_templates.json").read_text(encoding="utf-8"))
ROWS = [(name, row["options"], row) for name, rows in WANTED["templates"].items() for row in rows]


@pytest.mark.parametrize(("name", "options", "row"), ROWS, ids=lambda v: str(v)[:40])
def test_like_lmdeploy(name: str, options: dict[str, Any], row: dict[str, Any]) -> None:
    template = MODELS.module_dict[name](**options)
    assert template.stop_words == row["stop_words"]
    for case, wanted in row["texts"].items():
        messages, kwargs = conversations.DEEPSEEK[case]
        text = template.messages2prompt(messages, **kwargs)
        if isinstance(wanted, dict):
            assert hashlib.sha256(text.encode()).hexdigest() == wanted["sha256"], case
        else:
            assert text == wanted, case


def test_every_name_is_there() -> None:
    assert {"hf", *WANTED["templates"]} <= set(MODELS)
    assert MODELS.get("hf") is HFChatTemplate and "hf" in MODELS
    assert MODELS.get("nobody") is None and len(MODELS) == len(MODELS.module_dict)


@pytest.mark.parametrize("name", WANTED["matches"])
def test_paths_are_matched_like_lmdeploy(name: str) -> None:
    matched = [path for path in WANTED["paths"] if MODELS.get(name).match(path)]  # type: ignore
    assert matched == WANTED["matches"][name]


@pytest.mark.parametrize(("arch", "name"), [("V32", "deepseek-v32"), ("V4", "deepseek-v4")])
def test_deepseek_is_matched_by_its_config(arch: str, name: str, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    for text in (
        json.dumps({"architectures": [f"Deepseek{arch}ForCausalLM"]}),
        json.dumps({"model_type": f"deepseek_{arch.lower()}"}),
    ):
        config.write_text(text)
        assert get_chat_template(str(tmp_path)).messages2prompt("hi").startswith("<｜begin")
        assert MODELS.get(name).match(str(tmp_path)) == name  # type: ignore[union-attr]
    for text in ("", "[]", '{"architectures": 5}', "{}"):
        config.write_text(text)
        assert MODELS.get(name).match(str(tmp_path)) is None  # type: ignore[union-attr]


@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_a_prompt_opens_an_answer_where_it_is_asked_to(add_generation_prompt: bool) -> None:
    turns = conversations.TWO[:1]
    closed = {
        "vicuna": "USER: Hi. ",
        "chatglm": "[Round 1]\n\n问：Hi.\n\n",
        "mistral": "[INST] Hi. [/INST]",
    }
    opened = {"vicuna": " ASSISTANT:", "chatglm": "答：", "mistral": ""}
    for name, text in closed.items():
        template = ChatTemplateConfig(name, meta_instruction="").template()
        got = template.messages2prompt(turns, add_generation_prompt)
        wanted = text.rstrip(" ") + opened[name] if add_generation_prompt else text
        assert got.lstrip() == wanted
    answered = ChatTemplateConfig("vicuna").template().messages2prompt(
        [*turns, {"role": "assistant", "content": "x"}], False
    )  # fmt: skip
    assert answered.endswith("ASSISTANT: x</s>")


def test_infilling() -> None:
    infill = {"capability": "infilling"}
    template = ChatTemplateConfig("codellama", **infill).template()  # type: ignore[arg-type]
    assert template.messages2prompt("a <FILL>\nb") == "<PRE> a  <SUF>\nb <MID>"
    assert template.stop_words == ["<EOT>"]
    later = MODELS.module_dict["codellama"](suffix_first=True, **infill)
    assert later.get_prompt("a <FILL>\nb") == "<PRE> <SUF>\nb <MID> a "
    with pytest.raises(ValueError, match="one <FILL>"):
        later.get_prompt("a")
    with pytest.raises(AssertionError, match="'java'"):
        MODELS.module_dict["codellama"](capability="java")


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([{"role": "judge", "content": "x"}], "role 'judge'"),
        ([{"role": "tool", "content": "x"}], "tool call before"),
        ([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}], "reasoning"),
    ],
)
def test_what_deepseek_has_no_words_for(messages: list[dict[str, Any]], why: str) -> None:
    template = MODELS.module_dict["deepseek-v32"]()
    with pytest.raises(ValueError, match=why):
        template.messages2prompt(messages, thinking=True, drop_thinking=False)


def test_deepseek_takes_arguments_as_text_and_functions_as_tools() -> None:
    sent = conversations.SENT["call as it is sent"]["messages"]
    given = conversations.SENT["call"]["messages"]
    for name in ("deepseek-v32", "deepseek-v4"):
        template = MODELS.module_dict[name]()
        assert template.messages2prompt(sent) == template.messages2prompt(given)
        text = template.messages2prompt("hi", tools=[conversations.get_weather])
        assert '{"name": "get_weather", "description": "The weather of a city."' in text
    with pytest.raises(ValueError, match="'get_weather' must be a JSON object"):
        bad = conversations.called("", ("c", "get_weather", "no JSON"))
        MODELS.module_dict["deepseek-v4"]().messages2prompt([conversations.ASK, bad])


# ---- templates of one's own ----

MINE = {"system": "<s>", "meta_instruction": "Be a robot.", "eosys": "</s>", "user": "<u>",
        "eoh": "</u>", "assistant": "<a>", "eoa": "</a>", "separator": "\n", "capability": "chat",
        "stop_words": ["</a>"]}  # fmt: skip


@pytest.mark.parametrize("name", [{}, {"model_name": None}, {"model_name": "a name of one's own"}])
def test_json_makes_a_template(name: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({**name, **MINE}))
    for config in (
        ChatTemplateConfig.from_json(path),
        ChatTemplateConfig.from_json(path.read_text()),
    ):
        for template in (config.template(), config.chat_template()):
            assert template.messages2prompt("hi") == "<s>Be a robot.</s><u>hi</u><a>"
            assert template.stop_words == ["</a>"]
        assert config.model_name in MODELS
        assert ChatTemplateConfig.from_json(config.to_json()) == config


def test_an_unknown_name_with_pieces_is_made_of_them(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "lmdeploy_c"):
        template = ChatTemplateConfig("unheard of", user="U:").template()
    assert template.messages2prompt("hi") == "U:hi" and "'unheard of'" in caplog.text
    with pytest.raises(ValueError, match="'unheard of' is not known; known: base, .*vicuna.*hf"):
        ChatTemplateConfig("unheard of").chat_template()


def test_registering() -> None:
    class Shout(BaseChatTemplate):
        def get_prompt(self, prompt: str) -> str:
            return prompt.upper()

    MODELS.register_module("shout", module=Shout)
    MODELS.register_module(["roar", "call"])(Shout)
    assert MODELS.register_module()(Shout) is Shout
    for name in ("shout", "roar", "call", "Shout"):
        assert ChatTemplateConfig(name).chat_template().messages2prompt("hi") == "HI"
    assert BaseChatTemplate(session_len=4096, trust_remote_code=True).get_prompt("hi") == "hi"
    assert BaseChatTemplate("S", "M", "E", "U", "H", "A", "Z", "|").get_prompt("x") == "SMEUxHA"


def test_the_models_own_template_by_its_path(smollm2_path: Path) -> None:
    template = MODELS.module_dict["hf"](str(smollm2_path), trust_remote_code=True)
    said = [{"role": "user", "content": "hi"}]
    assert template.get_prompt("hi") == template.messages2prompt(said)
    assert template.get_prompt("hi").endswith("<|im_start|>assistant\n")
    assert template.stop_words == ["<|im_end|>"] and HFChatTemplate.match(str(smollm2_path))
    config = ChatTemplateConfig("hf", model_path=str(smollm2_path))
    assert config.chat_template().messages2prompt("hi") == template.get_prompt("hi")
    chosen = get_chat_template(str(smollm2_path))
    assert chosen.messages2prompt("hi") == template.get_prompt("hi")
    with pytest.raises(ValueError, match="no chat template can be read from 'nowhere'"):
        ChatTemplateConfig("hf", model_path="nowhere").chat_template()
    assert not HFChatTemplate.match("nowhere")
    assert get_chat_template("x/vicuna").messages2prompt("hi").endswith("USER: hi ASSISTANT:")
    assert get_chat_template("nowhere").messages2prompt("hi") == "hi"
