"""Every use of the tokenizers library stands in one module, and there under its guard."""

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "lmdeploy_c"
DOOR = PACKAGE / "text" / "tokenizers_library.py"
GUARD = "_guarded"
OBJECT = "_real"  # the attribute that holds an object of the library


def imports_of_it(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            if any(alias.name.split(".")[0] == "tokenizers" for alias in node.names):
                yield node
        elif (
            isinstance(node, ast.ImportFrom)
            and not node.level
            and (node.module or "").split(".")[0] == "tokenizers"
        ):
            yield node


def uses_of_it(tree: ast.AST) -> Iterator[ast.AST]:
    """Imports of the library, what they name, and its objects."""
    names = set()
    for node in imports_of_it(tree):
        names.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
        yield node
    for node in ast.walk(tree):
        is_name = isinstance(node, ast.Name) and node.id in names
        if is_name or (isinstance(node, ast.Attribute) and node.attr == OBJECT):
            yield node


def guarded_lines(tree: ast.AST) -> set[int]:
    """Lines inside of `with _guarded(...)`."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.With) and any(
            isinstance(item.context_expr, ast.Call)
            and isinstance(item.context_expr.func, ast.Name)
            and item.context_expr.func.id == GUARD
            for item in node.items
        ):
            lines.update(range(node.body[0].lineno, (node.end_lineno or 0) + 1))
    return lines


def open_uses(source: str) -> list[int]:
    """The lines of uses that nothing guards."""
    tree = ast.parse(source)
    guarded = guarded_lines(tree)
    return [n for n in (use.lineno for use in uses_of_it(tree)) if n not in guarded]  # type: ignore[attr-defined]


def test_nobody_else_uses_the_library() -> None:
    for path in sorted(PACKAGE.rglob("*.py")):
        if path != DOOR:
            uses = list(uses_of_it(ast.parse(path.read_text())))
            assert not uses, f"{path}: line {uses[0].lineno}"  # type: ignore[attr-defined]


def test_every_use_is_guarded() -> None:
    source = DOOR.read_text()
    assert len(list(uses_of_it(ast.parse(source)))) > 15
    assert open_uses(source) == []


def test_what_is_not_guarded_is_found() -> None:
    source = DOOR.read_text()
    found = "            found: int | None = self._real.token_to_id(token)\n"
    assert found in source
    line = source[: source.index(found)].count("\n") + 1
    freed = source.replace(
        found, "            pass\n        found = self._real.token_to_id(token)\n"
    )
    assert open_uses(freed) == [line + 1]
    assert open_uses("import tokenizers\n") == [1]
    assert open_uses("with _guarded(''):\n    from tokenizers import models as m\nm.BPE()\n") == [3]
