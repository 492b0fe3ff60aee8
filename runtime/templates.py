"""Jinja2 templates: which nodes and inputs they mention, and quick, bounded, deterministic rendering.

Beyond the library's sandbox: no loader (so no include, import, extends), no macros, nothing random, and
bounds on output, loops and products, because templates render on a host's event loop. That guards the
host against accidents; it is no wall against an author who means harm (who may name any Python function
in a flow anyway).

Odd on purpose: ``a.b`` on an object means its member ``b`` before any method of Python's dict, so
``inputs.items`` is the input called items; ``tojson`` gives plain JSON, not JSON escaped for HTML.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any, cast

import jinja2
import msgspec
from jinja2 import meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from runtime.plan import Scope

OUTPUT_CHARS_MAX = 1_048_576
TEMPLATE_CHARS_MAX = 65_536
"""Compiling takes up to 35 us a character. Plain text has no bound of its own."""
LOOP_ROUNDS_MAX = 100_000
"""All rounds of all loops of one rendering together."""
INTEGER_BITS_MAX = 4_096

# No template can write these names, so it can't reach or shadow what they stand for.
_ROUNDS = "(rounds left)"
_COUNTED = "(counted)"

_REFUSED_BLOCKS: tuple[tuple[type[nodes.Node], str], ...] = (
    (nodes.Include, "include"),
    (nodes.Import, "import"),
    (nodes.FromImport, "import"),
    (nodes.Extends, "extends"),
    (nodes.Block, "block"),
    (nodes.Macro, "macro"),
    (nodes.CallBlock, "call"),
)


class Template(msgspec.Struct, frozen=True):
    """``node_reads`` and ``input_reads``: the nodes and top-level inputs it mentions, in order."""

    render: Callable[[Scope], str]
    node_reads: tuple[str, ...] = ()
    input_reads: tuple[str, ...] = ()


class TemplateSyntax(ValueError):
    """The text is no template that may be used here; the message is the rule it breaks."""


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "**"})

    def getattr(self, obj: Any, attribute: str) -> Any:
        if type(obj) is dict and attribute in obj:
            return cast("dict[str, Any]", obj)[attribute]
        return super().getattr(obj, attribute)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            if bits > INTEGER_BITS_MAX:
                raise SecurityError(f"an integer of more than {INTEGER_BITS_MAX} bits")
        elif operator == "*":
            for repeated, times in ((left, right), (right, left)):
                if isinstance(repeated, str | list | tuple) and isinstance(times, int):
                    length = len(cast("str | list[Any] | tuple[Any, ...]", repeated))
                    if length * times > OUTPUT_CHARS_MAX:
                        raise SecurityError(f"a product of more than {OUTPUT_CHARS_MAX} characters or items")
        return super().call_binop(context, operator, left, right)


def _tojson(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


@jinja2.pass_context
def _counted(context: Context, items: Iterable[Any]) -> Iterator[Any]:
    rounds_left: list[int] = context.parent[_ROUNDS]
    for item in items:
        rounds_left[0] -= 1
        if rounds_left[0] < 0:
            raise SecurityError(f"the loops of a template may take {LOOP_ROUNDS_MAX} rounds at most")
        yield item


def _environment() -> _Environment:
    environment = _Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    # A step's output must depend on nothing but its scope, else a replay could differ.
    del environment.globals["lipsum"]
    del environment.filters["random"]
    filters = cast("dict[str, Callable[..., Any]]", environment.filters)
    filters["tojson"] = _tojson
    filters[_COUNTED] = _counted
    return environment


_ENVIRONMENT = _environment()


class _CountLoops(NodeTransformer):
    found = False

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802 - the library's naming
        self.generic_visit(node)
        self.found = True
        node.iter = nodes.Filter(node.iter, _COUNTED, [], [], None, None, lineno=node.lineno)
        return node


@lru_cache(maxsize=4096)
def compile_template(text: str, names: frozenset[str]) -> Template:
    """Compile once; ``names`` are the scope's names the text may use.

    Raises: TemplateSyntax, also for names and node ids that aren't written out.
    """
    if not any(mark in text for mark in ("{{", "{%", "{#")):
        return Template(lambda _scope: text)
    if len(text) > TEMPLATE_CHARS_MAX:
        raise TemplateSyntax(f"a template may have {TEMPLATE_CHARS_MAX} characters at most")
    try:
        tree = _ENVIRONMENT.parse(text)
        node_reads, input_reads = _references(tree, names)
        counter = _CountLoops()
        tree = counter.visit(tree)
        code = _ENVIRONMENT.compile(tree)
        template = jinja2.Template.from_code(_ENVIRONMENT, code, dict(_ENVIRONMENT.globals))
    except jinja2.TemplateSyntaxError as error:
        raise TemplateSyntax(f"{error.message} (line {error.lineno})") from None
    except RecursionError:
        raise TemplateSyntax("nested too deeply") from None
    return Template(_renderer(template, has_loops=counter.found), node_reads, input_reads)


def _renderer(template: jinja2.Template, *, has_loops: bool) -> Callable[[Scope], str]:
    def render(scope: Scope) -> str:
        variables = cast("dict[str, Any]", scope)
        if has_loops:
            variables = {**variables, _ROUNDS: [LOOP_ROUNDS_MAX]}
        parts: list[str] = []
        chars = 0
        # Not Template.render: it has no bound, and rewriting tracebacks costs more than rendering.
        for part in template.root_render_func(template.new_context(variables)):
            parts.append(part)
            chars += len(part)
            if chars > OUTPUT_CHARS_MAX:
                raise SecurityError(f"a template may give {OUTPUT_CHARS_MAX} characters at most")
        return "".join(parts)

    return render


def _references(tree: nodes.Template, names: frozenset[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    for block, keyword in _REFUSED_BLOCKS:
        if tree.find(block) is not None:
            raise TemplateSyntax(f"'{keyword}' is not available in templates")
    unknown = meta.find_undeclared_variables(tree) - names - set(_ENVIRONMENT.globals)
    if unknown:
        raise TemplateSyntax(f"unknown name '{min(unknown)}'; there are {', '.join(sorted(names))}")
    found: dict[str, dict[str, None]] = {"nodes": {}, "inputs": {}}
    members = 0
    for access in tree.find_all((nodes.Getattr, nodes.Getitem)):
        if not isinstance(access.node, nodes.Name) or access.node.name not in found:
            continue
        if isinstance(access, nodes.Getattr):
            member: Any = access.attr
        else:
            member = access.arg.value if isinstance(access.arg, nodes.Const) else None
        if isinstance(member, str):
            found[access.node.name][member] = None
            members += access.node.name == "nodes"
    for name in tree.find_all(nodes.Name):
        if name.name in names and name.ctx != "load":
            raise TemplateSyntax(f"'{name.name}' can't be assigned")
        if name.name == "nodes":
            members -= 1
    if members < 0:
        raise TemplateSyntax("'nodes' must be followed by the id of a node, as in nodes.first")
    return tuple(found["nodes"]), tuple(found["inputs"])
