"""Chat templates, which make a text of messages: the model's jinja, built-in ones, users' own."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from ..messages import unsupported, warn_of_unknown

if TYPE_CHECKING:
    from .jinja_sandbox import ChatTemplateError as ChatTemplateError

#: Keywords of a call that go to the chat template.
_KEYWORDS = ("tools", "enable_thinking", "reasoning_effort", "add_generation_prompt")
#: Keywords of LMDeploy's calls that this release does not serve.
_NOT_SERVED = ("input_ids", "media_io_kwargs", "mm_processor_kwargs")

Messages = str | Sequence[Mapping[str, Any]]
T = TypeVar("T", bound=type)


def __getattr__(name: str) -> Any:
    if name == "ChatTemplateError":  # imports jinja2, so only when it is needed
        from .jinja_sandbox import ChatTemplateError

        return ChatTemplateError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class TemplateTokens(Protocol):
    """The parts of a `Tokenizer` that templates use."""

    @property
    def bos_token(self) -> str | None: ...
    @property
    def eos_token(self) -> str | None: ...
    @property
    def chat_templates(self) -> Mapping[str, str]: ...


class ChatTemplate(Protocol):
    """What makes the text of a prompt: `ChatTemplateConfig.template(tokenizer)` gives one.

    stop_words: end an answer. adds_bos: the text has the model's first token, or must not have it:
    the tokenizer adds none.
    """

    stop_words: list[str]
    adds_bos: bool

    def messages2prompt(
        self, messages: Messages, add_generation_prompt: bool = True, **kwargs: Any
    ) -> str:
        """The prompt's text, to be encoded with add_bos=False if `adds_bos` and True otherwise.
        messages: a text is one message of the user. Where the last message is the assistant's, the
        answer goes on from it. Raises ChatTemplateError."""
        ...


def _as_list(messages: Messages) -> list[dict[str, Any]]:
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    return [dict(message) for message in messages]


def template_kwargs(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a call's keywords that go to the chat template, those inside
    chat_template_kwargs among them. An unknown keyword is warned of and ignored. Raises
    UnsupportedError for one that LMDeploy knows and this release does not serve."""
    found: dict[str, Any] = {}
    for name, value in kwargs.items():
        if name == "chat_template_kwargs":
            found.update(value or {})
        elif name in _KEYWORDS:
            found[name] = value
        elif name not in _NOT_SERVED:
            warn_of_unknown(name, "a call")
        elif value is not None:
            raise unsupported(f"the keyword {name} is not served by this release")
    return found


# ---- jinja ----

_CONTINUED = "[the answer goes on here]"


class JinjaChatTemplate:
    """The template that a model brings."""

    adds_bos = True

    def __init__(
        self, source: str, tokenizer: TemplateTokens, stop_words: Sequence[str] = ()
    ) -> None:
        self.source = source
        self.stop_words = list(stop_words)
        self._tokens = {
            "bos_token": tokenizer.bos_token or "",
            "eos_token": tokenizer.eos_token or "",
        }

    def messages2prompt(
        self, messages: Messages, add_generation_prompt: bool = True, **kwargs: Any
    ) -> str:
        from .jinja_sandbox import ChatTemplateError, render

        conversation = _as_list(messages)
        if not conversation:
            raise ChatTemplateError("the conversation has no messages")
        is_answer = conversation[-1].get("role") == "assistant"
        continued = is_answer and add_generation_prompt
        if continued:  # a mark in the answer shows where it ends in the template's text
            said = conversation[-1].get("content") or ""
            conversation[-1]["content"] = f"{said}{_CONTINUED}"
        values = {
            "tools": None,
            "documents": None,
            **self._tokens,
            **kwargs,
            "messages": conversation,
            "add_generation_prompt": add_generation_prompt and not is_answer,
        }
        text = render(self.source, values)
        if continued and _CONTINUED not in text:
            raise ChatTemplateError("the template does not show the answer that is to be continued")
        return text.rpartition(_CONTINUED)[0] if continued else text


# ---- built-in ones, made of pieces ----

PIECES = ("system", "meta_instruction", "eosys", "user", "eoh", "assistant", "eoa", "tool",
              "eotool", "separator")  # fmt: skip


