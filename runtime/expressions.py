"""JMESPath expressions and values with ``${...}`` in them: what they mention, and quick evaluation.

An expression sees ``inputs``, ``nodes.<id>``, ``execution`` and, inside a map, ``item`` and ``index``.
What it mentions must be readable from its text, since that makes the edges of the graph: so ``nodes`` is
always followed by the id of a node.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

import jmespath
import jmespath.exceptions
import jmespath.functions
import msgspec

from runtime.events import Json
from runtime.plan import Evaluate, Scope

NAMES = frozenset({"inputs", "nodes", "execution"})
MAP_NAMES = NAMES | {"item", "index"}
EXPRESSION_CHARS_MAX = 10_000

_WHOLE = re.compile(r"\$\{(.*)\}", re.DOTALL)
_ESCAPED = re.compile(r"\$\$+\{")
_DOLLARS = re.compile(r"\$+\{")


class Expression(msgspec.Struct, frozen=True):
    """``node_reads`` and ``input_reads``: the nodes and top-level inputs it mentions, in order.

    ``is_constant``: it mentions nothing, so its result is always the same.
    """

    evaluate: Evaluate
    node_reads: tuple[str, ...] = ()
    input_reads: tuple[str, ...] = ()
    is_constant: bool = False


class ExpressionSyntax(ValueError):
    """The text is no expression that may be used here; the message is the rule it breaks."""


def is_truthy(value: Json) -> bool:
    """JMESPath's rule: null, false and empty strings, lists and objects are false; 0 is true."""
    return not (value is None or value is False or (isinstance(value, str | list | dict) and not value))


@lru_cache(maxsize=4096)
def compile_expression(text: str, names: frozenset[str] = NAMES) -> Expression:
    """Compile once; ``names`` are the scope's names the text may use.

    Raises: ExpressionSyntax, also for unknown names, functions and node ids that aren't written out.
    """
    if len(text) > EXPRESSION_CHARS_MAX:
        raise ExpressionSyntax(f"an expression may have {EXPRESSION_CHARS_MAX} characters at most")
    try:
        parsed = jmespath.compile(text)
        references = _References(names)
        tree = cast("dict[str, Any]", parsed.parsed)
        references.whole(tree)
    except jmespath.exceptions.JMESPathError as error:
        rule = " ".join(str(error).split()).removeprefix("Invalid jmespath expression: ")
        raise ExpressionSyntax(f"no JMESPath expression: {rule}") from None
    except RecursionError:
        raise ExpressionSyntax("nested too deeply") from None
    return Expression(
        _path(tree) or parsed.search,
        tuple(references.nodes),
        tuple(references.inputs),
        is_constant=not references.roots,
    )


def _path(tree: dict[str, Any]) -> Evaluate | None:
    """A plain path such as ``nodes.a.b`` without the library's tree walk: 0.3 us instead of 2.5 us."""
    steps = tree["children"] if tree["type"] == "subexpression" else [tree]
    if any(step["type"] != "field" for step in steps):
        return None
    keys: tuple[str, ...] = tuple(step["value"] for step in steps)

    def evaluate(scope: Scope) -> Json:
        value: Any = scope
        for key in keys:
            if not isinstance(value, dict):
                return None
            value = cast("dict[str, Any]", value).get(key)
        return value

    return evaluate


# --- what an expression mentions -------------------------------------------------------------------

_SCOPE, _NODES, _INPUTS, _DATA = "scope", "nodes", "inputs", "data"
_CHAINS = frozenset({"subexpression", "index_expression", "pipe"})
_PROJECTIONS = frozenset({"projection", "filter_projection", "value_projection"})
_SAME = frozenset({"current", "identity"})


