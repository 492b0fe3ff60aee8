"""`heliograph agents`: the agents of a server, and finding one by what a person calls it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from gateway.cli.failures import CliFailure, usage
from gateway.cli.options import ApiKey, AsJson, Url

if TYPE_CHECKING:
    from gateway.cli.connection import Server

app = typer.Typer(no_args_is_help=True, help="Create, list and delete agents.")

PATH = "/api/agents"

AgentArgument = Annotated[str, typer.Argument(metavar="AGENT", help="Name or id of an agent.")]


@app.command("list")
def list_agents(as_json: AsJson = False, url: Url = None, api_key: ApiKey = None) -> None:
    """List agents."""
    from gateway.cli.connection import connected
    from gateway.cli.output import print_json, print_table

    with connected(url, api_key) as server:
        found = agents_of(server)
    if as_json:
        print_json(found)
        return
    print_table(
        ("NAME", "MODEL", "TOOLS", "DESCRIPTION", "ID"),
        [
            (one["name"], one.get("model") or "", _tool_names(one), one.get("description") or "", one["id"])
            for one in found
        ],
        "no agents yet: `heliograph agents create NAME`",
    )


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What people call it.")],
    instructions: Annotated[
        str | None,
        typer.Option(help="What it is told before every prompt; @FILE reads them.", show_default=False),
    ] = None,
    description: Annotated[str, typer.Option(help="What it is for.")] = "",
    model: Annotated[
        str | None, typer.Option(help="Its model [default: the server's].", show_default=False)
    ] = None,
    flow: Annotated[
        list[str] | None, typer.Option("--flow", metavar="FLOW", help="A published flow as a tool. Repeat.")
    ] = None,
    mcp: Annotated[
        list[str] | None, typer.Option("--mcp", metavar="NAME", help="A registered MCP server. Repeat.")
    ] = None,
    tool: Annotated[
        list[str] | None, typer.Option("--tool", metavar="JSON", help="Any tool; docs/agents.md. Repeat.")
    ] = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Create an agent and print its id."""
    from gateway.cli.connection import connected
    from gateway.cli.output import print_json, print_text

    body: dict[str, Any] = {
        "name": name,
        "description": description,
        "model": model,
        "mcp_server_ids": mcp or [],
        "tool_definitions": [
            *({"kind": "flow", "flow_id": flow_id} for flow_id in flow or ()),
            *(_tool(text) for text in tool or ()),
        ],
    }
    if instructions is not None:
        body["system_prompt"] = _instructions(instructions)
    with connected(url, api_key) as server:
        made = server.post(PATH, body)
    if as_json:
        print_json(made)
    else:
        print_text(str(made["id"]))


@app.command()
def delete(agent: AgentArgument, url: Url = None, api_key: ApiKey = None) -> None:
    """Delete an agent; its workflows stay, and refuse prompts."""
    from gateway.cli.connection import connected, segment
    from gateway.cli.output import note

    with connected(url, api_key) as server:
        found = agent_of(server, agent)
        server.delete(f"{PATH}/{segment(found['id'])}")
    note(f"agent {found['name']} is deleted")


def agents_of(server: Server) -> list[dict[str, Any]]:
    return cast("list[dict[str, Any]]", server.get(PATH))


def agent_of(server: Server, called: str) -> dict[str, Any]:
    """The agent of that id, else of that name. Raises: CliFailure when there is none, or several."""
    agents = agents_of(server)
    folded = called.casefold()
    for found in (
        [one for one in agents if one["id"] == called],
        [one for one in agents if one["name"] == called],
        [one for one in agents if one["name"].casefold() == folded],
    ):
        if len(found) == 1:
            return found[0]
        if found:
            ids = ", ".join(one["id"] for one in found)
            raise CliFailure(f"{len(found)} agents are called {called!r}", f"Name one by its id: {ids}")
    raise CliFailure(
        f"no agent is called {called!r}",
        "`heliograph agents list` shows them, `heliograph agents create` makes one.",
    )


def _tool_names(agent: dict[str, Any]) -> str:
    tools: list[dict[str, Any]] = agent.get("tool_definitions") or []
    names = [str(one.get("name") or one.get("flow_id") or one.get("function") or "") for one in tools]
    return ", ".join([*names, *(agent.get("mcp_server_ids") or [])])


def _tool(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise usage(f"--tool: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise usage(
            "--tool: expected a JSON object", """For example: '{"kind": "flow", "flow_id": "hello"}'"""
        )
    return cast("dict[str, Any]", value)


def _instructions(text: str) -> str:
    if not text.startswith("@"):
        return text
    try:
        return sys.stdin.read() if text == "@-" else Path(text[1:]).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise usage(f"--instructions {text}: {error}") from None
