"""One tool, ready to be called: how every kind of tool looks to the ``toolbox``; the check before a call."""

from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from typing import Any

import jsonschema_rs
import msgspec

from actors.agents.tools.interface import ToolDefinition, ToolResult, ToolsUnavailable
from actors.step_journal import StepJournal
from runtime.events import Json

Arguments = Mapping[str, Json]
Call = Callable[[Arguments, str, StepJournal], Awaitable[ToolResult]]
"""Arguments, step, journal. May raise ``ToolFailed`` and TimeoutError besides CancelledError."""

PROBLEMS_MAX = 10
_BACKTRACKS_MAX = 100_000


class ToolFailed(Exception):
    """The call failed; the message is for the model."""


class BoundTool(msgspec.Struct, frozen=True, kw_only=True):
    """``server``: the MCP server it stands on. ``own_name``: as the server calls it."""

    definition: ToolDefinition
    call: Call
    server: str = ""
    own_name: str = ""


def object_schema(schema: Mapping[str, Json], tool: str) -> dict[str, Json]:
    """``schema`` as the parameters of a tool. Raises: ToolsUnavailable when it is no schema of an object."""
    whole: dict[str, Json] = {"type": "object", "properties": {}, **schema}
    if whole["type"] != "object":
        raise ToolsUnavailable("InvalidTool", f"tool {tool}: its schema must be of type object")
    try:
        _validator(msgspec.json.encode(whole, order="sorted"))
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
        message = f"tool {tool}: its schema is not valid: {str(error)[:500]}"
        raise ToolsUnavailable("InvalidTool", message) from None
    return whole


def check(definition: ToolDefinition, arguments: Arguments) -> None:
    """Raises: ToolFailed saying what is wrong with ``arguments``, for the model to correct."""
    validator = _validator(msgspec.json.encode(definition.parameters, order="sorted"))
    document: Any = dict(arguments)
    problems: list[str] = []
    for error in validator.iter_errors(document):
        path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.instance_path)
        problems.append(f"arguments{path}: {error.message}"[:500])
        if len(problems) == PROBLEMS_MAX:
            break
    if problems:
        raise ToolFailed("The tool was not called. " + "; ".join(problems))


@lru_cache(maxsize=512)
def _validator(schema: bytes) -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator(
        msgspec.json.decode(schema),
        retriever=_no_retrieval,
        pattern_options=jsonschema_rs.FancyRegexOptions(backtrack_limit=_BACKTRACKS_MAX),
    )


def _no_retrieval(uri: str) -> Any:
    raise ValueError(f"a schema can't refer to another document ({uri})")
