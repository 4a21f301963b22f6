"""Writes docs/api.md from the docstrings of what `import lmdeploy_c` gives (`make docs`).

A docstring is prose; its "Attributes:" become a list, with each field's type and default.
"""

import dataclasses
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("api.md")
HEAD = """# The Python interface
Made by `make docs` from the docstrings, which `help()` shows too. Where names and defaults differ
from LMDeploy's, [the README](../README.md) says so.

"""
#: In the order in which they are looked for.
SECTIONS = {
    "Answers": ["pipeline", "Pipeline", "Session", "Response"],
    "Configurations": [
        *("GenerationConfig", "TurbomindEngineConfig", "SpeculativeConfig", "ChatTemplateConfig"),
        *("PytorchEngineConfig", "VisionConfig"),
    ],
    "Before a load": ["plan", "Plan"],
    "Text": ["Tokenizer"],
    "Errors": ["Interrupted", "RequestError", "CheckpointError", "UnsupportedError"],
    "Compression": [
        *("lite.quantize", "lite.export", "lite.perplexity", "lite.divergence"),
        *("lite.auto_awq", "lite.auto_gptq", "lite.smooth_quant", "lite.calibrate"),
        *("lite.Report", "lite.LayerReport", "lite.LinearReport", "lite.Need"),
        *("lite.Calibration", "lite.InputReport", "lite.KvRanges"),
        *("lite.Comparison", "lite.TextScore", "lite.Mean"),
    ],
    "Serving": ["serve.ServeConfig", "serve.Server", "serve.make_app"],
    "The core": ["Engine", "Model", "Quantizer", "Scheduler"],
}
CORE = "\nIts methods: [lmdeploy_c/_C.pyi](../lmdeploy_c/_C.pyi).\n"
SPECIAL = ("__call__", "__iter__")  # methods with such names that are shown
EMPTY = inspect.Parameter.empty


def source(annotation: object) -> str:
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "Any")


def signature(function: Any, name: str) -> str:
    parts, star = [], False
    for p in inspect.signature(function).parameters.values():
        if p.name == "self":
            continue
        prefix = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
        if p.kind == p.KEYWORD_ONLY and not star:
            parts.append("*")
        star = star or p.kind in (p.KEYWORD_ONLY, p.VAR_POSITIONAL)
        text = f"{prefix}{p.name}" + ("" if p.annotation is EMPTY else f": {source(p.annotation)}")
        parts.append(text if p.default is EMPTY else f"{text} = {p.default!r}")
    result = inspect.signature(function).return_annotation
    arrow = "" if result is EMPTY else f" -> {source(result)}"
    line = f"{name}({', '.join(parts)}){arrow}"
    if len(line) <= 100:
        return line
    return f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){arrow}"


def field_facts(cls: type) -> dict[str, str]:
    """Field -> its type and default."""
    if not dataclasses.is_dataclass(cls):
        return {}
    facts = {}
    for f in dataclasses.fields(cls):
        default = "" if f.default is dataclasses.MISSING else f" = {f.default!r}"
        facts[f.name] = f"{source(f.type)}{default}"
    return facts


def attributes(block: str, facts: dict[str, str]) -> Iterator[str]:
    """The lines of an "Attributes:" block as a list."""
    for name, text in re.findall(r"^(\w[^:\n]*): ((?:.|\n(?!\w))*)", block, re.M):
        names = [part.strip() for part in name.split(",")]
        told = ", ".join(f"`{n}: {facts[n]}`" if n in facts else f"`{n}`" for n in names)
        lines = textwrap.wrap(f"- {told}: {' '.join(text.split())}", 100, subsequent_indent="  ",
                              break_long_words=False, break_on_hyphens=False)  # fmt: skip
        yield "\n".join(lines) + "\n"


def prose(thing: object, facts: dict[str, str]) -> str:
    text = inspect.getdoc(thing) or ""
    before, heading, rest = text.partition("\nAttributes:\n")
    if not heading:
        return text + "\n"
    block, _, after = re.sub(r"^    ", "", rest, flags=re.M).partition("\n\n")
    listed = "".join(attributes(block, facts))
    return f"{before.strip()}\n\n{listed}\n{after}".rstrip() + "\n"


def members(cls: type) -> Iterator[str]:
    found: dict[str, Any] = {}
    for base in cls.__mro__:
        if base.__module__.startswith("lmdeploy_c."):
            found |= {name: member for name, member in vars(base).items() if name not in found}
    for name, member in found.items():
        shown = not name.startswith("_") or name in SPECIAL
        function = getattr(member, "__func__", member)
        if not shown or not inspect.getdoc(function):
            continue
        if isinstance(member, property):
            yield f"\n#### {cls.__name__}.{name}\n{prose(member, {})}"
        elif inspect.isfunction(function):
            code = f"```python\n{signature(function, name)}\n```\n"
            yield f"\n#### {cls.__name__}.{name}\n{code}{prose(function, {})}"


def entry(name: str) -> str:
    thing = pkgutil.resolve_name(f"lmdeploy_c:{name}")
    title = f"\n### {name}\n"
    if inspect.isfunction(thing):
        return f"{title}```python\n{signature(thing, name)}\n```\n{prose(thing, {})}"
    if thing.__module__ == "lmdeploy_c._C":
        is_error = issubclass(thing, Exception)
        return f"{title}{prose(thing, {})}" + ("" if is_error else CORE)
    return f"{title}{prose(thing, field_facts(thing))}" + "".join(members(thing))


def page() -> str:
    parts = [HEAD]
    for section, names in SECTIONS.items():
        parts += [f"## {section}\n", *map(entry, names), "\n"]
    return "".join(parts).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
