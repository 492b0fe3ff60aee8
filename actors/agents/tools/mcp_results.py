"""What an MCP server answered, as a model is told it."""

from typing import Any, cast

from mcp_types import (
    AudioContent,
    CallToolResult,
    ContentBlock,
    ImageContent,
    ResourceLink,
    TextContent,
    TextResourceContents,
)

from actors.agents.tools.interface import ToolResult
from runtime.events import Json


def told(result: CallToolResult) -> ToolResult:
    """The structured result where there is one, else the texts; of anything else media type and size only."""
    if result.structured_content is not None and not result.is_error:
        return ToolResult(content=_unwrapped(result.structured_content))
    text = "\n".join(_block(block) for block in result.content)
    if result.is_error:
        return ToolResult(content=text or "the tool failed without saying why", is_error=True)
    return ToolResult(content=text)


def _unwrapped(content: Any) -> Json:
    # Servers made with the SDK put a plain value into an object with this one field.
    if isinstance(content, dict):
        fields = cast("dict[str, Json]", content)
        return fields["result"] if list(fields) == ["result"] else fields
    return content


def _block(block: ContentBlock) -> str:
    match block:
        case TextContent():
            return block.text
        case ImageContent() | AudioContent():
            return _described(block.mime_type, block.data)
        case ResourceLink():
            return f"[link to {block.uri}: {block.mime_type or block.name}]"
        case _:
            resource = block.resource
            if isinstance(resource, TextResourceContents):
                return resource.text
            return _described(resource.mime_type or "application/octet-stream", resource.blob)


def _described(media_type: str, data: str) -> str:
    return f"[{media_type}, {len(data.rstrip('=')) * 3 // 4} bytes]"
