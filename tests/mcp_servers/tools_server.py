"""A real MCP server, run as a process: on stdio, or on HTTP at a port of its own, printed as its first line.

python tools_server.py stdio [--deaf]        --deaf: ignores the end of stdin and SIGTERM
python tools_server.py http [--token T]      --token: requests must carry it as a bearer
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys
import threading
from typing import Any

import uvicorn
from mcp.server.mcpserver import Context, Image, MCPServer
from mcp.server.mcpserver.exceptions import ToolError

server = MCPServer("tools", instructions="Add before you echo.")


@server.tool()
def echo(text: str) -> str:
    """Say it again."""
    return text


@server.tool()
def add(a: int, b: int) -> int:
    """The sum of two whole numbers."""
    return a + b


@server.tool()
async def slow(seconds: float) -> str:
    """Take a while."""
    await asyncio.sleep(seconds)
    return "done"


@server.tool()
def fail() -> str:
    """Always fails."""
    raise ToolError("this one never works")


@server.tool()
def big(size: int) -> str:
    """A text of so many characters."""
    return "x" * size


@server.tool()
def needs_token() -> str:
    """Tells the token it was given."""
    token = os.environ.get("API_TOKEN", "")
    if not token:
        raise ToolError("API_TOKEN is not set")
    return f"signed in with {token}"


@server.tool(description=f"Signs in as {os.environ.get('API_TOKEN', 'nobody')}.")
def indiscreet() -> str:
    return "ok"


@server.tool(structured_output=False)
def picture() -> Image:
    """A picture of nine bytes."""
    return Image(data=b"not a png", format="png")


@server.tool()
def idempotency_key(context: Context[Any, Any]) -> str:
    """The key that came with the call."""
    meta: Any = context.request_context.meta or {}
    return str(meta.get("heliograph/idempotency-key", ""))


@server.tool()
def die() -> str:
    """End the server in the middle of a call."""
    sys.stderr.write("something broke inside\n")
    sys.stderr.flush()
    os._exit(3)


class Guarded:
    """Lets requests through that carry the bearer token."""

    def __init__(self, app: Any, token: str) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and dict(scope["headers"]).get(b"authorization") != self._expected:
            await send({"type": "http.response.start", "status": 401, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
        await self._app(scope, receive, send)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("transport", choices=("stdio", "http"))
    parser.add_argument("--deaf", action="store_true")
    parser.add_argument("--token", default="")
    options = parser.parse_args()
    if options.transport == "http":
        listener = socket.create_server(("127.0.0.1", 0))
        app: Any = server.streamable_http_app()
        if options.token:
            app = Guarded(app, options.token)
        sys.stdout.write(f"{listener.getsockname()[1]}\n")
        sys.stdout.flush()
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run([listener])
        return
    if options.deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        # A thread that never ends keeps the process alive after its server has ended.
        threading.Thread(target=threading.Event().wait).start()
    server.run("stdio")


if __name__ == "__main__":
    main()
