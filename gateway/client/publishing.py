"""What is sent to publish a flow: its definition, and the code of its functions where that travels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Never, TypeAlias, cast
from uuid import uuid4

from gateway.client import calls
from gateway.client.calls import JSON, YAML, FlowSource, json_bytes
from gateway.client.code import functions_of, own_modules, package_of
from gateway.client.procedures import ask
from gateway.client.steps import Procedure
from gateway.client.views import PublishedFlow

Flow: TypeAlias = FlowSource | Mapping[str, Any] | Path
"""A decorated flow, a definition, or a YAML or JSON file."""


def publish(
    flow: Flow, modules: Iterable[str] | None, requirements: Iterable[str], tenant: str | None
) -> Procedure[Never, PublishedFlow]:
    """Upload the code that travels, if any does, then publish. Raises: ValueError, OSError."""
    wanted = tuple(requirements)
    if isinstance(flow, Path):
        if modules or wanted:
            raise ValueError("code travels with decorated flows and definitions; a file names its own")
        media_type = JSON if flow.suffix == ".json" else YAML
        return (yield from ask(calls.publish(flow.read_bytes(), media_type, tenant, uuid4().hex)))
    is_definition = isinstance(flow, Mapping)
    document: dict[str, Any] = dict(flow if is_definition else flow.definition().document)
    if modules is None:
        # Whoever writes a definition says in it what its functions are made of.
        modules = () if is_definition else own_modules(functions_of(document))
    names = sorted(set(modules))
    code: dict[str, Any] = dict(cast("Mapping[str, Any]", document.get("code") or {}))
    if names and not code.get("package"):
        code["package"] = yield from ask(calls.upload_package(package_of(names), tenant))
    if wanted:
        code["requirements"] = [*code.get("requirements", ()), *wanted]
    if code:
        document["code"] = code
    return (yield from ask(calls.publish(json_bytes(document), JSON, tenant, uuid4().hex)))
