"""The input of an execution against the JSON Schema (draft 2020-12) of its flow."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, cast

import jsonschema_rs
import msgspec

from runtime.errors import InvalidInput
from runtime.events import Json
from runtime.flow import FlowDefinition
from runtime.flow_fields import Report

PROBLEMS_MAX = 50
DIALECT = "https://json-schema.org/draft/2020-12/schema"
# A pattern may take this many steps back on a text before it counts as broken: no endless matching.
_BACKTRACKS_MAX = 100_000


def check_input(definition: FlowDefinition, value: Json) -> None:
    """Refuse an input that isn't an object or breaks the flow's input schema.

    Raises: InvalidInput with at most ``PROBLEMS_MAX`` problems; values are never repeated in it.
    """
    if not isinstance(value, Mapping):
        raise InvalidInput((("", "must be an object"),))
    if not definition.inputs_text:
        return
    validator = _validator(definition.inputs_text)
    document = cast("dict[str, Json]", value)
    if validator.is_valid(document):
        return
    problems: list[tuple[str, str]] = []
    for error in validator.iter_errors(document):
        problems.append((_path(error.instance_path), error.message))
        if len(problems) == PROBLEMS_MAX:
            break
    raise InvalidInput(tuple(problems))


def check_schema(definition: FlowDefinition, report: Report) -> None:
    """Report what is wrong with the input schema itself."""
    schema: Any = definition.inputs
    if not isinstance(schema, dict):
        return
    document = cast("dict[str, Json]", schema)
    if document.get("$schema", DIALECT).rstrip("#") != DIALECT:
        report("inputs.$schema", f"must be {DIALECT}")
        return
    if document.get("type", "object") != "object":
        report("inputs.type", "must be object: an input always is one")
    try:
        _validator(definition.inputs_text)
    except jsonschema_rs.ValidationError as error:
        report(".".join(("inputs", *map(str, error.instance_path))), error.message)
    except (jsonschema_rs.ReferencingError, ValueError) as error:
        report("inputs", str(error))


def known_inputs(definition: FlowDefinition) -> frozenset[str] | None:
    """The only inputs there can be, when the schema says so."""
    schema: Any = definition.inputs
    if not isinstance(schema, dict):
        return None
    document = cast("dict[str, Any]", schema)
    properties: Any = document.get("properties")
    if document.get("additionalProperties") is not False or "patternProperties" in document:
        return None
    return frozenset(cast("dict[str, Json]", properties)) if isinstance(properties, dict) else frozenset()


@lru_cache(maxsize=1024)
def _validator(inputs_text: str) -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator(
        msgspec.json.decode(inputs_text),
        retriever=_no_retrieval,
        mask="the value",
        pattern_options=jsonschema_rs.FancyRegexOptions(backtrack_limit=_BACKTRACKS_MAX),
    )


def _no_retrieval(uri: str) -> Any:
    raise ValueError(f"a schema can't refer to another document ({uri})")


def _path(steps: list[str | int]) -> str:
    path = ""
    for step in steps:
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else step
    return path
