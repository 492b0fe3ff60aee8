"""The routes every contract is made of, and the order in which a request is admitted (gateway rule G1).

A `Dialect` is a row of `dialects.DIALECTS`: an envelope and resources. The chassis matches resources
itself, in a tree of path segments: FastAPI's own way to a handler costs 20-40 us a request more, a tenth
of what a whole execution may cost. Whatever no resource owns goes on to the pages of FastAPI (`api_pages`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, NamedTuple

import msgspec
from starlette.responses import Response

from gateway.call import Call
from gateway.envelopes import Envelope, Problem
from gateway.keys import ADMIN

Handler = Callable[[Call], Awaitable[Response]]


class Doc(msgspec.Struct, frozen=True, kw_only=True):
    """What OpenAPI says about an operation. ``request`` and ``answers`` hold OpenAPI objects as they are."""

    summary: str
    description: str = ""
    parameters: tuple[Mapping[str, Any], ...] = ()
    request: Mapping[str, Any] | None = None
    answers: Mapping[int, Mapping[str, Any]] = {}


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """``scope``: what the key must allow; empty = no key is asked for. ``body_max`` in bytes, None = setting.

    ``streams``: the answer has no end of its own, so HEAD is not offered for it.
    """

    handler: Handler
    scope: str
    doc: Doc
    body_max: int | None = None
    streams: bool = False


class Resource(msgspec.Struct, frozen=True):
    """One path (``/a/{name}/b``) and its operations by method."""

    path: str
    operations: Mapping[str, Operation]

    def operation(self, method: str) -> Operation:
        """Raises: Problem method_not_allowed with Allow."""
        found = self.operations.get(method)
        if found is None and method == "HEAD":
            found = self.operations.get("GET")
            if found is not None and found.streams:
                found = None
        if found is None:
            raise Problem("method_not_allowed", headers={"Allow": ", ".join(self.allowed())})
        return found

    def allowed(self) -> list[str]:
        methods = list(self.operations)
        if "GET" in self.operations and not self.operations["GET"].streams:
            methods.append("HEAD")
        return methods


class Dialect(msgspec.Struct, frozen=True):
    """One published contract, or one of the gateway's own APIs (whose envelope is the house's)."""

    name: str
    envelope: Envelope
    resources: tuple[Resource, ...]


class Match(NamedTuple):
    resource: Resource
    dialect: str
    values: Mapping[str, str]


class _Branch:
    __slots__ = ("any", "dialect", "literals", "names", "resource")

    def __init__(self) -> None:
        self.literals: dict[str, _Branch] = {}
        self.any: _Branch | None = None
        self.resource: Resource | None = None
        self.names: tuple[str, ...] = ()
        self.dialect = ""


class RouteTable:
    """Resources by path segments; a literal segment wins over a parameter. Segments are never empty."""

    def __init__(self, dialects: Iterable[Dialect]) -> None:
        self._root = _Branch()
        for dialect in dialects:
            for resource in dialect.resources:
                self._add(dialect.name, resource)

    def _add(self, dialect: str, resource: Resource) -> None:
        branch = self._root
        names: list[str] = []
        for segment in resource.path.strip("/").split("/"):
            if segment.startswith("{"):
                names.append(segment[1:-1])
                branch.any = branch.any or _Branch()
                branch = branch.any
            else:
                branch = branch.literals.setdefault(segment, _Branch())
        if branch.resource is not None:
            raise ValueError(f"two resources at {resource.path}")
        branch.resource, branch.names, branch.dialect = resource, tuple(names), dialect

    def match(self, path: str) -> Match | None:
        """The resource at ``path``; one trailing slash names the same resource."""
        segments = path[1:].split("/")
        if len(segments) > 1 and not segments[-1]:
            segments.pop()
        values: list[str] = []
        branch = self._walk(self._root, segments, 0, values)
        if branch is None or branch.resource is None:
            return None
        return Match(branch.resource, branch.dialect, dict(zip(branch.names, values, strict=True)))

    def _walk(self, branch: _Branch, segments: list[str], depth: int, values: list[str]) -> _Branch | None:
        if depth == len(segments):
            return branch if branch.resource is not None else None
        segment = segments[depth]
        literal = branch.literals.get(segment)
        if literal is not None:
            found = self._walk(literal, segments, depth + 1, values)
            if found is not None:
                return found
        if branch.any is None or not segment:
            return None
        values.append(segment)
        found = self._walk(branch.any, segments, depth + 1, values)
        if found is None:
            values.pop()
        return found


async def admit(call: Call, operation: Operation) -> None:
    """Size, key, scope and rate, in this order. Raises: Problem."""
    if operation.body_max is not None:
        call.body_max = operation.body_max
    declared = call.headers.get(b"content-length")
    if declared is not None and int(declared) > call.body_max:
        raise Problem("body_too_large", headers={"Connection": "close"})
    if not operation.scope:
        return
    call.caller = caller = await call.gateway.keys.authenticate(call.headers)
    if operation.scope not in caller.scopes and ADMIN not in caller.scopes:
        raise Problem("forbidden")
    call.gateway.limits.take(caller, call.answer_headers)
