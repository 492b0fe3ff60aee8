"""The offline model can make up arguments for simple schemas only; the others' tools it leaves alone."""

import asyncio

from pydantic_ai.messages import ModelRequest, ToolCallPart, UserPromptPart
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.tools import ToolDefinition

from actors.agents.models import OfflineModel


def tool(name: str, kind: object) -> ToolDefinition:
    schema = {"type": "object", "properties": {"id": {"type": kind}}, "required": ["id"]}
    return ToolDefinition(name=name, parameters_json_schema=schema)


def test_a_tool_whose_schema_is_beyond_it_is_not_called() -> None:
    offered = [tool("plain", "string"), tool("either", ["string", "integer"])]
    asked = ModelRequest(parts=[UserPromptPart("hi")])
    answer = asyncio.run(
        OfflineModel().request([asked], None, ModelRequestParameters(function_tools=offered))
    )
    assert [part.tool_name for part in answer.parts if isinstance(part, ToolCallPart)] == ["plain"]
