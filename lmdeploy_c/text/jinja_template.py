"""The jinja template that a model brings, as transformers renders it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from .conversation import join_parts, normalize, plain, present
from .prompts import Prompt, as_turn

#: Marks the end of an answer that is to be continued. The space shows whether the template trims.
_MARK = "[the answer goes on here] "
_PROBES = ("a first part", "and a second one")


class TemplateTokens(Protocol):
    """The tokens that templates write. A `Tokenizer` has others by their names, too: its
    named_tokens."""

    @property
    def bos_token(self) -> str | None: ...
    @property
    def eos_token(self) -> str | None: ...


def template_sources(templates: Mapping[str, str]) -> tuple[str, str]:
    """Of a model's templates by name, the one for most calls and the one for calls with tools:
    "default", or else the first, and "tool_use" where it exists. An empty one is none. ValueError
    where none is left."""
    found = {name: source for name, source in templates.items() if source.strip()}
    if not found:
        raise ValueError("the tokenizer brings no chat template; name one, such as 'base'")
    default = found.get("default") or next(iter(found.values()))
    return default, found.get("tool_use", default)


class JinjaChatTemplate:
    """A model's template. It brings messages to one form itself (`conversation`).

    source: jinja. tool_source: the template for calls with tools; None takes the same.
    stop_words: end an answer. Raises ChatTemplateError, where a template is wrong, refuses a
    conversation or runs too long, and what `conversation.normalize` raises.
    """

    adds_bos = True
    normalizes = True

    def __init__(
        self,
        source: str,
        tokenizer: TemplateTokens,
        stop_words: Sequence[str] = (),
        tool_source: str | None = None,
    ) -> None:
        self.source = source
        self.tool_source = tool_source or source
        self.stop_words = list(stop_words)
        self._tokens = {
            **getattr(tokenizer, "named_tokens", {}),
            "bos_token": tokenizer.bos_token or "",
            "eos_token": tokenizer.eos_token or "",
        }
        self._takes_parts: dict[tuple[str, str], bool] = {}

    def get_prompt(self, prompt: str, **kwargs: Any) -> str:
        """The prompt of one message of the user: LMDeploy's name."""
        return self.messages2prompt(prompt, **kwargs)

    def messages2prompt(
        self, messages: Prompt, add_generation_prompt: bool = True, **kwargs: Any
    ) -> str:
        """The text of the messages. kwargs: the template's variables; null is absent. Functions
        among the tools become their schemas."""
        from .jinja_sandbox import ChatTemplateError

        tools = plain_tools(kwargs.pop("tools", None))
        values = {**plain(present(kwargs)), "tools": tools}
        source = self.source if values["tools"] is None else self.tool_source
        conversation = [normalize(message) for message in as_turn(messages)]
        if not conversation:
            raise ChatTemplateError("the conversation has no messages")
        for message in conversation:
            if not (
                isinstance(message["content"], str) or self._takes_parts_of(source, message["role"])
            ):
                message["content"] = join_parts(message["content"])
        last = conversation[-1]
        if last["role"] == "assistant" and add_generation_prompt:
            return self._continued(source, conversation, values)
        return self._render(source, conversation, add_generation_prompt, values)

    def _render(
        self,
        source: str,
        conversation: list[dict[str, Any]],
        add_generation_prompt: bool,
        values: Mapping[str, Any],
    ) -> str:
        from .jinja_sandbox import render

        variables = {
            "documents": None,
            **self._tokens,
            **values,
            "messages": conversation,
            "add_generation_prompt": add_generation_prompt,
        }
        return render(source, variables)

    def _continued(
        self, source: str, conversation: list[dict[str, Any]], values: Mapping[str, Any]
    ) -> str:
        """The text up to the end of the last message: without what closes it."""
        *before, last = conversation
        said, after = self._split(source, [*before, last], values)
        if "tool_calls" not in last:
            return said
        without_calls = {name: value for name, value in last.items() if name != "tool_calls"}
        _, closing = self._split(source, [*before, without_calls], values)
        return (said + after).removesuffix(closing)

    def _split(
        self, source: str, conversation: list[dict[str, Any]], values: Mapping[str, Any]
    ) -> tuple[str, str]:
        """The text before and after the end of the last message's content."""
        from .jinja_sandbox import ChatTemplateError

        *before, last = conversation
        if isinstance(last["content"], str):
            content: Any = last["content"] + _MARK
        else:
            *parts, end = last["content"] or [{"type": "text", "text": ""}]
            content = [*parts, {**end, "text": end["text"] + _MARK}]
        text = self._render(source, [*before, {**last, "content": content}], False, values)
        said, mark, after = text.rpartition(_MARK.rstrip())
        if not mark:
            raise ChatTemplateError("the template does not show the answer that is to be continued")
        return (said, after[1:]) if after.startswith(" ") else (said.rstrip(), after)

    def _takes_parts_of(self, source: str, role: str) -> bool:
        """Whether the template takes a content in parts from this role: it writes the text of each
        part, and no part as Python or JSON write it."""
        key = (source, role)
        if key not in self._takes_parts:
            written = self._probe(source, role)
            as_data = re.search(rf"""text['"]: ['"]{_PROBES[0]}""", written)
            self._takes_parts[key] = all(text in written for text in _PROBES) and not as_data
        return self._takes_parts[key]

    def _probe(self, source: str, role: str) -> str:
        """The text of a short conversation in which this role's message comes in parts; "" where
        the template refuses it."""
        from .jinja_sandbox import ChatTemplateError

        question = {"role": "user", "content": "?"}
        call = {"id": "abcdefghi", "type": "function", "function": {"name": "f", "arguments": {}}}
        calls = {"role": "assistant", "content": "", "tool_calls": [call]}
        parts = [{"type": "text", "text": text} for text in _PROBES]
        message = {"role": role, "content": parts}
        conversations: dict[str, list[dict[str, Any]]] = {
            "user": [message],
            "assistant": [question, message],
            "tool": [question, calls, {**message, "name": "f", "tool_call_id": "abcdefghi"}],
        }
        conversation = conversations.get(role, [message, question])
        try:
            return self._render(source, conversation, False, {"tools": None})
        except ChatTemplateError:
            return ""


def plain_tools(tools: object) -> Any:
    """Tools as plain data: functions as their schemas."""
    if not isinstance(tools, (list, tuple)):
        return plain(tools)
    from .tool_schema import tool_of

    return [plain(tool_of(tool)) for tool in tools]
