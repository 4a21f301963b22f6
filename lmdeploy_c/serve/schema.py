"""JSON Schema for requests: how fields are described, and values checked by that.

The words are JSON Schema's, so that the OpenAPI document shows what is checked: type, enum, title,
minimum, maximum, minLength, minItems, maxItems, items, properties, required, additionalProperties,
anyOf. A boolean is no number, and a text no number either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Schema = Mapping[str, Any]

_TYPES: dict[str, tuple[str, tuple[type, ...]]] = {
    "null": ("null", (type(None),)),
    "boolean": ("true or false", (bool,)),
    "integer": ("an integer", (int, float)),
    "number": ("a number", (int, float)),
    "string": ("a text", (str,)),
    "array": ("a list", (list,)),
    "object": ("an object", (dict,)),
}
#: Characters of a wrong value that an error shows.
_SHOWN = 60


class WrongValue(ValueError):
    """A value that a schema does not allow. path: where it is, such as "messages[0].role"."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.path = path


# ---- describing ----


def text(about: str = "", *, min_len: int = 0) -> dict[str, Any]:
    return _described({"type": "string", **({"minLength": min_len} if min_len else {})}, about)


def flag(about: str = "") -> dict[str, Any]:
    return _described({"type": "boolean"}, about)


def integer(low: int, high: int, about: str = "") -> dict[str, Any]:
    return _described({"type": "integer", "minimum": low, "maximum": high}, about)


def number(low: float, high: float, about: str = "") -> dict[str, Any]:
    return _described({"type": "number", "minimum": low, "maximum": high}, about)


def list_of(items: Schema, about: str = "", *, min_items: int = 0) -> dict[str, Any]:
    smallest = {"minItems": min_items} if min_items else {}
    return _described({"type": "array", "items": items, **smallest}, about)


def mapping(about: str = "", values: Schema | None = None) -> dict[str, Any]:
    """An object with any names."""
    others = True if values is None else values
    return _described({"type": "object", "additionalProperties": others}, about)


def one_of(*values: Any, about: str = "") -> dict[str, Any]:
    return _described({"enum": list(values)}, about)


def any_of(title: str, *schemas: Schema, about: str = "") -> dict[str, Any]:
    """title: says in words what is allowed."""
    return _described({"title": title, "anyOf": list(schemas)}, about)


def any_value(about: str = "") -> dict[str, Any]:
    return _described({}, about)


def fields(
    properties: Mapping[str, Schema], required: Sequence[str] = (), *, open: bool = False
) -> dict[str, Any]:
    """An object. Where a field is not required, null is as good as none. open: it may have fields
    that are not listed."""
    return {
        "type": "object",
        "properties": {
            name: schema if name in required else nullable(schema)
            for name, schema in properties.items()
        },
        **({"required": list(required)} if required else {}),
        "additionalProperties": open,
    }


def nullable(schema: Schema) -> dict[str, Any]:
    """The schema, and null."""
    null = {"type": "null"}
    if "anyOf" in schema:
        choices = [choice for choice in schema["anyOf"] if choice != null]
        return {**schema, "anyOf": [*choices, null]}
    if "enum" in schema:
        values = [value for value in schema["enum"] if value is not None]
        return {**schema, "enum": [*values, None]}
    if isinstance(schema.get("type"), str):
        return {**schema, "type": [schema["type"], "null"]}
    return dict(schema)


def _described(schema: dict[str, Any], about: str) -> dict[str, Any]:
    return {**schema, "description": about} if about else schema


# ---- checking ----


def check(schema: Schema, value: Any, path: str = "") -> Any:
    """The value, with integers as integers where they were written as 1.0. WrongValue."""
    if "anyOf" in schema:
        return _check_any(schema, value, path)
    if "enum" in schema and not any(_same(value, allowed) for allowed in schema["enum"]):
        raise WrongValue(path, f"must be {_either(map(_show, schema['enum']))}, not {_show(value)}")
    names = schema.get("type")
    if names is None:
        return value
    kind = _kind(value, [names] if isinstance(names, str) else names)
    if kind is None:
        raise WrongValue(path, f"must be {_wanted(schema)}, not {_show(value)}")
    if kind == "integer":
        value = int(value)
    if kind in ("integer", "number"):
        low, high = schema.get("minimum", value), schema.get("maximum", value)
        if not low <= value <= high:
            raise WrongValue(path, f"must be {_wanted(schema)}, not {_show(value)}")
    elif kind == "string" and len(value) < schema.get("minLength", 0):
        raise WrongValue(path, "must not be empty")
    elif kind == "array":
        return _check_list(schema, value, path)
    elif kind == "object":
        return _check_object(schema, value, path)
    return value


def _kind(value: Any, names: Sequence[str]) -> str | None:
    """Which of the types a value has."""
    for name in names:
        if not isinstance(value, _TYPES[name][1]):
            continue
        if isinstance(value, bool) and name != "boolean":
            continue
        if name == "integer" and isinstance(value, float) and not value.is_integer():
            continue
        return name
    return None


def _same(value: Any, allowed: Any) -> bool:
    return isinstance(value, bool) == isinstance(allowed, bool) and bool(value == allowed)


def _check_any(schema: Schema, value: Any, path: str) -> Any:
    deeper: WrongValue | None = None
    for choice in schema["anyOf"]:
        try:
            return check(choice, value, path)
        except WrongValue as error:
            if error.path != path and (deeper is None or len(error.path) > len(deeper.path)):
                deeper = error  # the value has this form, and is wrong inside
    raise deeper or WrongValue(path, f"must be {schema['title']}, not {_show(value)}")


def _check_list(schema: Schema, value: list[Any], path: str) -> list[Any]:
    low, high = schema.get("minItems", 0), schema.get("maxItems", len(value))
    if len(value) < low:
        raise WrongValue(path, "must not be empty")
    if len(value) > high:
        raise WrongValue(path, f"must have at most {high} items, not {len(value)}")
    items = schema.get("items", {})
    return [check(items, item, f"{path}[{i}]") for i, item in enumerate(value)]


def _check_object(schema: Schema, value: dict[str, Any], path: str) -> dict[str, Any]:
    known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    dot = f"{path}." if path else ""
    unknown = [name for name in value if name not in known]
    if unknown and others is False:
        named = ", ".join(f"{name:.{_SHOWN}}" for name in unknown[:5])
        raise WrongValue(dot + unknown[0][:_SHOWN], f"unknown field (there is no {named})")
    for name in schema.get("required", ()):
        if name not in value:
            raise WrongValue(dot + name, "is missing")
    high = schema.get("maxProperties", len(value))
    if len(value) > high:
        raise WrongValue(path, f"must have at most {high} fields, not {len(value)}")
    rest = others if isinstance(others, Mapping) else {}
    return {
        name: check(known.get(name, rest), item, f"{dot}{name:.{_SHOWN}}")
        for name, item in value.items()
    }


def _wanted(schema: Schema) -> str:
    """What a schema asks for, in words."""
    if "title" in schema:
        return str(schema["title"])
    names = schema["type"]
    names = [names] if isinstance(names, str) else [name for name in names if name != "null"]
    words = _either(_TYPES[name][0] for name in names)
    low, high = schema.get("minimum"), schema.get("maximum")
    return f"{words} from {low} to {high}" if low is not None and high is not None else words


def _either(words: Any) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else str(last)


def _show(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "an object"
    shown = repr(value)
    return shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "..."