class BaseChatTemplate:
    """LMDeploy's template of pieces:
    {system}{meta_instruction}{eosys}{user}{content}{eoh}{assistant}{reply}{eoa}{separator}{user}...

    Subclass it and register the class: `@MODELS.register_module(name="mine")`.
    """

    adds_bos = False

    def __init__(
        self,
        system: str = "",
        meta_instruction: str = "",
        eosys: str = "",
        user: str = "",
        eoh: str = "",
        assistant: str = "",
        eoa: str = "",
        tool: str = "",
        eotool: str = "",
        separator: str = "",
        capability: str = "chat",
        stop_words: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        if kwargs:
            raise ValueError(f"a chat template has no {min(kwargs)!r}; it has {PIECES}")
        self.system, self.meta_instruction, self.eosys = system, meta_instruction, eosys
        self.user, self.eoh, self.assistant, self.eoa = user, eoh, assistant, eoa
        self.tool, self.eotool, self.separator = tool, eotool, separator
        self.capability = capability
        self.stop_words = list(stop_words or ())

    def messages2prompt(
        self, messages: Messages, add_generation_prompt: bool = True, **kwargs: Any
    ) -> str:
        conversation = _as_list(messages)
        if self.capability == "completion":
            return "".join(str(message.get("content") or "") for message in conversation)
        before = {"user": self.user, "assistant": self.assistant, "system": self.system,
                  "tool": self.tool}  # fmt: skip
        after = {"user": self.eoh, "assistant": self.eoa + self.separator, "system": self.eosys,
                  "tool": self.eotool}  # fmt: skip
        out = []
        if self.meta_instruction and (not conversation or conversation[0]["role"] != "system"):
            out.append(f"{self.system}{self.meta_instruction}{self.eosys}")
        for i, message in enumerate(conversation):
            role = message.get("role", "")
            if role not in before:
                raise ValueError(f"role {role!r} is none of {', '.join(before)}")
            out.append(before[role] + str(message.get("content") or ""))
            continued = role == "assistant" and i == len(conversation) - 1 and add_generation_prompt
            if continued:
                return "".join(out)
            out.append(after[role])
        return "".join(out) + (self.assistant if add_generation_prompt else "")


class _Registry:
    """Template classes by their names."""

    def __init__(self) -> None:
        self.classes: dict[str, Callable[..., ChatTemplate]] = {}

    def register_module(self, name: str | list[str]) -> Callable[[T], T]:
        """Decorates a class: its templates are then known by this name (or these)."""

        def register(cls: T) -> T:
            for n in [name] if isinstance(name, str) else name:
                self.classes[n] = cls
            return cls

        return register


MODELS = _Registry()


def _built_in(name: str | list[str], **pieces: Any) -> None:
    def make(**changes: Any) -> BaseChatTemplate:
        return BaseChatTemplate(**{**pieces, **changes})

    for n in [name] if isinstance(name, str) else name:
        MODELS.classes[n] = make


_built_in("base", capability="completion")
_built_in(
    "vicuna",
    meta_instruction="A chat between a curious user and an artificial intelligence assistant. The "
    "assistant gives helpful, detailed, and polite answers to the user's questions.",
    eosys=" ", user="USER: ", eoh=" ", assistant="ASSISTANT: ", eoa="</s>", stop_words=["</s>"],
)  # fmt: skip
_built_in(
    "llama2",
    system="[INST] <<SYS>>\n",
    meta_instruction="You are a helpful, respectful and honest assistant.",
    eosys="\n<</SYS>>\n\n", eoh=" [/INST]", assistant=" ", eoa="</s>", separator="<s>[INST] ",
    stop_words=["</s>"],
)  # fmt: skip
_built_in(
    "codellama",
    user="[INST] ", eoh=" [/INST]", assistant=" ", eoa="</s>", stop_words=["</s>"],
)  # fmt: skip
_built_in("chatglm", user="问：", eoh="\n\n", assistant="答：", eoa="\n\n")
_built_in(["mistral", "mixtral"], user="[INST] ", eoh=" [/INST]", eoa="</s>", stop_words=["</s>"])


# ---- the configuration ----


@dataclass
class ChatTemplateConfig:
    """LMDeploy's. Fields that are None keep the named template's.

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

    def _changes(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        del values["model_name"], values["model_path"]
        return {key: value for key, value in values.items() if value is not None}

    def template(self, tokenizer: TemplateTokens | None = None) -> ChatTemplate:
        """The template itself. ValueError for an unknown name or a tokenizer without a template."""
        changes = self._changes()
        if self.model_name != "hf":
            if self.model_name not in MODELS.classes:
                known = ", ".join(["hf", *MODELS.classes])
                raise ValueError(f"chat template {self.model_name!r} is not known; known: {known}")
            return MODELS.classes[self.model_name](**changes)
        stop_words = changes.pop("stop_words", [])
        if changes:
            raise ValueError(
                f"chat template 'hf' is the model's own and takes no {min(changes)!r}; name "
                "another template to change its pieces"
            )
        if tokenizer is None or not tokenizer.chat_templates:
            raise ValueError("the tokenizer brings no chat template; name one, such as 'base'")
        templates = tokenizer.chat_templates
        source = templates.get("default") or next(iter(templates.values()))
        return JinjaChatTemplate(source, tokenizer, stop_words)

    def to_json(self, path: str | Path | None = None) -> str:
        """JSON of model_name and the fields that are set; also written to path."""
        values = {"model_name": self.model_name, **self._changes()}
        text = json.dumps(values, ensure_ascii=False, indent=2)
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    @classmethod
    def from_json(cls, file_or_string: str | Path) -> ChatTemplateConfig:
        """From a file, or from JSON itself. ValueError for wrong JSON or an unknown key."""
        text = str(file_or_string)
        if not text.lstrip().startswith("{"):
            text = Path(text).read_text(encoding="utf-8")
        values = json.loads(text)
        known = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(values, dict) or not values.keys() <= known:
            wrong = min(set(values) - known) if isinstance(values, dict) else text
            raise ValueError(f"a chat template has no {wrong!r}; it has {sorted(known)}")
        return cls(**values)
