"""Compiles a chat template to code that asks `jinja_sandbox` for every step that is not O(1).

jinja2's sandbox leaves some operations to Python itself: comparisons, slices, lists, output. Here
they are calls of the environment. Nothing is computed while compiling: jinja2 folds constants
without its sandbox. The source, its nesting and the code that is made of it are bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import TemplateSyntaxError
from jinja2.ext import Extension
from jinja2.parser import Parser

MAX_TEMPLATE = 60_000  # characters; the longest known has 17,000
MAX_NODES = 20_000  # of the syntax tree; that one has 2,000
MAX_CODE = 600_000  # characters of code; that one makes 60,000
MAX_NESTING = 120  # of expressions and blocks, while parsing
MAX_TREE = 150  # of the syntax tree, where `a + b + c` is nested too
SHORT_CONSTANT = 1000  # characters of a text that costs nothing to compare with

_OPERATORS = {"eq": "==", "ne": "!=", "gt": ">", "gteq": ">=", "lt": "<", "lteq": "<=", "in": "in",
              "notin": "not in"}  # fmt: skip


class Generation(Extension):
    """`{% generation %}` marks the assistant's words for training: here its content is shown. What
    is set inside stays inside, as in the macro that transformers makes of it."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


# ---- parsing ----


def _counted(name: str) -> Callable[..., Any]:
    method = getattr(Parser, name)

    def counted(self: BoundedParser, *args: Any, **kwargs: Any) -> Any:
        self.nesting += 1
        if self.nesting > MAX_NESTING:
            self.fail("it is nested too deeply", self.stream.current.lineno)
        try:
            return method(self, *args, **kwargs)
        finally:
            self.nesting -= 1

    return counted


class BoundedParser(Parser):
    """Counts how deep it is where a template can make it call itself."""

    nesting = 0
    parse_statement = _counted("parse_statement")
    parse_condexpr = _counted("parse_condexpr")
    parse_not = _counted("parse_not")
    parse_unary = _counted("parse_unary")

    def parse(self) -> nodes.Template:
        template = super().parse()
        n_nodes = depth = 0
        level: list[nodes.Node] = [template]
        while level:
            n_nodes += len(level)
            depth += 1
            if n_nodes > MAX_NODES or depth > MAX_TREE:
                self.fail("it is too long or nested too deeply", level[0].lineno)
            level = [child for node in level for child in node.iter_child_nodes()]
        return template


# ---- code ----


def _is_constant(node: nodes.Node) -> bool:
    """Whether the node is a value that costs nothing to compare with."""
    if isinstance(node, (nodes.List, nodes.Tuple)):
        return all(isinstance(item, nodes.Const) and _is_constant(item) for item in node.items)
    return isinstance(node, nodes.Const) and len(str(node.value)) <= SHORT_CONSTANT


def _code(text: str, line: int) -> nodes.Expr:
    """An expression of Python itself."""
    node: nodes.Expr = object.__new__(nodes.InternalName)
    nodes.Node.__init__(node, text, lineno=line)
    return node


