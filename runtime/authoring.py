"""Flows in Python: decorated functions composed into the same definition that YAML gives.

    @step(retry=RetryPolicy(attempts=3))
    def greet(who: str) -> str: ...

    @flow(id="hello")
    def hello(inputs: Handle) -> Handle:
        return greet(inputs["who"])

    definition = hello.definition()

The body of a flow runs once, when its definition is asked for: calling a step there adds a node and gives
a ``Handle`` on its future output. Anywhere else a step is the function it decorates.

Workers find a step by ``module:qualname`` and meet the decorated object; ``inspect.unwrap`` of it is the
function as written.
"""

# ruff: noqa: A002 - id and input are the words of the format

import functools
import inspect
import json
import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Generic, Literal, ParamSpec, TypeVar, cast

from runtime.events import Json
from runtime.expressions import escape
from runtime.flow import FORMAT, FlowDefinition, parse_flow
from runtime.flow_fields import plain_fields
from runtime.packages import Code
from runtime.plan import ON_TIMEOUT, PLACEMENT, SOURCE_FORMAT, Resources, RetryPolicy
from runtime.queues import QueueFields

P = ParamSpec("P")
R = TypeVar("R")

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class NotImportable(TypeError):
    """A worker process could not import the function by its name."""


class Handle:
    """The future output of a node, an input of the flow, or a part of either."""

    __slots__ = ("expression", "node_id")

    def __init__(self, expression: str, node_id: str = "") -> None:
        self.expression = expression
        self.node_id = node_id
        """The node it is the whole output of, else empty."""

    def __getitem__(self, key: str | int) -> "Handle":
        if isinstance(key, int):
            return Handle(f"{self.expression}[{key}]")
        name = key if _IDENTIFIER.fullmatch(key) else json.dumps(key, ensure_ascii=False)
        return Handle(f"{self.expression}.{name}")

    def __iter__(self) -> Iterator["Handle"]:
        raise TypeError("the output isn't known yet; use a step's map() to work on its items")

    def __bool__(self) -> bool:
        raise TypeError("the output isn't known yet; use when= to make a node conditional")

    def __repr__(self) -> str:
        return f"Handle({self.expression!r})"


Needs = Sequence[Handle]


class _Composition:
    """The nodes added while the body of a flow function runs."""

    def __init__(self) -> None:
        self.nodes: list[dict[str, Json]] = []
        self._ids: set[str] = set()

    def add(
        self, wanted_id: str, config: Mapping[str, Json], needs: Needs, when: str | Handle | None
    ) -> Handle:
        node_id, number = wanted_id, 2
        while node_id in self._ids:
            node_id, number = f"{wanted_id}_{number}", number + 1
        self._ids.add(node_id)
        node: dict[str, Json] = {"id": node_id, **config}
        if needs:
            node["needs"] = [_node_id(handle) for handle in needs]
        if when is not None:
            node["when"] = when.expression if isinstance(when, Handle) else when
        self.nodes.append(node)
        return Handle(f"nodes.{node_id}", node_id)


_COMPOSING: ContextVar[_Composition | None] = ContextVar("composing", default=None)


@contextmanager
def _composing(composition: _Composition) -> Generator[None, None, None]:
    if _COMPOSING.get() is not None:
        raise TypeError("a flow's body can't define another flow; use run_flow() to start it as a child")
    token = _COMPOSING.set(composition)
    try:
        yield
    finally:
        _COMPOSING.reset(token)


def _composition() -> _Composition:
    composition = _COMPOSING.get()
    if composition is None:
        raise TypeError("nodes can only be added in the body of a function decorated with @flow")
    return composition


def _node_id(handle: Handle) -> str:
    if not handle.node_id:
        raise TypeError(f"needs takes the handles of whole nodes, not {handle!r}")
    return handle.node_id


