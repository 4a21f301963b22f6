"""Chat templates, which make a text of messages: which one a model or a user names, and what of a
call is for it."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ..messages import Named, refuse_unknown, unsupported, wrong_type
from . import deepseek_templates as deepseek_templates  # registers its templates
from .built_in_templates import MODELS, PIECES, BaseChatTemplate
from .conversation import present
from .jinja_template import JinjaChatTemplate, TemplateTokens, template_sources

if TYPE_CHECKING:
    from .jinja_sandbox import ChatTemplateError as ChatTemplateError

logger = logging.getLogger("lmdeploy_c")

#: Keywords of a call that go to the chat template, and what each takes.
_KEYWORDS: dict[str, tuple[type | tuple[type, ...], str]] = {
    "tools": ((list, tuple), "a list of tools"),
    "enable_thinking": (bool, "True or False"),
    "reasoning_effort": (str, "a text"),
    "add_generation_prompt": (bool, "True or False"),
    "chat_template_kwargs": (Mapping, "a mapping of a template's names"),
}
#: Keywords of LMDeploy's calls that this release does not serve.
_NOT_SERVED = ("input_ids", "media_io_kwargs", "mm_processor_kwargs")

Messages = str | Sequence[Mapping[str, Any]]


def __getattr__(name: str) -> Any:
    if name == "ChatTemplateError":  # imports jinja2, so only when it is needed
        from .jinja_sandbox import ChatTemplateError

        return ChatTemplateError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class TemplateFiles(TemplateTokens, Protocol):
    """The parts of a `Tokenizer` that a model's template is made from."""

    @property
    def chat_templates(self) -> Mapping[str, str]: ...


class ChatTemplate(Protocol):
    """What makes the text of a prompt: `ChatTemplateConfig.template(tokenizer)` gives one.

    stop_words: end an answer; None for none. adds_bos: the text has the model's first token, or
    must not have it: the tokenizer adds none. normalizes: it takes messages of any form; others get
    them as `prompts.as_messages` gives them.
    """

    adds_bos: bool
    normalizes: bool

    @property
    def stop_words(self) -> Sequence[str] | None: ...

    def messages2prompt(
        self, messages: Messages, add_generation_prompt: bool = True, **kwargs: Any
    ) -> str:
        """The prompt's text, to be encoded with add_bos=False if `adds_bos` and True otherwise.
        messages: a text is one message of the user. Where the last message is the assistant's, the
        answer goes on from it. Raises ValueError, ChatTemplateError among them."""
        ...


def _check_keyword(name: str, value: object) -> None:
    kind, wanted = _KEYWORDS[name]
    if value is not None and not isinstance(value, kind):
        raise wrong_type(name, wanted, value)


def template_kwargs(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a call's keywords that go to the chat template, those inside
    chat_template_kwargs among them; null is absent. An unknown keyword is warned of and ignored.
    Raises TypeError for a wrong value and for a field of a configuration, UnsupportedError for a
    keyword that LMDeploy knows and this release does not serve."""
    found: dict[str, Any] = {}
    for name, value in kwargs.items():
        if name in _KEYWORDS:
            _check_keyword(name, value)
            if name == "chat_template_kwargs":
                found.update(present(value or {}))
            else:
                found.update(present({name: value}))
        elif name not in _NOT_SERVED:
            refuse_unknown("a call", name, value, [*_KEYWORDS, "gen_config", "session"])
        elif value is not None:
            raise unsupported(f"the keyword {name} is not served by this release")
    return found


# ---- the configuration ----


@dataclass
class ChatTemplateConfig(Named):
    """LMDeploy's. Fields that are None keep the named template's. TypeError for a value that is no
    text.

    model_name: "hf" is the template that the model's tokenizer brings; or a built-in or registered
    name. stop_words: strings that end an answer.
    """

    model_name: str = "hf"
    model_path: str | None = None
    system: str | None = None
    meta_instruction: str | None = None
    eosys: str | None = None
    user: str | None = None
    eoh: str | None = None
    assistant: str | None = None
    eoa: str | None = None
    tool: str | None = None
    eotool: str | None = None
    separator: str | None = None
    capability: Literal["completion", "infilling", "chat", "python"] | None = None
    stop_words: list[str] | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            wanted, good = "None or a text", isinstance(value, (str, type(None)))
            if name == "stop_words":
                wanted = "None or a list of texts"
                good = value is None or (
                    isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value)
                )
            if not good:
                raise wrong_type(f"ChatTemplateConfig.{name}", wanted, value)

    def _changes(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        del values["model_name"], values["model_path"]
        return {key: value for key, value in values.items() if value is not None}

    def template(self, tokenizer: TemplateFiles | None = None) -> ChatTemplate:
        """The template itself; an unknown name with pieces of its own is a template of these.
        tokenizer: brings what "hf" names. ValueError for an unknown name alone, and for a tokenizer
        without a template."""
        changes = self._changes()
        if self.model_name != "hf":
            made: ChatTemplate = self._class()(**changes)
            return made
        stop_words = changes.pop("stop_words", [])
        if changes.keys() - {"capability"} or changes.get("capability", "chat") != "chat":
            raise ValueError(
                f"chat template 'hf' is the model's own and takes no {min(changes)!r}; name "
                f"another template to change its pieces: {', '.join(PIECES)}"
            )
        if tokenizer is None:
            raise ValueError("'hf' is a tokenizer's template: give the tokenizer")
        source, tool_source = template_sources(tokenizer.chat_templates)
        return JinjaChatTemplate(source, tokenizer, stop_words, tool_source)

    def chat_template(self, trust_remote_code: bool = False) -> ChatTemplate:
        """LMDeploy's name of `template`: "hf" is read from model_path. trust_remote_code: accepted;
        no code of a model is ever run."""
        if self.model_name != "hf":
            return self.template()
        made: ChatTemplate = self._class()(self.model_path or "")
        return made

    def _class(self) -> Any:
        found = MODELS.get(self.model_name)
        if found is not None:
            return found
        if not self._changes():
            known = ", ".join(MODELS.module_dict)
            raise ValueError(f"chat template {self.model_name!r} is not known; known: {known}")
        logger.warning("chat template %r is made of its own pieces alone", self.model_name)
        return BaseChatTemplate

    def to_json(self, path: str | Path | None = None) -> str:
        """JSON of model_name and the fields that are set; also written to path."""
        values = {"model_name": self.model_name, **self._changes()}
        text = json.dumps(values, ensure_ascii=False, indent=2)
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    @classmethod
    def from_json(cls, file_or_string: str | Path) -> ChatTemplateConfig:
        """From a file, or from JSON itself. A name that is not known yet, or none at all, becomes
        one: of a template of pieces. ValueError for wrong JSON or an unknown key."""
        text = str(file_or_string)
        if not text.lstrip().startswith("{"):
            text = Path(text).read_text(encoding="utf-8")
        values = json.loads(text)
        known = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(values, dict) or not values.keys() <= known:
            wrong = min(set(values) - known) if isinstance(values, dict) else text
            raise ValueError(f"a chat template has no {wrong!r}; it has {sorted(known)}")
        name = values.get("model_name") or f"pieces-{len(MODELS)}"
        if name not in MODELS:
            MODELS.register_module(name, module=BaseChatTemplate)
        return cls(**{**values, "model_name": name})