class _References:
    """Walks the library's syntax tree, knowing at each place what the current value is."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        self.nodes: dict[str, None] = {}
        self.inputs: dict[str, None] = {}
        self.roots: set[str] = set()

    def whole(self, tree: dict[str, Any]) -> None:
        self._used(self._walk(tree, _SCOPE))

    def _walk(self, tree: dict[str, Any], current: str) -> str:
        kind: str = tree["type"]
        children: list[dict[str, Any]] = tree["children"]
        if kind == "field":
            return self._field(tree["value"], current)
        if kind in _SAME:
            return current
        if kind in _CHAINS:
            if children[0]["type"] == "not_expression":
                raise ExpressionSyntax("'!' binds tighter than '.': write !(a.b)")
            for child in children:
                current = self._walk(child, current)
            return current
        if kind in _PROJECTIONS:
            self._used(self._walk(children[0], current))
            for child in children[1:]:
                self._walk(child, _DATA)
            return _DATA
        if kind == "function_expression":
            self._function(tree["value"], len(children))
        if kind in ("slice", "index", "literal"):
            return _DATA
        # Everything else (comparisons, multi-selects, calls) uses what its parts give.
        for child in children:
            self._used(self._walk(child, _DATA if kind == "expref" else current))
        return _DATA

    def _field(self, name: str, current: str) -> str:
        if current == _SCOPE:
            if name not in self._names:
                raise ExpressionSyntax(f"unknown name '{name}'; there are {', '.join(sorted(self._names))}")
            self.roots.add(name)
            return {"nodes": _NODES, "inputs": _INPUTS}.get(name, _DATA)
        if current == _NODES:
            self.nodes[name] = None
        elif current == _INPUTS:
            self.inputs[name] = None
        return _DATA

    def _used(self, result: str) -> None:
        if result == _NODES:
            raise ExpressionSyntax("'nodes' must be followed by the id of a node, as in nodes.first")
        if result == _SCOPE:
            raise ExpressionSyntax(f"'@' alone names nothing; there are {', '.join(sorted(self._names))}")

    @staticmethod
    def _function(name: str, given: int) -> None:
        table: Mapping[str, Mapping[str, Any]] = jmespath.functions.Functions.FUNCTION_TABLE
        if name not in table:
            raise ExpressionSyntax(f"unknown function '{name}'")
        signature: Sequence[Mapping[str, Any]] = table[name]["signature"]
        expected = len(signature)
        variadic = bool(signature) and bool(signature[-1].get("variadic"))
        if given < expected or (given > expected and not variadic):
            least = "at least " if variadic else ""
            raise ExpressionSyntax(f"{name}() takes {least}{expected} arguments, {given} given")


# --- values ----------------------------------------------------------------------------------------


def is_expression(text: str) -> bool:
    """Whether a value's string is ``${...}``, to be replaced by the expression's result."""
    return _WHOLE.fullmatch(text) is not None


def escape(value: Json) -> Json:
    """The value whose evaluation gives exactly ``value``: the inverse of ``compile_value``."""
    if isinstance(value, str):
        return f"${value}" if _DOLLARS.match(value) else value
    if isinstance(value, list | tuple):
        return [escape(item) for item in cast("Sequence[Json]", value)]
    if isinstance(value, Mapping):
        return {key: escape(item) for key, item in cast("Mapping[str, Json]", value).items()}
    return value


def compile_value(value: Json, names: frozenset[str] = NAMES) -> Expression:
    """Any JSON; its strings of the exact form ``${...}`` become results, ``$${`` stands for ``${``.

    Raises: ExpressionSyntax.
    """
    parts: list[Expression] = []
    evaluate = _build(value, names, parts)
    if evaluate is None:
        return Expression(_constant(_unescape(value)), is_constant=True)
    return Expression(
        evaluate,
        tuple(dict.fromkeys(name for part in parts for name in part.node_reads)),
        tuple(dict.fromkeys(name for part in parts for name in part.input_reads)),
        is_constant=all(part.is_constant for part in parts),
    )


def _build(value: Json, names: frozenset[str], parts: list[Expression]) -> Evaluate | None:
    """None: nothing in it is computed, so the constant can stand for it."""
    if isinstance(value, str):
        match = _WHOLE.fullmatch(value)
        if match is None:
            return None
        expression = compile_expression(match[1].strip(), names)
        parts.append(expression)
        return expression.evaluate
    if isinstance(value, list):
        return _build_list(cast("list[Json]", value), names, parts)
    if isinstance(value, dict):
        pairs = cast("dict[str, Json]", value)
        values = _build_list(list(pairs.values()), names, parts)
        if values is None:
            return None
        keys = tuple(pairs)
        return lambda scope: dict(zip(keys, values(scope), strict=True))
    return None


def _build_list(
    items: list[Json], names: frozenset[str], parts: list[Expression]
) -> Callable[[Scope], list[Json]] | None:
    built = [_build(item, names, parts) for item in items]
    if not any(built):
        return None
    evaluators = [evaluate or _constant(_unescape(item)) for item, evaluate in zip(items, built, strict=True)]
    return lambda scope: [evaluate(scope) for evaluate in evaluators]


def _constant(value: Json) -> Evaluate:
    def evaluate(_scope: Scope, /) -> Json:
        return value

    return evaluate


def _unescape(value: Json) -> Json:
    if isinstance(value, str):
        return value[1:] if _ESCAPED.match(value) else value
    if isinstance(value, list):
        return [_unescape(item) for item in cast("list[Json]", value)]
    if isinstance(value, dict):
        return {key: _unescape(item) for key, item in cast("dict[str, Json]", value).items()}
    return value
