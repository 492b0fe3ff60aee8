"""``tool``: one call of one tool, without a model; its result is the output."""

from collections.abc import Mapping
from typing import Any, cast

import msgspec

from runtime.agent_spec import McpServer, ToolSpec
from runtime.events import Json
from runtime.kinds.kind import Binder, Kind
from runtime.plan import Act, CallTool, Scope


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """``tool``: as in an agent's ``tools``. ``name``: which of an MCP server's tools.

    ``arguments`` and ``secrets`` are objects, or a ``${...}`` that gives one.
    """

    tool: dict[str, Json] | str
    name: str = ""
    arguments: dict[str, Json] | str = msgspec.field(default_factory=dict[str, Json])
    secrets: dict[str, Json] | str = msgspec.field(default_factory=dict[str, Json])


def bind(config: Config, binder: Binder) -> Act:
    tool = binder.value("tool", config.tool)
    arguments = binder.value("arguments", config.arguments)
    secrets = binder.value("secrets", config.secrets)

    def act(scope: Scope) -> CallTool:
        try:
            spec: ToolSpec = msgspec.convert(tool(scope), ToolSpec)
            names = msgspec.convert(secrets(scope), dict[str, str])
        except msgspec.ValidationError as error:
            raise ValueError(f"tool: {error}") from None
        if isinstance(spec, McpServer) != bool(config.name):
            raise ValueError("name: an MCP server needs the name of one of its tools, other tools none")
        given: Any = arguments(scope)
        if not isinstance(given, Mapping):
            raise TypeError(f"arguments must give an object, not {type(given).__name__}")
        return CallTool(spec, config.name, cast("Mapping[str, Json]", given), names)

    return act


KIND = Kind(config=Config, bind=bind, in_map=True)
