"""The prompts of DeepSeek V3.2 and V4, which have no jinja template, as LMDeploy 0.18 writes them.

The markers and the instructions are the models' own (DeepSeek's encoding_dsv32 and encoding_dsv4,
MIT licence): a model reads only these. A prompt always opens an answer; a last message of the
assistant's is closed. Neither model's architecture is served: the prompts are for other engines.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .built_in_templates import MODELS, BaseChatTemplate
from .jinja_template import plain_tools
from .prompts import Prompt, as_messages

_BOS, _EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
_USER, _ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
_REMINDER = "<｜latest_reminder｜>"
_THINK, _END_THINK = "<think>", "</think>"
_DSML = "｜DSML｜"
_ASKING = ("user", "developer")
_TASKS = ("action", "query", "authority", "domain", "title", "read_url")

_FORMAT = (
    "## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n{schema}"
)
_TOOLS_V32 = """## Tools

You have access to a set of tools you can use to answer the user's question.
You can invoke functions by writing a "<{dsml}function_calls>" block like the following as part of \
your reply to the user:
<{dsml}function_calls>
<{dsml}invoke name="$FUNCTION_NAME">
<{dsml}parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</{dsml}parameter>
...
</{dsml}invoke>
<{dsml}invoke name="$FUNCTION_NAME2">
...
</{dsml}invoke>
</{dsml}function_calls>

String and scalar parameters should be specified as is without any escaping or quotes, while lists \
and objects should use JSON format. The "string" attribute should be set to "true" for string type \
parameters and "false" for other types (numbers, booleans, arrays, objects).

If the thinking_mode is enabled, then after function results you should strongly consider \
outputting a thinking block. Here is an example:

<{dsml}function_calls>
...
</{dsml}function_calls>

<function_results>
...
</function_results>

<think>...thinking about results</think>

Here are the functions available in JSONSchema format:
<functions>
{schemas}
</functions>
"""
_TOOLS_V4 = """## Tools

You have access to a set of tools to help answer the user's question. You can invoke tools by \
writing a "<{dsml}tool_calls>" block like the following:

<{dsml}tool_calls>
<{dsml}invoke name="$TOOL_NAME">
<{dsml}parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</{dsml}parameter>
...
</{dsml}invoke>
<{dsml}invoke name="$TOOL_NAME2">
...
</{dsml}invoke>
</{dsml}tool_calls>

String parameters should be specified as is and set `string="true"`. For all other types (numbers, \
booleans, arrays, objects), pass the value in JSON format and set `string="false"`.

If thinking_mode is enabled (triggered by <think>), you MUST output your complete reasoning inside \
<think>...</think> BEFORE any tool calls or final response.

Otherwise, output directly after </think> with tool calls or final response.

### Available Tool Schemas

{schemas}

