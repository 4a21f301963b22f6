"""The forms of a prompt: a text or the messages of a conversation, alone or in a list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..messages import unsupported, wrong_type
from .conversation import join_parts, normalize

Message = Mapping[str, Any]
#: A text, or one conversation in OpenAI's form: dicts with "role" and "content".
Prompt = str | Sequence[Message]

_FORMS = (
    "a prompt is a text, a list of texts, a conversation (a list of dicts with 'role' and "
    "'content') or a list of conversations"
)


def parse_prompts(prompts: object) -> tuple[list[Prompt], bool]:
    """The prompts as a list, and whether a single one was given, which gets a single Response.

    Raises TypeError for what is no prompt, UnsupportedError for images.
    """
    if isinstance(prompts, (str, tuple)) or _is_conversation(prompts):
        return [_parse_one(prompts)], True
    if not isinstance(prompts, list):
        raise wrong_type("prompts", _FORMS, prompts)
    return [_parse_one(p) for p in prompts], False


def _is_conversation(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(m, Mapping) for m in value)


def _parse_one(prompt: object) -> Prompt:
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list) and _is_conversation(prompt):
        return prompt
    if isinstance(prompt, tuple):
        raise unsupported(
            "a tuple is a prompt with images, and this release serves text only: "
            "pass the text itself, or a list of texts"
        )
    raise wrong_type("an item of prompts", _FORMS, prompt)


def as_turn(prompt: Prompt) -> list[Message]:
    """The prompt as messages, not checked: a text is one message of the user."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def as_messages(prompt: Prompt) -> list[dict[str, Any]]:
    """The prompt as messages in the one form that `conversation` describes, each content a text:
    parts are joined by newlines.

    Raises ValueError for a message without role or content, UnsupportedError for a part that is
    not text.
    """
    messages = [normalize(message) for message in as_turn(prompt)]
    for message in messages:
        message["content"] = join_parts(message["content"])
    return messages


def per_prompt(value: Any, n: int, name: str) -> list[Any]:
    """`value` for each of n prompts: a list as it is, anything else n times. ValueError."""
    if not isinstance(value, list):
        return [value] * n
    if len(value) != n:
        raise ValueError(f"{name} has {len(value)} items for {n} prompts")
    return value