class BoundedCode(CodeGenerator):
    """Writes calls of the environment for the operations that jinja2's sandbox leaves to Python."""

    n_written = 0

    def write(self, x: str) -> None:
        self.n_written += len(x)
        self.environment.meter.look()  # type: ignore[attr-defined]
        if self.n_written > MAX_CODE:
            self.fail("it makes too much code", self._last_line)
        super().write(x)

    def _visit_call(self, function: str, frame: Frame, *arguments: nodes.Node | None) -> None:
        self.write(f"environment.{function}(")
        for argument in arguments:
            if argument is None:
                self.write("None")
            else:
                self.visit(argument, frame)
            self.write(", ")
        self.write(")")

    # ---- statements ----

    def visit_For(self, node: nodes.For, frame: Frame) -> None:
        turn = _code("environment.turn()", node.lineno)
        node.body.insert(0, nodes.ExprStmt(turn, lineno=node.lineno))
        if node.test is not None:
            node.test = nodes.And(turn, node.test, lineno=node.lineno)
        super().visit_For(node, frame)

    def _no_other_template(self, node: nodes.Node, frame: Frame) -> None:
        self.writeline("environment.refuse_other_templates()", node)

    visit_Include = visit_Import = visit_FromImport = visit_Extends = _no_other_template

    def _no_escaping(self, node: nodes.Node, frame: Frame) -> None:
        self.fail("a chat template has no autoescape", node.lineno)

    visit_EvalContextModifier = visit_ScopedEvalContextModifier = _no_escaping

    # ---- output ----

    def _output_const_repr(self, group: Any) -> str:
        return f"environment.emit({''.join(group)!r})"

    def _output_child_to_const(self, node: nodes.Expr, frame: Frame, finalize: Any) -> str:
        if not isinstance(node, nodes.TemplateData):
            raise nodes.Impossible
        return node.data

    def _output_child_pre(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        self.write("environment.emit(")

    def _output_child_post(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        self.write(")")

    # ---- expressions ----

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self._visit_call("join_texts", frame, *node.nodes)

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        self.write("(")
        left: nodes.Expr = node.expr
        free = all(_is_constant(operand.expr) for operand in node.ops)
        free = free or (_is_constant(left) and len(node.ops) == 1)
        if free:
            self.visit(left, frame)
        else:
            self._visit_call("read", frame, left)
        for operand in node.ops:
            self.write(f" {_OPERATORS[operand.op]} ")
            if operand.op in ("in", "notin") and not _is_constant(operand.expr):
                function = "searched_for_short" if _is_constant(left) else "searched"
                self._visit_call(function, frame, operand.expr)
            elif free or _is_constant(operand.expr):
                self.visit(operand.expr, frame)
            else:
                self._visit_call("read", frame, operand.expr)
            left = operand.expr
        self.write(")")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        if isinstance(node.arg, nodes.Slice):
            part = node.arg
            self._visit_call("slice", frame, node.node, part.start, part.stop, part.step)
        else:
            self._visit_call("getitem", frame, node.node, node.arg)

    def _visit_literal(self, node: Any, frame: Frame) -> None:
        visit = getattr(CodeGenerator, f"visit_{type(node).__name__}")
        if getattr(node, "ctx", "load") == "store" or _is_constant(node):
            visit(self, node, frame)
            return
        self.write("environment.nested(")
        visit(self, node, frame)
        self.write(")")

    visit_Tuple = visit_List = _visit_literal

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self.write("environment.nested({")
        for item in node.items:
            if _is_constant(item.key):
                self.visit(item.key, frame)
            else:
                self._visit_call("read", frame, item.key)
            self.write(": ")
            self.visit(item.value, frame)
            self.write(", ")
        self.write("})")

    def visit_Call(self, node: nodes.Call, frame: Frame, forward_caller: bool = False) -> None:
        self.write("environment.call(context, ")
        self.visit(node.node, frame)
        self.signature(node, frame, {"caller": "caller"} if forward_caller else None)
        self.write(")")

    def signature(
        self, node: Any, frame: Frame, extra_kwargs: Mapping[str, Any] | None = None
    ) -> None:
        for name in ("dyn_args", "dyn_kwargs"):
            if getattr(node, name) is not None:
                setattr(node, name, nodes.MarkSafe(getattr(node, name), lineno=node.lineno))
        super().signature(node, frame, extra_kwargs)

    def visit_MarkSafe(self, node: nodes.MarkSafe, frame: Frame) -> None:
        """No template has this node: here it marks what is spread with * or **."""
        self._visit_call("spread", frame, node.expr)


def _operation(operator: str) -> Callable[..., None]:
    def visit(self: BoundedCode, node: nodes.BinExpr, frame: Frame) -> None:
        if operator == "+":
            self._visit_call("add", frame, node.left, node.right)
        else:
            constant = nodes.Const(operator, lineno=node.lineno)
            self._visit_call("operate", frame, constant, node.left, node.right)

    return visit


for _name, _operator in {"Add": "+", "Sub": "-", "Mul": "*", "Div": "/", "FloorDiv": "//",
                         "Pow": "**", "Mod": "%"}.items():  # fmt: skip
    setattr(BoundedCode, f"visit_{_name}", _operation(_operator))


def check_length(source: str) -> None:
    if len(source) > MAX_TEMPLATE:
        raise TemplateSyntaxError(f"it has more than {MAX_TEMPLATE} characters", 1)