You MUST strictly follow the above defined tool name and parameter schemas to invoke tool calls.
"""
_EFFORT_MAX = (
    "Reasoning Effort: Absolute maximum with no shortcuts permitted.\n"
    "You MUST be very thorough in your thinking and comprehensively decompose the problem to "
    "resolve the root cause, rigorously stress-testing your logic against all potential paths, "
    "edge cases, and adversarial scenarios.\n"
    "Explicitly write out your entire deliberation process, documenting every intermediate step, "
    "considered alternative, and rejected hypothesis to ensure absolutely no assumption is left "
    "unchecked.\n\n"
)

Message = dict[str, Any]


class _DeepseekTemplate(BaseChatTemplate):
    """What both versions share. Keywords of messages2prompt: tools; thinking or enable_thinking, of
    which one turns reasoning on; drop_thinking, which leaves earlier reasoning out; sequence_start,
    which writes the first token. ValueError for what the model has no words for."""

    adds_bos = True
    #: Of config.json: the architecture and the type by which `match` knows the model.
    known_by = ("", "")
    name = ""

    def __init__(self, eoa: str = _EOS, stop_words: list[str] | None = None, **kwargs: Any) -> None:
        super().__init__(eoa=eoa, stop_words=stop_words or [_EOS], **kwargs)

    def get_prompt(self, prompt: str, **kwargs: Any) -> str:
        return self.messages2prompt(prompt, **kwargs)

    def messages2prompt(
        self, messages: Prompt, add_generation_prompt: bool = True, **kwargs: Any
    ) -> str:
        conversation = _with_tools(as_messages(messages), kwargs.get("tools"))
        thinks = bool(kwargs.get("thinking") or kwargs.get("enable_thinking"))
        text = self._text(conversation, thinks, kwargs)
        return _BOS + text if kwargs.get("sequence_start", True) else text

    def _text(self, conversation: list[Message], thinks: bool, options: Mapping[str, Any]) -> str:
        raise NotImplementedError

    @classmethod
    def match(cls, model_path: str, **kwargs: Any) -> str | None:
        try:
            config = json.loads((Path(model_path) / "config.json").read_text(encoding="utf-8"))
            known = (*(config.get("architectures") or ()), config.get("model_type"))
        except (OSError, ValueError, AttributeError, TypeError):
            return None
        return cls.name if any(name in known for name in cls.known_by) else None


@MODELS.register_module(["deepseek-v32", "deepseek-v3.2"])
class DeepseekV32ChatTemplate(_DeepseekTemplate):
    known_by = ("DeepseekV32ForCausalLM", "deepseek_v32")
    name = "deepseek-v32"

    def _text(self, conversation: list[Message], thinks: bool, options: Mapping[str, Any]) -> str:
        drops = options.get("drop_thinking")
        if drops is None:
            drops = bool(conversation) and conversation[-1]["role"] == "user"
        if thinks and drops:
            conversation = _without_earlier_developers(conversation, ("user", "system", "tool"))
        asked = _last_asking(conversation)
        parts = []
        for i, message in enumerate(conversation):
            role, content = message["role"], message["content"]
            opening = _THINK if thinks and i >= asked else _END_THINK
            if role == "system":
                parts.append("\n\n".join([content, *_extras(message, _TOOLS_V32)]))
            elif role == "developer":
                extras = _extras(message, _TOOLS_V32)
                words = ["", *extras, f"# The user's message is: {content}"]
                parts += [_USER, "\n\n".join(words), _ASSISTANT, opening]
            elif role == "user":
                parts += [_USER, content, _ASSISTANT, opening]
            elif role == "tool":
                parts.append(_result_v32(conversation, i, opening))
            elif role == "assistant":
                parts.append(_answer_v32(message, thinks and i > asked))
            else:
                raise ValueError(f"DeepSeek V3.2 has no role {role!r}")
        return "".join(parts)


@MODELS.register_module("deepseek-v4")
class DeepseekV4ChatTemplate(_DeepseekTemplate):
    """Knows reasoning_effort="max" besides, and in messages "task" and "wo_eos"."""

    known_by = ("DeepseekV4ForCausalLM", "deepseek_v4")
    name = "deepseek-v4"

    def _text(self, conversation: list[Message], thinks: bool, options: Mapping[str, Any]) -> str:
        conversation = _with_results_of_users(conversation)
        drops = options.get("drop_thinking", True)
        drops = drops and not any(message.get("tools") for message in conversation)
        if thinks and drops:
            kept = ("user", "system", "tool", "latest_reminder", "direct_search_results")
            conversation = _without_earlier_developers(conversation, kept)
        asked = _last_asking(conversation)
        is_max = thinks and bool(conversation) and options.get("reasoning_effort") == "max"
        parts = [_EFFORT_MAX] if is_max else []
        task = None
        for i, message in enumerate(conversation):
            reasons = thinks and task is None and (not drops or i > asked)
            task = message.get("task")
            parts.append(_message_v4(message, reasons))
            follows = conversation[i + 1]["role"] if i + 1 < len(conversation) else "assistant"
            if follows not in ("assistant", "latest_reminder"):
                continue
            opening = _THINK if thinks and (not drops or i >= asked) else _END_THINK
            if task is not None:
                parts.append(_task(task, _THINK if thinks else _END_THINK))
            elif message["role"] in _ASKING:
                parts += [_ASSISTANT, opening]
        return "".join(parts)


# ---- messages ----


def _with_tools(conversation: list[Message], tools: Any) -> list[Message]:
    """The conversation with the tools in its first message of the system or a developer."""
    found = [tool if "function" in tool else {"type": "function", "function": tool}
             for tool in plain_tools(tools) or () if isinstance(tool, dict)]  # fmt: skip
    if not found:
        return conversation
    for i, message in enumerate(conversation):
        if message["role"] in ("system", "developer"):
            return [*conversation[:i], {**message, "tools": found}, *conversation[i + 1 :]]
    return [{"role": "system", "content": "", "tools": found}, *conversation]


def _last_asking(conversation: Sequence[Message]) -> int:
    """The index of the last message that asks for an answer, or -1."""
    asking = [i for i, message in enumerate(conversation) if message["role"] in _ASKING]
    return asking[-1] if asking else -1


def _without_earlier_developers(conversation: list[Message], kept: Sequence[str]) -> list[Message]:
    """The conversation without those messages before the last question that are neither answers
    nor of a role that is kept."""
    asked = _last_asking(conversation)
    return [
        message
        for i, message in enumerate(conversation)
        if i >= asked or message["role"] in (*kept, "assistant")
    ]


def _extras(message: Message, tools_text: str) -> list[str]:
    """What a message says besides its content: tools, and the form of the answer."""
    extras = []
    if message.get("tools"):
        schemas = "\n".join(_json(tool["function"]) for tool in message["tools"])
        extras.append(tools_text.replace("{dsml}", _DSML).replace("{schemas}", schemas))
    if message.get("response_format"):
        extras.append(_FORMAT.replace("{schema}", _json(message["response_format"])))
    return extras


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _calls(message: Message, block: str) -> str:
    """A message's tool calls, or ""."""
    if not message.get("tool_calls"):
        return ""
    calls = []
    for call in message["tool_calls"]:
        function = call["function"]
        arguments = function["arguments"]
        if not isinstance(arguments, dict):
            raise ValueError(f"the arguments of {function['name']!r} must be a JSON object")
        lines = [f'<{_DSML}invoke name="{function["name"]}">']
        values = [
            f'<{_DSML}parameter name="{name}" string="{"true" if is_text else "false"}">'
            f"{value if is_text else _json(value)}</{_DSML}parameter>"
            for name, value in arguments.items()
            for is_text in [isinstance(value, str)]
        ]
        calls.append("\n".join([*lines, "\n".join(values), f"</{_DSML}invoke>"]))
    return "\n".join(["\n", f"<{_DSML}{block}>", *calls, f"</{_DSML}{block}>"])


