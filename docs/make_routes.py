"""Writes docs/routes.md from the tables that requests are checked by (`make docs`)."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lmdeploy_c.serve.app import ROUTES
from lmdeploy_c.serve.fields import SAMPLING, STREAMING, SWITCHED_OFF, WITHOUT_EFFECT
from lmdeploy_c.serve.routing import Route

PAGE = Path(__file__).with_name("routes.md")
HEAD = """# The routes of the server, and their fields
Made by `make docs` from the tables that requests are checked by; `/openapi.json` is the same for
programs, and [serving.md](serving.md) has examples. A field that is not here is refused with a 400
that names it. null is as good as leaving a field out, unless it is required.
"""
#: Tables of their own, to which the routes' tables point.
SHARED = {
    "How tokens are chosen": SAMPLING,
    "Fields without effect": WITHOUT_EFFECT,
    "Fields of features that are not served": SWITCHED_OFF,
}
_WORDS = {"boolean": "true or false", "string": "text", "array": "list"}


def kind(schema: Mapping[str, Any]) -> str:
    """What a field may be, in words."""
    if "title" in schema:
        return str(schema["title"])
    if "enum" in schema:
        return ", ".join(f"`{_json(value)}`" for value in schema["enum"])
    names = schema.get("type", "anything")
    names = [names] if isinstance(names, str) else [name for name in names if name != "null"]
    text = " or ".join(_WORDS.get(name, name) for name in names)
    low, high = schema.get("minimum"), schema.get("maximum")
    if high is not None and high >= 2**31 - 1:
        return f"{text} from {low}" if low else f"{text}"
    return text if low is None else f"{text}, {low:g} to {high:g}"


def _json(value: Any) -> str:
    return {None: "null", True: "true", False: "false"}.get(value, str(value))


def rows(fields: Mapping[str, Any], required: tuple[str, ...] = ()) -> Iterator[str]:
    yield "| field | value | |\n|---|---|---|\n"
    for name, schema in fields.items():
        star = " (required)" if name in required else ""
        yield f"| `{name}`{star} | {kind(schema)} | {schema.get('description', '')} |\n"


def section(route: Route) -> Iterator[str]:
    yield f"\n## {route.method} {route.path}\n{route.about}"
    if route.streams:
        yield " With `stream` it answers in events."
    if route.open:
        yield " It needs no API key."
    yield "\n"
    body = route.body or {}
    fields, shared = dict(body.get("properties", {})), []
    for title, table in SHARED.items():
        if fields.keys() >= table.keys():
            fields = {name: schema for name, schema in fields.items() if name not in table}
            shared.append(title)
    if "stream_options" in fields:
        names = ", ".join(f"`{name}`" for name in STREAMING["stream_options"]["properties"])
        fields["stream_options"] = {"title": "object", "description": f"{names}: true or false."}
    if fields:
        yield "\n"
        yield from rows(fields, tuple(body.get("required", ())))
    for title in shared:
        yield f"\nAnd: [{title.lower()}](#{title.lower().replace(' ', '-')}).\n"


def page() -> str:
    parts = [HEAD]
    for route in ROUTES:
        parts += section(route)
    for title, table in SHARED.items():
        parts += [f"\n## {title}\n\n", *rows(table)]
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
