"""The OpenAPI document of everything the chassis routes, from each operation's own `Doc`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

import msgspec

from gateway.routes import Dialect, Operation

_PARAMETER = re.compile(r"\{(\w+)\}")
_REF = "#/components/schemas/{name}"


def document(dialects: Iterable[Dialect], version: str) -> dict[str, Any]:
    """OpenAPI 3.1, as plain JSON."""
    found = list(dialects)
    paths: dict[str, Any] = {}
    models: list[type[Any]] = []
    for dialect in found:
        for resource in dialect.resources:
            parameters = [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
                for name in _PARAMETER.findall(resource.path)
            ]
            item: dict[str, Any] = {"parameters": parameters} if parameters else {}
            for method, operation in resource.operations.items():
                item[method.lower()] = _operation(dialect, operation, models)
            paths[resource.path] = item
    _, schemas = msgspec.json.schema_components(models, ref_template=_REF)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Heliograph", "version": version},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
        },
        "tags": [{"name": dialect.name} for dialect in found],
    }


def _operation(dialect: Dialect, operation: Operation, models: list[type[Any]]) -> dict[str, Any]:
    doc = operation.doc
    entry: dict[str, Any] = {
        "tags": [dialect.name],
        "summary": doc.summary,
        "operationId": f"{dialect.name}_{getattr(operation.handler, '__name__', 'call')}",
        "responses": _answers(dialect, operation, models),
    }
    if doc.description:
        entry["description"] = doc.description
    if doc.parameters:
        entry["parameters"] = [dict(parameter) for parameter in doc.parameters]
    if doc.request is not None:
        entry["requestBody"] = dict(doc.request)
    if operation.scope:
        entry["security"] = [{"key": []}, {"bearer": []}]
    return entry


def _answers(dialect: Dialect, operation: Operation, models: list[type[Any]]) -> dict[str, Any]:
    answers: dict[str, Any] = {}
    for status, answer in operation.doc.answers.items():
        shown = {name: value for name, value in answer.items() if name != "model"}
        model = answer.get("model")
        if model is not None:
            if model not in models:
                models.append(model)
            reference = {"$ref": _REF.format(name=model.__name__)}
            shown["content"] = {"application/json": {"schema": reference}}
        answers[str(status)] = {"description": HTTPStatus(status).phrase, **shown}
    codes = ["internal"]
    if operation.scope:
        codes += ["unauthenticated", "forbidden", "rate_limited"]
    for code in codes:
        fault = dialect.envelope.faults[code]
        answers.setdefault(str(fault.status), {"description": fault.message})
    return answers or {"200": {"description": "OK"}}