# ---- V3.2 ----


def _answer_v32(message: Message, reasons: bool) -> str:
    reasoning = message.get("reasoning_content") or ""
    if reasons and not (reasoning or message.get("tool_calls")):
        raise ValueError("an answer after the last question needs its reasoning or tool calls")
    thought = reasoning + _END_THINK if reasons else ""
    return f"{thought}{message['content']}{_calls(message, 'function_calls')}{_EOS}"


def _result_v32(conversation: Sequence[Message], i: int, opening: str) -> str:
    """A tool's result; the last one of an answer's calls opens the next answer."""
    n_before = 0
    while n_before < i and conversation[i - 1 - n_before]["role"] == "tool":
        n_before += 1
    answer = conversation[i - 1 - n_before] if n_before < i else {}
    n_calls = len(answer.get("tool_calls") or ())
    if n_before >= n_calls:
        raise ValueError("a tool's result needs a tool call before it")
    start = "\n\n<function_results>" if n_before == 0 else ""
    end = f"\n</function_results>\n\n{opening}" if n_before + 1 == n_calls else ""
    return f"{start}\n<result>{conversation[i]['content']}</result>{end}"


# ---- V4 ----


def _with_results_of_users(conversation: Sequence[Message]) -> list[Message]:
    """The conversation with tools' results as messages of the user, in the order of the calls.
    Messages of the user that follow one another become one."""
    merged: list[Message] = []
    order: dict[str, int] = {}
    results: list[tuple[int, str]] = []  # of the message that is being written

    for message in conversation:
        role, last = message["role"], merged[-1] if merged else {}
        if role not in ("tool", "user"):
            merged.append(message)
            calls = message.get("tool_calls") if role == "assistant" else None
            if calls:
                order = {call["id"]: i for i, call in enumerate(calls) if call.get("id")}
            continue
        goes_on = "blocks" in last and (role == "tool" or last.get("task") is None)
        if not goes_on:
            fields = message if role == "user" else {"role": "user"}
            last, results = {**fields, "blocks": []}, []
            merged.append(last)
        if role == "user":
            last["blocks"].append(message["content"])
            continue
        place = order.get(message.get("tool_call_id", ""), 0)
        results.append((place, f"<tool_result>{message['content']}</tool_result>"))
        last["blocks"].append(None)
        last["results"] = [text for _, text in sorted(results, key=lambda result: result[0])]
    return merged


def _message_v4(message: Message, reasons: bool) -> str:
    role, content = message["role"], message.get("content", "")
    if role == "system":
        return "\n\n".join([content, *_extras(message, _TOOLS_V4)])
    if role == "developer":
        return _USER + "\n\n".join([content, *_extras(message, _TOOLS_V4)])
    if role == "user":
        results = iter(message.get("results", ()))
        return _USER + "\n\n".join(
            next(results) if block is None else block for block in message["blocks"]
        )
    if role == "latest_reminder":
        return _REMINDER + str(content)
    if role != "assistant":
        raise ValueError(f"DeepSeek V4 has no role {role!r}")
    thought = str(message.get("reasoning_content") or "") + _END_THINK if reasons else ""
    end = "" if message.get("wo_eos") else _EOS
    return thought + str(content) + _calls(message, "tool_calls") + end


def _task(task: str, opening: str) -> str:
    """The words that open one of the model's small tasks instead of an answer."""
    if task not in _TASKS:
        raise ValueError(f"a task is one of {', '.join(_TASKS)}, not {task!r}")
    token = f"<｜{task}｜>"
    return _ASSISTANT + opening + token if task == "action" else token
