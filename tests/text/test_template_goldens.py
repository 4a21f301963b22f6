"""Chat templates against transformers: texts of our own templates, hashes of public ones'."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import GOLDEN
from golden import conversations

from lmdeploy_c.text import jinja_sandbox
from lmdeploy_c.text.jinja_template import JinjaChatTemplate

TEXTS = json.loads((GOLDEN / "templates.json").read_text(encoding="utf-8"))
#: A folder of public templates: llama.cpp's models/templates.
FOLDER = os.environ.get("LMDEPLOY_C_TEMPLATES")
#: Where transformers fails and this renders: there tojson refuses what selectattr gives.
WRITES_MORE = {"llama-cpp-deepseek-r1"}


class Tokens:
    bos_token, eos_token = "<s>", "</s>"


@pytest.fixture(autouse=True)
def _fixed_time(monkeypatch: pytest.MonkeyPatch) -> None:
    class FixedTime(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return conversations.NOW

    monkeypatch.setattr(jinja_sandbox, "datetime", SimpleNamespace(datetime=FixedTime))


def text_of(source: str, case: dict[str, Any]) -> str | None:
    case = dict(case)
    try:
        return JinjaChatTemplate(source, Tokens()).messages2prompt(case.pop("messages"), **case)
    except jinja_sandbox.ChatTemplateError:
        return None


@pytest.mark.parametrize("name", TEXTS["own"])
def test_like_transformers(name: str) -> None:
    source = (GOLDEN / "templates" / f"{name}.jinja").read_text(encoding="utf-8")
    for case, wanted in TEXTS["own"][name].items():
        assert text_of(source, conversations.SENT[case]) == wanted, case


def digest(text: str | None) -> str | None:
    return None if text is None else hashlib.sha256(text.encode()).hexdigest()[:16]


@pytest.mark.skipif(FOLDER is None, reason="LMDEPLOY_C_TEMPLATES names no folder of templates")
@pytest.mark.parametrize("name", TEXTS["public"])
def test_public_templates_like_transformers(name: str) -> None:
    path = Path(FOLDER or "") / f"{name}.jinja"
    source = path.read_text(encoding="utf-8") if path.exists() else ""
    if digest(source) != TEXTS["public"][name]["source"]:
        pytest.skip(f"{path} is not the template that was rendered")
    for case, wanted in TEXTS["public"][name]["texts"].items():
        got = digest(text_of(source, conversations.SENT[case]))
        assert got == wanted or (wanted is None and name in WRITES_MORE), case


def test_there_are_enough_of_them() -> None:
    assert len(TEXTS["public"]) >= 60
    rendered = [t for p in TEXTS["public"].values() for t in p["texts"].values() if t is not None]
    assert len(rendered) > 1500


def test_a_long_conversation_is_quick(smollm2_path: Path) -> None:
    """Twenty questions and answers take less than writing them as indented JSON seven times."""
    from lmdeploy_c.text.chat_template import ChatTemplateConfig
    from lmdeploy_c.tokenizer import Tokenizer

    template = ChatTemplateConfig().template(Tokenizer(smollm2_path))
    messages = [*conversations.TWO[:2]] * 20 + [conversations.ASK]

    def seconds(function: Any) -> float:
        times = []
        for _ in range(20):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
        return min(times)

    rendered = seconds(lambda: template.messages2prompt(messages))
    assert rendered < 7 * seconds(lambda: json.dumps(messages, indent=2))
