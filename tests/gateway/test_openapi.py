"""The OpenAPI document is one that tools can use."""

from collections import Counter
from typing import Any

from gateway.app import create_app
from gateway.settings import Settings

METHODS = ("get", "post", "put", "patch", "delete")


def operations() -> list[dict[str, Any]]:
    paths: dict[str, dict[str, Any]] = create_app(Settings()).openapi()["paths"]
    return [entry[method] for entry in paths.values() for method in METHODS if method in entry]


def test_every_operation_has_an_id_of_its_own() -> None:
    counted = Counter(operation["operationId"] for operation in operations())
    assert counted
    assert [name for name, count in counted.items() if count > 1] == []


def test_every_operation_says_what_it_is_for_and_what_it_answers() -> None:
    silent = [
        operation["operationId"]
        for operation in operations()
        if not operation.get("summary") or not operation["responses"]
    ]
    assert silent == []
