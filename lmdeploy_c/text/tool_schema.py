"""Python functions as tools: the JSON schema of a signature and its Google-style docstring.

The same schema as transformers' get_json_schema (5.23), which templates of models were trained on.
The function is never called.
"""

from __future__ import annotations

import inspect
import json
import re
import types
from collections.abc import Callable
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

#: JSON's names of the types whose values can be written in an "enum".
_SCALARS = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null"}
_TYPES = {**_SCALARS, list: "array", tuple: "array", dict: "object"}
_SECTION = r"\s*(?:Args|Returns|Raises):"


def tool_of(tool: Any) -> Any:
    """The tool as a template reads it: of a function its schema, anything else as it is."""
    return function_schema(tool) if inspect.isroutine(tool) else tool


def function_schema(function: Callable[..., Any]) -> dict[str, Any]:
    """{"type": "function", "function": {"name", "description", "parameters"}}, and "return" where
    the return type is one of JSON's.

    Raises ValueError where the docstring, a type or a description is missing, or a type is none of
    JSON's.
    """
    name, doc = function.__name__, (inspect.getdoc(function) or "").strip()
    if not doc:
        raise ValueError(f"the tool {name}() needs a docstring that says what it does")
    described = _arguments_in(doc)
    parameters, required = _parameters(function, name)
    for argument, schema in parameters.items():
        if argument not in described:
            raise ValueError(f"the tool {name}() needs a description of {argument!r} under 'Args:'")
        text, choices = _choices(described[argument])
        schema.update({"enum": choices} if choices is not None else {}, description=text)
    properties: dict[str, Any] = {"type": "object", "properties": parameters}
    if required:
        properties["required"] = required
    summary = re.split(_SECTION, doc, maxsplit=1)[0].strip()
    schema = {"name": name, "description": summary, "parameters": properties}
    returned = _returned(function, doc)
    if returned is not None:
        schema["return"] = returned
    return {"type": "function", "function": schema}


# ---- the docstring ----


def _arguments_in(doc: str) -> dict[str, str]:
    """The descriptions under "Args:". One ends where a name begins that is not deeper indented."""
    start = re.search(r"\n\s*Args:\n", doc)
    if start is None:
        return {}
    found: dict[str, list[str]] = {}
    indent = None
    lines: list[str] = []
    for line in re.split(_SECTION, doc[start.end() :], maxsplit=1)[0].split("\n"):
        entry = re.match(r"([ \t]*)(\w+):\s*(.*)", line)
        if entry and (indent is None or not re.match(f"{indent}[ \t]", line)):
            indent, lines = entry[1], [entry[3]]
            found[entry[2]] = lines
        else:
            lines.append(line)
    return {name: " ".join(filter(None, map(str.strip, lines))) for name, lines in found.items()}


def _choices(description: str) -> tuple[str, list[Any] | None]:
    """A description, and the values that "(choices: [...])" at its end allows."""
    found = re.search(r"\(choices:\s*(.*?)\)\s*$", description, re.IGNORECASE)
    if found is None:
        return description, None
    values = [v.strip() if isinstance(v, str) else v for v in json.loads(found[1])]
    return description[: found.start()].strip(), values


# ---- the signature ----


def _parameters(
    function: Callable[..., Any], name: str
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The schemas of the parameters, and the names of those without a default."""
    hints = get_type_hints(function)
    schemas, required = {}, []
    for i, parameter in enumerate(inspect.signature(function).parameters.values()):
        if parameter.annotation is parameter.empty:
            if i == 0 and parameter.name in ("self", "cls"):
                continue
            raise ValueError(f"the tool {name}() needs a type hint for {parameter.name!r}")
        try:
            schemas[parameter.name] = _schema(hints[parameter.name])
        except ValueError as error:
            raise ValueError(f"{parameter.name!r} of the tool {name}(): {error}") from None
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    return schemas, required


def _returned(function: Callable[..., Any], doc: str) -> dict[str, Any] | None:
    hints = get_type_hints(function)
    if "return" not in hints:
        return None
    try:
        schema = _schema(hints["return"])
    except ValueError:  # the model never writes it
        return None
    start = re.search(r"\n\s*Returns:\n\s*", doc)
    if start is not None:
        schema["description"] = re.split(r"\s*Raises:", doc[start.end() :], maxsplit=1)[0].strip()
    return schema


def _schema(hint: Any) -> dict[str, Any]:
    """A type hint's JSON schema; ValueError for a type that JSON lacks."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return {}
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _enum([member.value for member in hint], hint)
    if origin is Literal:
        return _enum(list(args), hint)
    if origin is Union or origin is types.UnionType:
        return _union(args)
    if origin is list:
        return {"type": "array", "items": _schema(args[0])}
    if origin is tuple and len(args) > 1 and ... not in args:
        return {"type": "array", "prefixItems": [_schema(arg) for arg in args]}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(args[1])}
    if origin is None and hint in _TYPES:
        return {"type": _TYPES[hint]}
    raise ValueError(
        f"the type {hint!r} has no JSON schema; pass the tool's schema instead of the function"
    )


def _enum(values: list[Any], hint: Any) -> dict[str, Any]:
    if not values or any(type(value) not in _SCALARS for value in values):
        raise ValueError(f"the values of {hint!r} must be texts, numbers, booleans or None")
    names = list(dict.fromkeys(_SCALARS[type(value)] for value in values))
    return {"type": names[0] if len(names) == 1 else names, "enum": values}


def _union(hints: tuple[Any, ...]) -> dict[str, Any]:
    """One of several types; None among them is "nullable"."""
    parts = [_schema(hint) for hint in hints if hint is not type(None)]
    if len(parts) == 1:
        schema = parts[0]
    elif all(part.keys() == {"type"} and isinstance(part["type"], str) for part in parts):
        names = sorted({part["type"] for part in parts})
        schema = {"type": names[0] if len(names) == 1 else names}
    else:
        schema = {"anyOf": parts}
    return {**schema, "nullable": True} if type(None) in hints else schema
