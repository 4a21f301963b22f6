"""Functions as tools: the schemas that transformers 5.23's get_json_schema makes of them."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, Literal

import pytest
from golden.conversations import get_weather

from lmdeploy_c.text.jinja_template import JinjaChatTemplate
from lmdeploy_c.text.tool_schema import function_schema


class Colour(enum.Enum):
    RED = "red"
    GREEN = "green"


def weather(
    city: str, days: int = 3, unit: Literal["c", "f"] = "c", above: float | None = None
) -> dict[str, int]:
    """Weather of a city.

    More of it: in words.

    Args:
        city: The city, for example
            name: is no argument here. More.
        days: How many

            days.
        unit: The unit (choices: ["c ", "f"])
        above:
            The least.

    Returns:
        A mapping.
        Of things.

    Raises:
        ValueError: never.
    """
    raise AssertionError


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a city.\n\nMore of it: in words.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {
                    "type": "string",
                    "description": "The city, for example name: is no argument here. More.",
                },
                "days": {"type": "integer", "description": "How many days."},
                "unit": {"type": "string", "enum": ["c", "f"], "description": "The unit"},
                "above": {"type": "number", "nullable": True, "description": "The least."},
            },
            "required": ["city"],
        },
        "return": {
            "type": "object",
            "additionalProperties": {"type": "integer"},
            "description": "A mapping.\n    Of things.",
        },
    },
}


def types(
    a: Colour, b: list[int], c: tuple[int, str], d: dict, e: int | str | None,  # type: ignore
    f: list[int] | dict[str, Any], g: Any, h: list, i: Literal[1, "x", None],  # type: ignore
) -> Callable[[], None]:  # fmt: skip
    """Takes everything.

    Args:
        a: 1
        b: 2
        c: 3
        d: 4
        e: 5
        f: 6
        g: 7
        h: 8
        i: 9
    """
    raise AssertionError


TYPES = {
    "a": {"type": "string", "enum": ["red", "green"]},
    "b": {"type": "array", "items": {"type": "integer"}},
    "c": {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}]},
    "d": {"type": "object"},
    "e": {"type": ["integer", "string"], "nullable": True},
    "f": {"anyOf": [{"type": "array", "items": {"type": "integer"}},
                    {"type": "object", "additionalProperties": {}}]},
    "g": {},
    "h": {"type": "array"},
    "i": {"type": ["integer", "string", "null"], "enum": [1, "x", None]},
}  # fmt: skip


def test_a_signature_and_its_docstring() -> None:
    schema = function_schema(weather)
    assert schema == WEATHER
    assert list(schema["function"]["parameters"]["properties"]["unit"]) == [
        "type", "enum", "description"
    ]  # fmt: skip


def test_types() -> None:
    function = function_schema(types)["function"]
    described = {
        name: {**schema, "description": str(i + 1)}
        for i, (name, schema) in enumerate(TYPES.items())
    }
    assert function["parameters"]["properties"] == described
    assert function["parameters"]["required"] == list(TYPES)
    assert "return" not in function


class Clock:
    def now(self, zone: str = "UTC") -> None:
        """The time.

        Args:
            zone: Where.
        """


def test_methods_leave_their_receiver_out() -> None:
    zone = {"zone": {"type": "string", "description": "Where."}}
    for method in (Clock.now, Clock().now):
        schema = function_schema(method)["function"]
        assert schema["parameters"] == {"type": "object", "properties": zone}
        assert schema["return"] == {"type": "null"}


def undocumented(x: int) -> None: ...
def untyped(x) -> None:  # type: ignore[no-untyped-def]
    """Does.

    Args:
        x: It.
    """


def undescribed(x: int) -> None:
    """Does."""


def unknown(x: tuple[int, ...]) -> None:
    """Does.

    Args:
        x: It.
    """


@pytest.mark.parametrize(
    ("function", "why"),
    [(undocumented, "docstring"), (untyped, "type hint for 'x'"),
     (undescribed, "description of 'x'"), (unknown, "'x' of the tool unknown.*no JSON schema")],
)  # fmt: skip
def test_what_is_missing_is_named(function: Callable[..., Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        function_schema(function)


def test_templates_get_schemas() -> None:
    class Tokens:
        bos_token, eos_token = "<s>", "</s>"

    template = JinjaChatTemplate("{{ tools | map(attribute='function.name') | join }}", Tokens())
    tools = [get_weather, {"function": {"name": "now"}}]
    assert template.messages2prompt("hi", tools=tools) == "get_weathernow"
