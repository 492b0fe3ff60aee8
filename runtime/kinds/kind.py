"""What a node kind is: a checked configuration and a pure way to bind it into a step's ``act``."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Protocol

import msgspec
from jmespath.exceptions import JMESPathError

from runtime.events import Json
from runtime.expressions import (
    MAP_NAMES,
    NAMES,
    Expression,
    ExpressionSyntax,
    compile_expression,
    compile_value,
    is_expression,
    is_truthy,
)
from runtime.plan import Act, Evaluate, Scope, Step
from runtime.templates import Template, TemplateSyntax, compile_template

Setting = Literal["retry", "timeout_seconds", "resources"]
SETTINGS: tuple[Setting, ...] = ("retry", "timeout_seconds", "resources")

Condition = Callable[[Scope], bool]


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the table of kinds.

    ``in_map``: it may stand inside ``each``; only kinds whose action the shell can perform for an item may.
    ``without``: settings that are refused here, each with its rule.
    ``nested``: fields that hold a node of their own.
    """

    config: type[msgspec.Struct]
    bind: Callable[[Any, "Binder"], Act]
    in_map: bool = False
    without: Mapping[Setting, str] = {}
    nested: tuple[str, ...] = ()


class Binder(Protocol):
    """Compiles a node's texts; keeps what they mention and every problem.

    After a problem the compiled thing is a stand-in that is never called.
    """

    def problem(self, field: str, rule: str) -> None: ...
    def template(self, field: str, text: str) -> Callable[[Scope], str]: ...
    def expression(self, field: str, text: str) -> Evaluate: ...
    def value(self, field: str, value: Json) -> Evaluate: ...
    def condition(self, field: str, text: str) -> tuple[Condition, bool | None]:
        """The test, and its result where that is always the same."""
        ...

    def decides(self, field: str, node_ids: Iterable[str], *, possible: bool) -> None:
        """The nodes run only if this node wants so; not ``possible``: it never will."""
        ...

    def nested(self, field: str, raw: Mapping[str, Json]) -> Step: ...

    def streamed(self, field: str) -> None:
        """A node's large output that only ``field`` mentions may come as a marker (``runtime.values``)."""
        ...


def _unbound(_scope: Scope) -> Any:
    raise TypeError("a flow with problems can't run")


class TextBinder:
    """The part of a binder that needs no graph: templates, expressions and values."""

    def __init__(self, report: Callable[[str, str], None], *, in_map: bool = False) -> None:
        self._report = report
        self._names = MAP_NAMES if in_map else NAMES
        self.node_reads: list[tuple[str, str]] = []
        """Pairs of field and node id."""
        self.input_reads: list[tuple[str, str]] = []

    def problem(self, field: str, rule: str) -> None:
        self._report(field, rule)

    def template(self, field: str, text: str) -> Callable[[Scope], str]:
        try:
            template = compile_template(text, self._names)
        except TemplateSyntax as error:
            self._report(field, str(error))
            return _unbound
        self._mentions(field, template)
        return template.render

    def expression(self, field: str, text: str) -> Evaluate:
        compiled = self._expression(field, text)
        return compiled.evaluate if compiled else _unbound

    def value(self, field: str, value: Json) -> Evaluate:
        try:
            compiled = compile_value(value, self._names)
        except ExpressionSyntax as error:
            self._report(field, str(error))
            return _unbound
        self._mentions(field, compiled)
        return compiled.evaluate

    def condition(self, field: str, text: str) -> tuple[Condition, bool | None]:
        compiled = self._expression(field, text)
        if compiled is None:
            return _unbound, None
        evaluate = compiled.evaluate
        always: bool | None = None
        if compiled.is_constant:
            try:
                always = is_truthy(evaluate({}))
            except JMESPathError as error:
                self._report(field, f"always fails: {error}")
        return lambda scope: is_truthy(evaluate(scope)), always

    def _expression(self, field: str, text: str) -> Expression | None:
        if is_expression(text):
            self._report(field, "stands without ${ }: the whole field is an expression")
            return None
        try:
            compiled = compile_expression(text, self._names)
        except ExpressionSyntax as error:
            self._report(field, str(error))
            return None
        self._mentions(field, compiled)
        return compiled

    def _mentions(self, field: str, compiled: Expression | Template) -> None:
        self.node_reads += [(field, name) for name in compiled.node_reads]
        self.input_reads += [(field, name) for name in compiled.input_reads]
