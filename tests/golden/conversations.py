"""Conversations for chat templates: as they are sent, and as transformers is given them.

The two differ where a caller may send what transformers renders wrongly, or not at all: null
fields, arguments as JSON text, reasoning under its other names, several parts of text.
"""

from __future__ import annotations

import datetime
from typing import Any

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "The city's name."},
                "days": {"type": "integer", "description": "How many days ahead."},
            },
            "required": ["city"],
        },
    },
}
CLOCK = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": "The time of a place.",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string", "enum": ["Ulm", "Bonn"]}},
            "required": ["place"],
        },
    },
}
#: The time at which templates write a date.
NOW = datetime.datetime(2026, 11, 30, 12, 0)
ODD = "  <b>Tea</b> & {{ 'cake' }}\n\n\t\"two\\n\" – für 3 € 🫖?  \n"


def get_weather(city: str, days: int = 1) -> str:
    """The weather of a city.

    Args:
        city: The city's name.
        days: How many days ahead.

    Returns:
        A sentence.
    """
    raise AssertionError("a template never calls a tool")


def user(text: Any, **fields: Any) -> dict[str, Any]:
    return {"role": "user", "content": text, **fields}


def said(text: Any, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **fields}


def called(text: Any, *calls: tuple[str, str, Any], **fields: Any) -> dict[str, Any]:
    return said(
        text,
        tool_calls=[
            {"id": i, "type": "function", "function": {"name": name, "arguments": arguments}}
            for i, name, arguments in calls
        ],
        **fields,
    )


def result(call: str, name: str, content: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call, "name": name, "content": content}


def parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


SYSTEM = {"role": "system", "content": "You are a guide. Be brief."}
ASK = user("How is the weather in Ulm?")
CALL = ("call00001", "get_weather", {"city": "Ulm", "days": 2})
CALL_SENT = ("call00001", "get_weather", '{"city": "Ulm", "days": 2}')
TIME = ("call00002", "get_time", {"place": "Bonn"})
RESULT = result("call00001", "get_weather", '{"sky": "clear", "degrees": 21}')
TWO = [
    user("Hi."),
    said("Hello! What can I do?"),
    user("Name a tea."),
    said("Assam."),
    user("Another."),
]
THOUGHT = "The user wants tea.\nGreen, then."
#: The same reasoning under all of its names.
THOUGHTS = dict.fromkeys(("reasoning_content", "thinking", "reasoning"), THOUGHT)

#: name -> what is sent: "messages", and keywords of the call.
SENT: dict[str, dict[str, Any]] = {
    "user": {"messages": [user("What is tea?")]},
    "system": {"messages": [SYSTEM, user("What is tea?")]},
    "turns": {"messages": [SYSTEM, *TWO]},
    "closed": {"messages": [*TWO, said("Sencha.")], "add_generation_prompt": False},
    "odd text": {"messages": [user(ODD), said(ODD), user(ODD)]},
    "continued": {"messages": [SYSTEM, user("Name two teas."), said("Assam and")]},
    "continued, trimmed": {"messages": [user("Name two teas."), said("Assam and ")]},
    "thought": {
        "messages": [user("Tea?"), said("Sencha.", reasoning_content=THOUGHT), user("Why?")]
    },
    "thought, named otherwise": {
        "messages": [user("Tea?"), said("Sencha.", reasoning=THOUGHT), user("Why?")]
    },
    "no thinking": {"messages": TWO, "enable_thinking": False},
    "null keyword": {"messages": TWO, "enable_thinking": None},
    "tools": {"messages": [SYSTEM, ASK], "tools": [WEATHER, CLOCK]},
    "function": {"messages": [ASK], "tools": [get_weather]},
    "call": {"messages": [SYSTEM, ASK, called("", CALL), RESULT], "tools": [WEATHER, CLOCK]},
    "call as it is sent": {
        "messages": [
            {**SYSTEM, "name": None},
            {**ASK, "name": None},
            called(None, CALL_SENT, refusal=None, audio=None, function_call=None),
            RESULT,
        ],
        "tools": [WEATHER, CLOCK],
    },
    "call and answer": {
        "messages": [ASK, called("", CALL), RESULT, said("Clear, 21 degrees."), user("Thanks!")],
        "tools": [WEATHER],
    },
    "answer with nulls": {
        "messages": [user("Hi."), said("Hello.", tool_calls=None, refusal=None), user("Bye.")]
    },
    "two calls": {
        "messages": [
            ASK,
            called("", CALL, TIME),
            RESULT,
            result("call00002", "get_time", "12:30"),
        ],
        "tools": [WEATHER, CLOCK],
    },
    "thought and call": {
        "messages": [ASK, called("", CALL, reasoning_content=THOUGHT), RESULT],
        "tools": [WEATHER],
    },
    "parts": {"messages": [user(parts("Answer in French.", "What is tea?"))]},
    "parts of the system": {
        "messages": [{"role": "system", "content": parts("Be brief.", "Be kind.")}, user("Tea?")]
    },
    "parts of an answer": {
        "messages": [user("Tea?"), said(parts("Assam.", "Or not.")), user("Why?")]
    },
    "parts of a result": {
        "messages": [
            ASK,
            called("", CALL),
            result("call00001", "get_weather", parts("clear", "21 degrees")),
        ],
        "tools": [WEATHER],
    },
    "parts continued": {"messages": [user("Two teas?"), said(parts("Assam.", "And"))]},
}


def for_transformers() -> dict[str, dict[str, Any]]:
    """The same conversations without what transformers renders otherwise; parts stay."""
    given = {name: dict(case) for name, case in SENT.items()}
    given["thought"]["messages"] = [user("Tea?"), said("Sencha.", **THOUGHTS), user("Why?")]
    given["thought, named otherwise"] = given["thought"]
    given["null keyword"] = {"messages": TWO}
    given["call as it is sent"] = given["call"]
    given["answer with nulls"] = {"messages": [user("Hi."), said("Hello."), user("Bye.")]}
    given["thought and call"]["messages"] = [ASK, called("", CALL, **THOUGHTS), RESULT]
    return given


#: For templates of pieces: messages and keywords of the call.
BUILT_IN: dict[str, tuple[Any, dict[str, Any]]] = {
    "text": ("What is tea?", {}),
    "no text": ("", {}),
    "turns": (TWO, {}),
    "system": ([SYSTEM, *TWO], {}),
    "answered": ([SYSTEM, *TWO, said("Sencha.")], {}),
    "nothing": ([], {}),
}
#: For DeepSeek V3.2 and V4.
DEEPSEEK: dict[str, tuple[Any, dict[str, Any]]] = {
    **BUILT_IN,
    "thinking": ([SYSTEM, *TWO], {"enable_thinking": True}),
    "thought": (
        [user("Tea?"), said("Sencha.", reasoning_content=THOUGHT), user("Why?")],
        {"thinking": True, "drop_thinking": False},
    ),
    "effort": ([*TWO], {"thinking": True, "reasoning_effort": "max"}),
    "tools": ([SYSTEM, ASK], {"tools": [WEATHER, CLOCK], "thinking": True}),
    "call": ([ASK, called("", CALL), RESULT], {"tools": [WEATHER]}),
    "two calls": (
        [
            ASK,
            called("So.", CALL, TIME, reasoning_content=THOUGHT),
            result("call00002", "get_time", "12:30"),
            RESULT,
        ],
        {"thinking": True},
    ),
    "goes on": ([*TWO], {"sequence_start": False}),
}