def _value(value: Any, constant: Callable[[Any], Json] = escape) -> Json:
    """The value of the definition's format that stands for a Python value with handles in it."""
    if isinstance(value, Handle):
        return f"${{{value.expression}}}"
    if isinstance(value, Mapping):
        return {key: _value(item, constant) for key, item in cast("Mapping[str, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_value(item, constant) for item in cast("Sequence[Any]", value)]
    return constant(value)


def _expression(items: Handle | Sequence[Json]) -> str:
    if isinstance(items, Handle):
        return items.expression
    return f"`{json.dumps(list(items), ensure_ascii=False).replace('`', chr(92) + 'u0060')}`"


class StepFunction(Generic[P, R]):
    """A function that can be a node. Made by ``step``."""

    def __init__(self, function: Callable[P, R], settings: Mapping[str, Json]) -> None:
        self._target = _importable(function)
        self._signature = inspect.signature(function)
        for parameter in self._signature.parameters.values():
            if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL):
                raise TypeError(
                    f"{self._target}: arguments travel by name, so '{parameter.name}' can't be one"
                )
        self._settings = settings
        self._options: dict[str, Any] = {}
        self._id = function.__name__
        functools.update_wrapper(self, function)
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """In a flow's body a ``Handle``; anywhere else what the function returns."""
        composition = _COMPOSING.get()
        if composition is None:
            return self.function(*args, **kwargs)
        return self._add(self._call(self._signature.bind(*args, **kwargs)))

    def map(
        self,
        items: Handle | Sequence[Json],
        *,
        concurrency: int = 8,
        on_error: Literal["fail", "keep"] = "keep",
        **constant: Any,
    ) -> Handle:
        """A node that calls the function for every item, given as its first parameter.

        Its output is ``{"results": [...], "errors": [{"index", "error"}]}``.
        """
        each = self._call(self._signature.bind(Handle("item"), **constant))
        return self._add(
            {
                "kind": "map",
                "over": _expression(items),
                "each": each,
                "concurrency": concurrency,
                "on_error": on_error,
            }
        )

    def map_wide(
        self,
        source: str | Handle,
        *,
        format: SOURCE_FORMAT = "",
        chunk_items: int | None = None,
        chunk_seconds: float | None = None,
        concurrency: int = 8,
        on_error: Literal["fail", "keep"] = "keep",
        failures_max_share: float | None = None,
        **constant: Any,
    ) -> Handle:
        """A node that calls the function for every item of a source, given as its first parameter, in chunks.

        ``source``: a path, a URL or a folder pattern; or a handle that gives one, a data set or a list.
        Its output is a data set: another ``map_wide`` reads it, ``step_context.open_dataset`` opens it.
        """
        config: dict[str, Json] = {
            "kind": "map",
            "source": _value(source),
            "each": self._call(self._signature.bind(Handle("item"), **constant)),
            "concurrency": concurrency,
            "on_error": on_error,
        }
        chunk = {"size": chunk_items, "seconds": chunk_seconds}
        if any(size is not None for size in chunk.values()):
            config["chunk"] = {name: size for name, size in chunk.items() if size is not None}
        if format:
            config["format"] = format
        if failures_max_share is not None:
            config["failures_max_share"] = failures_max_share
        return self._add(config)

    def options(
        self, *, id: str = "", name: str = "", needs: Needs = (), when: str | Handle | None = None
    ) -> "StepFunction[P, R]":
        """The same step with options of the node that its next call adds."""
        copy: StepFunction[P, R] = StepFunction(self.function, self._settings)
        copy._id = id or self._id
        copy._options = {"name": name, "needs": needs, "when": when}
        return copy

    def _call(self, bound: inspect.BoundArguments) -> dict[str, Json]:
        # bound.arguments keeps what a **parameter takes in a dict of its own.
        arguments: dict[str, Json] = {}
        for parameter, value in bound.arguments.items():
            if self._signature.parameters[parameter].kind is inspect.Parameter.VAR_KEYWORD:
                arguments |= {key: _value(item) for key, item in value.items()}
            else:
                arguments[parameter] = _value(value)
        return {"kind": "python", "function": self._target, "with": arguments, **self._settings}

    def _add(self, config: dict[str, Json]) -> Handle:
        options = self._options
        if options.get("name"):
            config = {"name": options["name"], **config}
        return _composition().add(self._id, config, options.get("needs", ()), options.get("when"))


def step(
    *,
    retry: RetryPolicy | None = None,
    timeout_seconds: float | None = None,
    resources: Resources | None = None,
) -> Callable[[Callable[P, R]], StepFunction[P, R]]:
    """Make a function of a module usable as a node.

    Raises: NotImportable for lambdas, functions inside functions, and those of ``__main__``.
    """
    settings: dict[str, Json] = {}
    if retry is not None:
        settings["retry"] = plain_fields(retry)
    if timeout_seconds is not None:
        settings["timeout_seconds"] = timeout_seconds
    if resources is not None:
        settings["resources"] = plain_fields(resources)
    return lambda function: StepFunction(function, settings)


def _importable(function: Callable[..., Any]) -> str:
    module, name = function.__module__, function.__qualname__
    if "<" in name:
        what = "a lambda" if "<lambda>" in name else "defined inside another function"
        raise NotImportable(
            f"{name} is {what}; a step must be a function of a module, so workers can import it"
        )
    if module == "__main__":
        raise NotImportable(f"{name} is defined in __main__; move it to a module that workers can import")
    return f"{module}:{name}"


class FlowFunction:
    """A flow written as a function. Made by ``flow``."""

    def __init__(self, body: Callable[[Handle], Any], fields: Mapping[str, Json]) -> None:
        self._body = body
        self._fields = fields
        self.id = str(fields["id"])
        self.__doc__ = body.__doc__
        self._definition: FlowDefinition | None = None

    def definition(self) -> FlowDefinition:
        """The definition the body composes; ``graph.compile_flow`` checks it."""
        if self._definition is not None:
            return self._definition
        composition = _Composition()
        with _composing(composition):
            output = self._body(Handle("inputs"))
        document = {**self._fields, "nodes": composition.nodes}
        if output is not None:
            document["output"] = _value(output)
        self._definition = parse_flow(document)
        return self._definition


def flow(
    *,
    id: str,
    name: str = "",
    description: str = "",
    inputs: Mapping[str, Json] | None = None,
    timeout_seconds: float | None = None,
    placement: PLACEMENT = "pooled",
    queue: QueueFields | None = None,
    resources: Resources | None = None,
    code: Code | None = None,
) -> Callable[[Callable[[Handle], Any]], FlowFunction]:
    """Make a function of the flow's inputs the body of a flow; what it returns is the flow's output."""
    fields: dict[str, Json] = {
        "heliograph": FORMAT,
        "id": id,
        "name": name,
        "description": description,
        "inputs": inputs,
        "timeout_seconds": timeout_seconds,
        "placement": placement,
        "queue": None if queue is None else plain_fields(queue),
        "resources": None if resources is None else plain_fields(resources),
        "code": None if code is None else plain_fields(code),
    }
    return lambda body: FlowFunction(body, fields)


def node(kind: str, id: str, *, needs: Needs = (), when: str | Handle | None = None, **config: Any) -> Handle:
    """Add a node of any kind; ``config`` are its fields as YAML has them, with handles where values go."""
    plain = {name: _value(item, constant=lambda text: text) for name, item in config.items()}
    return _composition().add(id, {"kind": kind, **plain}, needs, when)


def sleep(
    seconds: float | Handle | None = None,
    *,
    until: str | Handle | None = None,
    id: str = "sleep",
    needs: Needs = (),
    when: str | Handle | None = None,
) -> Handle:
    """Add a durable timer: so many seconds, or until an ISO 8601 time."""
    config = {"seconds": seconds} if until is None else {"until": until}
    return node("sleep", id, needs=needs, when=when, **config)


def wait_for_signal(
    signal: str,
    *,
    timeout_seconds: float | None = None,
    on_timeout: ON_TIMEOUT = "fail",
    id: str = "",
    needs: Needs = (),
    when: str | Handle | None = None,
) -> Handle:
    """Add a wait for a signal; the handle is its payload."""
    config = {"signal": signal, "timeout_seconds": timeout_seconds, "on_timeout": on_timeout}
    default_id = re.sub(r"\W", "_", signal, flags=re.ASCII)
    return node("wait_for_signal", id or default_id, needs=needs, when=when, **config)


def run_flow(
    flow: str | FlowFunction,
    input: Mapping[str, Any] | Handle | None = None,
    *,
    id: str = "",
    needs: Needs = (),
    when: str | Handle | None = None,
) -> Handle:
    """Add a child flow; the handle is its output."""
    flow_id = flow if isinstance(flow, str) else flow.id
    default_id = re.sub(r"\W", "_", flow_id, flags=re.ASCII)
    return node(
        "flow",
        id or default_id,
        needs=needs,
        when=when,
        flow=flow_id,
        input=_value({} if input is None else input),
    )
