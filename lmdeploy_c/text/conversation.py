"""One form of a message, whatever form it was sent in: what every chat template is given.

- Null is absent, in a message and in its tool calls; no calls are no list of calls.
- A content that may be missing (beside calls, reasoning, a tool's silence) is an empty text.
- Reasoning has each of its three names.
- A tool call's arguments are an object, also where they came as the text of one (OpenAI's form).
- Everything is plain data: a template meets no object of the caller's.

transformers 5.23 and LMDeploy 0.18's server do the same, each a part of it.
"""

from __future__ import annotations

import dataclasses
import json
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

from ..messages import unsupported

#: What a message's reasoning is called, by the name that counts first.
_REASONING = ("reasoning_content", "thinking", "reasoning")
#: Roles whose messages say nothing without a content.
_SPEAKERS = ("user", "system", "developer")


class JsonObject(dict[str, Any]):
    """A JSON object that was sent as text. A template that walks through it meets the object, one
    that writes it out or joins it to other text meets the text as it was sent."""

    def __init__(self, text: str, value: dict[str, Any]) -> None:
        super().__init__(value)
        self._text = text

    def __str__(self) -> str:
        return self._text

    def __add__(self, other: str) -> str:
        return self._text + other

    def __radd__(self, other: str) -> str:
        return other + self._text


def present(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that are not null."""
    return {name: value for name, value in fields.items() if value is not None}


def plain(value: Any) -> Any:
    """The value made of dicts, lists, tuples, texts, numbers and None alone. Dataclasses and
    pydantic's models become dicts, and anything else the name of its type."""
    if value is None or type(value) in (str, int, float, bool) or isinstance(value, JsonObject):
        return value
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(plain(item) for item in value)
    if isinstance(value, str):  # a subclass, such as a member of an enum
        return str.__str__(value)
    if getattr(value, "ndim", None) == 0:  # a number of NumPy's
        return value.item()
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if callable(getattr(value, "model_dump", None)):
        return plain(value.model_dump())
    return f"<{type(value).__name__}>"


def normalize(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message in the one form; a new dict. Its content is a text, or a list of parts
    {"type": "text", "text": ...}.

    Raises ValueError for a message without role or content, UnsupportedError for a part that is
    not text.
    """
    fields = {
        name: value if type(value) is str else plain(value)
        for name, value in message.items()
        if value is not None
    }
    role, content, calls = fields.get("role"), fields.get("content"), fields.get("tool_calls")
    if not isinstance(role, str):
        raise ValueError(f"a message needs a 'role', a text; this one has {sorted(fields)}")
    if content is None and role not in _SPEAKERS:
        content = ""
    if isinstance(content, (list, tuple)):
        content = [_part(part) for part in content]
    elif not isinstance(content, str):
        raise ValueError(
            f"a message needs a 'content', a text or parts; this one of {role!r:.40} has "
            f"{sorted(fields)}"
        )
    fields["content"] = content
    if isinstance(calls, list):
        fields["tool_calls"] = [_call(call) for call in calls]
        if not calls:
            del fields["tool_calls"]
    if fields.keys().isdisjoint(_REASONING):
        return fields
    thought = next(fields[name] for name in _REASONING if name in fields)
    return {**dict.fromkeys(_REASONING, thought), **fields}


def join_parts(content: str | Sequence[Mapping[str, str]]) -> str:
    """The text of a content in the one form; parts are lines."""
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)


def _part(part: object) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, dict):
        raise ValueError(f"a part of a message's content must be a dict: {part!r:.100}")
    fields = present(part)
    if fields.get("type") != "text":
        raise unsupported(f"content of type {part.get('type')!r}: this release serves text only")
    if not isinstance(fields.get("text"), str):
        raise ValueError(f"a part of type 'text' needs a 'text': {fields!r:.100}")
    return fields


def _call(call: object) -> object:
    """A tool call: {"type": "function", "function": {"name", "arguments"}}, or the function
    itself."""
    if not isinstance(call, dict):
        return call
    fields = present(call)
    if "function" in fields:
        return {**fields, "function": _function(fields["function"])}
    return _function(fields) if "name" in fields else fields


def _function(function: object) -> object:
    if not isinstance(function, dict):
        return function
    fields = present(function)
    fields["arguments"] = _arguments(fields.get("arguments"))
    return fields


def _arguments(value: object) -> object:
    """The arguments as an object, where they are one or the text of one; no arguments are {}."""
    if value is None:
        return {}
    if not isinstance(value, str):
        return value
    if not value.strip():
        return {}
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return JsonObject(value, found) if isinstance(found, dict) else value
